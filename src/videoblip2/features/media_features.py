"""From a media file to features: cut a video into frames and audio windows, and encode them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from videoblip2.errors import InputError, validated
from videoblip2.features.encoders import load_clap, load_clip
from videoblip2.features.frames import Audio, Frame
from videoblip2.features.media import decode_audio, named, stream_frames
from videoblip2.features.towers import FrameEncoder, Pixels, SoundEncoder
from videoblip2.modality import Features
from videoblip2.provenance import FeatureOrigin, FeatureSampling

LEVELS = ("absent", "empty", "silent", "present")
SILENCE = 1e-4  # of full scale; a stream that never exceeds -80 dB is silent
T = TypeVar("T")


class FeatureSettings(FeatureSampling, extra="forbid"):
    """The settings of extraction: one sampling for all videos of a store, and the size of a batch."""

    fps: float = Field(default=1.0, gt=0, le=120)  # frames per second
    max_frames: int | None = Field(default=None, ge=1)  # a video with more is thinned evenly to this many
    window_seconds: float | None = Field(default=None, ge=0.1)  # of audio per vector; None = the encoder's longest
    frames: int | None = Field(default=None, ge=1)  # exactly this many, evenly spaced, out of those at `fps`
    output: Literal["projected", "hidden"] = "projected"  # CLIP ViT-L/14: 768 projected; ViT-B: 768 hidden
    tokens: Literal["pooled", "patch"] = "pooled"  # one vector per frame, or one for each of its P: [F * P, width]
    batch_frames: int = Field(default=64, ge=1)  # frames in one forward pass; does not change the features

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.frames and self.max_frames:
            raise ValueError(f"frames={self.frames}: is a fixed count, max_frames a limit; give one of the two")
        return self


def choose_frames(frames: Iterable[T], settings: FeatureSettings) -> Iterable[T]:
    """The frames that the settings ask for: all, or up to `max_frames` or exactly `frames`, evenly spaced.

    If all are wanted, they are passed on one by one; otherwise this holds up to twice as many as it returns.
    """
    count = settings.frames or settings.max_frames
    if count is None:
        return frames
    kept: list[T] = []
    stride = 1
    for index, frame in enumerate(frames):
        if index % stride:
            continue
        kept.append(frame)
        if len(kept) > 2 * count:
            kept, stride = kept[::2], stride * 2
    return _spread(kept, count) if settings.frames or len(kept) > count else kept


def _spread(frames: list[T], count: int) -> list[T]:
    """Exactly `count` of `frames`, evenly spaced; if there are fewer, some are repeated."""
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]


@dataclass
class FrameChoice:
    """Which of a video's frames to encode; `count`: how many frames its features represent, once known."""

    encoders: Encoders
    count: int | None = None

    def __call__(self, every: int) -> list[int]:
        """Number of frames at `fps` → the numbers of those to encode."""
        chosen, limit = list(choose_frames(range(every), self.encoders.settings)), self.encoders.max_rows
        self.count = len(chosen)
        return chosen if limit is None or len(chosen) <= limit else _spread(chosen, limit)


