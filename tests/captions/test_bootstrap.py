"""The paired bootstrap: what it says of equal, better and noisy systems, and how fast."""

import time

import numpy as np
import pytest

from videoblip2.captions import paired_bootstrap
from videoblip2.config import InputError


def test_a_constant_gain_is_certain():
    champion = np.random.default_rng(0).normal(0.5, 0.3, 400)
    result = paired_bootstrap(champion + 0.02, champion, resamples=999)
    assert result.difference == pytest.approx(0.02)
    assert result.low == pytest.approx(0.02) and result.high == pytest.approx(0.02)
    assert result.p_value == pytest.approx(2 / 1000)


def test_equal_systems_differ_by_nothing():
    scores = np.random.default_rng(0).normal(size=50)
    assert paired_bootstrap(scores, scores, resamples=100) == (0.0, 0.0, 0.0, 1.0)


def test_interval_and_p_value_agree_with_the_normal_approximation():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.02, 0.3, 2000)
    result = paired_bootstrap(differences, np.zeros(2000))
    standard_error = differences.std(ddof=1) / np.sqrt(2000)
    assert result.low == pytest.approx(differences.mean() - 1.96 * standard_error, abs=0.1 * standard_error)
    assert result.high == pytest.approx(differences.mean() + 1.96 * standard_error, abs=0.1 * standard_error)
    z = differences.mean() / standard_error
    assert result.p_value == pytest.approx(2 * (1 - normal_cdf(z)), abs=0.01)


def normal_cdf(z):
    from math import erf, sqrt

    return 0.5 * (1 + erf(z / sqrt(2)))


def test_p_values_of_equal_systems_are_uniform():
    rng = np.random.default_rng(2)
    p_values = [paired_bootstrap(rng.normal(size=80), np.zeros(80), resamples=300).p_value for _ in range(300)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09
    assert 0.4 < np.mean(p_values) < 0.6


def test_swapping_the_systems_turns_the_result_round():
    rng = np.random.default_rng(3)
    new, old = rng.normal(0.1, 1, 300), rng.normal(0, 1, 300)
    one, other = paired_bootstrap(new, old), paired_bootstrap(old, new)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p_value == other.p_value


def test_a_seed_gives_the_same_result_and_another_seed_another():
    scores = np.random.default_rng(4).normal(size=100)
    zeros = np.zeros(100)
    assert paired_bootstrap(scores, zeros, seed=5) == paired_bootstrap(scores, zeros, seed=5)
    assert paired_bootstrap(scores, zeros, seed=5) != paired_bootstrap(scores, zeros, seed=6)


def test_less_confidence_gives_a_narrower_interval():
    scores = np.random.default_rng(4).normal(size=100)
    wide, narrow = (paired_bootstrap(scores, np.zeros(100), confidence=c) for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_size_of_msrvtt_takes_seconds():
    scores = np.random.default_rng(0).normal(size=2990)
    started = time.process_time()
    paired_bootstrap(scores, np.zeros(2990), resamples=10_000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("new", "old", "options"),
    [
        ([1.0], [1.0, 2.0], {}),
        ([], [], {}),
        ([[1.0]], [[1.0]], {}),
        ([np.nan], [1.0], {}),
        ([1.0], [1.0], {"confidence": 1.0}),
        ([1.0], [1.0], {"resamples": 0}),
    ],
)
def test_scores_that_do_not_pair_are_refused(new, old, options):
    with pytest.raises(InputError, match=r"give|leave out"):
        paired_bootstrap(new, old, **options)
