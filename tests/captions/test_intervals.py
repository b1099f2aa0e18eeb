"""Intervals by resampling videos: of equal, better and noisy systems, of BLEU, and of several seeds."""

from math import erf

import numpy as np
import pytest

from videoblip2.captions import METRICS, caption_metrics, paired_bootstrap
from videoblip2.captions.functions import bleu_counts
from videoblip2.captions.intervals import interval, over_seeds, resampled_means, seed_interval
from videoblip2.config import InputError

BLEU = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"]
REFERENCES = {
    "video0": ["a dog runs in the park", "the dog runs", "there is a dog"],
    "video1": ["a man sings a song", "a man is singing loudly now"],
    "video2": ["two cars race on a wet track at night"],
}
CAPTIONS = {
    "video0": "a dog runs in a park",
    "video1": "a man sings a song loudly",
    "video2": "two cars race on a track",
}


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
    assert result.p_value == pytest.approx(1 - erf(z / 2**0.5), abs=0.01)


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


@pytest.mark.parametrize(("new", "old"), [([1.0], [1.0, 2.0]), ([], []), ([[1.0]], [[1.0]]), ([np.nan], [1.0])])
def test_scores_that_do_not_pair_are_refused(new, old):
    with pytest.raises(InputError, match=r"give|leave"):
        paired_bootstrap(new, old)


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for trial in range(200):
        scores = rng.exponential(1.0, 80)
        low, high = interval(scores.mean(), resampled_means(scores[:, None], 400, trial)[:, 0])[1:]
        inside += low <= 1.0 <= high
    assert 0.88 <= inside / 200 <= 0.98


def test_corpus_bleu_of_any_videos_is_pycocoevalcaps():
    """The counts of some videos, summed, give the BLEU of these videos."""
    texts, groups = list(CAPTIONS.values()), [REFERENCES[video] for video in CAPTIONS]
    counts = bleu_counts(texts, groups)
    for size in (2, 3):
        some = dict(list(CAPTIONS.items())[:size])
        wanted = caption_metrics({video: REFERENCES[video] for video in some}, some, BLEU).corpus
        found = [METRICS[name].pool(counts[:size].sum(axis=0)) for name in BLEU]
        np.testing.assert_allclose(found, list(wanted.values()), rtol=1e-8)
        assert found[0] < 0.99  # the brevity penalty counts


def test_bleu_of_an_empty_caption_is_nothing_and_no_error():
    counts = bleu_counts([""], [REFERENCES["video0"]])
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose([METRICS[name].pool(counts[0]) for name in BLEU], 0.0, atol=1e-6)


def test_seeds_that_differ_make_the_interval_wider():
    table = np.random.default_rng(2).normal([0.0, 1.0, 2.0], 0.01, (200, 3))
    samples = resampled_means(table, 2000)
    narrow, wide = interval(0.0, samples[:, 0]), interval(1.0, over_seeds(samples.T))
    assert narrow.high - narrow.low < 0.01
    assert (wide.low, wide.high) == pytest.approx((0.0, 2.0), abs=0.35)
    assert interval(1.0, over_seeds(samples[:, 1:2].T)) == interval(1.0, samples[:, 1])


def test_students_interval_of_a_few_seeds():
    # Student's t, 2 degrees of freedom, 97.5 %: 4.3027 (any table); spread 1, three values
    found = seed_interval([1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 2.0 - 4.3027 / 3**0.5, 2.0 + 4.3027 / 3**0.5), abs=1e-4)
    assert seed_interval([1.0, 2.0])[0] == 1.5
    assert seed_interval([2.0, 2.0]) == (2.0, 2.0, 2.0)
