"""How a video is cut into frames and audio windows: the settings, the frames they choose, and what counts as silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from videoblip2.errors import InputError, validated

SAMPLING_RATE = 48_000  # Hz; the rate that every published CLAP checkpoint was trained at
LEVELS = ("absent", "empty", "silent", "present")
SILENCE = 1e-4  # full scale is 1; a stream that never exceeds -80 dB is silent
T = TypeVar("T")


class FeatureSettings(BaseModel):
    """How a video is cut into frames and audio windows. A feature store holds one such setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: float = Field(default=1.0, gt=0, le=120, description="frames a second that go through CLIP")
    max_frames: int | None = Field(
        default=None, ge=1, description="a video with more frames is thinned evenly to this many; null keeps all"
    )
    window_seconds: float | None = Field(
        default=None, ge=0.1, description="seconds of audio per CLAP vector; null takes the encoder's own (10 s)"
    )
    frames: int | None = Field(
        default=None,
        ge=1,
        description="exactly this many frames per video, evenly spaced, out of those at `fps`; null takes all of them",
    )
    output: Literal["projected", "hidden"] = Field(
        default="projected", description="CLIP's projected vector (ViT-L/14: 768) or its hidden one (ViT-B: 768)"
    )
    tokens: Literal["pooled", "patch"] = Field(
        default="pooled", description="one vector per frame, or one for each of its P patches: [F * P, width]"
    )
    batch_frames: int = Field(default=64, ge=1, description="frames in one forward pass; does not change the features")


def feature_settings(**values: object) -> FeatureSettings:
    """Build `FeatureSettings`; a wrong value becomes an `InputError` that names it."""
    if values.get("frames") and values.get("max_frames"):
        raise InputError(f"frames={values['frames']}: is a fixed count, max_frames a limit; give one of the two")
    return validated(FeatureSettings, values)


def choose_frames(frames: Iterable[T], settings: FeatureSettings) -> Iterable[T]:
    """The frames that the settings ask for: all, at most `max_frames`, or exactly `frames`.

    One at a time if all are wanted; otherwise at most 2 * max_frames are held.
    """
    if settings.frames is not None:
        return spread(thin(frames, settings.frames), settings.frames)
    return frames if settings.max_frames is None else thin(frames, settings.max_frames)


def thin(frames: Iterable[T], max_frames: int) -> list[T]:
    """At most `max_frames` of `frames`, evenly spaced, first and last included; holds 2 * max_frames at most."""
    kept: list[T] = []
    stride = 1
    for index, frame in enumerate(frames):
        if index % stride:
            continue
        kept.append(frame)
        if len(kept) > 2 * max_frames:
            kept, stride = kept[::2], stride * 2
    return kept if len(kept) <= max_frames else spread(kept, max_frames)


def spread(frames: list[T], count: int) -> list[T]:
    """Exactly `count` of `frames`, evenly spaced; if there are fewer, some are repeated."""
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]


class Loudness:
    """Whether a video has sound: `level` is known once all chunks have passed through `heard`."""

    level = "absent"  # "present", "silent", "empty" (a stream without a sample) or "absent"

    def heard(self, chunks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The chunks, unchanged."""
        for chunk in chunks:
            level = "empty" if not len(chunk) else "silent" if float(np.abs(chunk).max()) < SILENCE else "present"
            self.level = max(self.level, level, key=LEVELS.index)
            yield chunk
