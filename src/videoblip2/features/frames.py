"""Which frames of a video are decoded, and when each is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import av
from av.video.reformatter import VideoReformatter

from videoblip2.features.pictures import BT709, Frame, Span

Watch = Callable[[Frame, float], None]  # takes a thumbnail, [3, height, width] in YUV, and its second
THUMBNAIL = 32, 24  # width and height

ONE_EACH = ("h264", "hevc")  # codecs whose every packet becomes one picture
GLITCH = 1  # seconds: a shorter step back is a wrong time stamp, not another recording's clock
LEAP = 10  # seconds: in a format of joinable parts (MPEG-TS), a longer step is another recording's clock


class Clock:
    """Times of one stream's frames, never running backwards: a part with its own clock follows the previous one."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.started, self.end, self.step = False, 0.0, 0.0  # step: the longest from one frame to the next
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


def watched(frames: Iterable[tuple[Any, float]], watch: Watch) -> Iterator[tuple[Any, float]]:
    """The frames with their times, unchanged; `watch` sees each of them small, with its time from the first."""
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


class Promised(NamedTuple):
    """A frame as its packet announces it."""

    pts: int
    time: float
    duration: int
    time_base: Fraction


@dataclass(frozen=True)
class Plan:
    """Which frames of a stream to decode: `wanted` has the `pts` for each k, as in `nearest`."""

    wanted: list[int]
    clock: Clock


def planned(container: Any, stream: Any, fps: float) -> Plan | None:
    """`nearest` by the times of the packets alone; None where these do not tell which frames will come."""
    if stream.codec_context.name not in ONE_EACH or container.format.flags & av.format.Flags.ts_discont.value:
        return None
    found, unit = list[Promised](), stream.time_base
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                if packet.pts is None or packet.is_corrupt:
                    return None
                found.append(
                    Promised(packet.pts, packet.pts * unit.numerator / unit.denominator, packet.duration, unit)
                )
    except av.FFmpegError:
        return None
    found.sort()
    if not found or any(one.pts == other.pts for one, other in pairwise(found)):
        return None
    clock = Clock(container, stream)
    return Plan([frame.pts for frame in nearest(clock.timed(found), fps)], clock)


def decoded(container: Any, stream: Any, caveats: list[str], wanted: Container[int] | None = None) -> Iterator[Any]:
    """Frames of one stream; packets that FFmpeg cannot decode are skipped.

    wanted: `pts` of those that must come; others come only if further frames refer to them.
    """
    codec, skipping = stream.codec_context, False
    packets, reading, seconds, bad, first = container.demux(stream), True, 0.0, 0, ""
    while not (reading and bad):  # where reading fails, the file ends
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
    with suppress(av.FFmpegError):  # what the decoder still holds
        yield from stream.decode(None)
    if bad:
        caveats.append(f"{stream.type}: {bad} damaged packet{'s' if bad > 1 else ''} skipped, the first {first}")


def promised(container: Any, stream: Any, caveats: list[str], wanted: Sequence[int]) -> Iterator[Any]:
    """The frames of these `pts`, in order; ends early where one does not come out."""
    place = 0
    skippable = stream.codec_context.name == "h264"  # HEVC's higher temporal layers refer to frames marked as unused
    for frame in decoded(container, stream, caveats, set(wanted) if skippable else None):
        if frame.pts is None or frame.pts > wanted[place]:
            return
        while wanted[place] == frame.pts:
            yield frame
            place += 1
            if place == len(wanted):
                return
