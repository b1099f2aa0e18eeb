"""Every move of `champion`, with who, when and why, and the way back along them.

One tag of the registered model a move, `champion_trail.000007`, never written twice. The alias is moved first: a crash
between the two leaves a champion that no move explains, and such a champion, like one set by hand, can be left again.
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
    """`champion` went from `previous` (None: there was none) to `version`. `when` is ISO 8601, UTC."""

    action: Literal["promote", "force", "rollback"]
    version: int
    previous: int | None
    why: str = ""
    who: str = field(default_factory=lambda: f"{user()}@{socket.gethostname()}")
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def read_trail(client: "MlflowClient", name: str = NAME) -> list[Move]:
    """Every move, the oldest first."""
    tags = client.get_registered_model(name).tags
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(TAG)]


def move_champion(client: "MlflowClient", name: str, move: Move) -> None:
    """Move the alias, if it still is where `move` says it was, and write the move down."""
    replace_champion(name, move.previous, move.version)
    tags = client.get_registered_model(name).tags
    number = 1 + max((int(key.removeprefix(TAG)) for key in tags if key.startswith(TAG)), default=0)
    client.set_registered_model_tag(name, f"{TAG}{number:06d}", json.dumps(asdict(move), ensure_ascii=False))


def reign(moves: Sequence[Move]) -> list[int]:
    """The champions that led to the present one, the present one last: a rollback takes back what it left.

    A champion that no move made (set by hand) is known from the next move's `previous`.
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
    """What stands in front of the last place of `version`; nothing where it has none."""
    return list(line[: len(line) - 1 - list(reversed(line)).index(version)]) if version in line else []


def rollback(name: str = NAME, why: str = "") -> Move:
    """Put the champion before the present one back, and write down who did it and why.

    Versions that were deleted since are passed over. Raises InputError where there is none to go back to, or its files
    are gone.
    """
    client = connect()
    with store_in_words():
        if (current := champion(name)) is None:
            raise InputError(f"{name}: has no champion to go back from; make one with `vb2 promote RUN`")
        with promotion_lock(name) as lock:
            target = _predecessor(client, name, current)
            find_model(f"models:/{name}/{target}")
            lock.renew()
            move = Move("rollback", target, current, why or "no reason given")
            move_champion(client, name, move)
            client.set_model_version_tag(name, str(current), "rolled_back", f"{move.when} by {move.who}: {move.why}")
    return move


def _predecessor(client: "MlflowClient", name: str, current: int) -> int:
    line = reign(read_trail(client, name))
    before = _before(line, current) if current in line else line
    there = {int(version.version) for version in client.search_model_versions(f"name = '{name}'")}
    for version in reversed(before):
        if version in there and version != current:
            return version
    raise InputError(
        f"{name}@{CHAMPION}: version {current} has no champion before it; `vb2 promote RUN` makes another one"
    )
