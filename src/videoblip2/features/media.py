"""Read media files with PyAV, trusted or not, as RGB frames at a given rate and mono audio; and write them.

Everything that can be decoded is used. A damaged part is skipped and adds a line to the caller's `caveats`; a file
without any usable part raises an `InputError` that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from videoblip2.errors import InputError, one_line, refused
from videoblip2.features.frames import (
    Audio,
    Clock,
    Frame,
    FrameWatch,
    Pictures,
    Sound,
    Span,
    decoded,
    decoded_at,
    nearest,
    planned,
    shown_size,
    watched,
)
from videoblip2.files import atomic

SAMPLING_RATE = 48_000  # Hz; every published CLAP checkpoint was trained at this rate
AUDIO_TOLERANCE = 0.5  # seconds by which a stream may end before its header says, since muxers round
FRAME_TOLERANCE = 2  # the same for video, in frames
DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "aac", "mp3", "opus", "vorbis")  # of common uploads
#: FFmpeg options for untrusted files: only containers that hold the media themselves. A playlist (HLS, concat) named
#: `.mp4` would make FFmpeg open the files and addresses that it lists.
UNTRUSTED = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg,gif",
    "protocol_whitelist": "file",
}
ONE_THREAD = {"threads": "1"}
Pick = Callable[[int], Iterable[int]]  # number of frames → the numbers of those to decode


def read_header(path: str | Path, options: Mapping[str, str] | None = None) -> tuple[float, int, int]:
    """Seconds (0 if unknown), and displayed width and height of the video, from a file's header.

    Raises `InputError` for an unreadable file and for one without a video stream.
    """
    with _open(Path(path), options) as container:
        stream = _video_stream(container, Path(path))
        seconds = max(map(_declared_seconds, (*container.streams.video, *container.streams.audio)))
        whole, codec = (container.duration or 0) / av.time_base, stream.codec_context
        return max(seconds, whole), *shown_size(codec.width, codec.height, stream.sample_aspect_ratio)


def stream_frames(
    path: str | Path,
    fps: float,
    options: Mapping[str, str] | None = None,
    caveats: list[str] | None = None,
    span: Span | None = None,
    watch: FrameWatch | None = None,
    pick: Pick | None = None,
) -> Iterator[Frame]:
    """Frames of `path` nearest to 0, 1/fps, 2/fps … seconds, one at a time: uint8 [H, W, 3] from `frames.Pictures`.

    Args:
        options: for FFmpeg; use `ONE_THREAD` if several files are decoded in parallel.
        caveats: gets a line for each part of the video that is skipped or changed.
        span: yield only the frames from the first of these seconds of the file to before the second.
        watch: gets all frames, not only those at `fps`.
        pick: which of the frames at `fps` to yield; ignored with `span`, with `watch`, and if the packets do not
            determine the frames.

    Raises `InputError` for an unreadable file and for one without a frame that can be decoded.
    """
    path, options, caveats = Path(path), options or {}, [] if caveats is None else caveats
    before, rest = len(caveats), None
    if not (span or watch):
        rest = yield from _planned_frames(path, fps, options, caveats, pick)
        if rest == set():
            return
        del caveats[before:]  # decode all frames, and yield those that did not come out
    with _open_video(path, options) as (container, stream):
        pictures, clock = Pictures(stream.sample_aspect_ratio, caveats), Clock(container, stream)
        span = None if span is None else _seek(container, stream, span)
        number, frames = -1, clock.timed(decoded(container.demux(stream), stream, caveats))
        for number, frame in enumerate(nearest(watched(frames, watch) if watch else frames, fps, span)):
            if rest is None or number in rest:
                yield pictures.rgb(frame)
        if not clock.started:
            reason = f" ({caveats[-1]})" if caveats else ""
            raise InputError(f"{path}: no frame could be decoded{reason}; check that it plays, or fetch it again")
        if span is None:
            _note_early_end(stream, clock.end, FRAME_TOLERANCE * clock.step, caveats)
        elif number < 0:
            raise InputError(f"{path}: ends at {clock.end:.1f} s, the segment begins at {span[0]:.1f}; fix its times")


def _planned_frames(
    path: Path, fps: float, options: Mapping[str, str], caveats: list[str], pick: Pick | None
) -> Generator[Frame, None, set[int] | None]:
    """Decode only needed frames (docs/decisions/0013); return the numbers of those that failed; None = no plan."""
    with _open_video(path, options) as opened:
        if (plan := planned(*opened, fps)) is None:
            return None
        numbers = sorted(set(pick(len(plan.wanted)))) if pick else list(range(len(plan.wanted)))
        count = 0
        with nullcontext(opened) if plan.packets else _open_video(path, options) as (container, stream):
            pictures, packets = Pictures(stream.sample_aspect_ratio, caveats), plan.packets or container.demux(stream)
            for frame in decoded_at(packets, stream, caveats, [plan.wanted[number] for number in numbers]):
                yield pictures.rgb(frame)
                count += 1
            if count == len(numbers):
                _note_early_end(stream, plan.end, FRAME_TOLERANCE * plan.step, caveats)
        return set(numbers[count:])


def decode_audio(path: str | Path, rate: int = SAMPLING_RATE, options: Mapping[str, str] | None = None) -> Audio | None:
    """The first audio stream, mixed to mono at `rate` Hz: float32 [N], or [0] if it has no samples; None if there is no
    audio stream. Raises `InputError` for an unreadable file."""
    chunks = list(stream_audio(path, rate, options))
    return np.concatenate(chunks) if chunks else None


def stream_audio(
    path: str | Path,
    rate: int = SAMPLING_RATE,
    options: Mapping[str, str] | None = None,
    caveats: list[str] | None = None,
    span: Span | None = None,
) -> Iterator[Audio]:
    """Like `decode_audio`, in chunks of about 0.3 s: none without an audio stream, one of [0] if it has no samples.

    span: start and end, in seconds of the file.
    """
    path, caveats = Path(path), [] if caveats is None else caveats
    with _open(path, options) as container:
        streams = sorted(container.streams.audio, key=lambda stream: stream.codec_context is None)
        if not streams:
            return
        stream, sound = streams[0], Sound(rate)
        if stream.codec_context is None:
            caveats.append(f"audio: skipped, FFmpeg cannot decode {_codec_name(container, stream)}")
            return
        frames = decoded(container.demux(stream), stream, caveats)
        if span is not None:
            yield from sound.within(frames, _seek(container, stream, span))
            return
        yield from sound.mono(frames)
        if not sound.started:
            yield np.zeros(0, np.float32)
        _note_early_end(stream, sound.end, AUDIO_TOLERANCE, caveats)


def stream_untrusted(
    path: str | Path, fps: float, rate: int, max_seconds: float, max_pixels: int
) -> Iterator[Frame | Audio | None]:
    """Frames [H, W, 3] of an untrusted file, as from `stream_frames`, and then its audio, as from `decode_audio`.

    Raises `InputError` for a file that is too long or too large: by its header before anything is decoded, and again
    while decoding, since a header can be wrong.
    """
    seconds, width, height = read_header(path, UNTRUSTED)
    if width * height > max_pixels:
        raise InputError(f"{path}: {width}x{height}, more than {max_pixels} pixels per frame; scale it down")
    _refuse_long(path, seconds, max_seconds)
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
    return [name for name in DECODERS if name not in av.codecs_available]


def write_video(path: str | Path, frames: NDArray[np.uint8], fps: float, audio: Audio | None, rate: int) -> None:
    """Write uint8 `frames` [F, H, W, 3] and mono float32 `audio` [N] (None: no audio stream) as an mp4, atomically.

    H.264 (MPEG-4 Part 2 without x264) and AAC. The same input gives the same file: one thread, and no macroblock tree,
    which varies with AVX-512 for small frames. H and W must be even, as 4:2:0 color requires.
    """
    path, (height, width) = Path(path), frames.shape[1:3]
    if height % 2 or width % 2:
        raise InputError(f"{path}: frames of {width}x{height} cannot be written; give an even width and height")
    x264 = "libx264" in av.codecs_available
    codec, options = (
        ("libx264", {"preset": "veryfast", "crf": "18", "mbtree": "0"}) if x264 else ("mpeg4", {"qscale": "2"})
    )
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


def _video_stream(container: Any, path: Path) -> Any:
    """The first video stream, cover art aside. Raises `InputError` if there is none, or FFmpeg cannot decode it."""
    moving = [one for one in container.streams.video if not one.disposition & av.stream.Disposition.attached_pic]
    if not moving:
        only = " except its cover" if container.streams.video else ""
        raise InputError(f"{path}: has no video stream{only}; give a video file")
    stream = min(moving, key=lambda one: (one.codec_context is None, one.frames == 1))
    if stream.codec_context is None:
        name = _codec_name(container, stream)
        raise InputError(f"{path}: FFmpeg cannot decode its video codec, {name}; convert it to H.264")
    return stream


def _codec_name(container: Any, stream: Any) -> str:
    """Such as `apac`. PyAV does not name a codec that it cannot decode, but FFmpeg's dump of the file has its tag."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        found = re.search(rf"#0:{stream.index}\b.*?: (?:Video|Audio): (?:none \()?([^\s,]+)", container.dumps_format())
    finally:
        av.logging.set_level(level)
    return found[1] if found else "an unknown codec"


