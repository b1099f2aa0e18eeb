"""When one shot ends and the next begins, found in all frames of a video while it is decoded.

A cut: neighbouring frames differ far more than those around them. A fade: frames a second apart do. Limits are mean
differences of 8-bit levels; docs/decisions/0012 has the figures.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CUT, FADE = 6.0, 16.0  # least difference of neighbouring frames, and of those a second apart
TIMES_USUAL = 3.0  # and it is this many times as large as around it
AROUND = 3  # frames on either side of a cut
APART = 1.0  # seconds
LEAST = 0.5  # seconds from one cut to the next
LEAST_FADE = 1.2  # and from a fade to any other change


@dataclass
class ShotWatch:
    """Sees thumbnails of all frames of one video, in order; keeps two numbers of each."""

    times: list[float] = field(default_factory=list)
    near: list[float] = field(default_factory=list)  # difference from the frame before
    far: list[float] = field(default_factory=list)  # from the one a second before
    _recent: deque[tuple[float, NDArray[np.int16]]] = field(default_factory=deque)

    def __call__(self, thumbnail: NDArray[np.uint8], time: float) -> None:
        levels = thumbnail.astype(np.int16)
        self._recent.append((time, levels))
        while time - self._recent[0][0] > APART:
            self._recent.popleft()
        before = self._recent[-2][1] if len(self._recent) > 1 else levels
        self.times.append(time)
        self.near.append(float(np.abs(levels - before).mean()))
        self.far.append(float(np.abs(levels - self._recent[0][1]).mean()))

    def changes(self) -> list[float]:
        """The seconds at which a new shot begins; for a fade, its middle."""
        kept: list[float] = []
        for found, least in ((self._cuts(), LEAST), (self._fades(), LEAST_FADE)):
            for _, second in sorted(found, reverse=True):  # the clearest first
                if all(abs(second - other) >= least for other in kept):
                    kept.append(second)
        return sorted(kept)

    def _cuts(self) -> list[tuple[float, float]]:
        found = []
        for i, change in enumerate(self.near):
            if change > CUT:
                around = self.near[max(1, i - AROUND) : i] + self.near[i + 1 : i + 1 + AROUND]
                if not around or change > TIMES_USUAL * float(np.mean(around)):
                    found.append((change, self.times[i]))
        return found

    def _fades(self) -> list[tuple[float, float]]:
        """The middle of each run of frames that differ from those a second before them, weighted by how much."""
        rate = round((len(self.times) - 1) / max(self.times[-1], 1e-9)) if self.times else 0
        found, run = list[tuple[float, float]](), list[int]()
        for i in range(rate, len(self.far) + 1):
            change = self.far[i] if i < len(self.far) else 0.0
            if change > FADE:
                around = self.far[max(0, i - 2 * rate) : max(0, i - rate + 1)] + self.far[i + rate : i + 2 * rate]
                if not around or change > TIMES_USUAL * float(np.median(around)):
                    run.append(i)
                    continue
            if run:
                weights = np.array([self.far[k] for k in run])
                seconds = np.array([self.times[k] for k in run])
                found.append((float(weights.max()), float((seconds * weights).sum() / weights.sum()) - APART / 2))
                run = []
        return found
