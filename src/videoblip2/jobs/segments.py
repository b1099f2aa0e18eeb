"""Cut long videos into segments, and merge neighboring segments with equal captions.

A shot ends where neighboring frames differ far more than those around them (a cut), or where frames a second apart do
(a fade); docs/decisions/0012 has the figures.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from videoblip2.jobs.forms import Row
from videoblip2.modality import Features

#: Limits for the distance of neighboring frames' features at a shot change; see `shot_changes`.
DISTANCE, DEVIATIONS = 0.15, 3.0
#: Limits for mean differences of 8-bit levels: between neighboring frames, and between frames `APART` seconds apart.
CUT, FADE = 6.0, 16.0
TIMES_USUAL = 3.0  # and the difference is at least this many times those around it
AROUND = 3  # frames on either side of a cut
APART = 1.0  # seconds
LEAST = 0.5  # seconds between cuts
LEAST_FADE = 1.2  # seconds between a fade and any other change


@dataclass(frozen=True)
class Segment:
    """Part of a video: its start and end in seconds (None = unknown), and the feature rows in between."""

    start: float | None
    end: float | None
    item: Features


def cut(
    item: Features,
    fps: float,
    window: float | None,
    every: float | None,
    changes: Sequence[float] | None = None,
    patches: int = 1,
) -> list[Segment]:
    """Cut a video's features (video [F * patches, D], audio [A,E]) into segments, at least one.

    Args:
        fps: frames per second. window: seconds per audio row.
        every: seconds per segment; None = cut at shot changes.
        changes: seconds of the shot changes; None = find them in the features, to within half a frame.
    """
    frames = item["video"].reshape(-1, patches, item["video"].shape[1])
    length = len(frames) / fps
    if every:
        step = max(1, round(min(every * fps, len(frames))))
        starts = [first / fps for first in range(step, len(frames), step)]
    elif changes is None:
        starts = [(first - 0.5) / fps for first in shot_changes(frames.mean(axis=1))]
    else:
        starts = [second for second in changes if 0 < second < length]
    return [_segment(item, frames, fps, window, *span) for span in pairwise([0.0, *starts, length])]


def _segment(item: Features, frames: np.ndarray, fps: float, window: float | None, start: float, end: float) -> Segment:
    first, last = (math.ceil(second * fps - 1e-6) for second in (start, end))
    first = min(first, max(0, len(frames) - 1))  # a shot between two frames gets the next one
    seen = frames[first : max(first + 1, last)]
    rows = {"video": seen.reshape(-1, seen.shape[2]), **_heard(item, start, end, window)}
    return Segment(round(start, 3), round(end, 3), rows)


def _heard(item: Features, start: float, end: float, window: float | None) -> Features:
    """The audio windows that overlap the segment; at least the nearest one if the video has sound."""
    if "audio" not in item:
        return {}
    audio = item["audio"]
    if not window or not len(audio):
        return {"audio": audio}
    first = min(int(start / window), len(audio) - 1)
    return {"audio": audio[first : max(first + 1, int(np.ceil(end / window - 1e-9)))]}


def shot_changes(frames: np.ndarray) -> list[int]:
    """Features of frames [F,D] → numbers of the frames that begin a new shot.

    Their cosine distance to the previous frame exceeds DISTANCE, and exceeds the video's median distance by DEVIATIONS
    median absolute deviations, so that a video with much motion is not cut at every frame.
    """
    units = frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-12)
    distances = 1.0 - (units[1:] * units[:-1]).sum(axis=1)
    if not len(distances):
        return []
    usual = np.median(distances)
    least = max(DISTANCE, float(usual + DEVIATIONS * np.median(np.abs(distances - usual))))
    return [number for number, distance in enumerate(distances.tolist(), 1) if distance > least]


def merged(rows: Sequence[Row]) -> list[Row]:
    """Merge consecutive segments with the same caption. Their score is the mean, weighted by duration."""
    kept: list[Row] = []
    places: dict[tuple[str | None, int | None], int] = {}  # index of the previous row, by question and sample
    for row in rows:
        key = (row.question, row.sample)
        before = kept[places[key]] if key in places else None
        if before is not None and row.error is None and before.caption == row.caption:
            first, second = ((one.end or 0.0) - (one.start or 0.0) for one in (before, row))
            score = ((before.score or 0.0) * first + (row.score or 0.0) * second) / max(first + second, 1e-9)
            kept[places[key]] = replace(
                before, end=row.end, score=round(score, 4), ended=bool(before.ended and row.ended)
            )
        else:
            places[key] = len(kept)
            kept.append(row)
    return kept


@dataclass
class ShotWatch:
    """Detects shot changes from thumbnails of all frames of one video, in order; keeps two numbers per frame."""

    times: list[float] = field(default_factory=list)
    near: list[float] = field(default_factory=list)  # difference from the previous frame
    far: list[float] = field(default_factory=list)  # difference from the frame a second earlier
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
        """The seconds at which a new shot begins; the middle of a fade."""
        kept: list[float] = []
        for found, least in ((self._cuts(), LEAST), (self._fades(), LEAST_FADE)):
            for _, second in sorted(found, reverse=True):  # the strongest first
                if all(abs(second - other) >= least for other in kept):
                    kept.append(second)
        return sorted(kept)

    def _cuts(self) -> list[tuple[float, float]]:
        def around(i: int) -> list[float]:
            return self.near[max(1, i - AROUND) : i] + self.near[i + 1 : i + 1 + AROUND]

        sharp = ((i, near) for i, near in enumerate(self.near) if near > CUT)
        return [(near, self.times[i]) for i, near in sharp if near > TIMES_USUAL * float(np.mean(around(i) or 0.0))]

    def _fades(self) -> list[tuple[float, float]]:
        """Strength and time of each run of frames that differ from those a second earlier: its weighted middle."""
        rate = round((len(self.times) - 1) / max(self.times[-1], 1e-9)) if self.times else 0
        far, times = np.array(self.far), np.array(self.times)

        def changed(i: int) -> bool:
            if far[i] <= FADE:
                return False
            around = [*far[max(0, i - 2 * rate) : max(0, i - rate + 1)], *far[i + rate : i + 2 * rate]]
            return bool(far[i] > TIMES_USUAL * np.median(around or 0.0))

        runs = [list(run) for fade, run in groupby(range(rate, len(far)), changed) if fade]
        return [(float(far[run].max()), float(np.average(times[run], weights=far[run])) - APART / 2) for run in runs]
