"""Decode the frames that are needed, as a player shows them, and sound as mono at one sampling rate."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # [H, W, 3]
Audio = NDArray[np.float32]  # [N]
Span = tuple[float, float]  # start and end, in seconds

SAMPLES_AT_ONCE = 16_384  # resampling codec frames of 1024 samples one by one takes twice as long
SQUARE = 0.02  # tolerance of a square pixel's aspect ratio: encoders round that of a scaled picture
BT709 = 1  # FFmpeg's number for the color matrix of HD video
BT2020 = 9  # and for the color primaries of HDR video
PQ, HLG = 16, 18  # and for the two HDR transfer functions
WHITE = 203  # nits: diffuse white in HDR (ITU-R BT.2408), mapped to white in SDR
STRIP = 64  # rows tone-mapped at a time
KNEE = 0.8  # of white; brighter levels are compressed
TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
FrameWatch = Callable[[Frame, float], None]  # takes a thumbnail, YUV [3, height, width], and its time in seconds
THUMBNAIL = 32, 24  # width and height

ONE_EACH = ("h264", "hevc")  # codecs in which each packet becomes one picture
GLITCH = 1  # seconds; a shorter step back is a wrong timestamp, not the clock of another recording
KEPT = 2**24  # bytes of packets kept in memory until they are decoded; a file with more is read twice
LEAP = 10  # seconds; in MPEG-TS, whose files can be joined, a longer step is the clock of another recording


class Clock:
    """Times of one stream's frames, which never decrease: a part with its own clock continues the previous part's."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.started, self.end, self.step = False, 0.0, 0.0  # step: the longest between frames
        self._usual = float(1 / (stream.guessed_rate or 25))
        self._leap = LEAP if container.format.flags & av.format.Flags.ts_discont.value else math.inf

    def timed(self, frames: Iterable[Any]) -> Iterator[tuple[Any, float]]:
        """Each frame with its time in seconds."""
        last, shift, duration = 0.0, 0.0, 0.0
        for frame in frames:
            time = last + self._usual if frame.time is None else frame.time + shift
            if self.started and -GLITCH < time - last < 0:
                time = last
            elif self.started and not 0 <= time - last <= self._leap:
                shift, time = shift + last + self._usual - time, last + self._usual
            self.step = max(self.step, time - last) if self.started else 0.0
            self.started, last, duration = True, time, float((frame.duration or 0) * frame.time_base)
            yield frame, time
        self.step = max(self.step, duration)
        self.end = last + self.step


def watched(frames: Iterable[tuple[Any, float]], watch: FrameWatch) -> Iterator[tuple[Any, float]]:
    """The frames and times, unchanged; `watch` gets a thumbnail of each and its time since the first."""
    scaler, start = VideoReformatter(), None
    for frame, time in frames:
        start = time if start is None else start
        small: Any = scaler.reformat(frame, *THUMBNAIL, "yuv444p", BT709, BT709, threads=1).to_ndarray()
        watch(small, time - start)
        yield frame, time


def nearest(frames: Iterable[tuple[Any, float]], fps: float, span: Span | None = None) -> Iterator[Any]:
    """For each k, the frame whose time (from the first frame, or the span's start) is nearest to k / fps.

    Stops after the last frame, or before the span's end.
    """
    previous, before, k = None, 0.0, 0
    start, end = span or (0.0, math.inf)
    for frame, time in frames:
        if previous is None:
            previous, before, start = frame, time, start if span else time
        while (target := start + k / fps) <= time:
            if target >= end:
                return
            yield previous if target - before <= time - target else frame
            k += 1
        previous, before = frame, time


@dataclass(frozen=True)
class FramePlan:
    """Which frames of a stream to decode. end, step: as in `Clock`."""

    wanted: list[int]  # the `pts` for each k of `nearest`
    end: float
    step: float
    packets: list[Any]  # all of the stream, or none if they exceed `KEPT` bytes


