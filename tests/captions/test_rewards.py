"""The terms of the mixed reward, each by itself and summed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu

from videoblip2.captions import CiderD, DocumentFrequencies, MixedReward, RewardWeights
from videoblip2.captions.rewards import bad_ending, bleu4, cook_bleu_references, repetition
from videoblip2.config import InputError

REFERENCES = {
    "video0": ["A man runs.", "a man is running down the street"],
    "video1": ["a dog runs with a ball", "a dog and a ball"],
}
VIDEOS = ["video0", "video1", "video1"]
CAPTIONS = ["a man is running down a street", "a dog runs with a", "a dog a dog a dog"]
TOKENS = st.lists(st.sampled_from(["a", "man", "dog", "runs", "the"]), max_size=9)


@given(TOKENS, st.lists(TOKENS.filter(bool), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_bleu4_equals_pycocoevalcap(tokens, references):
    joined = {0: [" ".join(reference) for reference in references]}
    expected = Bleu(4).compute_score(joined, {0: [" ".join(tokens)]}, verbose=0)[1][3][0]
    assert bleu4(tokens, cook_bleu_references(references)) == pytest.approx(expected, abs=1e-12)


def test_bleu4_needs_references():
    with pytest.raises(InputError, match="at least one"):
        cook_bleu_references([])


def test_repetition_is_the_share_of_bigrams_said_before():
    assert repetition(CAPTIONS[2].split()) == pytest.approx(3 / 5)  # a-dog dog-a (a-dog dog-a a-dog)
    assert repetition(CAPTIONS[1].split()) == repetition(["a"]) == repetition([]) == 0.0


def test_a_bad_ending_waits_for_more():
    assert bad_ending(["a", "dog", "with"]) == bad_ending(["and"]) == 1.0
    assert bad_ending(["with", "a", "dog"]) == bad_ending([]) == 0.0


@pytest.fixture(scope="module")
def df():
    return DocumentFrequencies.from_references(REFERENCES)


def reward(df, **weights):
    return MixedReward(REFERENCES, df, RewardWeights(**weights)).score(VIDEOS, CAPTIONS)


def test_by_default_the_reward_is_cider(df):
    assert np.array_equal(
        MixedReward(REFERENCES, df).score(VIDEOS, CAPTIONS), CiderD(REFERENCES, df).score(VIDEOS, CAPTIONS)
    )
    assert np.array_equal(reward(df, cider=2.0), 2 * reward(df))


def test_terms_add_up_with_their_weights(df):
    references = {
        video: cook_bleu_references([t.lower().strip(".").split() for t in REFERENCES[video]]) for video in REFERENCES
    }
    bleu = [bleu4(caption.split(), references[video]) for video, caption in zip(VIDEOS, CAPTIONS, strict=True)]
    np.testing.assert_allclose(reward(df, cider=0.0, bleu=0.5), 0.5 * np.array(bleu))
    np.testing.assert_allclose(reward(df, cider=0.0, repetition=0.5), [0, 0, -0.5 * 3 / 5])
    np.testing.assert_allclose(reward(df, cider=0.0, bad_ending=0.5), [0, -0.5, 0])
    everything = reward(df, cider=1.0, bleu=0.5, repetition=0.5, bad_ending=0.5)
    np.testing.assert_allclose(everything, reward(df) + 0.5 * np.array(bleu) - [0, 0.5, 0.5 * 3 / 5])


def test_a_cut_caption_earns_less_where_end_tokens_count():
    df = DocumentFrequencies.from_references(REFERENCES, end_token=True)
    mixed = MixedReward(REFERENCES, df, RewardWeights(bad_ending=0.1))
    ended, cut = mixed.score(["video0"] * 2, ["a man runs"] * 2, [True, False])
    assert ended > cut
