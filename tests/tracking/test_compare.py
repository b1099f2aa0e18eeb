"""Two or more runs side by side: which videos count, how sure the differences are, wins and losses."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from made_runs import made_captions, made_evaluation, made_references

from videoblip2.captions import paired_bootstrap
from videoblip2.captions.metrics import default_metrics
from videoblip2.config import InputError
from videoblip2.tracking.compare import Side, compare_sides

RESAMPLES = 500


def predictions(right, references=None):
    result = made_evaluation(right, references)
    return {row.video_id: replace(row, category=int(row.video_id[5:]) % 3) for row in result.caption_rows}


def side(name, *rights, references=None):
    runs = tuple(SimpleNamespace(run_id=f"{name}{n}") for n in range(len(rights)))
    return Side(name, runs, tuple(predictions(right, references) for right in rights))


def scores(comparison):
    return {score.metric.name: score for score in comparison.scores}


def compare(*sides):
    return compare_sides("val", sides, [], RESAMPLES)


def test_scores_are_those_of_the_evaluation_and_the_difference_that_of_the_paired_bootstrap():
    weak, strong = side("weak", lambda n: n % 2), side("strong", lambda n: n % 4)
    found = scores(compare(weak, strong))
    first, second = made_evaluation(lambda n: n % 2), made_evaluation(lambda n: n % 4)
    for metric in ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"):
        values = [value.value for value in found[metric].values]
        np.testing.assert_allclose(values, [first.corpus[metric], second.corpus[metric]], rtol=1e-6)
    cider = [[row.scores["CIDEr"] for row in result.caption_rows] for result in (second, first)]
    np.testing.assert_allclose(found["CIDEr"].differences[0], paired_bootstrap(*cider, RESAMPLES), rtol=1e-9)
    assert found["mean_length"].values[1].value == second.corpus["mean_length"]


def test_a_run_against_itself_differs_by_nothing():
    comparison = compare(side("a", lambda n: n % 2), side("b", lambda n: n % 2))
    for score in comparison.scores:
        assert score.differences[0] == (0.0, 0.0, 0.0, 1.0)
    (duel,) = comparison.duels
    assert (duel.better, duel.worse, duel.equal, duel.wins(5), duel.losses(5)) == (0, 0, 24, [], [])


def test_wins_and_losses_are_the_videos_that_changed_most_with_all_captions():
    comparison = compare(side("old", lambda n: n != 3), side("new", lambda n: n != 7))
    (duel,) = comparison.duels
    assert (duel.better, duel.worse, duel.equal) == (1, 1, 22)
    (win,), (loss,) = duel.wins(5), duel.losses(5)
    references = made_references()
    assert (win.video_id, loss.video_id) == ("video3", "video7")
    assert [caption for ((caption, _),) in win.captions] == [
        "a black cube stands still slowly",
        references["video3"][0],
    ]
    assert win.references == references["video3"]
    assert win.gain == win.scores[1] - win.scores[0] > 0 > loss.gain
    assert win.category == 0


def test_seeds_are_one_side_with_the_mean_and_an_interval_over_them_too():
    good, bad = (lambda n: n != 3), (lambda n: n == 3)
    one, two = side("one", good), side("two", good, bad)
    found = scores(compare(one, two))["CIDEr"]
    means = [made_evaluation(right).corpus["CIDEr"] for right in (good, bad)]
    assert found.values[1].value == pytest.approx(np.mean(means))
    assert found.values[1].low < means[1] + 0.5 < means[0] - 0.5 < found.values[1].high
    assert found.values[0].high - found.values[0].low < 1.0
    (pair, *_) = compare(one, two).duels[0].pairs
    assert [len(captions) for captions in pair.captions] == [1, 2]
    assert pair.scores[1] == pytest.approx(np.mean([score for _, score in pair.captions[1]]))


def test_each_further_side_meets_the_first():
    comparison = compare(side("a", lambda n: True), side("b", lambda n: n % 2), side("c", lambda n: False))
    found = scores(comparison)["CIDEr"]
    assert [len(score.differences) for score in comparison.scores] == [2] * len(comparison.scores)
    assert found.differences[1].difference < found.differences[0].difference < 0
    assert [(duel.side, duel.worse) for duel in comparison.duels] == [(1, 12), (2, 24)]


def test_videos_that_only_one_run_has_fall_out_with_a_warning_and_scores_are_computed_again():
    references = made_references()
    fewer = {video: texts for video, texts in references.items() if video != "video5"}
    changed = {**fewer, "video6": ("something else",)}
    comparison = compare(side("all", lambda n: n % 2), side("fewer", lambda n: n % 2, references=changed))
    assert comparison.videos == 22
    (warning,) = comparison.warnings
    assert "1 of 24 videos are not in every run, 1 have different references" in warning
    assert "the remaining 22" in warning
    common = {video: texts for video, texts in fewer.items() if video != "video6"}
    from videoblip2.evaluate import evaluate

    captions = made_captions(references, lambda n: n % 2)
    wanted = evaluate({video: captions[video] for video in common}, common, default_metrics(fast=True)).corpus
    found = scores(comparison)
    for metric in ("CIDEr", "Bleu_4", "ROUGE_L"):
        assert found[metric].values[0].value == pytest.approx(wanted[metric], rel=1e-6)


@pytest.mark.parametrize(
    ("references", "reason"),
    [
        ({video: ("another sentence of words",) for video in made_references()}, "have different references in each"),
        ({"video900": ("a man is here",), "video901": ("a dog is there",)}, "are different"),
    ],
)
def test_runs_with_nothing_in_common_are_refused(references, reason):
    with pytest.raises(InputError, match=f"a and b: their videos {reason}.*vb2 evaluate RUN --split val"):
        compare(side("a", bool), side("b", bool, references=references))


def test_metrics_that_one_run_lacks_are_left_out():
    with_meteor = side("a", lambda n: n % 2)
    for one in with_meteor.predictions[0].values():
        one.scores["METEOR"] = 0.3
    assert "METEOR" not in scores(compare(with_meteor, side("b", bool)))
    assert "METEOR" in scores(compare(with_meteor, with_meteor))
