"""Decoded frames and sound, made ready for the encoders: which frames, what counts as silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from videoblip2.features.encoders import ClapEncoder, ClipEncoder
from videoblip2.features.media import Audio, Frame, thin
from videoblip2.features.settings import FeatureSettings

LEVELS = ("absent", "empty", "silent", "present")
SILENCE = 1e-4  # full scale is 1; a stream that never exceeds -80 dB is silent

Pixels = NDArray[np.float32]  # [3, S, S]


@dataclass(frozen=True)
class PreparedVideo:
    """One decoded video, ready for the encoders."""

    pixels: list[NDArray[np.float32]]  # F of [3, S, S]
    windows: list[NDArray[np.float32]]  # A of [samples]
    audio: str  # as in `Loudness`


def prepare_video(
    raw_frames: Iterable[Frame],
    sound_after: Callable[[], Audio | None],
    clip: ClipEncoder,
    clap: ClapEncoder,
    settings: FeatureSettings,
) -> PreparedVideo:
    """Frames [H, W, 3], and then the sound that `sound_after` gives, made ready for the encoders."""
    frames = list(choose_frames(raw_frames, clip, settings))
    sound = sound_after()
    level = Loudness()
    windows = list(clap.stream_windows(level.heard(() if sound is None else (sound,)), settings.window_seconds))
    return PreparedVideo(frames, windows, level.audio)


def choose_frames(raw_frames: Iterable[Frame], clip: ClipEncoder, settings: FeatureSettings) -> Iterable[Pixels]:
    """The frames that the settings want, as pixels: all, at most `max_frames`, or exactly `frames`.

    One by one where all are wanted; else 2 * max_frames are held at most.
    """
    pixels = (clip.pixels(frame) for frame in raw_frames)
    if settings.frames is not None:
        return spread(thin(pixels, settings.frames), settings.frames)
    return pixels if settings.max_frames is None else thin(pixels, settings.max_frames)


def spread(frames: list[Pixels], count: int) -> list[Pixels]:
    """Exactly `count` of `frames`, evenly; some twice where there are fewer."""
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]


@dataclass
class Loudness:
    """Whether there is sound, known once the chunks have gone through."""

    audio: str = field(default="absent")  # "present", "silent", "empty" (a stream without a sample) or "absent"

    def heard(self, chunks: Iterable[Audio]) -> Iterator[Audio]:
        """The chunks as they are."""
        for chunk in chunks:
            level = "empty" if not len(chunk) else "silent" if float(np.abs(chunk).max()) < SILENCE else "present"
            self.audio = max(self.audio, level, key=LEVELS.index)
            yield chunk
