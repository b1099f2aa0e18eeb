"""Self-critical training: each quantity against its definition, and the end token in reward and log-probability."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import VIDEOS, teach, workspace
from torch import nn

from videoblip2.captions import CiderD, DocumentFrequencies, MixedReward
from videoblip2.config import parse_config
from videoblip2.model import decode
from videoblip2.training import scst
from videoblip2.training.rollout import TOLERANCE, build_reward
from videoblip2.training.workspace import start_copy


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
def model(tiny_model, tokenizers):
    return teach(tiny_model, tokenizers)


@pytest.fixture
def work(model, tokenizers):
    return workspace(model, tokenizers, "decode.max_new_tokens=10")


def scorer(end_token=True):
    return CiderD(REFERENCES, DocumentFrequencies.from_references(REFERENCES, end_token=end_token))


def test_rewards_are_cider_of_each_videos_own_samples(work, make_batch):
    batch = make_batch()
    with torch.no_grad():
        states, mask = work.model.encode(**batch.inputs)
    rollout = scst.roll_out(work, scorer(), batch, (states, mask), 0)
    texts = work.tokenizers.texts(rollout.sampled.ids)
    ids = ["video0"] * 3 + ["video1"] * 3
    expected = scorer().score(ids, texts, ended=rollout.sampled.ended.tolist())
    assert np.allclose(rollout.reward.flatten().numpy(), expected, atol=1e-6)
    greedy = decode.greedy(work.model.text, states, mask, 10)
    expected = scorer().score(["video0", "video1"], work.tokenizers.texts(greedy.ids), ended=greedy.ended.tolist())
    assert np.allclose(rollout.greedy_reward.numpy(), expected, atol=1e-6)
    assert torch.allclose(rollout.advantage, rollout.reward - rollout.greedy_reward[:, None])


def test_samples_are_a_function_of_seed_and_step(work, make_batch):
    batch = make_batch()
    with torch.no_grad():
        states, mask = work.model.encode(**batch.inputs)
    first, again, later = (scst.roll_out(work, scorer(), batch, (states, mask), step).captions for step in (3, 3, 4))
    assert first == again != later


def test_an_end_that_was_reached_is_worth_more():
    ended, cut = scorer().score(["video0"] * 2, ["a red circle moves left"] * 2, ended=[True, False])
    assert ended > cut
    plain = CiderD(REFERENCES, DocumentFrequencies.from_references(REFERENCES)).score(
        ["video0"] * 2, ["a red circle moves left"] * 2, ended=[True, False]
    )
    assert plain[0] == plain[1]


class LettersA:
    """A reward that every sample has some of, so that a few steps are enough: its share of the letter a."""

    def score(self, video_ids, captions, ended):
        return np.array([caption.count("a") / max(1, len(caption)) for caption in captions])


def gradients(model, parts):
    """What the parts of one update leave in `.grad`; the parts' metrics added up."""
    metrics = {}
    for part in parts:
        part.loss.backward()
        for name, value in part.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found, metrics


def test_both_passes_are_one_policy_and_gradient_reaches_only_the_bridge(work, make_batch):
    found, metrics = gradients(work.model, scst.scst_step(work, LettersA(), make_batch(), 0))
    assert metrics["log_prob_gap"] < 1e-4
    touched = {name for name, gradient in found.items() if gradient.abs().sum() > 0}
    assert any("qformer" in name for name in touched)
    assert any("lora_" in name for name in touched)
    assert not any(name.startswith("language_model.") and "lora_" not in name for name in touched)


def test_passes_that_are_not_one_policy_are_refused(work, make_batch, monkeypatch):
    """Sampling at another temperature than the loss believes."""
    honest = scst.greedy_and_sample
    monkeypatch.setattr(scst, "greedy_and_sample", lambda *a: honest(*a[:4], replace(a[4], temperature=0.7)))
    with pytest.raises(AssertionError, match="nats at a token, more than"):
        list(scst.scst_step(work, scorer(), make_batch(), 0))


def test_bf16_passes_stay_within_their_tolerance(model, tokenizers, make_batch):
    work = workspace(model, tokenizers, "precision=bf16")
    (part,) = scst.scst_step(work, scorer(), make_batch(), 0)
    assert 1e-3 < float(part.metrics["log_prob_gap"]) < TOLERANCE["bf16"]


def test_dropout_makes_two_policies_and_is_not_refused(model, tokenizers, make_batch):
    work = workspace(model, tokenizers, "scst.dropout=true")
    (part,) = scst.scst_step(work, scorer(), make_batch(), 0)
    assert float(part.metrics["log_prob_gap"]) > 1e-3


EVERYTHING = ("scst.cross_entropy_weight=0.5", "scst.kl_weight=0.3", "scst.entropy_weight=0.2")
TAUGHT = ["a red circle moves left", "the star is quiet", "a dog barks at a man"]


