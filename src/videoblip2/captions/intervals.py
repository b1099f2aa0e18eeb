"""Confidence intervals of corpus scores and their differences, by resampling videos with replacement (Koehn 2004).

All columns share the resamples, so differences are paired. If a system has several seeds, each resample draws seeds
too; with few of them (S) the interval is still too narrow, by a factor of about √((S - 1) / S).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from videoblip2.captions.functions import Floats
from videoblip2.config import InputError

_CHUNK = 250  # resamples at once


class Interval(NamedTuple):
    """A score and its percentile interval."""

    value: float
    low: float
    high: float


class BootstrapResult(NamedTuple):
    """Mean difference challenger - champion, its percentile interval and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    challenger: ArrayLike, champion: ArrayLike, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> BootstrapResult:
    """Difference between two systems' scores [N] of the same videos in the same order.

    Raises InputError for scores that do not pair.
    """
    new, old = np.asarray(challenger, np.float64), np.asarray(champion, np.float64)
    if new.ndim != 1 or new.shape != old.shape or not len(new):
        raise InputError(f"paired bootstrap of scores shaped {new.shape} and {old.shape}: give lists of one length")
    if not (np.isfinite(new).all() and np.isfinite(old).all()):
        raise InputError("paired bootstrap of scores that are not finite: leave the videos without a score out of both")
    means = resampled_means((new - old)[:, None], resamples, seed)[:, 0]
    return difference(float((new - old).mean()), means, confidence)


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
    """Resamples of each seed [S,R] → resamples of their mean [R], drawing seeds with replacement."""
    seeds, resamples = samples.shape
    drawn = np.random.default_rng(seed).integers(0, seeds, (seeds, resamples))
    return np.asarray(np.take_along_axis(samples, drawn, axis=0).mean(axis=0))


def interval(value: float, samples: Floats, confidence: float = 0.95) -> Interval:
    """The percentile interval of resampled values [R]."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


def difference(value: float, samples: Floats, confidence: float = 0.95) -> BootstrapResult:
    """Interval and two-sided p-value of resampled differences [R].

    The p-value is twice the share on the rarer side of zero, (count + 1) / (resamples + 1), at most 1 (Davison and
    Hinkley 1997, section 4.2).
    """
    _, low, high = interval(value, samples, confidence)
    tail = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return BootstrapResult(float(value), low, high, min(1.0, 2 * (tail + 1) / (len(samples) + 1)))


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of S ≥ 2 seeds with Student's t interval, from the spread of the seeds."""
    from scipy import stats

    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values))  # 0 if all seeds agree
    return Interval(mean, mean - half, mean + half)
