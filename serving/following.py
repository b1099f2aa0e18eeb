"""Follows a model: polls the registry, loads and warms a new version beside the old one, then swaps one reference.

A request keeps its model. If a new one does not load, or the registry does not answer, the old one stays.
"""

import time
from dataclasses import asdict

from videoblip2.captioner import Captioner
from videoblip2.config import InputError
from videoblip2.errors import validated
from videoblip2.predict import FoundModel, OpenModel, find_model, model_mark, open_model

from . import observe
from .messages import Options

RETRY_SECONDS = 60  # after a version that did not load


def open_servable(model: str, device: str = "auto", found: FoundModel | None = None) -> OpenModel:
    """Open a model. Raises InputError if it decodes by itself as no request may ask for."""
    opened = open_model(model, device=device, found=found)
    own = opened.decode.decoding
    used = {"temperature": own.consensus, "length_penalty": own.num_beams > 1}
    asked = {name: value for name, value in asdict(own).items() if used.get(name, True)}
    try:
        validated(Options, asked, model, lambda name: f"decode.{'samples' if name == 'consensus' else name}")
    except InputError as error:
        raise InputError(f"{error}; promote a model within these limits of the service") from error
    return opened


def load_warm(found: FoundModel, model: str, device: str, before: Captioner | None = None) -> Captioner:
    """Load and warm up a model, with media encoders from this machine or, if equal, from the model before."""
    captioner = open_servable(model, device, found).captioner
    captioner.warm()
    try:
        if before and before.encoders_name == captioner.encoders_name:
            captioner.media_encoders = before.media_encoders
        captioner.load_media_encoders()
    except (InputError, OSError) as error:
        observe.log.warning("version %s takes features only, no media: %s", captioner.version, error)
    return captioner


class Follower:
    """Keeps `current` at what MODEL points to; `look` is called again and again, from one thread."""

    def __init__(self, model: str, device: str = "auto") -> None:
        self.model, self.device = model, device
        self.current: Captioner | None = None
        self.since = 0.0  # epoch seconds
        self.trouble = ""
        self._found: FoundModel | None = None
        self._mark: str | None = None
        self._failed: FoundModel | None = None
        self._retry_at = 0.0

    def look(self) -> bool:
        """Poll once, as cheaply as the registry allows; True if another model came into service."""
        kept = f"version {self.current.version} stays" if self.current else "nothing to serve yet"
        try:
            seen, self._mark = self._mark, model_mark(self.model)
            if self.current and not self.trouble and seen is not None and seen == self._mark:
                return False
            found = find_model(self.model)
        except Exception as error:  # a registry can fail in many ways; the model in service stays
            self._note(f"{error}; {kept}")
            return False
        if found == self._found:
            self._note("")
            return False
        if found == self._failed and time.monotonic() < self._retry_at:
            return False
        started = time.perf_counter()
        try:
            self.current, self.since = load_warm(found, self.model, self.device, self.current), time.time()
        except Exception as error:
            self._failed, self._retry_at = found, time.monotonic() + RETRY_SECONDS
            self._note(f"version {found.version} does not load ({type(error).__name__}: {error}); {kept}")
            return False
        self._found = found
        self._note("")
        seconds = round(time.perf_counter() - started, 1)
        fields = {"model": self.model, "version": found.version, "seconds": seconds}
        observe.log.info("loaded", extra={"fields": fields})
        return True

    def _note(self, trouble: str) -> None:
        """Log a problem when it starts, not at every poll."""
        if trouble and trouble != self.trouble:
            observe.log.error("%s: %s", self.model, " ".join(trouble.removeprefix(f"{self.model}: ").split()))
        self.trouble = trouble
