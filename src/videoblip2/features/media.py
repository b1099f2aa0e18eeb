"""Media files read by PyAV, as RGB frames at a set rate and mono audio, from trusted and untrusted files; and written.

Anything that FFmpeg cannot read becomes an `InputError` that names the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from videoblip2.errors import InputError
from videoblip2.files import atomic

Frame = NDArray[np.uint8]  # [H, W, 3]
Audio = NDArray[np.float32]  # [N]

SAMPLING_RATE = 48_000  # Hz; the rate that every published CLAP checkpoint was trained at
AUDIO_TOLERANCE = 0.5  # seconds that a stream may end before its header says; muxers round, truncated files lack more
DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "aac", "mp3", "opus", "vorbis")  # what users bring
FRAME_TOLERANCE = 2  # the same for video, in frames
SAMPLES_AT_ONCE = 16_384  # codec frames of 1024 samples, one by one, take twice the time to resample
#: FFmpeg options for untrusted files: only containers that hold their own media. A playlist (HLS, concat) named `.mp4`
#: would make FFmpeg open the files and addresses that it lists.
UNTRUSTED = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg",
    "protocol_whitelist": "file",
}


@dataclass(frozen=True)
class MediaHeader:
    """What a container declares: seconds (0 if unknown), and the size of its first video stream in pixels."""

    seconds: float
    width: int
    height: int


def read_header(path: str | Path, options: Mapping[str, str] | None = None) -> MediaHeader:
    """Read a container's header. Raises `InputError` for an unreadable file and for one without a video stream."""
    with _open(Path(path), options) as container:
        stream = _video_stream(container, Path(path))
        seconds = max(map(_declared_seconds, (*container.streams.video, *container.streams.audio)))
        whole = (container.duration or 0) / av.time_base
        return MediaHeader(max(seconds, whole), stream.codec_context.width, stream.codec_context.height)


def stream_frames(
    path: str | Path, fps: float, options: Mapping[str, str] | None = None, threads: int = 0
) -> Iterator[Frame]:
    """Frames of `path` nearest to 0, 1/fps, 2/fps … seconds: uint8 [H, W, 3], upright, one at a time.

    Args:
        threads: of the codec; 0 lets FFmpeg choose, 1 is best if several files are decoded in parallel.

    Raises `InputError` for an unreadable or truncated file and for one without a video stream.
    """
    size: tuple[int, int] | None = None
    converter = VideoReformatter()  # a frame's own would be rebuilt for each frame, with a thread per core
    for frame in _nearest(_video_frames(Path(path), options, threads), fps):
        size = size or (frame.width, frame.height)  # a stream that changes size is scaled to its first size
        pixels = converter.reformat(frame, *size, format="rgb24", threads=1).to_ndarray()
        yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def decode_audio(path: str | Path, rate: int = 48_000, options: Mapping[str, str] | None = None) -> Audio | None:
    """The first audio stream, mixed to mono at `rate` Hz -> float32 [N]; None if the file has no audio.

    A digitally silent stream gives zeros, and a stream without a sample [0], so the three can be told apart. Raises
    `InputError` for an unreadable or truncated file.
    """
    chunks = list(stream_audio(path, rate, options))
    return np.concatenate(chunks) if chunks else None


def stream_audio(
    path: str | Path, rate: int = SAMPLING_RATE, options: Mapping[str, str] | None = None
) -> Iterator[Audio]:
    """Like `decode_audio`, about 0.3 s at a time; nothing if the file has no audio, one [0] for an empty stream."""
    path = Path(path)
    with _open(path, options) as container:
        if not container.streams.audio:
            return
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", rate=rate)
        samples, end = None, 0.0
        for samples, end in _gathered(_decode(container, stream, path)):  # noqa: B007 - read after the loop
            yield from _mono(resampler, samples)
        yield from _mono(resampler, None) if samples is not None else (np.zeros(0, np.float32),)
        _refuse_truncated(path, stream, end, AUDIO_TOLERANCE)


def stream_untrusted(
    path: str | Path, fps: float, rate: int, max_seconds: float, max_pixels: int
) -> Iterator[Frame | Audio | None]:
    """An untrusted file -> its frames [H, W, 3] as from `stream_frames`, then its audio as from `decode_audio`.

    Raises `InputError` for a file that is too long or too large: by its header before anything is decoded, and again
    while decoding, since headers lie.
    """
    header = read_header(path, UNTRUSTED)
    if header.width * header.height > max_pixels:
        limit = f"more than {max_pixels} pixels per frame; scale it down"
        raise InputError(f"{path}: {header.width}x{header.height}, {limit}")
    _refuse_long(path, header.seconds, max_seconds)
    for number, frame in enumerate(stream_frames(path, fps, UNTRUSTED)):
        _refuse_long(path, number / fps, max_seconds)
        yield frame
    audio = decode_audio(path, rate, UNTRUSTED)
    _refuse_long(path, 0 if audio is None else len(audio) / rate, max_seconds + AUDIO_TOLERANCE)
    yield audio


def pyav_version() -> str:
    """Such as `18.0.0 with libavcodec 62.11.100`; PyAV ships FFmpeg's libraries."""
    return f"{av.__version__} with libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def missing_decoders() -> list[str]:
    """The decoders of DECODERS that this FFmpeg lacks."""

    def found(name: str) -> bool:
        try:
            return bool(av.Codec(name, "r"))
        except ValueError:  # PyAV's UnknownCodecError
            return False

    return [name for name in DECODERS if not found(name)]


