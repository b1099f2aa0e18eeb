"""The terms of the mixed reward, each by itself and summed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu

from videoblip2.captions import REWARDS, CiderD, DocumentFrequencies, MixedReward, functions
from videoblip2.captions.rewards import FunctionReward
from videoblip2.config import InputError

REFERENCES = {
    "video0": ["A man runs.", "a man is running down the street"],
    "video1": ["a dog runs with a ball", "a dog and a ball"],
}
VIDEOS = ["video0", "video1", "video1"]
CAPTIONS = ["a man is running down a street", "a dog runs with a", "a dog a dog a dog"]
TEXTS = st.lists(st.sampled_from(["a", "man", "dog", "runs", "the"]), max_size=9).map(" ".join)


def bleu4(caption, references):
    return float(functions.bleu(functions.bleu_counts([caption], [references])[0], 4))


@given(TEXTS, st.lists(TEXTS.filter(bool), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_bleu4_equals_pycocoevalcap(caption, references):
    expected = Bleu(4).compute_score({0: references}, {0: [caption]}, verbose=0)[1][3][0]
    assert bleu4(caption, references) == pytest.approx(expected, abs=1e-12)


def test_repetition_is_the_share_of_bigrams_that_occur_earlier():
    texts = ["a dog a dog a dog", "a dog runs with a", "a", ""]  # a-dog dog-a (a-dog dog-a a-dog)
    assert functions.repetition(texts, ()).tolist() == pytest.approx([3 / 5, 0, 0, 0])


def test_a_bad_ending_waits_for_more():
    assert functions.bad_ending(["a dog with", "and", "with a dog", ""], ()).tolist() == [1, 1, 0, 0]


@pytest.fixture(scope="module")
def df():
    return DocumentFrequencies.from_references(REFERENCES)


def reward(df, **weights):
    return MixedReward(REFERENCES, df, weights).score(VIDEOS, CAPTIONS)


def test_by_default_the_reward_is_cider(df):
    cider = CiderD(REFERENCES, df).score(VIDEOS, CAPTIONS)
    assert np.array_equal(MixedReward(REFERENCES, df).score(VIDEOS, CAPTIONS), cider)
    assert np.array_equal(reward(df, cider=2.0), 2 * cider)
    assert reward(df).tolist() == [0, 0, 0]  # no weights are not the default ones


def test_terms_add_up_with_their_weights(df):
    groups = [["a man runs", "a man is running down the street"], *[["a dog runs with a ball", "a dog and a ball"]] * 2]
    bleu = np.array([bleu4(caption, group) for caption, group in zip(CAPTIONS, groups, strict=True)])
    np.testing.assert_allclose(reward(df, bleu=0.5), 0.5 * bleu)
    np.testing.assert_allclose(reward(df, repetition=0.5), [0, 0, -0.5 * 3 / 5])
    np.testing.assert_allclose(reward(df, bad_ending=0.5), [0, -0.5, 0])
    everything = reward(df, cider=1.0, bleu=0.5, repetition=0.5, bad_ending=0.5)
    np.testing.assert_allclose(everything, reward(df, cider=1.0) + 0.5 * bleu - [0, 0.5, 0.5 * 3 / 5])


def test_a_cut_caption_earns_less_where_end_tokens_count():
    df = DocumentFrequencies.from_references(REFERENCES, end_token=True)
    mixed = MixedReward(REFERENCES, df, {"cider": 1.0, "bad_ending": 0.1})
    ended, cut = mixed.score(["video0"] * 2, ["a man runs"] * 2, [True, False])
    assert ended > cut


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cidr", f"unknown reward 'cidr'; choose from {', '.join(REWARDS)}, or name your own as package"),
        ("no_such_module:reward", r"'no_such_module:reward' cannot be imported .*in its folder"),
        (
            "sys:no_such_function",
            r"cannot be imported \(module 'sys' has no attribute 'no_such_function'\); .*define it",
        ),
        ("sys:version", r"'sys:version' is a str; name a function"),
    ],
)
def test_a_name_that_is_no_reward_is_refused(df, name, message):
    with pytest.raises(InputError, match=message):
        MixedReward(REFERENCES, df, {name: 1.0})


@pytest.mark.parametrize("scores", [[1.0], [1.0, 2.0, float("nan")], 1.0])
def test_a_reward_must_return_one_finite_number_per_caption(df, monkeypatch, scores):
    monkeypatch.setitem(REWARDS, "odd", lambda references, *_: FunctionReward("odd", lambda *_: scores, references))
    with pytest.raises(InputError, match=r"reward 'odd' returned .*one finite number per caption"):
        reward(df, odd=1.0)
