"""How sure corpus scores and their differences are: one set of resampled videos for every system and every score.

1. Videos are drawn with replacement (Koehn 2004), the same draws for all columns, so that differences are paired. The
   draws are those of `paired_bootstrap`: for a mean both give the same interval and p-value.
2. A score that is no mean over videos (corpus BLEU) is computed again in each resample from its sums.
3. Where a system was trained with several seeds, each resample draws seeds, too. With few seeds that is still too
   narrow, by a factor of about √((S - 1) / S).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from videoblip2.captions.bootstrap import BootstrapResult
from videoblip2.captions.tokenizer import tokenize

Floats = NDArray[np.float64]

BLEU_COLUMNS = 10  # words of the caption, of its nearest reference, possible n-grams 1 to 4, correct ones 1 to 4
_CHUNK = 250  # resamples at once
_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's, against division by zero


class Interval(NamedTuple):
    """A score and its percentile interval."""

    value: float
    low: float
    high: float


def resampled_means(table: Floats, resamples: int = 10_000, seed: int = 0) -> Floats:
    """Means of each column over resampled rows: [N,C] → [R,C]."""
    rng = np.random.default_rng(seed)
    size, means = len(table), np.empty((resamples, table.shape[1]))
    for at in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - at)
        drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        means[at : at + rows] = weights @ table / size
    return means


def over_seeds(samples: Floats, seed: int = 1) -> Floats:
    """Resamples of each seed [S,R] → resamples of their mean [R], with seeds drawn with replacement."""
    seeds, resamples = samples.shape
    drawn = np.random.default_rng(seed).integers(0, seeds, (seeds, resamples))
    mean: Floats = np.take_along_axis(samples, drawn, axis=0).mean(axis=0)
    return mean


def interval(value: float, samples: Floats, confidence: float = 0.95) -> Interval:
    """The percentile interval of resampled values [R]."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


def difference(value: float, samples: Floats, confidence: float = 0.95) -> BootstrapResult:
    """Interval and two-sided p-value of resampled differences [R]; see `paired_bootstrap`."""
    _, low, high = interval(value, samples, confidence)
    tail = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return BootstrapResult(float(value), low, high, min(1.0, 2 * (tail + 1) / (len(samples) + 1)))


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of S ≥ 2 seeds and Student's interval of it, from their spread alone."""
    from scipy import stats

    scores = np.asarray(values, np.float64)
    error = scores.std(ddof=1) / len(scores) ** 0.5
    reach = float(stats.t.ppf((1 + confidence) / 2, len(scores) - 1) * error)
    mean = float(scores.mean())
    return Interval(mean, mean - reach, mean + reach)


def bleu_tables(references: Mapping[str, Sequence[str]], systems: Sequence[Mapping[str, str]]) -> list[Floats]:
    """For each system's captions the counts [N,10] that corpus BLEU is made of, in the order of `references`."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs

    cooked = {video: cook_refs([" ".join(tokenize(text)) for text in texts]) for video, texts in references.items()}
    return [
        np.array([_bleu_row(captions[video], known) for video, known in cooked.items()], np.float64)
        for captions in systems
    ]


def _bleu_row(caption: str, cooked: Any) -> list[int]:
    from pycocoevalcap.bleu.bleu_scorer import cook_test

    counts = cook_test(" ".join(tokenize(caption)), cooked)
    words = counts["testlen"]
    nearest = min((abs(length - words), length) for length in counts["reflen"])[1]
    return [words, nearest, *counts["guess"], *counts["correct"]]


def bleu(sums: Floats) -> Floats:
    """Corpus BLEU-1 to BLEU-4 of summed (or averaged) counts [...,10] → [...,4], as pycocoevalcap computes it."""
    words, nearest = sums[..., :1], sums[..., 1:2]
    precision = (sums[..., 6:] + _TINY) / (sums[..., 2:6] + _SMALL)
    ratio = (words + _TINY) / (nearest + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    scores: Floats = np.cumprod(precision, axis=-1) ** (1.0 / np.arange(1, 5)) * brevity
    return scores
