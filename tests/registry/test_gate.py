"""The verdict: what passes, and what each condition alone holds back."""

from dataclasses import replace

import pytest
from gate_world import FAIR, GOOD, REFERENCES

from videoblip2.captions.metrics import default_metrics
from videoblip2.captions.predictions import AnswerRow
from videoblip2.config import InputError
from videoblip2.evaluate import evaluate
from videoblip2.registry.gate import Gate, judge, load_gate

LOOSE = {"guards": {}, "resamples": 500}


def scored(captions):
    return evaluate(captions, REFERENCES, default_metrics(fast=True))


def failed(gate, new, old, **more):
    return [c.name for c in judge(gate, scored(new), scored(old), **more).conditions if not c.passed]


def test_a_better_model_passes_and_its_equal_does_not():
    gate = Gate(**LOOSE)
    verdict = judge(gate, scored(GOOD), scored(FAIR))
    assert verdict.passed and verdict.failed == []
    assert verdict.gain.difference > 0 and len(verdict.differences) == len(REFERENCES)
    assert failed(gate, GOOD, GOOD) == ["CIDEr gain", "95 % interval of the gain"]
    assert failed(gate, FAIR, GOOD)[:2] == ["CIDEr gain", "95 % interval of the gain"]


def test_a_gain_on_one_video_of_twelve_is_not_sure():
    one = {**FAIR, "video0": GOOD["video0"]}
    verdict = judge(Gate(**LOOSE), scored(one), scored(FAIR))
    assert verdict.gain.difference > 0.01
    assert verdict.failed == [f"95 % interval of the gain +0.0 to {100 * verdict.gain.high:+.1f}, wanted above 0"]


def test_the_least_gain_holds_back_a_sure_but_small_one():
    assert failed(Gate(**LOOSE, minimum_gain=50.0), GOOD, FAIR) == ["CIDEr gain"]


def with_meteor(captions, mean):
    """Scored captions whose METEOR is `mean` for every video, or unavailable for a reason."""
    found = scored(captions)
    if isinstance(mean, str):
        return replace(found, unavailable={"METEOR": mean})
    rows = tuple(replace(row, scores={**row.scores, "METEOR": mean}) for row in found.caption_rows)
    return replace(found, caption_rows=rows)


@pytest.mark.parametrize(
    ("meteor", "expected"),
    [
        ((0.30, 0.30), []),
        ((0.296, 0.30), []),
        ((0.294, 0.30), ["METEOR, mean of videos"]),
        (("no java",) * 2, ["METEOR"]),
    ],
)
def test_meteor_may_lose_half_a_point_and_must_be_measured(meteor, expected):
    sides = [with_meteor(captions, mean) for captions, mean in zip((GOOD, FAIR), meteor, strict=True)]
    verdict = judge(Gate(guards={}, max_losses={"METEOR": 0.005}, resamples=500), *sides)
    assert [c.name for c in verdict.conditions if not c.passed] == expected


def test_meteor_is_not_compared_where_the_gate_says_so_nor_with_the_trivial_baseline():
    sides = [with_meteor(GOOD, "no java"), with_meteor(FAIR, "no java")]
    assert judge(Gate(**LOOSE), *sides).passed
    assert judge(Gate(resamples=500), *sides, trivial=True).passed


def test_a_guard_holds_back_what_cannot_be_shown_to_be_no_worse_and_the_verdict_says_the_price():
    sides = [with_meteor(GOOD, 0.30), with_meteor(FAIR, 0.30)]
    lost = replace(sides[0], caption_rows=sides[0].caption_rows[:1] + with_meteor(GOOD, 0.25).caption_rows[1:])
    gate = Gate(resamples=500, guards={"METEOR": 0.06, "content_recall": 0.0})
    assert judge(gate, lost, sides[1]).passed
    held = judge(gate.model_copy(update={"guards": {"METEOR": 0.045}}), lost, sides[1])
    gain = f"{100 * held.gain.difference:+.1f} CIDEr"
    assert held.failed == [f"{gain}, at the cost of −4.6 METEOR [−5.0, −3.7]"]
    assert judge(gate.model_copy(update={"guards": {"METEOR": 0.049}}), lost, sides[1]).failed == held.failed


