"""Stage 2, self-critical sequence training (Rennie et al. 2017): maximise the CIDEr-D of sampled captions.

    ∇L = - Σ_k A_k ∇ log p(c_k | video, audio, prompt)  /  live tokens of the batch        (their eq. 8)
    A_k = r(c_k) - b        b = r(greedy caption)  (the paper's, default)
                            b = mean reward of the video's other samples  (Luo 2020, "a better variant"; = RLOO)

A step reads: decode, reward, advantage, log-probabilities, loss.

1. Two passes: sample without gradient, then one teacher-forced pass with gradient over the sampled tokens. Dropout is
   off by default, so both passes are the same policy; `train/log_prob_gap` is their largest difference, and a step
   with a larger one than `scst.log_prob_tolerance` is refused.
2. Sampling draws from the whole distribution: no top-k, no top-p, no penalties.
3. The first end token is part of the log-probability, and of the reward as an n-gram, when the caption really ended;
   nothing after it counts. Without it captions learn to end badly (their appendix E).
4. The reward is CIDEr-D with the document frequencies of the whole training set, never of the batch.
5. The loss is divided by the live tokens of the whole batch, not per caption (no preference for short or long ones)
   and not per micro-batch.
6. Off by default: cross-entropy on the references, KL to the network at the start (k3, Schulman 2020), an entropy
   bonus, and more updates from the same samples with the clipped ratio of PPO (Schulman et al. 2017, eq. 7).

Left out: no division by the rewards' spread, which would weight videos by how much the samples agree (Liu et al. 2025,
"Dr. GRPO"); no value network; no overlap of the reward with the next forward pass: it takes 0.02 % (full size) to
1.5 % (toy size) of a step, less than a second thread costs (`docs/decisions/0005-decoding-and-reward.md`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from videoblip2.captions.rewards import MixedReward, Scorer
from videoblip2.config import Config, ScstConfig
from videoblip2.data.dataset import Batch
from videoblip2.model.decode import Decoded, greedy_and_sample
from videoblip2.model.network import VideoBlip2
from videoblip2.training.ce import cross_entropy, live_tokens
from videoblip2.training.monitors import check_same_policy, rollout_metrics, sample_rows
from videoblip2.training.parts import Part, cut, take
from videoblip2.training.policy import clipped_loss, k3, token_entropy, token_log_probs
from videoblip2.training.workspace import Workspace


@dataclass(frozen=True)
class Rollout:
    """B videos, K samples each: rewards and advantages [B,K], the greedy captions and their reward [B].

    mask: [B·K,T], the tokens that the loss counts. terms: of a mixed reward, the mean of each over the samples.
    """

    sampled: Decoded
    captions: list[str]
    greedy_captions: list[str]
    reward: Tensor
    greedy_reward: Tensor
    advantage: Tensor
    mask: Tensor
    terms: dict[str, float]


def scst_step(
    work: Workspace, scorer: Scorer, batch: Batch, step: int, start: VideoBlip2 | None = None
) -> Iterator[Part]:
    """The parts of one step: `scst.reuse` updates, each in `train.accumulate` micro-batches.

    Args:
        start: the network as training found it, for the KL term.
    """
    config = work.config.scst
    places = cut(len(batch.video_ids), work.config.train.accumulate)
    shared = len(places) == 1 and not config.dropout  # one encoding then serves both passes
    work.model.eval()
    with work.autocast(), torch.set_grad_enabled(shared):
        encoded = work.model.encode(**batch.inputs)  # [B,S,E], [B,S]
    rollout = roll_out(work, scorer, batch, encoded[0].detach(), encoded[1], step)
    tokens = rollout.mask.sum().clamp(min=1)
    taught = live_tokens(batch.labels) if batch.labels is not None else tokens
    before: list[Tensor] = []  # log-probabilities at the first update, part by part
    for update in range(config.reuse):
        for number, place in enumerate(places):
            some = take(batch, place) if len(places) > 1 else batch
            work.model.train(config.dropout)
            with work.autocast():
                states, mask = encoded if shared and update == 0 else work.model.encode(**some.inputs)
            old = before[number] if update else None
            terms, log_probs = _terms(work, some, _of(rollout, place), (states, mask), old, tokens, taught, start)
            loss, last = total(terms, config), number == len(places) - 1
            if update:
                yield Part(loss, {}, some.video_ids, last)
                continue
            before.append(log_probs.detach())
            metrics: dict[str, float | Tensor] = {
                "loss": loss.detach(),
                **{name: term.detach() for name, term in terms.items()},
            }
            if last:
                metrics |= _describe(rollout, torch.cat(before), work.config)
            yield Part(loss, metrics, some.video_ids, last, sample_rows(batch.video_ids, rollout) if last else ())


@torch.no_grad()
def roll_out(work: Workspace, scorer: Scorer, batch: Batch, states: Tensor, mask: Tensor, step: int) -> Rollout:
    """Decode B greedy captions and B·K samples, and reward them. Raises FloatingPointError naming videos for NaN."""
    config = work.config.scst
    _check_finite(batch.video_ids, states)
    generator = torch.Generator(states.device).manual_seed(work.config.seed * 1_000_003 + step)
    tokens = work.config.decode.max_new_tokens
    with work.autocast():
        greedy, sampled = greedy_and_sample(
            work.model, states, mask, tokens, config.samples, config.temperature, generator
        )
    captions, greedy_captions = work.tokenizers.texts(sampled.ids), work.tokenizers.texts(greedy.ids)
    repeated = [video_id for video_id in batch.video_ids for _ in range(config.samples)]
    rewards, terms = _reward(scorer, repeated, captions, sampled)
    reward = rewards.view(-1, config.samples)  # [B,K]
    greedy_reward, _ = _reward(scorer, batch.video_ids, greedy_captions, greedy)  # [B]
    advantage = (reward - baseline(reward, greedy_reward, config)).to(states.device)
    live = sampled.mask * sampled.ended[:, None] if config.mask_unended else sampled.mask
    return Rollout(sampled, captions, greedy_captions, reward, greedy_reward, advantage, live, terms)


def _check_finite(video_ids: Sequence[str], states: Tensor) -> None:
    bad = [video_ids[row] for row in (~states.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()]
    if bad:
        raise FloatingPointError(
            f"the encoder's states are not finite on videos {', '.join(bad)}; "
            "lower optim.lr, use precision=fp32, or check these features with `vb2 features check`"
        )


def _reward(
    scorer: Scorer, video_ids: Sequence[str], captions: Sequence[str], decoded: Decoded
) -> tuple[Tensor, dict[str, float]]:
    """The reward of each caption [M], and the means of several terms before their weights."""
    asked = list(video_ids), list(captions), decoded.ended.tolist()
    terms = scorer.terms(*asked) if isinstance(scorer, MixedReward) else {}
    scores = scorer.total(terms, len(captions)) if isinstance(scorer, MixedReward) else scorer.score(*asked)
    means = {name: float(values.mean()) for name, values in terms.items()} if len(terms) > 1 else {}
    return torch.from_numpy(np.asarray(scores, dtype=np.float32)), means


def _of(rollout: Rollout, videos: slice) -> Rollout:
    """What the loss needs of some videos' samples; tokens stay as wide as the whole batch's."""
    count = rollout.advantage.shape[1]
    rows = slice(videos.start * count, videos.stop * count)
    sampled = replace(rollout.sampled, ids=rollout.sampled.ids[rows], log_probs=rollout.sampled.log_probs[rows])
    return replace(rollout, sampled=sampled, mask=rollout.mask[rows], advantage=rollout.advantage[videos])


def baseline(reward: Tensor, greedy_reward: Tensor, config: ScstConfig) -> Tensor:
    """What a sample must beat: reward [B,K], greedy_reward [B] → [B,1] or [B,K]."""
    if config.baseline == "greedy":
        return greedy_reward[:, None]
    if config.baseline == "leave_one_out":
        return leave_one_out_mean(reward)
    if config.baseline == "batch_mean":
        return reward.mean().expand(len(reward), 1)
    return torch.zeros(len(reward), 1)


def leave_one_out_mean(reward: Tensor) -> Tensor:
    """Mean of the video's other samples: [B,K] → [B,K]; 0 where there is no other."""
    others = max(1, reward.shape[1] - 1)
    return (reward.sum(dim=1, keepdim=True) - reward) / others


