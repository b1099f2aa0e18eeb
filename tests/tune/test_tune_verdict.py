"""Better than the default, or not: also when the best was chosen among many that are no better."""

import shlex

import numpy as np
import optuna
import pytest
from tiny_study import tiny_plan

from videoblip2.captions import paired_bootstrap
from videoblip2.captions.metrics import PRIMARY
from videoblip2.captions.predictions import CaptionRow, write_rows
from videoblip2.config import load_config
from videoblip2.tune.lead import commands_of, write_best
from videoblip2.tune.report import chosen_again, judge, shown
from videoblip2.tune.trials import _score


def trials(scores, default=0):
    study = optuna.create_study(direction="maximize")
    for number, row in enumerate(scores):
        attrs = {"scores": list(map(float, row)), **({"default": True} if number == default else {})}
        study.add_trial(optuna.trial.create_trial(value=float(np.mean(row)), user_attrs=attrs))
    return study.get_trials()


def test_a_clear_gain_is_better():
    default = np.random.default_rng(0).normal(1.0, 0.3, 60)
    verdict = judge(trials([default, default + 0.2, default - 0.2]))
    assert verdict.better
    assert (verdict.best, verdict.default, verdict.chosen_among) == ("trial-001", "trial-000", 3)
    assert (verdict.difference, verdict.low, verdict.high) == pytest.approx((0.2, 0.2, 0.2))
    assert verdict.chosen_again == pytest.approx(0.2)
    assert verdict.text().startswith(
        "better than the default by 20.0 [20.0, 20.0] CIDEr on val (interval for the best of 3)"
    )


def test_the_default_may_be_the_best():
    verdict = judge(trials([[0.5, 0.6], [0.1, 0.2]]))
    assert not verdict.better
    assert verdict.text() == "no gain shown: the default is the best of 2 trials"


def test_the_interval_is_wider_the_more_were_tried():
    rng = np.random.default_rng(3)
    default = rng.normal(1.0, 0.3, 70)
    better = default + rng.normal(0.08, 0.3, 70)
    few, many = judge(trials([default, better])), judge(trials([default, better, *[default - 1] * 40]))
    low = paired_bootstrap(better, default).low
    assert few.low == pytest.approx(low)
    assert many.low < few.low < few.difference == many.difference


def test_noise_is_seldom_called_a_gain():
    """Trials that differ from the default by noise alone: choosing the best of them looks like a gain."""
    rng = np.random.default_rng(1)
    called, naive, again = 0, 0, []
    for _ in range(8):
        default = rng.normal(1.0, 0.3, 70)
        rows = [default, *(default + rng.normal(0.0, 0.3, 70) for _ in range(24))]
        verdict = judge(trials(rows))
        called += verdict.better
        naive += paired_bootstrap(max(rows, key=np.mean), default, 1000).low > 0
        again.append(verdict.chosen_again)
    assert called <= 1
    assert naive >= 3
    assert abs(np.mean(again)) < 0.02  # the mean of the best's own gain is 0.07


def test_without_a_complete_default_there_is_no_verdict():
    assert judge(trials([[0.1, 0.2]], default=5)) is None
    assert judge([]) is None


def test_videos_left_out_judge_what_the_drawn_ones_chose():
    scores = np.zeros((2, 40))
    scores[1, 0] = 40.0  # one lucky video
    assert chosen_again(scores, default=0) < 0.5 * scores[1].mean()


@pytest.mark.parametrize("text", ["a\u2028b: {c", "line\nbreak", "plain: 'quoted'"])
def test_best_yaml_and_its_commands_take_any_text(tmp_path, text):
    """U+2028 ends a YAML comment, and a path may hold a space."""
    root = tmp_path / "my runs"
    root.mkdir()
    plan = tiny_plan(root, search={"data.prompt": {"choices": ["a video of", text]}})
    best = optuna.trial.create_trial(
        value=0.5, params={"data.prompt": text}, distributions=plan.distributions, user_attrs={"model": f"{root}/m"}
    )
    commands = commands_of(plan, best, None)
    assert shlex.split(commands[0]) == ["vb2", "ce", f"{root}/runs/study/best.yaml"]
    assert shlex.split(commands[1]) == ["vb2", "evaluate", f"{root}/m", "--split", "test"]
    path = tmp_path / "best.yaml"
    write_best(path, plan, best, [f"Chosen: {shown(best.params)}", "", *commands])
    assert load_config(path).data.prompt == text


def test_a_caption_with_a_line_separator_counts_in_a_trials_score(tmp_path):
    rows = [CaptionRow(f"v{n}", f"a dog\u2028runs\x85{n}", {PRIMARY: float(n)}, ("a dog runs",)) for n in range(3)]
    write_rows(tmp_path / "val_predictions.jsonl", rows)
    assert _score(tmp_path) == (1.0, [0.0, 1.0, 2.0])
