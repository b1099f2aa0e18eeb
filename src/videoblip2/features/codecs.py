"""FFmpeg's codecs: which of the usual ones this machine can decode, and a small mp4 writer."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from numpy.typing import NDArray

from videoblip2.errors import InputError
from videoblip2.features.media import Audio
from videoblip2.files import atomic

DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "aac", "mp3", "opus", "vorbis")


def pyav_version() -> str:
    """Such as `18.0.0 with libavcodec 62.11.100`; PyAV ships FFmpeg's libraries."""
    return f"{av.__version__} with libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def missing_decoders() -> list[str]:
    """The decoders of DECODERS that this FFmpeg lacks."""
    return [name for name in DECODERS if not _has(name)]


def write_video(path: str | Path, frames: NDArray[np.uint8], fps: float, audio: Audio | None, rate: int) -> None:
    """Write uint8 `frames` [F, H, W, 3] and mono float32 `audio` [N] (None: no audio stream) as an mp4, atomically.

    H.264 (MPEG-4 part 2 where FFmpeg was built without x264) and AAC. One encoder thread and fixed settings, so that
    the same input gives the same file. H and W must be even, as 4:2:0 colour asks for.
    """
    path = Path(path)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise InputError(f"{path}: frames of {width}x{height} cannot be written; give an even width and height")
    with atomic(path) as file:
        _mux(file, frames, Fraction(fps).limit_denominator(1000), audio, rate)


def _has(name: str) -> bool:
    try:
        av.Codec(name, "r")
    except ValueError:  # PyAV's UnknownCodecError
        return False
    return True


def _mux(file: IO[bytes], frames: NDArray[np.uint8], fps: Fraction, audio: Audio | None, rate: int) -> None:
    with av.open(file, "w", format="mp4") as container:
        video = _add_video(container, fps, frames.shape[2], frames.shape[1])
        sound = None if audio is None else container.add_stream("aac", rate=rate, layout="mono")
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.asarray(audio, np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))


def _add_video(container: Any, fps: Fraction, width: int, height: int) -> Any:
    if "libx264" in av.codecs_available:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "18"})
    else:
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "2"})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.thread_count = 1
    return stream
