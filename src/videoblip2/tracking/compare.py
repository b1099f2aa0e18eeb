"""Runs side by side: what differs, how sure the differences in score are, and which captions they come from.

The first side is the baseline; each further side is compared with it over the same videos.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videoblip2.captions import BootstrapResult, caption_metrics
from videoblip2.captions.intervals import (
    BLEU_COLUMNS,
    Floats,
    Interval,
    bleu,
    bleu_tables,
    difference,
    interval,
    over_seeds,
    resampled_means,
)
from videoblip2.captions.tokenizer import tokenize
from videoblip2.config import InputError
from videoblip2.tracking.mlflow.run_records import Prediction, RunRecord

#: Scores whose corpus value is the mean over videos. METEOR's is not quite; its row says so.
MEANS = ("CIDEr", "ROUGE_L", "METEOR", "SPICE")
BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
ORDER = ("CIDEr", *BLEU, "ROUGE_L", "METEOR", "SPICE", "words")
RANKED_BY = "CIDEr"
TIE = 1e-9

Predictions = Mapping[str, Prediction]


def letter(place: int) -> str:
    """What a side is called where its name is too long: A, B, C …"""
    return chr(ord("A") + place) if place < 26 else str(place + 1)


@dataclass(frozen=True)
class Side:
    """One column of a comparison: a run, or the seeds of one configuration. predictions: of each run, by video."""

    name: str
    runs: tuple[RunRecord, ...]
    predictions: tuple[Predictions, ...]


@dataclass(frozen=True)
class Score:
    """One metric. values: of each side; differences: of each further side minus the first."""

    metric: str
    values: tuple[Interval, ...]
    differences: tuple[BootstrapResult, ...]


@dataclass(frozen=True)
class VideoPair:
    """A video under two sides. captions: (caption, CIDEr) of each run of each side; scores: the sides' CIDEr."""

    video_id: str
    category: int | None
    captions: tuple[tuple[tuple[str, float], ...], ...]
    scores: tuple[float, float]
    references: tuple[str, ...]

    @property
    def gain(self) -> float:
        return self.scores[1] - self.scores[0]


@dataclass(frozen=True)
class Duel:
    """A further side against the first: on how many videos it is better, worse, equal, and all videos by gain."""

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
class Comparison:
    """Everything that there is to show. differs: (what, its value on each side), nothing that is equal everywhere."""

    split: str
    sides: tuple[Side, ...]
    videos: int
    differs: tuple[tuple[str, tuple[str, ...]], ...]
    scores: tuple[Score, ...]
    duels: tuple[Duel, ...]
    warnings: tuple[str, ...] = ()


