"""Messages for the user, in one line: what is wrong, where, and what to do; and the protocol of progress bars."""

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # every command imports this module, pydantic only those that read a configuration
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound="BaseModel")


#: MLflow's codes for a refused login, and the remedy.
DENIED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) to a user with access"
#: Passwords and tokens in addresses: after a user's name, as the only login of a web address, and in the query.
SECRETS = (
    (re.compile(r"(://[^\s:/@'\"]*:)[^\s'\"]+@"), r"\1***@"),
    (re.compile(r"(https?://)[^\s:/@'\"]+@"), r"\1***@"),
    (re.compile(r"([?&](?:\w*passw\w*|pass|pwd|\w*token|\w*secret|\w*key)=)[^&\s'\"]+", re.IGNORECASE), r"\1***"),
)


def masked(text: str) -> str:
    """Mask passwords and tokens in the addresses of a text."""
    for secret, shown in SECRETS:
        text = secret.sub(shown, text)
    return text


def warn(text: str) -> None:
    """Print a warning on standard error."""
    print(f"warning: {masked(text)}", file=sys.stderr, flush=True)


class InputError(ValueError):
    """A mistake in the user's input: one line with the value, the place and the remedy, and no password."""

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


def counted(number: int, noun: str) -> str:
    """Such as "1 video", "2 videos"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(names: Sequence[str], most: int = 5) -> str:
    """Up to `most` names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: BaseException) -> str:
    """Why something failed, in at most 200 characters: from the database, the system, or the first line."""
    cause: BaseException | None = error
    while cause is not None:
        if (original := getattr(cause, "orig", None)) is not None:  # SQLAlchemy wraps the driver's own error
            return str(original).strip().splitlines()[0][:200]
        cause = cause.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    network = re.search(r"\[Errno -?\d+\] ([^:'\]]+)", line)
    return network[1] if network else line[:200]


@contextmanager
def refused(
    fault: str, remedy: str, *kinds: type[Exception], when: Callable[[Exception], bool] = lambda _: True
) -> Iterator[None]:
    """Turn an error of these kinds into an `InputError`: the fault, the error's first line, and the remedy.

    when: which of these errors; all others are raised as they are.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, InputError) or not when(error):
            raise
        raise InputError(f"{fault} ({first_line(error)}); {remedy}") from error


def one_line(error: Exception) -> str:
    """An InputError's message, or another error's type and message; without passwords."""
    text = masked(" ".join(str(error).split()))
    return text if isinstance(error, InputError | FloatingPointError) else f"{type(error).__name__}: {text}"


def validated(model: type[Model], content: object, source: str = "", name: Callable[[str], str] = str) -> Model:
    """Build a pydantic model. Raises InputError naming `source` and each wrong key; name: a key for the user."""
    from pydantic import ValidationError

    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(dict.fromkeys(_explain(model, problem, name) for problem in error.errors()))
        raise InputError(f"{source}: {problems}" if source else problems) from error


def dotted_keys(model: "type[BaseModel]") -> list[str]:
    """Every key of a model and of the models within it, such as `optim.lr`."""
    keys: list[str] = []
    for key in model.model_fields:
        inner = _section(model, [key])
        keys += [key] if inner is model else [f"{key}.{leaf}" for leaf in dotted_keys(inner)]
    return keys


def _explain(model: "type[BaseModel]", problem: "ErrorDetails", name: Callable[[str], str]) -> str:
    path = [str(part) for part in problem["loc"] if part not in ("int", "float")]  # pydantic's names of a union's parts
    key, message = ".".join(path), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        section = _section(model, path[:-1])
        siblings = [".".join([*path[:-1], sibling]) for sibling in section.model_fields]
        near = difflib.get_close_matches(key, siblings if section is not model else dotted_keys(model), 1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(siblings)}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{name(key)}: is missing"
    given = f"{name(key)}={problem['input']!r}: " if key else ""
    if problem["type"] == "model_type":
        return f"{given}a section; set its keys, such as {key}.{next(iter(_section(model, path).model_fields))}"
    return f"{given}{message[0].lower()}{message[1:]}"


def _section(model: "type[BaseModel]", path: list[str]) -> "type[BaseModel]":
    """The model at a path, or the innermost one that holds a plain value."""
    for part in path:
        inner: Any = model.model_fields[part].annotation if part in model.model_fields else None
        model = inner if hasattr(inner, "model_fields") else model
    return model


#: (items, how many, description) → the same items, with a progress bar.
Progress = Callable[[Iterable[Any], int, str], Iterator[Any]]


def no_progress(items: Iterable[Any], total: int = 0, description: str = "") -> Iterator[Any]:
    """A Progress that shows nothing."""
    yield from items


class Steps(list[int]):
    """Step numbers, with a note (the loss) that a progress bar shows."""

    note = ""
