"""Versions of a registered model, the alias `champion`, the history of its moves, and the promotion lock.

Each move is a tag such as `mlflow.champion_trail.000007`, never overwritten; MLflow's page hides tags of this form, so
the model's description lists them. The alias moves first: after a crash, roll it back like one set by hand.
"""

import json
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import psutil
from pydantic import ValidationError

from videoblip2.config import InputError
from videoblip2.errors import refused
from videoblip2.tracking.mlflow.store import UNKNOWN, answered, connect, is_unknown
from videoblip2.tracking.source import ProcessRecord
from videoblip2.tracking.tracker import markdown_table

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "videoblip2"
CHAMPION = "champion"
MOVES = "mlflow.champion_trail."  # of the tags that hold the history
ABOUT = (
    "Captions of videos and their sound, by VideoBLIP2. The alias `champion` is the version that is served: "
    "`vb2 promote RUN` moves it through the gate, `vb2 rollback` moves it back."
)
LOCK = "promotion_lock"  # the tag that names the holder of the lock
LOCK_SECONDS = 3600.0  # a promotion whose tag is older than this counts as dead
SETTLE_SECONDS = 1.0  # for another process between reading the tag and writing its own


def register(model_uri: str, name: str = NAME) -> int:
    """Register a logged model (`models:/m-…`) as the next version of NAME and return the version."""
    client = connect()
    remedy = "give the models:/m-… that a training run printed"
    with refused(f"{model_uri}: no logged model", remedy, Exception, when=is_unknown):
        logged = client.get_logged_model(model_uri.removeprefix("models:/"))
    _create(client, name)
    made = client.create_model_version(name, model_uri, run_id=logged.source_run_id, model_id=logged.model_id)
    return int(made.version)


def _create(client: "MlflowClient", name: str) -> None:
    with answered("RESOURCE_ALREADY_EXISTS"):
        client.create_registered_model(name, description=ABOUT)


def champion(name: str = NAME) -> int | None:
    """Return the version that is `champion`; None while there is none."""
    with answered(*UNKNOWN):
        return int(connect().get_model_version_by_alias(name, CHAMPION).version)
    return None


def set_champion(name: str, version: int) -> None:
    """Point the alias `champion` of NAME at a version, with no gate and no entry in its history."""
    fault, remedy = f"{name} has no version {version}", "register one with `vb2 promote RUN`"
    with refused(fault, remedy, Exception, when=is_unknown):
        connect().set_registered_model_alias(name, CHAMPION, str(version))


def user() -> str:
    """The user's name, or the user id if the machine has no name for it."""
    return str(psutil.Process().username())


def now() -> str:
    """The time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Move:
    """`champion` moved from `previous` (None: there was none) to `version`. when: ISO 8601, UTC."""

    action: Literal["promote", "force", "rollback"]
    version: int
    previous: int | None
    why: str = ""
    who: str = field(default_factory=lambda: f"{user()}@{socket.gethostname()}")
    when: str = field(default_factory=now)


def moves(name: str = NAME) -> list[Move]:
    """Every move of NAME's champion, oldest first."""
    tags = connect().get_registered_model(name).tags
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(MOVES)]


def move_champion(name: str, move: Move) -> None:
    """Point `champion` at `move.version` if it still points at `move.previous`, and record the move. Raises InputError
    if another process changed it: MLflow's last writer wins, so the alias is read again."""
    remedy = "another process is changing it; find out which, then run the command again"
    if (found := champion(name)) != move.previous:
        was = f"is version {found or '(none)'} now and was version {move.previous or '(none)'} when the gate looked"
        raise InputError(f"{name}@{CHAMPION}: {was}: {remedy}")
    set_champion(name, move.version)
    if (found := champion(name)) != move.version:
        raise InputError(f"{name}@{CHAMPION}: was set to version {move.version}, and is {found or '(none)'}: {remedy}")
    client = connect()
    model = client.get_registered_model(name)
    last = max((int(key.removeprefix(MOVES)) for key in model.tags if key.startswith(MOVES)), default=0)
    client.set_registered_model_tag(name, f"{MOVES}{last + 1:06d}", json.dumps(asdict(move), ensure_ascii=False))
    if (model.description or ABOUT).startswith(ABOUT):  # text that a person wrote stays
        rows = [[each.when, str(each.version), each.action, each.why, each.who] for each in reversed(moves(name))]
        table = markdown_table(["when", "champion", "by", "why", "who"], rows)
        client.update_registered_model(name, f"{ABOUT}\n\n{table}")


def succession(history: Sequence[Move]) -> list[int]:
    """The champions up to the current one, which is last; a rollback removes the champion it undid. A champion set by
    hand is known from the next move's `previous`."""
    line: list[int] = []
    for move in history:
        if move.action == "rollback":
            line = [*before(line, move.version), move.version]
            continue
        for version in (move.previous, move.version):
            if version is not None and line[-1:] != [version]:
                line.append(version)
    return line


def before(line: Sequence[int], version: int) -> list[int]:
    """The part of `line` before the last occurrence of `version`; empty if it does not occur."""
    return list(line[: len(line) - 1 - line[::-1].index(version)]) if version in line else []


class LockTag(ProcessRecord):
    """Who holds the lock, in which process, and until when (seconds since 1970)."""

    id: str
    who: str = "unknown user"
    expires: float

    def is_alive(self) -> bool:
        """Whether the lock has not expired and its process, if on this machine, still runs."""
        return self.expires >= time.time() and (not self.is_local() or self.is_running())


@dataclass(frozen=True)
class PromotionLock:
    """The lock on one registered model; call `renew` before changing anything."""

    client: "MlflowClient"
    name: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def holder(self) -> LockTag | None:
        """Who holds the lock; None if nobody does, or the tag was written by hand."""
        text = self.client.get_registered_model(self.name).tags.get(LOCK)
        try:
            return LockTag.model_validate_json(text) if text else None
        except ValidationError:
            return None

    def write(self) -> None:
        """Set the tag to this process, for an hour."""
        tag = {"id": self.id, "who": user(), "expires": time.time() + LOCK_SECONDS, **ProcessRecord.current().fields()}
        self.client.set_registered_model_tag(self.name, LOCK, json.dumps(tag))

    def renew(self) -> None:
        """Check that the lock is still ours and extend it by an hour. Raises InputError if it is not."""
        if (holder := self.holder()) is None:
            raise InputError(f"{self.name}: the tag {LOCK} was deleted; promote again")
        if holder.id != self.id:
            busy = f"another promotion is under way ({holder.who}, process {holder.pid} on {holder.host})"
            raise InputError(f"{self.name}: {busy}; wait until it finishes, or delete the tag {LOCK} if it is dead")
        self.write()


@contextmanager
def promotion_lock(name: str) -> Iterator[PromotionLock]:
    """Hold the lock on NAME, created if needed: a tag with owner and expiry, read again after other writers have had
    time, and before each change, since MLflow has no compare-and-set. Raises InputError if it is taken."""
    client = connect()
    _create(client, name)
    lock = PromotionLock(client, name)
    if (holder := lock.holder()) is None or not holder.is_alive():
        lock.write()
        time.sleep(SETTLE_SECONDS)
    lock.renew()
    try:
        yield lock
    finally:
        if (holder := lock.holder()) and holder.id == lock.id:
            client.delete_registered_model_tag(name, LOCK)