def planned(container: Any, stream: Any, fps: float) -> FramePlan | None:
    """`nearest` from packet times alone; None if these do not determine the frames."""
    if stream.codec_context.name not in ONE_EACH or container.format.flags & av.format.Flags.ts_discont.value:
        return None
    every, last, unit = array("q"), (-math.inf, 0), stream.time_base  # a film has hundreds of thousands of packets
    packets, room = list[Any](), KEPT
    try:
        for packet in container.demux(stream):
            room -= packet.size
            packets.append(packet) if room >= 0 else packets.clear()
            if packet.size and not packet.is_discard:
                if packet.pts is None or packet.is_corrupt:
                    return None
                every.append(packet.pts)
                last = max(last, (packet.pts, packet.duration or 0))
    except av.FFmpegError:
        return None
    numbers = np.sort(every)
    times = numbers * unit.numerator / unit.denominator
    steps = np.diff(times)
    if not len(times) or not steps.all():  # two with the same time
        return None
    step = max(float(last[1] * unit), float(steps.max(initial=0)))
    wanted = list(nearest(zip(numbers.tolist(), times.tolist(), strict=True), fps))
    return FramePlan(wanted, float(times[-1]) + step, step, packets)


def decoded(packets: Any, stream: Any, caveats: list[str], wanted: Container[int] | None = None) -> Iterator[Any]:
    """Frames of one stream from its packets; packets that FFmpeg cannot decode are skipped.

    wanted: `pts` of frames that must be decoded; others are decoded only if later frames refer to them. None = all.
    """
    codec, skipping = stream.codec_context, False
    packets, reading, seconds, bad, first = iter(packets), True, 0.0, 0, ""
    while not (reading and bad):  # a file ends where reading fails
        try:
            reading = True
            packet = next(packets)
            reading = False
            if wanted is not None and skipping is (packet.pts in wanted):
                skipping = not skipping
                codec.skip_frame = "NONREF" if skipping else "DEFAULT"
            for frame in packet.decode():
                seconds = frame.time if frame.time is not None else seconds
                yield frame
        except StopIteration:
            break
        except av.FFmpegError as error:
            bad, first = bad + 1, first or f"at {seconds:.1f} s ({error.strerror})"
    with suppress(av.FFmpegError):  # frames still in the decoder
        yield from stream.decode(None)
    if bad:
        caveats.append(f"{stream.type}: {bad} damaged packet{'s' if bad > 1 else ''} skipped, the first {first}")


def decoded_at(packets: Iterable[Any], stream: Any, caveats: list[str], wanted: Sequence[int]) -> Iterator[Any]:
    """The frames with these `pts`, in order; stops at the first one that the decoder does not return."""
    place = 0
    skippable = stream.codec_context.name == "h264"  # in HEVC, frames marked as unused can be references
    for frame in decoded(packets, stream, caveats, set(wanted) if skippable else None):
        if frame.pts is None or frame.pts > wanted[place]:
            return
        while wanted[place] == frame.pts:
            yield frame
            place += 1
            if place == len(wanted):
                return


