"""One promotion of a registered model at a time.

MLflow has no compare-and-set. On one machine a file lock keeps promoters apart. Between machines a tag of the
registered model does: it names its owner, expires, and is read again once the writes of others have arrived.
"""

import getpass
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from videoblip2.config import InputError
from videoblip2.tracking.liveness import ProcessRecord
from videoblip2.tracking.mlflow.store import connect, sqlite_file, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "promotion_lock"
SECONDS = 3600.0  # a promotion that has not renewed its tag for this long counts as dead
SETTLE_SECONDS = 1.0  # how long another machine's write may take between reading the tag and writing its own


class LockTag(BaseModel):
    """Who holds the lock, in which process (see ProcessRecord), and until when (seconds since 1970)."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    id: str
    host: str
    pid: str
    pid_namespace: str = ""
    pid_started: str = ""
    who: str = "unknown user"
    expires: float

    @classmethod
    def ours(cls) -> "LockTag":
        """A fresh tag of this process."""
        process = ProcessRecord.current().fields()
        return cls.model_validate({"id": uuid.uuid4().hex, "who": user(), "expires": 0, **process})

    def is_alive(self) -> bool:
        """Not expired, and on this machine only while its process runs."""
        process = ProcessRecord.read(self.model_dump())
        return self.expires >= time.time() and not (process and process.is_local() and not process.is_running())


@dataclass(frozen=True)
class PromotionLock:
    """The lock on one registered model; call `renew` before changing anything."""

    client: "MlflowClient"
    name: str
    owner: LockTag = field(default_factory=LockTag.ours)

    def take(self) -> None:
        """Write our tag. Raises InputError naming the holder if another promotion holds the lock."""
        if (held := self._read()) and held.is_alive():
            raise InputError(self._refusal(held))
        self._write()
        if sqlite_file(tracking_uri()) is None:
            time.sleep(SETTLE_SECONDS)
        self.renew()

    def renew(self) -> None:
        """Check that the lock is still ours and extend it by an hour."""
        tag = self._read()
        if tag is None or tag.id != self.owner.id:
            raise InputError(self._refusal(tag) if tag else f"{self.name}: the tag {TAG} was deleted; promote again")
        self._write()

    def release(self) -> None:
        """Delete our tag; another promotion's stays."""
        if (tag := self._read()) and tag.id == self.owner.id:
            self.client.delete_registered_model_tag(self.name, TAG)

    def _read(self) -> LockTag | None:
        text = self.client.get_registered_model(self.name).tags.get(TAG)
        try:
            return LockTag.model_validate_json(text) if text else None
        except ValidationError:  # written by hand
            return None

    def _write(self) -> None:
        tag = self.owner.model_copy(update={"expires": time.time() + SECONDS})
        self.client.set_registered_model_tag(self.name, TAG, tag.model_dump_json())

    def _refusal(self, tag: LockTag) -> str:
        return (
            f"{self.name}: another promotion is under way ({tag.who}, process {tag.pid} on {tag.host}); "
            f"wait for its end, or delete the tag {TAG} of {self.name} if it is dead"
        )


@contextmanager
def promotion_lock(name: str) -> Iterator[PromotionLock]:
    """Hold the lock on NAME, which is created if needed. Raises InputError at once if another promotion holds it."""
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


def make_name(client: "MlflowClient", name: str) -> None:
    """Create the registered model NAME unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def lock_file(name: str) -> Path:
    """Beside a sqlite store; for any other store in the user's cache, one file for each address and name."""
    uri = tracking_uri()
    if (database := sqlite_file(uri)) is not None:
        return database.with_name(f"{database.name}.{_plain(name)}.lock")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videoblip2"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / f"promotion-{_plain(uri + name)}.lock"


def _plain(text: str) -> str:
    return text if text.isidentifier() else hashlib.sha256(text.encode()).hexdigest()[:12]


def user() -> str:
    """The user's name, or number where the machine has no name for it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"
