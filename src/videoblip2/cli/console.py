"""What several commands share: arguments and options, progress bars, tables, one JSON object."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from typer import Argument, Exit, Option, Typer

from videoblip2.errors import InputError, refused
from videoblip2.files import expand, json_text


def expanded(value: Any) -> Any:
    """Expand `~` and `$HOME` in a path, a string or a list of them: shells leave them in `--out=~/x`."""
    if isinstance(value, list):
        return [expanded(each) for each in value]
    return type(value)(expand(str(value))) if value is not None else None


Json = Annotated[bool, Option("--json", help="Print one JSON object on the last line of standard output.")]
ConfigFile = Annotated[str, Argument(metavar="CONFIG", help="YAML file, or a name from `vb2 experiments list`.")]
ModelName = Annotated[str, Argument(metavar="MODEL", help="Checkpoint folder, run, or models:/videoblip2@champion.")]
RegisteredName = Annotated[str, Option(help="Registered model.")]
Folder = Annotated[Path, Option(help="Base folder of relative paths in the configuration.")]
FeatureFolder = Annotated[Path | None, Option("--features", help="Feature store; videos are then given by id.")]
Beams = Annotated[int | None, Option("--num-beams", "--beams", min=1, max=100, help="Beams; default: the model's.")]
Engine = Annotated[Literal["local", "ray"], Option(help="local, or ray: Ray Data on one machine or many.")]
Words = list[str] | None  # KEY=VALUE …; each command says which keys

AS_JSON = ContextVar("as_json", default=False)
REPORT_SECONDS = 60  # between progress lines where there is no terminal for a bar
SOME_FAILED = 3  # exit code

T = TypeVar("T")
say = partial(print, flush=True)


def examples(*commands: str) -> str:
    """The examples at the end of a command's help."""
    return "\n".join(["\b", "Example:" if len(commands) == 1 else "Examples:", *(f"  vb2 {line}" for line in commands)])


class Commands(Typer):
    """A group of commands, most of which report a result."""

    def report(self, *lines: str, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Add a command with these example lines and a last option, --json, which `emit` obeys."""

        def add(function: Callable[..., None]) -> Callable[..., None]:
            @wraps(function)
            def run(*, json: bool, **given: object) -> None:
                AS_JSON.set(json)
                function(**given)

            last = Parameter("json", Parameter.KEYWORD_ONLY, default=False, annotation=Json)
            run.__signature__ = Signature([*signature(function).parameters.values(), last])  # type: ignore[attr-defined]
            run.__annotations__ = {**function.__annotations__, "json": Json}
            return self.command(name, epilog=examples(*lines))(run)

        return add


def overrides_from(words: Words) -> list[str]:
    """["a=1", "--b.c", "2"] → ["a=1", "b.c=2"]."""
    pairs, rest = [], list(words or [])
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            key, separator, value = word[2:].partition("=")
            word = f"{key}={value if separator or not rest else rest.pop(0)}"
        pairs.append(word)
    return pairs


def key_values(what: str) -> Any:
    """The argument KEY=VALUE …"""
    text = f"{what} `--optim.lr 1e-5` means optim.lr=1e-5."
    return Argument(metavar="KEY=VALUE", help=text, callback=overrides_from)


def go_to(folder: Path) -> None:
    """Make `folder` the base of relative paths."""
    with refused(f"--folder {folder}: cannot be used", "give a folder that exists", OSError):
        os.chdir(folder)


def require(paths: Iterable[str | Path], remedy: str) -> None:
    """Raise InputError for the first path that does not exist; commands check before any heavy import."""
    for path in paths:
        if not Path(path).exists():
            raise InputError(f"{path}: no such file or folder; {remedy}")


def require_model(model: str) -> Path:
    """The folder of MODEL. Raises InputError if it does not exist; a name with a slash is a folder or `models:/…`."""
    from videoblip2.tracking import find_model

    if "/" in model and not model.startswith("models:"):
        require([model], "give a checkpoint folder, a run (`vb2 runs list`) or models:/videoblip2@champion")
    return find_model(model).folder


def leads() -> bool:
    """Whether this is torchrun's rank 0, the only process that queries MLflow and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def emit(record: object, text: str, **more: object) -> None:
    """Print `text`; with --json, `record` (a mapping or dataclass) with `more` as one JSON object on the last line."""
    if not leads():
        return
    if text:
        print(text)
    if AS_JSON.get():
        print(json_text(plain(more) | plain(record), default=str))
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """Dataclasses and named tuples as mappings, at any depth; NaN and infinity as None, since JSON lacks them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "_asdict") or isinstance(value, Mapping):
        items = value if isinstance(value, Mapping) else value._asdict()
        return {key: plain(item) for key, item in items.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def exit_if_failed(failed: int, done: int) -> None:
    """Exit with 3 if some items failed. Raises InputError if all did."""
    if failed and not done:
        raise InputError(f"all {failed} items failed; fix the problems listed above")
    if failed:
        raise Exit(SOME_FAILED)


def listed(*lines: tuple[object, str]) -> list[str]:
    """The report lines whose count or list is not empty."""
    return [line for value, line in lines if value]


def progress(items: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
    """Yield `items` with a progress bar (speed, time left) on a terminal, or one line per minute elsewhere."""
    if not sys.stderr.isatty():
        start = last = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if (now := time.monotonic()) - last >= REPORT_SECONDS:
                last, speed = now, done / (now - start)
                of = f" of {total}, {(total - done) / speed / 60:.0f} min left" if total else ""
                print(f"{description}: {done}{of}, {speed:.1f}/s", file=sys.stderr, flush=True)
        return
    from tqdm import tqdm

    with tqdm(items, description, total, leave=False, dynamic_ncols=True) as bar:
        for item in bar:
            yield item
            bar.set_postfix_str(getattr(items, "note", ""), refresh=False)


@contextmanager
def interruptible(remains: str) -> Iterator[None]:
    """Within the block, treat SIGTERM like Ctrl-C; `remains` tells the user what is kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(remains, file=sys.stderr, flush=True)
        raise
    except BrokenPipeError:  # `vb2 caption … | head`: the reader closed its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail
        raise Exit from None
    finally:
        signal.signal(signal.SIGTERM, before)


def table(title: str, columns: Sequence[str], rows: Iterable[Iterable[object]], fold: tuple[str, ...] = ()) -> str:
    """A table as text, as wide as the terminal (at least 120 columns) or, in a file, as needed; only `fold` wraps."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for name in columns:
        drawn.add_column(name, no_wrap=name not in fold, overflow="fold" if name in fold else "ellipsis")
    for row in rows:
        drawn.add_row(*map(str, row))
    width = max(120, Console().width) if sys.stdout.isatty() else 1000
    text = StringIO()
    Console(file=text, width=width, color_system=None).print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())