def _terms(
    work: Workspace,
    batch: Batch,
    rollout: Rollout,
    encoded: tuple[Tensor, Tensor],
    old: Tensor | None,
    tokens: Tensor,
    taught: Tensor,
    start: VideoBlip2 | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The loss's terms that are switched on, before their weights, and the samples' log-probabilities [B·K,T]."""
    config, ids, live = work.config.scst, rollout.sampled.ids, rollout.mask
    with work.autocast():
        logits = work.model.decode(*encoded, ids)  # [B·K,T,V]
    log_probs = token_log_probs(logits, ids, config.temperature)
    advantage = rollout.advantage.flatten()
    if old is None:
        terms = {"policy": policy_loss(log_probs, live, advantage, tokens)}
    else:
        terms = {"policy": clipped_loss(log_probs, old, live, advantage, config.clip, tokens)}
    if config.kl_weight:
        assert start is not None
        with torch.no_grad(), work.autocast():
            reference = token_log_probs(start.decode(*start.encode(**batch.inputs), ids), ids, config.temperature)
        terms["kl"] = (k3(log_probs, reference) * live).sum() / tokens
    if config.entropy_weight:
        terms["entropy"] = (token_entropy(logits, config.temperature) * live).sum() / tokens
    if config.cross_entropy_weight:
        assert batch.labels is not None
        with work.autocast():
            taught_logits = work.model.decode(*encoded, batch.labels)
        terms["cross_entropy"] = cross_entropy(taught_logits, batch.labels, tokens=taught)
    return terms, log_probs


def total(terms: dict[str, Tensor], config: ScstConfig) -> Tensor:
    """policy + w_kl KL + w_ce CE - w_entropy entropy."""
    weights = {"kl": config.kl_weight, "cross_entropy": config.cross_entropy_weight, "entropy": -config.entropy_weight}
    return sum((weights[name] * term for name, term in terms.items() if name != "policy"), terms["policy"])


def policy_loss(log_probs: Tensor, mask: Tensor, advantage: Tensor, tokens: Tensor | None = None) -> Tensor:
    """- Σ A·log p over live tokens, per live token: log_probs and mask [N,T], advantage [N] (a constant)."""
    return -(advantage.detach()[:, None] * log_probs * mask).sum() / (mask.sum() if tokens is None else tokens)


def _describe(rollout: Rollout, log_probs: Tensor, config: Config) -> dict[str, float | Tensor]:
    """Metrics of the whole batch, and the check that log_probs [B·K,T] are those that were sampled from."""
    gap = ((log_probs - rollout.sampled.log_probs).abs() * rollout.mask).max()
    check_same_policy(gap, config)
    entropy = -(log_probs * rollout.mask).sum() / rollout.mask.sum().clamp(min=1)
    return {**rollout_metrics(rollout), "log_prob_gap": gap, "entropy_estimate": entropy}
