"""Settings of the service: environment variables, read at the start. docs/serving.md has the table."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from videoblip2.config import InputError, Section
from videoblip2.errors import validated

CHAMPION = "models:/videoblip2@champion"
MB = 1 << 20


class Settings(Section):
    """One environment variable per field: `max_batch` is VB2_MAX_BATCH."""

    model: str | None = Field(None, description="MODEL to serve; an alias is followed, a folder is not")
    pin: int | None = Field(None, ge=1, description="a fixed version of the registered model instead of the champion")
    shadow: str | None = Field(None, description="MODEL that runs in shadow: logged and compared, never returned")
    shadow_log: Path | None = Field(None, description="JSON lines with the captions of champion and shadow")
    device: str = Field("auto", description="auto, cpu, cuda …")
    max_batch: int = Field(32, ge=1, description="captions (times beams) decoded at once")
    max_waiting: int = Field(256, ge=1, description="videos in the queue, so also the most in one request")
    timeout_seconds: float = Field(60, gt=0, le=290, description="longest wait for an answer, then 504")
    poll_seconds: float = Field(0.5, gt=0, allow_inf_nan=False, description="between polls of the registry")
    api_key: str = Field("", repr=False, description="bearer key; several, separated by commas, while you change it")
    max_requests: int = Field(64, ge=1, description="requests in flight; more get 429 before their body is read")
    max_upload_mb: float = Field(100, gt=0, allow_inf_nan=False, description="body of a request, else 413")
    upload_seconds: float = Field(120, gt=0, allow_inf_nan=False, description="for the whole body, else 408")
    retry_after: int = Field(1, ge=1, description="Retry-After in seconds when there is no better estimate")
    decoders: int = Field(2, ge=1, description="decoding processes, each with one media file at a time")
    decode_seconds: float = Field(60, gt=0, allow_inf_nan=False, description="for one file; for CPU time, per core")
    decode_wait_seconds: float = Field(30, gt=0, allow_inf_nan=False, description="for a free decoder, else 429")
    decode_memory_mb: int = Field(2048, ge=1, description="address space of a decoder")
    max_video_seconds: float = Field(600, gt=0, allow_inf_nan=False, description="length of a video")
    max_pixels: int = Field(4096 * 2304, ge=1, description="of one frame")
    page: bool = Field(True, description="the page at /; without it, / describes the API")
    trust_proxy: bool = Field(False, description="trust X-Forwarded-{Host,Port,Proto,Prefix}; only behind a proxy")
    references: Path | None = Field(None, description="annotation file with captions for the page to show")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="of the JSON log lines")

    @property
    def address(self) -> str:
        """MODEL with the pin applied: models:/NAME@ALIAS and 3 make models:/NAME/3."""
        model = self.model or baked_model() or CHAMPION
        return model if self.pin is None else f"models:/{re.split('[@/]', model)[1]}/{self.pin}"

    @property
    def api_keys(self) -> tuple[str, ...]:
        """The accepted keys; none = no key is required."""
        keys = (key.strip() for key in self.api_key.split(","))
        return tuple(key for key in keys if key)


def baked_model() -> str | None:
    """The checkpoint that `vb2 package` placed beside the service; None if the service runs from the repository."""
    folder = Path(__file__).resolve().parents[1] / "model"
    return str(folder) if (folder / "VERSION").is_file() else None


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read VB2_* variables; an empty one counts as not set. Raises InputError naming the variable."""
    names = {name: f"VB2_{name.upper()}" for name in Settings.model_fields}
    given = {name: environment[variable] for name, variable in names.items() if environment.get(variable)}
    model = given.get("model") or baked_model() or CHAMPION
    if "pin" in given and not model.startswith("models:/"):
        whose = f"VB2_MODEL={model}" if "model" in given else "the model baked into this Bento"
        raise InputError(f"VB2_PIN={given['pin']}: {whose} has no versions; leave VB2_PIN out")
    return validated(Settings, given, name=names.__getitem__)
