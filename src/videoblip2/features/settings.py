"""The knobs of feature extraction, in one frozen place."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from videoblip2.config import InputError
from videoblip2.errors import validated

SAMPLING_RATE = 48_000  # Hz; the rate that every published CLAP checkpoint was trained at


class FeatureSettings(BaseModel):
    """How a video is cut into frames and audio windows. A feature store holds one such setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: float = Field(default=1.0, gt=0, le=120, description="frames a second that go through CLIP")
    max_frames: int | None = Field(
        default=None, ge=1, description="a video with more frames is thinned evenly to this many; null keeps all"
    )
    window_seconds: float | None = Field(
        default=None, ge=0.1, description="seconds of audio to one CLAP vector; null takes the encoder's own (10 s)"
    )
    frames: int | None = Field(
        default=None,
        ge=1,
        description="exactly this many frames a video, evenly over its length, out of those at `fps`; null: all those",
    )
    output: Literal["projected", "hidden"] = Field(
        default="projected", description="CLIP's projected vector (ViT-L/14: 768) or its hidden one (ViT-B: 768)"
    )
    tokens: Literal["pooled", "patch"] = Field(
        default="pooled", description="one vector a frame, or one for each of its P patches: [F * P, 768]"
    )
    batch_frames: int = Field(default=64, ge=1, description="frames in one forward pass; does not change the features")


def feature_settings(**values: object) -> FeatureSettings:
    """Build `FeatureSettings`; a wrong value becomes an `InputError` that names it."""
    if values.get("frames") and values.get("max_frames"):
        raise InputError(f"frames={values['frames']}: is a fixed count, max_frames a limit; give one of the two")
    return validated(FeatureSettings, values)
