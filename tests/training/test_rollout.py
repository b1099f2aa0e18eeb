"""Monitors of self-critical training: numbers by hand, and warnings when one leaves its band."""

from types import SimpleNamespace

import pytest
import torch

from videoblip2.config import WatchConfig, parse_config
from videoblip2.training.rollout import BandMonitor, Rollout, check_same_policy

CAPTIONS = ["a red circle", "a dog is", "the dog and the dog and", "a star"]


@pytest.fixture
def rollout():
    ended = torch.tensor([True, True, False, True])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    return Rollout(
        captions=CAPTIONS,
        greedy_captions=["a circle", "a dog"],
        reward=torch.tensor([[1.0, 3.0], [0.0, 2.0]]),
        greedy_reward=torch.tensor([1.0, 2.0]),
        advantage=torch.tensor([[0.0, 2.0], [-2.0, 0.0]]),
        sampled=SimpleNamespace(ended=ended, mask=mask),
        mask=mask,
        terms={"cider": 1.25},
    )


def test_metrics_by_hand(rollout):
    metrics = {name: float(value) for name, value in rollout.metrics().items()}
    assert metrics == pytest.approx(
        {
            "reward": 1.5,
            "reward/cider": 1.25,
            "reward_spread": 1.0,
            "greedy_reward": 1.5,
            "sample_minus_greedy": 0.0,  # (2 - 1) and (1 - 2)
            "zero_advantage": 0.5,
            "ended": 0.75,
            "tokens": 2.5,
            "length": 3.5,  # 3, 3, 6 and 2 words
            "bad_endings": 0.5,  # `is`, `and`
            "distinct_1": 8 / 14,
            "distinct_2": 8 / 10,
            "repetition": 0.4 / 4,  # of `the dog and the dog and` two of five bigrams
        }
    )


def test_rows_show_the_first_sample_of_each_video(rollout):
    assert rollout.rows(("v0", "v1")) == [
        {"video_id": "v0", "sampled": "a red circle", "reward": 1.0, "greedy": "a circle", "greedy_reward": 1.0},
        {"video_id": "v1", "sampled": CAPTIONS[2], "reward": 0.0, "greedy": "a dog", "greedy_reward": 2.0},
    ]


GOOD = {
    "length": 3.0,
    "ended": 0.9,
    "bad_endings": 0.2,
    "distinct_2": 0.6,
    "repetition": 0.0,
    "zero_advantage": 0.1,
    "sample_minus_greedy": -0.4,
}


@pytest.fixture
def watch():
    """References of three words, none of which ends badly."""
    found = BandMonitor(WatchConfig(), {"v0": ("a red circle", "a dog barks")})
    assert found.look(GOOD, 10) == {}
    return found


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("length", 4.7, 4.9),
        ("length", 1.9, 1.7),
        ("ended", 0.81, 0.79),
        ("bad_endings", 0.29, 0.31),
        ("distinct_2", 0.31, 0.29),
        ("repetition", 0.04, 0.06),
        ("zero_advantage", 0.89, 0.91),
        ("sample_minus_greedy", -0.79, -0.81),
    ],
)
def test_bands(watch, name, inside, outside):
    assert watch.look({**GOOD, name: inside}, 20) == {}
    left = watch.look({**GOOD, name: outside}, 30)
    assert left[name].startswith(f"step 30: {name} is {outside}, outside ")
    assert set(left) == watch.outside == {name}


def test_a_monitor_is_warned_of_when_it_leaves_and_again_after_it_was_back(watch):
    bad = {**GOOD, "length": 9.0}
    assert [len(watch.look(means, 20)) for means in (bad, bad, GOOD, bad)] == [1, 0, 0, 1]


def test_what_is_not_a_number_is_outside(watch):
    assert len(watch.look({**GOOD, "length": float("nan")}, 20)) == 1


@pytest.mark.parametrize(
    ("gap", "options", "refused"),
    [
        (0.0009, [], False),
        (0.0011, [], True),
        (0.4, ["precision=bf16"], False),
        (0.6, ["precision=bf16"], True),
        (0.4, ["scst.log_prob_tolerance=0.5"], False),
        (9.0, ["scst.dropout=true"], False),
    ],
)
def test_tolerance_of_the_gap_between_passes(gap, options, refused):
    config = parse_config({}, options)
    if not refused:
        check_same_policy(gap, config)
        return
    with pytest.raises(AssertionError, match="they are not the same policy"):
        check_same_policy(gap, config)