class Pictures:
    """Converts the frames of one stream: to RGB, upright, with square pixels, in standard dynamic range.

    Args:
        aspect: width of a stored pixel over its height; None = square.
        caveats: gets a line for each kind of change to the stored colors.
    """

    def __init__(self, aspect: Fraction | None, caveats: list[str]) -> None:
        self._aspect, self._caveats = aspect, caveats
        self._size: tuple[int, int] | None = None
        self._converter = VideoReformatter()  # a frame's own is rebuilt for each frame, with a thread per core

    def rgb(self, frame: Any) -> Frame:
        """A decoded frame -> uint8 [H, W, 3]; a stream that changes size is scaled to its first size."""
        self._size = self._size or shown_size(frame.width, frame.height, self._aspect)
        hdr = frame.color_trc in (PQ, HLG)
        # For an odd width and an unchanged even height, FFmpeg gives the same levels in planes, in half the time
        same = (self._size[0] % 2, self._size[1], frame.height % 2) == (1, frame.height, 0)
        planar = same and self._size[0] != frame.width and frame.format.name == "yuv420p"
        form = "rgb48le" if hdr else "gbrp" if planar else "rgb24"
        try:
            shown: Any = self._converter.reformat(frame, *self._size, format=form, threads=1)
        except av.FFmpegError:  # such as ICtCp
            self._note(f"video: color matrix {int(frame.colorspace)} cannot be converted, read as BT.709")
            frame.colorspace = BT709
            shown = self._converter.reformat(frame, *self._size, format=form, threads=1)
        if shown.format.name == "gbrp":
            green, blue, red = (np.frombuffer(plane, np.uint8).reshape(shown.height, -1) for plane in shown.planes)
            pixels: NDArray[Any] = np.stack([red, green, blue])[:, :, : shown.width].transpose(1, 2, 0)
        else:
            pixels = shown.to_ndarray()
        if hdr:
            self._note("video: HDR, tone-mapped to SDR")
            light, wide = _light(int(frame.color_trc)), frame.color_primaries == BT2020
            strips = np.array_split(pixels, -(-len(pixels) // STRIP))  # as floats, a whole 4K frame takes 100 MB
            pixels = np.concatenate([_tone_mapped(light[strip], wide) for strip in strips])
        return _upright(pixels, frame)

    def _note(self, caveat: str) -> None:
        if caveat not in self._caveats:
            self._caveats.append(caveat)


class Sound:
    """Mixes the audio frames of one stream to mono at `rate` Hz; they last from second `begin` to `end`."""

    def __init__(self, rate: int) -> None:
        self.started, self.begin, self.end, self.rate, self._form = False, 0.0, 0.0, rate, ("", "", 0)
        self._fifo, self._resampler = av.AudioFifo(), av.AudioResampler(format="fltp", rate=rate)

    def mono(self, frames: Iterable[Any]) -> Iterator[Audio]:
        """Chunks of about `SAMPLES_AT_ONCE` samples; a change of format starts a new resampler."""
        for frame in frames:
            form = frame.format.name, frame.layout.name, frame.sample_rate
            if self.started and form != self._form:
                yield from self._rest()
                self._fifo, self._resampler = av.AudioFifo(), av.AudioResampler(format="fltp", rate=self.rate)
            self.begin = self.begin if self.started else frame.time or 0.0
            self.started, self._form = True, form
            self.end = (frame.time or self.end) + frame.samples / frame.sample_rate
            frame.pts = None  # the queue rejects gaps in time, which are not filled
            self._fifo.write(frame)
            if self._fifo.samples >= SAMPLES_AT_ONCE:
                yield from self._mixed(self._fifo.read(0, partial=True))
        if self.started:
            yield from self._rest()

    def within(self, frames: Iterable[Any], span: Span) -> Iterator[Audio]:
        """The chunks of `mono`, cut to a span."""
        passed = 0
        for chunk in self.mono(frames):
            first, last = (round((second - self.begin) * self.rate) - passed for second in span)
            if last <= 0:
                return
            if len(part := chunk[max(0, first) : last]):
                yield part
            passed += len(chunk)

    def _rest(self) -> Iterator[Audio]:
        """The samples still in the queue and the resampler."""
        if self._fifo.samples:
            yield from self._mixed(self._fifo.read(0, partial=True))
        yield from self._mixed(None)

    def _mixed(self, frame: Any) -> list[Audio]:
        """Mean over the channels, as librosa mixes for CLAP; FFmpeg's own float mix is 3 dB louder."""
        return [x.sum(0) / np.float32(len(x)) for x in map(av.AudioFrame.to_ndarray, self._resampler.resample(frame))]


def shown_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Width and height with square pixels; pixels within 2% of square are not scaled."""
    return (max(1, round(width * aspect)) if aspect and abs(aspect - 1) > SQUARE else width), height


def _upright(pixels: Frame, frame: Any) -> Frame:
    """Rotate and mirror by the display matrix: x' = a x + c y, y' = b x + d y, in quarter turns."""
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5]
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


@lru_cache
def _light(transfer: int) -> NDArray[np.float32]:
    """float32 [65536]: linear light of each 16-bit code; diffuse white is 1 (SMPTE ST 2084; ITU-R BT.2100)."""
    code = np.linspace(0, 1, 65536)
    if transfer == PQ:
        root = code ** (32 / 2523)
        nits = 10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (8192 / 1305)
    else:
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        nits = 1000 * scene**1.2
    return (nits / WHITE).astype(np.float32)


def _tone_mapped(light: NDArray[np.float32], wide: bool) -> Frame:
    """[H, W, 3] of linear light, in BT.2020's primaries if `wide` -> uint8 in BT.709's."""
    light = np.maximum(light @ TO_BT709.T if wide else light, 0)
    bright = KNEE + (1 - KNEE) * (1 - np.exp((KNEE - light) / (1 - KNEE)))
    levels: Frame = (255 * np.where(light < KNEE, light, bright) ** (1 / 2.2) + 0.5).astype(np.uint8)
    return levels