def write_video(path: str | Path, frames: NDArray[np.uint8], fps: float, audio: Audio | None, rate: int) -> None:
    """Write uint8 `frames` [F, H, W, 3] and mono float32 `audio` [N] (None: no audio stream) as an mp4, atomically.

    H.264 (MPEG-4 part 2 where FFmpeg was built without x264) and AAC, with one encoder thread and fixed settings: the
    same input gives the same file. H and W must be even, as 4:2:0 colour requires.
    """
    path = Path(path)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise InputError(f"{path}: frames of {width}x{height} cannot be written; give an even width and height")
    x264 = "libx264" in av.codecs_available
    codec, options = ("libx264", {"preset": "veryfast", "crf": "18"}) if x264 else ("mpeg4", {"qscale": "2"})
    with atomic(path) as file, av.open(file, "w", format="mp4") as container:
        video: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000), options=options)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.thread_count = 1
        sound = None if audio is None else container.add_stream("aac", rate=rate, layout="mono")
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.asarray(audio, np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))


def _video_frames(path: Path, options: Mapping[str, str] | None, threads: int) -> Iterator[Any]:
    """Decoded video frames in presentation order; each has its `time` in seconds."""
    with _open(path, options) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "NONE" if threads == 1 else "AUTO"
        stream.codec_context.thread_count = threads
        last, step = None, 0.0
        for frame in _decode(container, stream, path):
            if frame.time is None:
                continue
            step = max(step, frame.time - last.time) if last else step
            last = frame
            yield frame
        if last is None:
            raise InputError(f"{path}: no frame could be decoded; check that it plays, or fetch it again")
        step = max(step, float((last.duration or 0) * last.time_base))
        _refuse_truncated(path, stream, last.time + step, FRAME_TOLERANCE * step)


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise InputError(f"{path}: has no video stream; give a video file")
    return container.streams.video[0]


def _nearest(frames: Iterable[Any], fps: float) -> Iterator[Any]:
    """For each k, the frame whose time (counted from the first frame) is nearest to k / fps; stops after the last."""
    previous, start, k = None, 0.0, 0
    for frame in frames:
        if previous is None:
            previous, start = frame, frame.time
        while k / fps <= frame.time - start:
            target = start + k / fps
            yield previous if target - previous.time <= frame.time - target else frame
            k += 1
        previous = frame


def _decode(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """Frames of one stream. Raises `InputError` for what FFmpeg cannot decode."""
    seconds = 0.0
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                seconds = frame.time if frame.time is not None else seconds
                yield frame
    except av.FFmpegError as error:
        raise InputError(
            f"{path}: damaged or truncated, decoding stopped at {seconds:.1f} s ({error.strerror}); fetch it again"
        ) from error


def _refuse_truncated(path: Path, stream: Any, end: float, tolerance: float) -> None:
    """A truncated file may decode without an error; its header still says how long it should be."""
    declared = _declared_seconds(stream)
    if end + tolerance < declared:
        raise InputError(f"{path}: truncated, its {stream.type} ends at {end:.1f} of {declared:.1f} s; fetch it again")


def _declared_seconds(stream: Any) -> float:
    """The end of the stream by its header (0 if unknown): in a tag for Matroska, in the track for mp4.

    The tag comes first: for a Matroska stream without a packet it says 0, but FFmpeg reports the file's duration.
    """
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
        return sum(float(part) * unit for part, unit in zip(tag.groups(), (3600, 60, 1), strict=True))
    return 0.0 if stream.duration is None else float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def _gathered(frames: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    """Audio frames joined up to `SAMPLES_AT_ONCE`, cut where the format changes; each with the second it ends at."""
    fifo, form, end = av.AudioFifo(), None, 0.0
    for frame in frames:
        if form not in (None, here := (frame.format.name, frame.layout.name, frame.sample_rate)):
            yield from _rest(fifo, end)
            fifo = av.AudioFifo()
        form, end = here, (frame.time or end) + frame.samples / frame.sample_rate
        frame.pts = None  # the queue refuses gaps, which are not filled
        fifo.write(frame)
        if fifo.samples >= SAMPLES_AT_ONCE:
            yield from _rest(fifo, end)
    yield from _rest(fifo, end)


def _rest(fifo: Any, end: float) -> Iterator[tuple[Any, float]]:
    if fifo.samples:
        yield fifo.read(0, partial=True), end


def _mono(resampler: Any, frame: Any) -> list[Audio]:
    """Mean over the channels, as librosa mixes for CLAP; FFmpeg's own float mix is 3 dB louder."""
    return [piece.to_ndarray().mean(axis=0, dtype=np.float32) for piece in resampler.resample(frame)]


@contextmanager
def _open(path: Path, options: Mapping[str, str] | None) -> Iterator[Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a video")
    try:
        container = av.open(str(path), metadata_errors="replace", options=dict(options or {}))
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not a readable video ({reason}); check that it plays, or fetch it again") from error
    with container:
        yield container


def _refuse_long(path: str | Path, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise InputError(f"{path}: lasts longer than {max_seconds:g} s; cut it")
