"""Self-critical training: each quantity against its definition, and the end token in reward and log-probability."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.config import parse_config
from videoblip2.model import decode
from videoblip2.training import scst


def test_baselines_by_their_definitions():
    reward = torch.tensor([[1.0, 2.0, 6.0], [0.0, 3.0, 0.0]])
    greedy = torch.tensor([2.0, 1.0])

    def of(name):
        return scst.baseline(reward, greedy, parse_config({}, [f"scst.baseline={name}"]).scst)

    assert (reward - of("greedy")).tolist() == [[-1, 0, 4], [-1, 2, -1]]
    assert of("leave_one_out").tolist() == [[4, 3.5, 1.5], [1.5, 0, 1.5]]
    assert of("batch_mean").tolist() == [[2], [2]]
    assert of("none").tolist() == [[0], [0]]


def test_leave_one_out_of_a_single_sample_is_zero():
    assert scst.leave_one_out_mean(torch.tensor([[5.0]])).tolist() == [[0]]


def test_policy_loss_is_the_policy_gradient():
    """Gradient on the logits: A/live · (softmax - one_hot) at live places, nothing elsewhere."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, requires_grad=True)
    ids = torch.tensor([[2, 1, 0], [3, 4, 1]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    advantage = torch.tensor([2.0, -0.5])
    scst.policy_loss(scst.token_log_probs(logits, ids), mask, advantage).backward()
    one_hot = nn.functional.one_hot(ids, 5)
    expected = (torch.softmax(logits.detach(), -1) - one_hot) * advantage[:, None, None] * mask[..., None] / 5
    assert torch.allclose(logits.grad, expected, atol=1e-6)


REFERENCES = {
    "video0": ["a red circle moves left", "the red circle moves", "a circle moves left"],
    "video1": ["a blue square jumps", "the blue square jumps and beeps play", "a square jumps"],
}


@pytest.fixture
def work(tiny_model, tokenizers):
    config = parse_config({}, ["decode.max_new_tokens=10", "scst.samples=3", "seed=5"])
    return SimpleNamespace(model=tiny_model, tokenizers=tokenizers, config=config)


def scorer(end_token=True):
    return CiderD(REFERENCES, DocumentFrequencies.from_references(REFERENCES, end_token=end_token))


def test_rewards_are_cider_of_each_videos_own_samples(work, make_batch):
    batch = make_batch()
    with torch.no_grad():
        states, mask = work.model.encode(**batch.inputs)
    rollout = scst.roll_out(work, scorer(), batch, states, mask, 0)
    texts = work.tokenizers.texts(rollout.sampled.ids)
    ids = ["video0"] * 3 + ["video1"] * 3
    expected = scorer().score(ids, texts, ended=rollout.sampled.ended.tolist())
    assert np.allclose(rollout.reward.flatten().numpy(), expected, atol=1e-6)
    greedy = decode.greedy(work.model, states, mask, 10)
    expected = scorer().score(["video0", "video1"], work.tokenizers.texts(greedy.ids), ended=greedy.ended.tolist())
    assert np.allclose(rollout.greedy_reward.numpy(), expected, atol=1e-6)
    assert torch.allclose(rollout.advantage, rollout.reward - rollout.greedy_reward[:, None])


def test_samples_are_a_function_of_seed_and_step(work, make_batch):
    batch = make_batch()
    with torch.no_grad():
        states, mask = work.model.encode(**batch.inputs)
    first, again, later = (scst.roll_out(work, scorer(), batch, states, mask, step).captions for step in (3, 3, 4))
    assert first == again != later


def test_an_end_that_was_reached_is_worth_more():
    ended, cut = scorer().score(["video0"] * 2, ["a red circle moves left"] * 2, ended=[True, False])
    assert ended > cut
    plain = CiderD(REFERENCES, DocumentFrequencies.from_references(REFERENCES)).score(
        ["video0"] * 2, ["a red circle moves left"] * 2, ended=[True, False]
    )
    assert plain[0] == plain[1]


def test_both_passes_are_one_policy_and_gradient_reaches_only_the_bridge(work, make_batch):
    batch = make_batch()
    loss, metrics = scst.scst_step(work, scorer(), batch, 0)
    assert float(metrics["log_prob_gap"]) < 1e-4
    loss.backward()
    touched = {name for name, p in work.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("qformer" in name for name in touched)
    assert any("lora_" in name for name in touched)
    assert not any(name.startswith("language_model.") and "lora_" not in name for name in touched)


def test_steps_raise_the_reward(work, make_batch):
    """A few dozen steps on two videos: samples score more than at the start."""
    batch, judge = make_batch(), scorer()
    optimizer = torch.optim.AdamW(work.model.trainable().values(), lr=3e-3)
    rewards = []
    for step in range(40):
        loss, metrics = scst.scst_step(work, judge, batch, step)
        rewards.append(float(metrics["reward"]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert np.mean(rewards[-8:]) > 2 * np.mean(rewards[:8])
