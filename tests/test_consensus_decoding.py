"""Consensus decoding: of many samples and the likeliest caption, the one most like the others."""

from dataclasses import replace

import numpy as np
import pytest

from videoblip2.captioner import SEEDS, Captioner
from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.config import Decoding, InputError, load_config
from videoblip2.jobs.caption import CaptionOptions

WORDS = ("a red circle moves left", "the blue square jumps", "a circle jumps", "the red square moves")
VOTE = Decoding(max_new_tokens=8, consensus=6)


@pytest.fixture
def captioner(tiny_model, tokenizers):
    df = DocumentFrequencies.from_references({str(n): [text] for n, text in enumerate(WORDS)})
    return Captioner(tiny_model, tokenizers, model_name="tiny", frequencies=lambda: df)


def items(count=3):
    rng = np.random.default_rng(0)
    shapes = [(("video", (3 + n, 24)), ("audio", (n, 12))) for n in range(count)]
    return [{name: rng.normal(size=shape).astype("float32") for name, shape in each} for each in shapes]


@pytest.mark.parametrize("beams", [1, 3])
def test_the_winner_has_the_highest_mean_cider_against_the_others(captioner, beams):
    voting = replace(VOTE, num_beams=beams, temperature=0.7)
    winners = captioner.caption(items(), decoding=voting, seeds=[5, 6, 7])
    for item, seed, winner in zip(items(), (5, 6, 7), winners, strict=True):
        drawn = replace(voting, num_beams=1, consensus=0, sampled=True)
        samples = [captioner.caption([item], decoding=drawn, seeds=[seed * SEEDS + n])[0].text for n in range(6)]
        voters = [captioner.caption([item], decoding=replace(voting, consensus=0))[0].text, *samples]
        means = [
            CiderD({"v": voters[:n] + voters[n + 1 :]}, captioner.frequencies()).score(["v"], [text])[0]
            for n, text in enumerate(voters)
        ]
        assert winner.text == voters[int(np.argmax(means))]


def test_a_caption_does_not_depend_on_its_batch_and_is_the_same_again(captioner):
    together = captioner.caption(items(), decoding=VOTE)
    assert [captioner.caption([item], decoding=VOTE)[0].text for item in items()] == [c.text for c in together]
    assert captioner.caption(items(), decoding=VOTE) == together


def test_a_model_without_frequencies_says_so(captioner):
    captioner.frequencies = None
    with pytest.raises(InputError, match="model tiny: has no document_frequencies, so no consensus; train"):
        captioner.caption(items(), decoding=VOTE)


def test_configurations_and_jobs_ask_for_it():
    keys = ["decode.strategy=consensus", "decode.samples=9", "decode.num_beams=5", "decode.temperature=0.5"]
    assert load_config("toy_ce", keys).decode.decoding == replace(
        load_config("toy_ce").decode.decoding, num_beams=5, temperature=0.5, consensus=9
    )
    assert load_config("toy_ce").decode.decoding.consensus == 0
    assert "consensus=6 temperature=1.0" in str(CaptionOptions(VOTE))
    with pytest.raises(InputError, match="--samples 3: consensus gives one caption"):
        CaptionOptions(VOTE, samples=3)
