"""Versions of a registered model, the alias `champion`, and its history: who moved it, when, why, and the way back.

Each move is a tag of the registered model, such as `champion_trail.000007`, which is never overwritten. The alias moves
first: a crash between the two leaves a champion that no move explains. Such a champion can be rolled back, like one set
by hand.
"""

import json
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from videoblip2.config import InputError
from videoblip2.errors import first_line
from videoblip2.registry.lock import make_name, promotion_lock, user
from videoblip2.tracking import find_model
from videoblip2.tracking.mlflow.store import connect, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "videoblip2"
CHAMPION = "champion"
MOVES = "champion_trail."  # of the tags that hold the history
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's answer for a missing name or alias
BUSY = "TEMPORARILY_UNAVAILABLE"  # MLflow's answer while another process locks the database


def register(model_uri: str, name: str = NAME) -> int:
    """Register a logged model (`models:/m-…`) as the next version of NAME and return the version."""
    from mlflow.exceptions import MlflowException

    client = connect()
    try:
        logged = client.get_logged_model(model_uri.removeprefix("models:/"))
    except MlflowException as error:
        raise InputError(f"{model_uri}: no logged model; give the models:/m-… that a training run printed") from error
    make_name(client, name)
    source = f"models:/{logged.model_id}"
    return int(client.create_model_version(name, source, run_id=logged.source_run_id, model_id=logged.model_id).version)


def version_of(client: "MlflowClient", name: str, model_id: str) -> int | None:
    """Return the newest version of NAME that was registered from this logged model; None where there is none."""
    versions = client.search_model_versions(f"name = '{name}'")
    own = [int(version.version) for version in versions if version.source == f"models:/{model_id}"]
    return max(own, default=None)


def set_champion(name: str, version: int) -> None:
    """Point the alias `champion` of NAME at a version, with no gate and no entry in its history."""
    from mlflow.exceptions import MlflowException

    try:
        connect().set_registered_model_alias(name, CHAMPION, str(version))
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        raise InputError(f"{name} has no version {version}; register one with `vb2 promote RUN`") from error


def replace_champion(name: str, expected: int | None, version: int) -> None:
    """Point `champion` at a version if it still points at `expected`, and read it again afterwards.

    MLflow's alias is last-writer-wins. Raises InputError where somebody changed it meanwhile, before or after us.
    """
    found = champion(name)
    if found != expected:
        raise InputError(
            f"{name}@{CHAMPION}: is {_said(found)} now and was {_said(expected)} when the gate looked at it; nothing "
            "was changed here, run the command again"
        )
    set_champion(name, version)
    if (found := champion(name)) != version:
        raise InputError(
            f"{name}@{CHAMPION}: was set to version {version}, and somebody set it to {_said(found)} at the same time; "
            "find out who, then run the command again"
        )


def champion(name: str = NAME) -> int | None:
    """Return the version that is `champion`; None while there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return int(connect().get_model_version_by_alias(name, CHAMPION).version)
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None


def _said(version: int | None) -> str:
    return "none" if version is None else f"version {version}"


@contextmanager
def store_in_words() -> Iterator[None]:
    """Report a store that is locked or out of reach in one line; MLflow prints a page."""
    from mlflow.exceptions import MlflowException

    noisy = logging.getLogger("mlflow.store.db.utils")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)
    try:
        yield
    except MlflowException as error:
        if error.error_code != BUSY:
            raise
        raise InputError(
            f"{tracking_uri()}: the store is locked by another process, or out of reach ({first_line(error)}); "
            "nothing more was written, run the command again when it is free"
        ) from error
    finally:
        noisy.setLevel(level)


@dataclass(frozen=True)
class Move:
    """`champion` moved from `previous` (None: there was none) to `version`. when: ISO 8601, UTC."""

    action: Literal["promote", "force", "rollback"]
    version: int
    previous: int | None
    why: str = ""
    who: str = field(default_factory=lambda: f"{user()}@{socket.gethostname()}")
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class ChampionHistory:
    """The moves of one registered model's `champion`, stored as its tags."""

    client: "MlflowClient"
    name: str = NAME

    def moves(self) -> list[Move]:
        """Every move, oldest first."""
        return [Move(**json.loads(text)) for _, text in sorted(self._tags().items())]

    def move(self, move: Move) -> None:
        """Move the alias if it still points to `move.previous`, and record the move."""
        replace_champion(self.name, move.previous, move.version)
        number = 1 + max((int(key.removeprefix(MOVES)) for key in self._tags()), default=0)
        text = json.dumps(asdict(move), ensure_ascii=False)
        self.client.set_registered_model_tag(self.name, f"{MOVES}{number:06d}", text)

    def before(self, current: int) -> int:
        """The champion before `current`; versions deleted since are skipped. Raises InputError where there is none."""
        line = succession(self.moves())
        earlier = _before(line, current) if current in line else line
        versions = self.client.search_model_versions(f"name = '{self.name}'")
        existing = {int(version.version) for version in versions} - {current}
        for version in reversed(earlier):
            if version in existing:
                return version
        raise InputError(
            f"{self.name}@{CHAMPION}: version {current} has no champion before it; `vb2 promote RUN` makes another one"
        )

    def _tags(self) -> dict[str, str]:
        tags = self.client.get_registered_model(self.name).tags
        return {key: text for key, text in tags.items() if key.startswith(MOVES)}


def succession(moves: Sequence[Move]) -> list[int]:
    """The champions up to the current one, which is last; a rollback removes the champion that it left.

    A champion that was set by hand is known from the next move's `previous`.
    """
    line: list[int] = []
    for move in moves:
        if move.action == "rollback":
            line = [*_before(line, move.version), move.version]
            continue
        for version in (move.previous, move.version):
            if version is not None and line[-1:] != [version]:
                line.append(version)
    return line


def _before(line: Sequence[int], version: int) -> list[int]:
    """What precedes the last occurrence of `version`; empty if it does not occur."""
    return list(line[: len(line) - 1 - list(reversed(line)).index(version)]) if version in line else []


def rollback(name: str = NAME, why: str = "") -> Move:
    """Restore the previous champion and record who did it and why.

    Raises InputError where there is no previous champion or its files are gone.
    """
    client = connect()
    with store_in_words():
        if (current := champion(name)) is None:
            raise InputError(f"{name}: has no champion to go back from; make one with `vb2 promote RUN`")
        history = ChampionHistory(client, name)
        with promotion_lock(name) as lock:
            target = history.before(current)
            find_model(f"models:/{name}/{target}")
            lock.renew()
            move = Move("rollback", target, current, why or "no reason given")
            history.move(move)
            client.set_model_version_tag(name, str(current), "rolled_back", f"{move.when} by {move.who}: {move.why}")
    return move
