"""Compare runs: how certain differences in score are, and which captions they come from.

The first side is the baseline; each other side is compared with it over the same videos.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from videoblip2.captions import METRICS, BootstrapResult, Metric, caption_metrics, diversity
from videoblip2.captions.functions import Floats
from videoblip2.captions.intervals import Interval, difference, interval, over_seeds, resampled_means
from videoblip2.captions.metrics import DIVERSITY, gain_and_cost, human_metrics
from videoblip2.captions.predictions import CaptionRow, Prediction
from videoblip2.captions.tokenizer import joined
from videoblip2.config import InputError
from videoblip2.tracking.mlflow.run_records import RunRecord

TIE = 1e-9

Predictions = Mapping[str, Prediction]  # by key
Differences = Sequence[tuple[str, tuple[str, ...]]]  # what differs, and its value on each side


def letter(place: int) -> str:
    """The short name of a side: A, B, C …"""
    return chr(ord("A") + place) if place < 26 else str(place + 1)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a run, or the seeds of one configuration. predictions: rows of each run, by key."""

    name: str
    runs: tuple[RunRecord, ...]
    predictions: tuple[Predictions, ...]


@dataclass(frozen=True)
class Score:
    """One metric. values: of each side; differences: each other side minus the first."""

    metric: Metric
    values: tuple[Interval, ...]
    differences: tuple[BootstrapResult, ...]


@dataclass(frozen=True)
class VideoPair:
    """A video under two sides. captions: (text, score) of each side's runs; scores: the sides' means."""

    video_id: str
    category: int | None
    captions: tuple[tuple[tuple[str, float], ...], ...]
    scores: tuple[float, float]
    references: tuple[str, ...]
    question: str | None = None

    @property
    def gain(self) -> float:
        return self.scores[1] - self.scores[0]


@dataclass(frozen=True)
class Duel:
    """One side against the first: on how many videos it is better, worse or equal; all videos by gain."""

    side: int
    better: int
    worse: int
    equal: int
    pairs: tuple[VideoPair, ...]

    def wins(self, count: int) -> list[VideoPair]:
        """The videos with the largest gain, largest first."""
        return [pair for pair in self.pairs[:count] if pair.gain > TIE]

    def losses(self, count: int) -> list[VideoPair]:
        """The videos with the largest loss, largest first."""
        return [pair for pair in self.pairs[::-1][:count] if pair.gain < -TIE]


@dataclass(frozen=True)
class RunComparison:
    """A comparison, ready to show."""

    split: str
    sides: tuple[Side, ...]
    videos: int
    differs: Differences
    scores: tuple[Score, ...]
    duels: tuple[Duel, ...]
    warnings: tuple[str, ...] = ()
    metric: str = CaptionRow.metric  # ranks the videos
    answers: "RunComparison | None" = None  # of runs with both captions and answers

    @cached_property
    def humans(self) -> dict[str, float]:
        """Human scores on these videos (`human_metrics`); empty for answers."""
        rows = self.sides[0].predictions[0].values() if self.metric == CaptionRow.metric else ()
        return human_metrics({row.video_id: row.references for row in rows})

    @cached_property
    def whole(self) -> dict[str, tuple[float, ...]]:
        """Metrics of the whole set of captions, which have no interval: per side, the mean of its runs."""
        sides = [[diversity([row.text for row in run.values()]) for run in side.predictions] for side in self.sides]
        names = [n for n in DIVERSITY if not METRICS[n].per_video and self.metric == CaptionRow.metric]
        return {name: tuple(float(np.mean([run[name] for run in runs])) for runs in sides) for name in names}

    def sentence(self, duel: Duel) -> str:
        """The other side's gain, and its cost."""
        differences = {score.metric.name: score.differences[duel.side - 1] for score in self.scores}
        return gain_and_cost(self.metric, differences)

    @property
    def counted(self) -> str:
        """The unit of `videos`."""
        return "videos" if self.metric == CaptionRow.metric else "answers"


def compare_sides(split: str, sides: Sequence[Side], differs: Differences, resamples: int = 10_000) -> RunComparison:
    """Compare sides over the videos that all of them captioned against the same references.

    Raises InputError if there is none. If some are left out, a warning says so, and all scores are for the rest.
    """
    videos, warnings = _common(sides)
    if warnings:
        left = [[{key: rows[key] for key in videos} for rows in side.predictions] for side in sides]
        sides = [replace(side, predictions=tuple(map(_scored, rows))) for side, rows in zip(sides, left, strict=True)]
    scores = tuple(_scores(sides, videos, resamples))
    duels = tuple(_duel(sides, place, videos) for place in range(1, len(sides)))
    metric = sides[0].predictions[0][videos[0]].metric  # all rows are of one kind
    return RunComparison(split, tuple(sides), len(videos), differs, scores, duels, tuple(warnings), metric)