@contextmanager
def _open_video(path: Path, options: Mapping[str, str]) -> Iterator[tuple[Any, Any]]:
    with _open(path, options) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "NONE" if options.get("threads") == "1" else "AUTO"
        stream.codec_context.thread_count = int(options.get("threads", 0))
        yield container, stream


def _seek(container: Any, stream: Any, span: Span) -> Span:
    """Seek to a key frame before a span, unless the clock may restart; return the span on the stream's clock."""
    zero = (container.start_time or 0) / av.time_base
    if not container.format.flags & av.format.Flags.ts_discont.value:
        with suppress(av.FFmpegError):  # then the file is read from its start
            container.seek(max(0, int((zero + span[0] - 1) / stream.time_base)), stream=stream)
    return zero + span[0], zero + span[1]


def _note_early_end(stream: Any, end: float, tolerance: float, caveats: list[str]) -> None:
    """Add a caveat for a truncated file: it may decode without an error, but its header has the full length."""
    declared = _declared_seconds(stream)
    if end + tolerance < declared:
        caveats.append(f"{stream.type}: ends at {end:.1f} of {declared:.1f} s, truncated")


def _declared_seconds(stream: Any) -> float:
    """The end of the stream by its header, 0 if unknown; first by Matroska's tag, which is 0 without packets."""
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
        return sum(float(part) * unit for part, unit in zip(tag.groups(), (3600, 60, 1), strict=True))
    return 0.0 if stream.duration is None else float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def named(error: Exception, path: Path) -> InputError:
    """Any error of one file as an `InputError` with the file's name."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file; give the path of a video")
    return InputError(f"{path}: {one_line(error)}; check that it plays")


@contextmanager
def _open(path: Path, options: Mapping[str, str] | None) -> Iterator[Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a video")
    remedy = "check that it plays, or fetch it again"
    with refused(f"{path}: not a readable video", remedy, av.FFmpegError, ValueError):
        container = av.open(str(path), metadata_errors="replace", options=dict(options or {}))
    with container:
        yield container


def _refuse_long(path: str | Path, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise InputError(f"{path}: lasts longer than {max_seconds:g} s; trim it")