@pytest.mark.parametrize("options", [(), ("scst.baseline=batch_mean", *EVERYTHING)])
def test_micro_batches_add_up_to_the_batch(model, tokenizers, make_batch, options):
    """Three videos in parts of one and two, captions of different lengths: gradient and metrics as of one batch."""
    batch = make_batch(frames=(3, 5, 4), windows=(2, 0, 1), captions=TAUGHT)
    whole, parts = (workspace(model, tokenizers, *options, f"train.accumulate={n}") for n in (1, 2))
    start = moved(model)
    judge = LettersA()
    expected, described = gradients(whole.model, scst.scst_step(whole, judge, batch, 0, start))
    found, metrics = gradients(parts.model, scst.scst_step(parts, judge, batch, 0, start))
    assert [part.last for part in scst.scst_step(parts, judge, batch, 0, start)] == [False, True]
    assert difference(found, expected) < 5e-6  # float32 sums in another order
    assert metrics == pytest.approx(described, abs=1e-5)


def difference(found, expected):
    """Norm of the difference of two gradients, as a share of the second's."""
    assert found.keys() == expected.keys()
    one, other = (torch.cat([gradient.flatten() for gradient in group.values()]) for group in (found, expected))
    return float((one - other).norm() / other.norm())


def moved(model):
    """Another network: the same with noise on what is trained."""
    import copy

    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.trainable().values():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return other


def test_k3_is_zero_at_home_and_estimates_the_divergence():
    torch.manual_seed(0)
    here, there = torch.randn(6), torch.randn(6)
    p, q = torch.log_softmax(here, 0), torch.log_softmax(there, 0)
    assert scst.k3(p, p).abs().max() == 0
    assert scst.k3(p, q).min() > 0
    expected = (p.exp() * (p - q)).sum()
    assert torch.allclose((p.exp() * scst.k3(p, q)).sum(), expected, atol=1e-6)


def test_the_kl_term_pulls_towards_the_start(model, tokenizers):
    """Descent on the KL term alone: the policy comes back to the start."""
    work = workspace(model, tokenizers, "scst.kl_weight=1", "scst.samples=16")
    start = start_copy(work)
    assert start.language_model.shared.weight is work.model.language_model.shared.weight  # frozen: not copied
    assert start.proj_video.weight is not work.model.proj_video.weight
    assert not start.trainable()
    work.model = moved(work.model)
    optimizer = torch.optim.AdamW(work.model.trainable().values(), lr=1e-3)
    judge, batch, kl = MixedReward({}, work.document_frequencies, {}), work.batches(0), []  # no reward
    for step in range(60):
        (part,) = scst.scst_step(work, judge, batch, step, start)
        kl.append(float(part.metrics["kl"]))
        part.loss.backward()
        nn.utils.clip_grad_norm_(work.model.trainable().values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert np.mean(kl[-10:]) < 0.85 * np.mean(kl[:5])


def test_no_copy_of_the_start_without_a_kl_term(work):
    assert start_copy(work) is None


def test_entropy_is_that_of_the_distribution_in_nats():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]]))
    expected = torch.tensor([[1.5 * np.log(2), np.log(3)]], dtype=torch.float32)
    assert torch.allclose(scst.token_entropy(logits), expected)
    assert torch.allclose(scst.token_entropy(logits * 2, temperature=2.0), expected)


def test_weights_and_signs_of_the_terms():
    config = parse_config({}, list(EVERYTHING)).scst
    terms = {"policy": 1.0, "kl": 10.0, "entropy": 100.0, "cross_entropy": 1000.0}
    loss = scst.total({name: torch.tensor(value) for name, value in terms.items()}, config)
    assert float(loss) == pytest.approx(1 + 0.3 * 10 - 0.2 * 100 + 0.5 * 1000)


def test_samples_used_once_give_the_plain_policy_gradient_exactly():
    """At ratio 1 the clipped objective has the plain one's gradient, bit for bit."""
    torch.manual_seed(0)
    mask, advantage, tokens = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([2.0, -0.5]), torch.tensor(5)
    log_probs = torch.randn(2, 3, requires_grad=True)
    (plain,) = torch.autograd.grad(scst.policy_loss(log_probs, mask, advantage, tokens), log_probs)
    clipped = scst.clipped_loss(log_probs, log_probs.detach(), mask, advantage, 0.2, tokens)
    assert torch.equal(torch.autograd.grad(clipped, log_probs)[0], plain)


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"), [(1, 1.3, False), (1, 0.7, True), (-1, 0.7, False), (-1, 1.3, True)]
)
def test_clipping_stops_what_has_gone_far_enough(advantage, ratio, moves):
    log_probs = torch.log(torch.tensor([[ratio]])).requires_grad_()
    arguments = torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([float(advantage)]), 0.2, torch.tensor(1)
    scst.clipped_loss(log_probs, *arguments).backward()
    assert (log_probs.grad.abs().item() > 0) == moves


