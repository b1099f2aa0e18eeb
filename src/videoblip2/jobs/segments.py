"""Long videos in time: where one segment ends and the next begins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from videoblip2.jobs.forms import Row
from videoblip2.modality import Features

#: A shot change: the cosine distance between neighbouring frames exceeds both limits, see `shot_changes`.
DISTANCE, DEVIATIONS = 0.15, 3.0


@dataclass(frozen=True)
class Segment:
    """Part of a video: from and to which second (None = not known), and the rows of its features in that time."""

    start: float | None
    end: float | None
    item: Features


def cut(
    item: Features, fps: float, window: float | None, every: float | None, changes: Sequence[float] | None = None
) -> list[Segment]:
    """Cut a video's features (video [F,D], audio [A,E]) into segments, at least one.

    Args:
        fps: frames a second. window: seconds of each audio row.
        every: seconds of a segment; None = where the picture changes.
        changes: when it does; None = as found in the features (`shot_changes`), to within half a frame.
    """
    frames = item["video"]
    length = len(frames) / fps
    if every:
        step = max(1, round(min(every * fps, len(frames))))
        starts = [first / fps for first in range(0, max(1, len(frames)), step)]
    elif changes is None:
        starts = [0.0, *((first - 0.5) / fps for first in shot_changes(frames))]
    else:
        starts = [0.0, *(second for second in changes if 0 < second < length)]
    segments = []
    for start, end in pairwise([*starts, length]):
        first, last = (math.ceil(second * fps - 1e-6) for second in (start, end))
        first = min(first, max(0, len(frames) - 1))  # a shot between two frames gets the next one
        rows = {"video": frames[first : max(first + 1, last)], **_heard(item, start, end, window)}
        segments.append(Segment(round(start, 3), round(end, 3), rows))
    return segments


def _heard(item: Features, start: float, end: float, window: float | None) -> Features:
    """The audio windows that overlap the segment; at least the nearest one where the video has sound."""
    if "audio" not in item:
        return {}
    audio = item["audio"]
    if not window or not len(audio):
        return {"audio": audio}
    first = min(int(start / window), len(audio) - 1)
    return {"audio": audio[first : max(first + 1, int(np.ceil(end / window - 1e-9)))]}


def shot_changes(frames: np.ndarray) -> list[int]:
    """Frames [F,D] → numbers of the frames that begin a new shot.

    The cosine distance to the frame before exceeds DISTANCE, and the video's median distance by DEVIATIONS median
    absolute deviations: a video that moves a lot is not cut at every frame.
    """
    units = frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-12)
    distances = 1.0 - (units[1:] * units[:-1]).sum(axis=1)
    if not len(distances):
        return []
    usual = np.median(distances)
    least = max(DISTANCE, float(usual + DEVIATIONS * np.median(np.abs(distances - usual))))
    return [number for number, distance in enumerate(distances.tolist(), 1) if distance > least]


def merged(rows: Sequence[Row]) -> list[Row]:
    """Neighbours in time with the same caption become one row, whose score is their mean by duration."""
    kept: list[Row] = []
    places: dict[tuple[str | None, int | None], int] = {}  # of the row before, by question and sample
    for row in rows:
        place = places.get((row.question, row.sample))
        before = None if place is None else kept[place]
        if place is not None and before is not None and row.error is None and before.caption == row.caption:
            first, second = _seconds(before), _seconds(row)
            score = ((before.score or 0.0) * first + (row.score or 0.0) * second) / max(first + second, 1e-9)
            kept[place] = replace(before, end=row.end, score=round(score, 4), ended=bool(before.ended and row.ended))
        else:
            places[row.question, row.sample] = len(kept)
            kept.append(row)
    return kept


def _seconds(row: Row) -> float:
    return (row.end or 0.0) - (row.start or 0.0)
