"""From a media file to features: how a video is cut into frames and audio windows, and the encoders that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from videoblip2.errors import InputError, validated
from videoblip2.features.encoders import load_clap, load_clip
from videoblip2.features.frames import Audio, Frame
from videoblip2.features.media import decode_audio, named, stream_frames
from videoblip2.features.towers import FrameEncoder, Pixels, SoundEncoder
from videoblip2.modality import Features
from videoblip2.provenance import EncoderIdentity, FeatureOrigin, FeatureSampling

LEVELS = ("absent", "empty", "silent", "present")
SILENCE = 1e-4  # full scale is 1; a stream that never exceeds -80 dB is silent
T = TypeVar("T")


class FeatureSettings(BaseModel):
    """How a video is cut into frames and audio windows. A feature store holds one such setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: float = Field(default=1.0, gt=0, le=120)  # frames a second that go through the encoder
    max_frames: int | None = Field(default=None, ge=1)  # a video with more is thinned evenly to this many
    window_seconds: float | None = Field(default=None, ge=0.1)  # of audio per vector; None: the encoder's longest
    frames: int | None = Field(default=None, ge=1)  # exactly this many, evenly spaced, out of those at `fps`
    output: Literal["projected", "hidden"] = "projected"  # CLIP ViT-L/14: 768 projected; ViT-B: 768 hidden
    tokens: Literal["pooled", "patch"] = "pooled"  # one vector per frame, or one for each of its P: [F * P, width]
    batch_frames: int = Field(default=64, ge=1)  # frames in one forward pass; does not change the features


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
        return _spread(at_most(settings.frames, frames), settings.frames)
    return frames if settings.max_frames is None else at_most(settings.max_frames, frames)


def at_most(max_frames: int, frames: Iterable[T]) -> list[T]:
    """At most `max_frames` of `frames`, evenly spaced, first and last included; holds 2 * max_frames at most."""
    kept: list[T] = []
    stride = 1
    for index, frame in enumerate(frames):
        if index % stride:
            continue
        kept.append(frame)
        if len(kept) > 2 * max_frames:
            kept, stride = kept[::2], stride * 2
    return kept if len(kept) <= max_frames else _spread(kept, max_frames)


def _spread(frames: list[T], count: int) -> list[T]:
    """Exactly `count` of `frames`, evenly spaced; if there are fewer, some are repeated."""
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]


@dataclass
class FrameChoice:
    """Which of a video's frames to encode; `count`: how many its features stand for, once that is known."""

    encoders: Encoders
    count: int | None = None

    def __call__(self, every: int) -> list[int]:
        """How many frames a video has at `fps` → the numbers of those to encode."""
        chosen, most = list(choose_frames(range(every), self.encoders.settings)), self.encoders.most
        self.count = len(chosen)
        return chosen if most is None or len(chosen) <= most else _spread(chosen, most)


class Loudness:
    """Whether a video has sound: `level` is known once all chunks have passed through `heard`."""

    level = "absent"  # "present", "silent", "empty" (a stream without samples) or "absent"

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
    """CLIP, CLAP, and how videos are cut for them. Raises `InputError` for settings that do not suit the encoders."""

    clip: FrameEncoder
    clap: SoundEncoder
    settings: FeatureSettings = field(default_factory=FeatureSettings)
    most: int | None = None  # rows that a model reads: of a video with more frames, only those evenly spaced

    def __post_init__(self) -> None:
        self.clap.samples(self.settings.window_seconds)
        wanted, made = (f"output={one.output}, tokens={one.tokens}" for one in (self.settings, self.clip))
        if made != wanted:
            raise InputError(f"{wanted}: {self.clip.name} was loaded for {made}; load it with the same")

    @property
    def widths(self) -> dict[str, int]:
        """Width of the features by modality."""
        return {"video": self.clip.width, "audio": self.clap.width}

    @property
    def dtype(self) -> str:
        """Of weights and arithmetic: "float32", "bfloat16" or "float16"."""
        return str(self.clip.model.dtype).removeprefix("torch.")

    @property
    def every_frame(self) -> Encoders:
        """The same without a limit on a video's frames, as segments of it need."""
        return replace(self, settings=self.settings.model_copy(update={"frames": None, "max_frames": None}))

    def read_by(self, max_positions: int) -> Encoders:
        """The same for a model that reads at most `max_positions` rows: frames that it would skip are not encoded."""
        return replace(self, most=max_positions if self.clip.rows == 1 else None)

    @property
    def origin(self) -> FeatureOrigin:
        """What these features are made with, as a manifest and a checkpoint record it."""
        encoders = {
            kind: EncoderIdentity(name=encoder.name, revision=encoder.revision, fingerprint=encoder.fingerprint)
            for kind, encoder in (("clip", self.clip), ("clap", self.clap))
        }
        chosen = self.settings.model_dump(exclude={"batch_frames"})
        chosen["window_seconds"] = self.settings.window_seconds or self.clap.max_window_seconds
        return FeatureOrigin(encoders=encoders, settings=FeatureSampling(**chosen))

    def prepare(self, frames: Iterable[Frame], sound_after: Callable[[], Audio | None]) -> PreparedVideo:
        """Frames, uint8 [H, W, 3] at `settings.fps`, taken one by one, then the sound that `sound_after` returns: mono
        float32 [N] at the rate of `clap`, or None."""
        chosen = list(choose_frames(map(self.clip.pixels, frames), self.settings))
        sound = sound_after()
        windows = self.clap.windows(() if sound is None else (sound,), self.settings.window_seconds)
        return PreparedVideo(chosen, list(windows))

    def encode(self, videos: Sequence[PreparedVideo]) -> list[Features]:
        """Prepared videos -> the features of each, in one pass; with patch tokens F * P rows of video."""
        frames = self.clip.encode_pixels([p for video in videos for p in video.pixels], self.settings.batch_frames)
        windows = self.clap.encode_windows([w for video in videos for w in video.windows])
        visual = np.split(frames, np.cumsum([len(video.pixels) * self.clip.rows for video in videos])[:-1])
        audio = np.split(windows, np.cumsum([len(video.windows) for video in videos])[:-1])
        return [{"video": rows, "audio": sound} for rows, sound in zip(visual, audio, strict=True)]

    def encode_file(self, path: str | Path) -> Features:
        """One media file -> its features. Raises `InputError` for a file that cannot be read, whatever the reason."""
        try:
            prepared = self.prepare(stream_frames(path, self.settings.fps), lambda: decode_audio(path, self.clap.rate))
        except Exception as error:
            raise named(error, Path(path)) from error
        return self.encode([prepared])[0]


def load_encoders(origin: FeatureOrigin | None, device: str, used_by: str, dtype: str = "float32") -> Encoders:
    """The encoders that made some features. `used_by`: what needs them, for the message of the `InputError`."""
    if origin is None or not origin.encoders:
        raise InputError(
            f"{used_by}: its features carry no manifest, so its encoders are unknown; "
            "caption stored features instead, or train on a store made by `vb2 features extract`"
        )
    settings = FeatureSettings.model_validate(origin.settings.model_dump(exclude_none=True))
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