def test_reuse_takes_more_updates_from_the_same_samples(model, tokenizers, make_batch):
    """The first update is that of reuse=1, bit for bit; the second differs, since the policy has moved."""
    once, twice = (workspace(model, tokenizers, f"scst.reuse={n}") for n in (1, 2))
    found = []
    for work in (once, twice):
        optimizer = torch.optim.SGD(work.model.trainable().values(), lr=0.1)
        for part in scst.scst_step(work, LettersA(), make_batch(), 0):
            assert part.last
            part.loss.backward()
            found.append(work.model.proj_video.weight.grad.clone())
            optimizer.step()
            optimizer.zero_grad()
    assert len(found) == 3
    assert torch.equal(found[0], found[1])
    assert found[2].abs().sum() > 0
    assert not torch.equal(found[1], found[2])


def test_unended_samples_are_counted_and_can_be_left_out(model, tokenizers, make_batch):
    kept, masked = (
        workspace(model, tokenizers, "decode.max_new_tokens=9", "scst.samples=12", f"scst.mask_unended={yes}")
        for yes in ("false", "true")
    )
    batch = make_batch()
    with torch.no_grad():
        encoded = kept.model.encode(**batch.inputs)
    one, other = (scst.roll_out(work, scorer(), batch, encoded, 0) for work in (kept, masked))
    ended = one.sampled.ended
    assert 0 < ended.sum() < len(ended)
    assert torch.equal(one.mask, one.sampled.mask)
    assert torch.equal(other.mask[ended], one.mask[ended])
    assert other.mask[~ended].sum() == 0
    assert float(other.metrics()["ended"]) == pytest.approx(ended.float().mean().item())


def test_a_batch_whose_samples_all_ran_on_moves_nothing(model, tokenizers, make_batch, monkeypatch):
    work = workspace(model, tokenizers, "scst.mask_unended=true", "decode.max_new_tokens=1", "scst.samples=1")
    (part,) = scst.scst_step(work, scorer(), make_batch(), 1)
    assert float(part.metrics["ended"]) == 0
    assert float(part.loss.detach()) == 0


def test_states_that_are_not_finite_name_their_video(work, make_batch):
    batch = make_batch()
    batch.features["video"][1, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite on videos video1;"):
        list(scst.scst_step(work, scorer(), batch, 0))


def test_the_reward_is_the_weighted_sum_of_the_configuration(model, tokenizers):
    texts = ["a red circle moves left and left and left", "a blue square jumps with a"]
    ids = ["video0", "video1"]

    def of(*options):
        return build_reward(workspace(model, tokenizers, *options)).score(ids, texts, [True, True])

    plain = of()
    assert of("scst.reward.cider=2") == pytest.approx(2 * plain)
    assert of("scst.reward.bad_ending=0.5") == pytest.approx(plain - [0, 0.5])
    repeated = of("scst.reward.repetition=1")
    assert repeated[0] < plain[0]
    assert repeated[1] == plain[1]
    assert (of("scst.reward.bleu=1") > plain).all()


def test_references_selected_or_all(model, tokenizers, tmp_path):
    import json

    from videoblip2.data.annotations import VideoAnnotation

    work = workspace(model, tokenizers, f"data.annotations={tmp_path}")
    complete = [{"video_id": v.video_id, "category": 0, "captions": list(v.captions)} for v in work.train_videos]
    (tmp_path / "train.json").write_text(json.dumps(complete))
    work.train = {"captions": [VideoAnnotation(v.video_id, 0, v.captions[:1]) for v in work.train_videos]}
    for which, references in (("all", work.all_references), ("selected", {"video0": VIDEOS["video0"][:1]})):
        work.config = parse_config(work.config.model_dump(mode="json"), [f"scst.references={which}"])
        expected = CiderD(references, work.document_frequencies).score(["video0"], ["a circle moves left"])
        assert build_reward(work).score(["video0"], ["a circle moves left"]) == pytest.approx(expected)
    assert len(work.all_references["video0"]) == 3  # and document frequencies are always the complete file's


@pytest.mark.parametrize("baseline", ["greedy", "leave_one_out"])
def test_steps_raise_the_reward_with_each_baseline(model, tokenizers, baseline):
    work = workspace(model, tokenizers, f"scst.baseline={baseline}", "scst.samples=12", "decode.max_new_tokens=8")
    optimizer, rewards = torch.optim.AdamW(work.model.trainable().values(), lr=3e-3), []
    for step in range(25):
        (part,) = scst.scst_step(work, LettersA(), work.batches(step), step)
        rewards.append(float(part.metrics["reward"]))
        part.loss.backward()
        nn.utils.clip_grad_norm_(work.model.trainable().values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert np.mean(rewards[-5:]) > 1.5 * np.mean(rewards[:5])  # by seed 1.9 to 5 times