def compare_sides(
    split: str,
    sides: Sequence[Side],
    differs: Sequence[tuple[str, tuple[str, ...]]],
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two or more sides over the videos that all of them captioned against the same references.

    Raises InputError where there is no such video. Where some videos fall out, a warning says so, and every score is
    computed again on those that are left.
    """
    videos, warnings, same = _common(sides)
    sides = [_only(side, videos, same) for side in sides]
    return Comparison(
        split=split,
        sides=tuple(sides),
        videos=len(videos),
        differs=tuple(differs),
        scores=tuple(_scores(sides, videos, resamples, seed)),
        duels=tuple(_duel(sides, place, videos) for place in range(1, len(sides))),
        warnings=tuple(warnings),
    )


def _common(sides: Sequence[Side]) -> tuple[list[str], list[str], bool]:
    """Videos with the same references everywhere, warnings, and whether that is all of them."""
    every = [predictions for side in sides for predictions in side.predictions]
    first, union = every[0], {video for predictions in every for video in predictions}
    shared = [video for video in first if all(video in predictions for predictions in every)]
    videos = [video for video in shared if len({frozenset(p[video].references) for p in every}) == 1]
    if not videos:
        reason = "have other references in each" if shared else "are in one of them only"
        raise InputError(
            f"{' and '.join(side.name for side in sides)}: their videos {reason}, so their scores cannot be compared; "
            "evaluate the models on one split with `vb2 evaluate RUN --split val`"
        )
    if len(videos) == len(union):
        return videos, [], True
    lost = f"{len(union) - len(shared)} of {len(union)} videos are not in every run"
    changed = f"{len(shared) - len(videos)} have other references"
    return videos, [f"{lost}, {changed}: scores are computed again on the {len(videos)} that are left"], False


def _only(side: Side, videos: Sequence[str], same: bool) -> Side:
    """The side on some videos; scores depend on the set of references, so they are then computed again."""
    if same:
        return side
    kept = [{video: predictions[video] for video in videos} for predictions in side.predictions]
    return Side(side.name, side.runs, tuple(_scored(predictions) for predictions in kept))


def _scored(predictions: Predictions) -> Predictions:
    references = {video: prediction.references for video, prediction in predictions.items()}
    captions = {video: prediction.caption for video, prediction in predictions.items()}
    scores = caption_metrics(references, captions, ["CIDEr", "ROUGE_L"]).per_video
    return {
        video: Prediction(one.caption, scores[video], one.references, one.category)
        for video, one in predictions.items()
    }


def _scores(sides: Sequence[Side], videos: Sequence[str], resamples: int, seed: int) -> list[Score]:
    """All metrics of all sides from one set of resamples."""
    every = [predictions for side in sides for predictions in side.predictions]
    means = [name for name in MEANS if all(name in p[video].scores for p in every for video in videos)]
    table = np.concatenate(_blocks(every, videos, means), axis=1)  # [N, runs · (means + 1 + BLEU's)]
    points, samples = table.mean(axis=0, keepdims=True), resampled_means(table, resamples, seed)
    values, drawn = _of_runs(points, means, len(every)), _of_runs(samples, means, len(every))
    ends = np.cumsum([len(side.runs) for side in sides]).tolist()
    places = [slice(end - len(side.runs), end) for side, end in zip(sides, ends, strict=True)]
    return [_score(name, values[name], drawn[name], places) for name in ORDER if name in values]


def _blocks(every: Sequence[Predictions], videos: Sequence[str], means: Sequence[str]) -> list[Floats]:
    """For each run [N, means + 1 + BLEU's]: scores of each video, its number of words, its BLEU counts."""
    references = {video: every[0][video].references for video in videos}
    counts = bleu_tables(references, [{video: p[video].caption for video in videos} for p in every])
    blocks = []
    for predictions, count in zip(every, counts, strict=True):
        rows = [[predictions[video].scores[name] for name in means] for video in videos]
        words = [[float(len(tokenize(predictions[video].caption)))] for video in videos]
        blocks.append(np.concatenate([np.array(rows).reshape(len(videos), -1), words, count], axis=1))
    return blocks


def _of_runs(means: Floats, names: Sequence[str], runs: int) -> dict[str, Floats]:
    """Column means [R, runs · width] → metric → its value in each run [runs, R]."""
    blocks = np.split(means, runs, axis=1)
    found = {name: np.stack([block[:, place] for block in blocks]) for place, name in enumerate([*names, "words"])}
    for order, name in enumerate(BLEU):
        found[name] = np.stack([bleu(block[:, -BLEU_COLUMNS:])[:, order] for block in blocks])
    return found


def _score(name: str, points: Floats, samples: Floats, places: Sequence[slice]) -> Score:
    values = [float(points[place].mean()) for place in places]
    drawn = [over_seeds(samples[place], seed=number + 1) for number, place in enumerate(places)]
    pairs = list(zip(values, drawn, strict=True))
    return Score(
        metric=name,
        values=tuple(interval(value, sample) for value, sample in pairs),
        differences=tuple(difference(value - values[0], sample - drawn[0]) for value, sample in pairs[1:]),
    )


def _duel(sides: Sequence[Side], place: int, videos: Sequence[str]) -> Duel:
    pairs = sorted((_pair(sides[0], sides[place], video) for video in videos), key=lambda pair: -pair.gain)
    better = sum(pair.gain > TIE for pair in pairs)
    worse = sum(pair.gain < -TIE for pair in pairs)
    return Duel(place, better, worse, len(pairs) - better - worse, tuple(pairs))


def _pair(first: Side, second: Side, video: str) -> VideoPair:
    captions = tuple(
        tuple((p[video].caption, float(p[video].scores[RANKED_BY])) for p in side.predictions)
        for side in (first, second)
    )
    scores = [sum(score for _, score in runs) / len(runs) for runs in captions]
    known = first.predictions[0][video]
    return VideoPair(video, known.category, captions, (scores[0], scores[1]), known.references)