class Loudness:
    """Whether a video has sound: `level` is known once all chunks have passed through `heard`."""

    level = "absent"  # one of LEVELS; "empty" is a stream without samples

    def heard(self, chunks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The chunks, unchanged."""
        for chunk in chunks:
            level = "empty" if not len(chunk) else "silent" if float(np.abs(chunk).max()) < SILENCE else "present"
            self.level = max(self.level, level, key=LEVELS.index)
            yield chunk


@dataclass(frozen=True)
class PreparedVideo:
    """One decoded video, ready for the encoders."""

    pixels: list[Pixels]  # of F frames
    windows: list[NDArray[np.float32]]  # A of [samples]


@dataclass(frozen=True)
class Encoders:
    """CLIP, CLAP, and how videos are cut for them. Raises `InputError` for settings that the encoders cannot use."""

    clip: FrameEncoder
    clap: SoundEncoder
    settings: FeatureSettings = field(default_factory=FeatureSettings)
    max_rows: int | None = None  # rows that a model reads: a video with more frames is thinned to that many

    def __post_init__(self) -> None:
        self.clap.samples(self.settings.window_seconds)
        wanted, loaded = (f"output={one.output}, tokens={one.tokens}" for one in (self.settings, self.clip))
        if loaded != wanted:
            raise InputError(f"{wanted}: {self.clip.identity.name} was loaded for {loaded}; use the same options")

    @property
    def widths(self) -> dict[str, int]:
        """Width of the features by modality."""
        return {"video": self.clip.width, "audio": self.clap.width}

    @property
    def dtype(self) -> str:
        """Type of weights and computation: "float32", "bfloat16" or "float16"."""
        return str(self.clip.model.dtype).removeprefix("torch.")

    @property
    def every_frame(self) -> Encoders:
        """The same without a limit on the number of frames: segments need all of them."""
        return replace(self, settings=self.settings.model_copy(update={"frames": None, "max_frames": None}))

    def for_model(self, max_positions: int) -> Encoders:
        """The same for a model that reads at most `max_positions` rows: frames that it would skip are not encoded."""
        return replace(self, max_rows=max_positions if self.clip.rows == 1 else None)

    @property
    def origin(self) -> FeatureOrigin:
        """What these features are made with, as manifests and checkpoints record it."""
        window = self.settings.window_seconds or self.clap.max_window_seconds
        sampling = FeatureSampling(**self.settings.model_dump() | {"window_seconds": window})
        return FeatureOrigin(encoders={"clip": self.clip.identity, "clap": self.clap.identity}, settings=sampling)

    def prepare(self, frames: Iterable[Frame], sound_after: Callable[[], Audio | None]) -> PreparedVideo:
        """Prepare frames, uint8 [H, W, 3] at `settings.fps`, and then the sound that `sound_after` returns, float32 [N]
        at `clap.rate`, or None."""
        chosen = list(choose_frames(map(self.clip.pixels, frames), self.settings))
        sound = sound_after()
        windows = self.clap.windows(() if sound is None else (sound,), self.settings.window_seconds)
        return PreparedVideo(chosen, list(windows))

    def encode(self, videos: Sequence[PreparedVideo]) -> list[Features]:
        """The features of each prepared video, encoded in one batch; with patch tokens, F * P rows of video."""
        frames = self.clip.encode_pixels([p for video in videos for p in video.pixels], self.settings.batch_frames)
        windows = self.clap.encode_windows([w for video in videos for w in video.windows])
        visual = np.split(frames, np.cumsum([len(video.pixels) * self.clip.rows for video in videos])[:-1])
        audio = np.split(windows, np.cumsum([len(video.windows) for video in videos])[:-1])
        return [{"video": rows, "audio": sound} for rows, sound in zip(visual, audio, strict=True)]

    def encode_file(self, path: str | Path) -> Features:
        """The features of one media file. Raises `InputError` if it cannot be read, for any reason."""
        try:
            prepared = self.prepare(stream_frames(path, self.settings.fps), lambda: decode_audio(path, self.clap.rate))
        except Exception as error:
            raise named(error, Path(path)) from error
        return self.encode([prepared])[0]


def load_encoders(origin: FeatureOrigin | None, device: str, used_by: str, dtype: str = "float32") -> Encoders:
    """Load the encoders that made some features. used_by: what needs them, for the message of the `InputError`."""
    if origin is None or not origin.encoders:
        raise InputError(
            f"{used_by}: its features have no manifest, so their encoders are unknown; "
            "caption stored features instead, or train on a store made by `vb2 features extract`"
        )
    settings = validated(FeatureSettings, origin.settings.model_dump(exclude_none=True), f"{used_by}: its features")
    clip, clap = origin.encoders["clip"], origin.encoders["clap"]
    encoders = Encoders(
        load_clip(clip.name, device, clip.revision, dtype, settings.output, settings.tokens),
        load_clap(clap.name, device, clap.revision, dtype),
        settings,
    )
    for kind, found in encoders.origin.encoders.items():
        if (wanted := origin.fingerprint(kind)) not in (None, found.fingerprint):
            raise InputError(
                f"{found.name}: is {kind.upper()} {found.fingerprint}, but {used_by} needs features of {wanted}"
            )
    return encoders
