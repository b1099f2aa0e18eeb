"""Follows a model: polls the registry, loads and warms a new version beside the old one, then swaps one reference.

A request keeps the model that it began with, so a swap breaks no request. If the new one does not load, or the
registry does not answer, the old one stays. Two copies are in memory during a swap.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from videoblip2.config import InputError

from . import observe

if TYPE_CHECKING:
    from videoblip2.captioner import Captioner
    from videoblip2.predict import FoundModel

RETRY_SECONDS = 60  # after a version that did not load


@dataclass(frozen=True, eq=False)
class Served:
    """A model in service, warm."""

    captioner: "Captioner"
    since: float = field(default_factory=time.time)

    @property
    def version(self) -> str:
        return self.captioner.version


def find(model: str) -> "FoundModel":
    """Where MODEL is now; see `predict.find_model`."""
    from videoblip2.predict import find_model

    return find_model(model)


def load_warm(found: "FoundModel", model: str, device: str) -> "Captioner":
    """Load, warm up, and load the media encoders where they are on this machine."""
    from videoblip2.predict import open_model

    captioner = open_model(model, device=device, found=found).captioner
    captioner.warm()
    try:
        captioner.load_media_encoders()
    except (InputError, OSError) as error:
        observe.log.warning("version %s takes features only, no media: %s", captioner.version, error)
    return captioner


class Follower:
    """Keeps `current` at what MODEL points to; `look` is called repeatedly, from one thread.

    Args:
        announce: called with each version that comes into service.
    """

    def __init__(
        self, model: str, device: str = "auto", announce: Callable[[str], None] = lambda version: None
    ) -> None:
        self.model, self.device, self._announce = model, device, announce
        self.current: Served | None = None
        self.trouble = ""
        self._found: FoundModel | None = None
        self._failed: FoundModel | None = None
        self._retry_at = 0.0

    def look(self) -> bool:
        """Look once; True where another model came into service."""
        try:
            found = find(self.model)
        except Exception as error:  # a registry can fail in many ways; the model in service stays
            self._note(f"{error}; {self._kept()}")
            return False
        if found == self._found:
            self._note("")
            return False
        if found == self._failed and time.monotonic() < self._retry_at:
            return False
        return self._swap(found)

    def _swap(self, found: "FoundModel") -> bool:
        started = time.perf_counter()
        try:
            captioner = load_warm(found, self.model, self.device)
        except Exception as error:
            self._failed, self._retry_at = found, time.monotonic() + RETRY_SECONDS
            self._note(f"version {found.version} does not load ({type(error).__name__}: {error}); {self._kept()}")
            return False
        self.current, self._found = Served(captioner), found
        self._note("")
        seconds = round(time.perf_counter() - started, 1)
        observe.log.info(
            "loaded", extra={"fields": {"model": self.model, "version": found.version, "seconds": seconds}}
        )
        self._announce(found.version)
        return True

    def _kept(self) -> str:
        return f"version {self.current.version} stays" if self.current else "nothing to serve yet"

    def _note(self, trouble: str) -> None:
        """Log a trouble when it begins, not at every look."""
        if trouble and trouble != self.trouble:
            observe.log.error("%s: %s", self.model, " ".join(trouble.removeprefix(f"{self.model}: ").split()))
        self.trouble = trouble


class Poller:
    """One thread that looks for all followers: MLflow's client is used by one thread only."""

    def __init__(self, followers: Sequence[Follower], seconds: float) -> None:
        self._followers, self._seconds = followers, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end, without waiting for a load in progress."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            for follower in self._followers:
                follower.look()
            self._stop.wait(self._seconds)