def test_a_guard_of_answers_is_in_the_sentence_of_captions_also_beside_the_trivial_baseline():
    def with_answers(captions, answer):
        rows = [AnswerRow.of(video, video, "what is it?", answer, "dog") for video in REFERENCES]
        return replace(scored(captions), answer_rows=tuple(rows))

    gate = Gate(guards={"accuracy": 0.01}, resamples=500, length=(0, 9))
    for trivial in (False, True):
        held = judge(gate, with_answers(GOOD, "cat"), with_answers(FAIR, "dog"), trivial=trivial)
        assert [c.guard for c in held.conditions if not c.passed] == ["accuracy"]
        assert held.failed == [held.sentence] and held.sentence.endswith("cost of −100.0 accuracy [−100.0, −100.0]")


def test_a_guard_is_a_metric_with_a_value_for_each_video():
    with pytest.raises(ValueError, match="distinct_1 has no value per video"):
        Gate(guards={"distinct_1": 0.1})


def test_captions_that_are_much_longer_or_shorter_are_held_back():
    padded = {video: f"{text} right now" for video, text in GOOD.items()}
    assert failed(Gate(**LOOSE), padded, FAIR) == ["words per caption"]
    assert failed(Gate(**LOOSE, length=(1.3, 2.0)), padded, FAIR) == ["words per caption"]
    assert failed(Gate(**LOOSE, length=(0.9, 1.3)), padded, FAIR) == []


def test_bad_endings_may_rise_a_little_above_the_worse_of_champion_and_references():
    cut = {video: f"{text} of a" if n < 3 else text for n, (video, text) in enumerate(GOOD.items())}
    assert failed(Gate(**LOOSE, max_bad_endings_rise=0.2, length=(0, 9)), cut, FAIR) == ["bad endings (%)"]
    assert failed(Gate(**LOOSE, max_bad_endings_rise=0.26, length=(0, 9)), cut, FAIR) == []


def test_latency_is_the_median_of_pairs():
    slow_once = [(0.01, 0.01)] * 9 + [(9.0, 0.01)]
    assert failed(Gate(**LOOSE), GOOD, FAIR, seconds=slow_once) == []
    assert failed(Gate(**LOOSE), GOOD, FAIR, seconds=[(0.016, 0.01)] * 9) == ["latency, ms"]
    assert failed(Gate(**LOOSE, max_latency_ratio=None), GOOD, FAIR, seconds=[(0.016, 0.01)] * 9) == []


def test_beside_the_trivial_baseline_the_references_say_how_long_a_caption_is():
    one_word = dict.fromkeys(REFERENCES, "left")
    assert failed(Gate(**LOOSE), GOOD, one_word) == ["words per caption"]
    assert failed(Gate(**LOOSE), GOOD, one_word, trivial=True) == []


def test_a_gate_file_is_read_and_its_mistakes_are_named(tmp_path):
    file = tmp_path / "gate.yaml"
    file.write_text("minimum_gain: 0.05\nlength: [0.5, 2]\n")
    assert load_gate(file) == Gate(minimum_gain=0.05, length=(0.5, 2.0))
    assert load_gate(file).digest != Gate().digest == Gate().digest
    file.write_text("minimum_gian: 0.05\nconfidence: 2\n")
    with pytest.raises(
        InputError, match=r"gate\.yaml: confidence=2: .*; unknown key 'minimum_gian'; did you mean 'minimum_gain'"
    ):
        load_gate(file)
    with pytest.raises(InputError, match=r"none\.yaml: No such file"):
        load_gate(tmp_path / "none.yaml")
