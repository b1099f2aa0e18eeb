"""From a media file to features, by one pair of encoders: what captioning, serving and extraction share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from videoblip2.errors import InputError
from videoblip2.features.encoders import ClapEncoder, ClipEncoder, load_clap, load_clip
from videoblip2.features.media import Audio, Frame, decode_audio, stream_frames
from videoblip2.features.settings import SAMPLING_RATE, FeatureSettings, Loudness, choose_frames
from videoblip2.modality import Features
from videoblip2.provenance import EncoderIdentity, FeatureOrigin, FeatureSampling


@dataclass(frozen=True)
class PreparedVideo:
    """One decoded video, ready for the encoders."""

    pixels: list[NDArray[np.float32]]  # F of [3, S, S]
    windows: list[NDArray[np.float32]]  # A of [samples]
    audio: str  # a level of `settings.LEVELS`


@dataclass(frozen=True)
class Encoders:
    """CLIP, CLAP, and how videos are cut for them. Raises `InputError` for settings that do not suit the encoders."""

    clip: ClipEncoder
    clap: ClapEncoder
    settings: FeatureSettings = field(default_factory=FeatureSettings)

    def __post_init__(self) -> None:
        self.clap.samples(self.settings.window_seconds)
        for name in ("output", "tokens"):
            made, wanted = getattr(self.clip, name), getattr(self.settings, name)
            if made != wanted:
                raise InputError(
                    f"{name}={wanted}: {self.clip.name} was loaded for {made}; load it with the same {name}"
                )

    @property
    def widths(self) -> dict[str, int]:
        """Width of the features by modality."""
        return {"video": self.clip.width, "audio": self.clap.width}

    @property
    def dtype(self) -> str:
        """Of weights and arithmetic: "float32", "bfloat16" or "float16"."""
        return str(self.clip.model.dtype).removeprefix("torch.")

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
        """Frames [H, W, 3], and then the sound that `sound_after` returns, ready for the encoders."""
        chosen = list(choose_frames(map(self.clip.pixels, frames), self.settings))
        sound, loudness = sound_after(), Loudness()
        chunks = loudness.heard(() if sound is None else (sound,))
        windows = list(self.clap.windows(chunks, self.settings.window_seconds))
        return PreparedVideo(chosen, windows, loudness.level)

    def encode(self, videos: Sequence[PreparedVideo]) -> list[Features]:
        """Prepared videos -> the features of each, in one pass; with patch tokens F * P rows of video."""
        frames = self.clip.encode_pixels([p for video in videos for p in video.pixels], self.settings.batch_frames)
        windows = self.clap.encode_windows([w for video in videos for w in video.windows])
        visual = np.split(frames, np.cumsum([len(video.pixels) * self.clip.rows for video in videos])[:-1])
        audio = np.split(windows, np.cumsum([len(video.windows) for video in videos])[:-1])
        return [{"video": rows, "audio": sound} for rows, sound in zip(visual, audio, strict=True)]

    def encode_file(self, path: str | Path) -> Features:
        """One media file -> its features. Raises `InputError` for a file that cannot be read."""
        frames = stream_frames(path, self.settings.fps)
        return self.encode([self.prepare(frames, lambda: decode_audio(path, SAMPLING_RATE))])[0]


def load_encoders(origin: FeatureOrigin | None, device: str, used_by: str, dtype: str = "float32") -> Encoders:
    """The encoders that made some features. `used_by`: what needs them, for the message of the `InputError`."""
    if origin is None or not origin.encoders:
        raise InputError(
            f"{used_by}: its features carry no manifest, so its encoders are unknown; "
            "caption stored features instead, or train on a store made by `vb2 features extract`"
        )
    settings = FeatureSettings.model_validate(origin.settings.model_dump(exclude_none=True))
    clip, clap = origin.encoders["clip"], origin.encoders["clap"]
    return Encoders(
        load_clip(clip.name, device, clip.revision, dtype, settings.output, settings.tokens),
        load_clap(clap.name, device, clap.revision, dtype),
        settings,
    )
