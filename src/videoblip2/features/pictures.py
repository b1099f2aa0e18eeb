"""Decoded frames in one form: pictures as a person sees them, and sound in mono at one rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # [H, W, 3]
Audio = NDArray[np.float32]  # [N]
Span = tuple[float, float]  # from and to which second

SAMPLES_AT_ONCE = 16_384  # codec frames of 1024 samples, one by one, take twice the time to resample
SQUARE = 0.02  # how far a pixel may be from square; encoders round the aspect of a scaled picture
BT709 = 1  # FFmpeg's number of the colour matrix of HD video
BT2020 = 9  # of the primaries of HDR video
PQ, HLG = 16, 18  # of the two HDR transfer functions
WHITE = 203  # nits: diffuse white in HDR (ITU-R BT.2408), which becomes the white of SDR
STRIP = 64  # rows that are tone-mapped at once
KNEE = 0.8  # of white: what is brighter is compressed
TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)


class Pictures:
    """The frames of one stream: RGB, upright, with square pixels, in standard dynamic range.

    `caveats` gets a line for each change from what is stored.

    Args:
        aspect: width of a stored pixel over its height; None: square.
    """

    def __init__(self, aspect: Fraction | None, caveats: list[str]) -> None:
        self._aspect, self._caveats = aspect, caveats
        self._size: tuple[int, int] | None = None
        self._converter = VideoReformatter()  # a frame's own would be rebuilt for each frame, with a thread per core

    def rgb(self, frame: Any) -> Frame:
        """A decoded frame -> uint8 [H, W, 3]; a stream that changes size is scaled to its first size."""
        self._size = self._size or shown_size(frame.width, frame.height, self._aspect)
        hdr = frame.color_trc in (PQ, HLG)
        form = "rgb48le" if hdr else "rgb24"
        try:
            shown = self._converter.reformat(frame, *self._size, format=form, threads=1)
        except av.FFmpegError:  # such as ICtCp
            self._note(f"video: colour matrix {int(frame.colorspace)} cannot be converted, read as BT.709")
            frame.colorspace = BT709
            shown = self._converter.reformat(frame, *self._size, format=form, threads=1)
        pixels: NDArray[Any] = shown.to_ndarray()
        if hdr:
            self._note("video: HDR, tone-mapped to SDR")
            light, wide = _light(int(frame.color_trc)), frame.color_primaries == BT2020
            strips = np.array_split(pixels, -(-len(pixels) // STRIP))  # as floats, a whole 4K frame takes 100 MB
            pixels = np.concatenate([_tone_mapped(light[strip], wide) for strip in strips])
        return np.ascontiguousarray(_upright(pixels, frame))

    def _note(self, caveat: str) -> None:
        if caveat not in self._caveats:
            self._caveats.append(caveat)


class Sound:
    """The audio frames of one stream, mixed to mono at `rate` Hz; from second `begin` to `end`."""

    def __init__(self, rate: int) -> None:
        self.started, self.begin, self.end, self.rate, self._form = False, 0.0, 0.0, rate, ("", "", 0)
        self._fifo, self._resampler = av.AudioFifo(), av.AudioResampler(format="fltp", rate=rate)

    def mono(self, frame: Any) -> Iterator[Audio]:
        """A chunk once `SAMPLES_AT_ONCE` samples are waiting, or, for None, what is left.

        A change of format starts a new resampler.
        """
        if frame is None:
            yield from self._rest() if self.started else ()
            return
        form = frame.format.name, frame.layout.name, frame.sample_rate
        if self.started and form != self._form:
            yield from self._rest()
            self._fifo, self._resampler = av.AudioFifo(), av.AudioResampler(format="fltp", rate=self.rate)
        self.begin = self.begin if self.started else frame.time or 0.0
        self.started, self._form, self.end = True, form, (frame.time or self.end) + frame.samples / frame.sample_rate
        frame.pts = None  # the queue refuses gaps, which are not filled
        self._fifo.write(frame)
        if self._fifo.samples >= SAMPLES_AT_ONCE:
            yield from self._mixed(self._fifo.read(0, partial=True))

    def within(self, chunks: Iterable[Audio], span: Span) -> Iterator[Audio]:
        """What chunks from `mono` have of a span."""
        passed = 0
        for chunk in chunks:
            first, last = (round((second - self.begin) * self.rate) - passed for second in span)
            if last <= 0:
                return
            if len(part := chunk[max(0, first) : last]):
                yield part
            passed += len(chunk)

    def _rest(self) -> Iterator[Audio]:
        """What the queue and the resampler still hold."""
        if self._fifo.samples:
            yield from self._mixed(self._fifo.read(0, partial=True))
        yield from self._mixed(None)

    def _mixed(self, frame: Any) -> list[Audio]:
        """Mean over the channels, as librosa mixes for CLAP; FFmpeg's own float mix is 3 dB louder."""
        return [piece.to_ndarray().mean(axis=0, dtype=np.float32) for piece in self._resampler.resample(frame)]


def shown_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Width and height with square pixels; pixels within 2 % of square are taken as they are."""
    return (max(1, round(width * aspect)) if aspect and abs(aspect - 1) > SQUARE else width), height


def _upright(pixels: Frame, frame: Any) -> Frame:
    """Turned and mirrored as the display matrix says: x' = a x + c y, y' = b x + d y, by quarter turns."""
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5]
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


@lru_cache
def _light(transfer: int) -> NDArray[np.float32]:
    """float32 [65536]: light by 16-bit code, where diffuse white is 1 (SMPTE ST 2084; ITU-R BT.2100)."""
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
