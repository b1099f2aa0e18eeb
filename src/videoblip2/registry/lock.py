"""One promotion of a name at a time.

MLflow has no compare-and-set. On one machine a file lock keeps promoters apart; between machines a tag of the
registered model, which names its owner and expires, written and read again after the others' writes have arrived.
"""

import getpass
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from videoblip2.config import InputError
from videoblip2.registry.versions import make_name
from videoblip2.tracking.liveness import ProcessRecord
from videoblip2.tracking.mlflow.store import connect, sqlite_file, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "promotion_lock"
SECONDS = 3600.0  # a gate that says nothing for so long is taken for dead
SETTLE_SECONDS = 1.0  # how long another machine's write may take between its look at the tag and its own tag


@dataclass
class PromotionLock:
    """The lock on one registered model; `renew` before anything is changed."""

    client: "MlflowClient"
    name: str
    owner: dict[str, Any] = field(default_factory=lambda: identity())

    def take(self) -> None:
        """Write our tag. Raises InputError, naming the holder, where another promotion has it."""
        if held := self._holder():
            raise InputError(self._refusal(held))
        self._write()
        if sqlite_file(tracking_uri()) is None:
            time.sleep(SETTLE_SECONDS)
        self.renew()

    def renew(self) -> None:
        """Make sure that the lock is ours still, for an hour from now."""
        tag = self._read()
        if tag.get("id") != self.owner["id"]:
            raise InputError(self._refusal(tag) if tag else f"{self.name}: the tag {TAG} was taken away; promote again")
        self._write()

    def release(self) -> None:
        """Take our tag away; another's stays."""
        if self._read().get("id") == self.owner["id"]:
            self.client.delete_registered_model_tag(self.name, TAG)

    def _holder(self) -> dict[str, Any] | None:
        """The living holder's tag: not expired, and on this machine with a process that runs."""
        tag = self._read()
        if not tag or tag["expires"] < time.time():
            return None
        process = ProcessRecord.read(tag)
        return None if process and process.is_local() and not process.is_running() else tag

    def _read(self) -> dict[str, Any]:
        text = self.client.get_registered_model(self.name).tags.get(TAG)
        try:
            tag = json.loads(text) if text else {}
            return tag if {"id", "host", "pid", "expires"} <= tag.keys() else {}
        except (ValueError, AttributeError):  # not ours: somebody wrote the tag by hand
            return {}

    def _write(self) -> None:
        tag = {**self.owner, "expires": time.time() + SECONDS}
        self.client.set_registered_model_tag(self.name, TAG, json.dumps(tag))

    def _refusal(self, tag: dict[str, Any]) -> str:
        return (
            f"{self.name}: another promotion is under way ({tag.get('who')}, process {tag['pid']} on {tag['host']}); "
            f"wait for its end, or delete the tag {TAG} of {self.name} if it is dead"
        )


@contextmanager
def promotion_lock(name: str) -> Iterator[PromotionLock]:
    """Hold the lock on NAME, which is made if there is none. Raises InputError at once where another holds it."""
    client = connect()
    try:
        with FileLock(lock_file(name), timeout=0):
            make_name(client, name)
            lock = PromotionLock(client, name)
            lock.take()
            try:
                yield lock
            finally:
                lock.release()
    except Timeout as error:
        raise InputError(
            f"{name}: another promotion is under way on this machine ({error.lock_file}); wait for its end"
        ) from error


def lock_file(name: str) -> Path:
    """Beside a sqlite store; for any other store in the user's cache, one file an address and name."""
    uri = tracking_uri()
    database = sqlite_file(uri)
    if database is not None:
        return database.with_name(f"{database.name}.{_plain(name)}.lock")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videoblip2"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / f"promotion-{_plain(uri + name)}.lock"


def _plain(text: str) -> str:
    return text if text.isidentifier() else hashlib.sha256(text.encode()).hexdigest()[:12]


def identity() -> dict[str, Any]:
    """Who holds a lock: a fresh id, user, machine, process."""
    return {"id": uuid.uuid4().hex, "who": user(), **ProcessRecord.current().fields()}


def user() -> str:
    """The user's name, or number where the machine has no name for it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"