def _common(sides: Sequence[Side]) -> tuple[list[str], list[str]]:
    """Videos with the same references on all sides, and a warning if these are not all."""
    every = [predictions for side in sides for predictions in side.predictions]
    first, union = every[0], {video for predictions in every for video in predictions}
    shared = [video for video in first if all(video in predictions for predictions in every)]
    videos = [video for video in shared if len({frozenset(p[video].references) for p in every}) == 1]
    if not videos:
        reason = "have different references in each" if shared else "are different"
        names = " and ".join(side.name for side in sides)
        remedy = "evaluate the models on one split with `vb2 evaluate RUN --split val`"
        raise InputError(f"{names}: their videos {reason}, so their scores cannot be compared; {remedy}")
    if len(videos) == len(union):
        return videos, []
    lost = f"{len(union) - len(shared)} of {len(union)} videos are not in every run"
    changed = f"{len(shared) - len(videos)} have different references"
    return videos, [f"{lost}, {changed}: scores are recomputed on the remaining {len(videos)}"]


def _scored(predictions: Predictions) -> Predictions:
    """Scores depend on the set of references, so they are recomputed if videos are left out."""
    captions = {key: row for key, row in predictions.items() if isinstance(row, CaptionRow)}
    if not captions:
        return predictions  # an answer's score does not depend on others
    references = {video: row.references for video, row in captions.items()}
    texts = {video: row.caption for video, row in captions.items()}
    scores = caption_metrics(references, texts, [CaptionRow.metric]).per_video  # `_columns` computes the others
    return {video: replace(row, scores=scores[video]) for video, row in captions.items()}


def _scores(sides: Sequence[Side], videos: Sequence[str], resamples: int) -> list[Score]:
    """All metrics of all sides from one set of resamples."""
    every = [predictions for side in sides for predictions in side.predictions]
    columns = _columns(every, videos)
    table = np.concatenate([block.reshape(len(block), -1) for block in columns.values()], axis=1)
    means = np.concatenate([table.mean(axis=0, keepdims=True), resampled_means(table, resamples)])
    blocks = np.split(means, np.cumsum([block[0].size for block in columns.values()])[:-1], axis=1)
    ends = np.cumsum([len(side.predictions) for side in sides]).tolist()
    places = [slice(end - len(side.predictions), end) for side, end in zip(sides, ends, strict=True)]
    scores = []
    for metric in METRICS.values():
        if _key(metric) in columns:
            block = blocks[list(columns).index(_key(metric))].reshape(len(means), len(every), -1)  # [1 + R, runs, k]
            values = block[..., 0] if metric.pool is None else metric.pool(block)
            points = [float(values[0, place].mean()) for place in places]
            drawn = [over_seeds(values[1:, place].T, seed=number + 1) for number, place in enumerate(places)]
            differences = [difference(p - points[0], d - drawn[0]) for p, d in zip(points, drawn, strict=True)]
            scores.append(Score(metric, tuple(map(interval, points, drawn)), tuple(differences[1:])))
    return scores


def _columns(every: Sequence[Predictions], videos: Sequence[str]) -> dict[object, Floats]:
    """The values that each metric averages or pools, per video and run: [V, runs, k].

    Scores come from the predictions; where these lack a metric that needs no Java, it is computed from the captions.
    """
    kind = every[0][videos[0]].kind
    of_videos = [every[0][key].video_id for key in videos]
    texts = [joined(p[video].text) for video in videos for p in every]
    groups = [group for video in videos for group in [[joined(t) for t in every[0][video].references]] * len(every)]
    columns: dict[object, Floats] = {}
    for metric in METRICS.values():
        if metric.of != kind or not metric.per_video or _key(metric) in columns:
            continue
        stored = [p[video].scores.get(metric.name) for video in videos for p in every]
        if metric.pool is None and None not in stored:
            values = np.array(stored, np.float64)
        elif metric.default and not metric.needs:
            values = metric.rows(metric.function(texts, groups), len(texts))
        else:
            continue
        columns[_key(metric)] = _by_video(values.reshape(len(videos), len(every), -1), of_videos)
    return columns


def _by_video(block: Floats, videos: Sequence[str]) -> Floats:
    """Rows [N, runs, k] → one per video [V, runs, k], with the same mean: questions about a video count together."""
    names, places = np.unique(videos, return_inverse=True)
    summed = np.zeros((len(names), *block.shape[1:]))
    np.add.at(summed, places, block)
    return block if len(names) == len(videos) else summed * len(names) / len(videos)


def _key(metric: Metric) -> object:
    """Metrics that pool the same counts share their columns."""
    return metric.name if metric.pool is None else metric.function


def _duel(sides: Sequence[Side], place: int, videos: Sequence[str]) -> Duel:
    pairs = sorted((_pair(sides[0], sides[place], video) for video in videos), key=lambda pair: -pair.gain)
    better = sum(pair.gain > TIE for pair in pairs)
    worse = sum(pair.gain < -TIE for pair in pairs)
    return Duel(place, better, worse, len(pairs) - better - worse, tuple(pairs))


def _pair(first: Side, second: Side, video: str) -> VideoPair:
    rows = [[predictions[video] for predictions in side.predictions] for side in (first, second)]
    captions = tuple(tuple((row.text, float(row.scores[row.metric])) for row in runs) for runs in rows)
    before, after = (sum(score for _, score in runs) / len(runs) for runs in captions)
    known = rows[0][0]
    category, question = getattr(known, "category", None), getattr(known, "question", None)
    return VideoPair(known.video_id, category, captions, (before, after), known.references, question)
