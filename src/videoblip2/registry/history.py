"""Every move of `champion`, with who, when and why, and the way back along them.

Each move is one tag of the registered model, such as `champion_trail.000007`, and is never overwritten. The alias moves
first: a crash between the two leaves a champion that no move explains. Such a champion, like one set by hand, can be
rolled back.
"""

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from videoblip2.config import InputError
from videoblip2.registry.lock import promotion_lock, user
from videoblip2.registry.versions import CHAMPION, NAME, champion, replace_champion, store_in_words
from videoblip2.tracking import find_model
from videoblip2.tracking.mlflow.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "champion_trail."


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
        """Move the alias, if it still points to `move.previous`, and record the move."""
        replace_champion(self.name, move.previous, move.version)
        number = 1 + max((int(key.removeprefix(TAG)) for key in self._tags()), default=0)
        text = json.dumps(asdict(move), ensure_ascii=False)
        self.client.set_registered_model_tag(self.name, f"{TAG}{number:06d}", text)

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
        return {key: text for key, text in tags.items() if key.startswith(TAG)}


def succession(moves: Sequence[Move]) -> list[int]:
    """The champions that led to the present one, which is last: a rollback removes the champion that it left.

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
    """What precedes the last occurrence of `version`; nothing where there is none."""
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
