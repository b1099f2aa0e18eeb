"""One set of resamples for all scores: as the paired bootstrap for means, as pycocoevalcap's BLEU for sums."""

import numpy as np
import pytest

from videoblip2.captions import METRICS, caption_metrics, paired_bootstrap
from videoblip2.captions.functions import bleu_counts
from videoblip2.captions.intervals import difference, interval, over_seeds, resampled_means, seed_interval

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


def test_means_are_resampled_as_the_paired_bootstrap_does():
    rng = np.random.default_rng(1)
    old = rng.normal(1.0, 0.5, 300)
    new = old + rng.normal(0.02, 0.3, 300)
    means = resampled_means(np.stack([rng.normal(size=300), new, old], axis=1), resamples=3000, seed=4)
    found = difference((new - old).mean(), means[:, 1] - means[:, 2])
    wanted = paired_bootstrap(new, old, resamples=3000, seed=4)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


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
