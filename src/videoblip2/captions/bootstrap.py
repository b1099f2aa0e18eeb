"""Paired bootstrap over videos: how sure is a difference between two systems on the same videos (Koehn 2004)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from videoblip2.config import InputError

_CHUNK = 500  # resamples at once


class BootstrapResult(NamedTuple):
    """Mean difference challenger - champion, its percentile interval and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    challenger: ArrayLike,
    champion: ArrayLike,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> BootstrapResult:
    """Resamples videos with replacement; each resample keeps both systems' scores of a video together.

    Args:
        challenger, champion: [N] scores of the same videos in the same order.
        confidence: probability mass of the interval (low, high).

    The p-value is twice the smaller share of resampled differences on the far side of zero, (count + 1) / (resamples
    + 1) so that it is never 0, at most 1 (Davison & Hinkley 1997, section 4.2). Raises InputError for scores that do
    not pair.
    """
    new, old = np.asarray(challenger, np.float64), np.asarray(champion, np.float64)
    if new.ndim != 1 or new.shape != old.shape or not len(new):
        raise InputError(f"paired bootstrap of scores shaped {new.shape} and {old.shape}: give two lists of one length")
    if not (np.isfinite(new).all() and np.isfinite(old).all()):
        raise InputError(
            "paired bootstrap of scores that are not finite: leave out the videos without a score, in both"
        )
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise InputError(f"confidence={confidence}, resamples={resamples}: give 0 < confidence < 1 and resamples >= 1")
    differences = new - old
    means = _resampled_means(differences, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (resamples + 1))
    return BootstrapResult(float(differences.mean()), float(low), float(high), p_value)


def _resampled_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    means = np.empty(resamples)
    for at in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - at)
        means[at : at + size] = values[rng.integers(0, len(values), (size, len(values)))].mean(axis=1)
    return means
