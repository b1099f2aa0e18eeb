"""Stage 2, self-critical sequence training (Rennie et al. 2017): maximise the CIDEr-D of sampled captions.

    ∇L = - Σ_k A_k ∇ log p(c_k | video, audio, prompt)  /  live tokens of the batch        (their eq. 8)
    A_k = r(c_k) - b        b = r(greedy caption)  (the paper's, default)
                            b = mean reward of the video's other samples  (Luo 2020, "a better variant"; = RLOO)

A step reads: decode, reward, advantage, log-probabilities, loss.

1. Two passes: sample without gradient, then one teacher-forced pass with gradient over the sampled tokens. Dropout is
   off by default, so both passes are the same policy; `scst/log_prob_gap` is their largest difference.
2. Sampling draws from the whole distribution: no top-k, no top-p, no penalties.
3. The first end token is part of the log-probability, and of the reward as an n-gram, when the caption really ended;
   nothing after it counts. Without it a third of the captions learn to end badly.
4. The reward is CIDEr-D with the document frequencies of the whole training set, never of the batch.
5. The loss is divided by the live tokens of the batch, not per caption: no preference for short or long ones.

Left out: no ratio clipping, since samples are used once; no division by the rewards' spread, which would weight
videos by how much the samples agree (Liu et al. 2025, "Dr. GRPO").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videoblip2.captions import CiderD, diversity
from videoblip2.config import ScstConfig
from videoblip2.data.dataset import Batch
from videoblip2.model.decode import Decoded, greedy_and_sample
from videoblip2.training.ce import cross_entropy
from videoblip2.training.workspace import Workspace


@dataclass(frozen=True)
class Rollout:
    """B videos, K samples each: rewards and advantages [B,K], the greedy caption's reward [B]."""

    sampled: Decoded
    captions: list[str]
    reward: Tensor
    greedy_reward: Tensor
    advantage: Tensor


def scst_step(work: Workspace, scorer: CiderD, batch: Batch, step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
    """Loss with gradient, and what to log."""
    config = work.config.scst
    work.model.eval()
    states, mask = work.model.encode(**batch.inputs)  # [B,S,E]
    rollout = roll_out(work, scorer, batch, states.detach(), mask, step)
    if config.dropout:
        work.model.train()
        states, mask = work.model.encode(**batch.inputs)
    logits = work.model.decode(states, mask, rollout.sampled.ids)  # [B·K,T,V]
    log_probs = token_log_probs(logits, rollout.sampled.ids, config.temperature)  # [B·K,T]
    loss = policy_loss(log_probs, rollout.sampled.mask, rollout.advantage.flatten())
    metrics = _metrics(rollout, log_probs.detach())
    if config.cross_entropy_weight:
        assert batch.labels is not None
        taught = cross_entropy(work.model.decode(states, mask, batch.labels), batch.labels)
        loss = loss + config.cross_entropy_weight * taught
        metrics["cross_entropy"] = taught.detach()
    return loss, {"loss": loss.detach(), **metrics}


@torch.no_grad()
def roll_out(work: Workspace, scorer: CiderD, batch: Batch, states: Tensor, mask: Tensor, step: int) -> Rollout:
    """Decode B greedy captions and B·K samples, and reward them."""
    config = work.config.scst
    generator = torch.Generator(states.device).manual_seed(work.config.seed * 1_000_003 + step)
    tokens = work.config.decode.max_new_tokens
    greedy, sampled = greedy_and_sample(work.model, states, mask, tokens, config.samples, config.temperature, generator)
    captions = work.tokenizers.texts(sampled.ids)
    repeated = [video_id for video_id in batch.video_ids for _ in range(config.samples)]
    reward = _reward(scorer, repeated, captions, sampled).view(-1, config.samples)  # [B,K]
    greedy_reward = _reward(scorer, batch.video_ids, work.tokenizers.texts(greedy.ids), greedy)  # [B]
    advantage = reward - baseline(reward, greedy_reward, config)
    return Rollout(sampled, captions, reward, greedy_reward, advantage.to(states.device))


def _reward(scorer: CiderD, video_ids: Sequence[str], captions: Sequence[str], decoded: Decoded) -> Tensor:
    scores = scorer.score(list(video_ids), list(captions), ended=decoded.ended.tolist())
    return torch.from_numpy(np.asarray(scores, dtype=np.float32))


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


def token_log_probs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token: logits [N,T,V], ids [N,T] → [N,T], in float32."""
    return torch.log_softmax(logits.float() / temperature, dim=-1).gather(2, ids.unsqueeze(2)).squeeze(2)


def policy_loss(log_probs: Tensor, mask: Tensor, advantage: Tensor) -> Tensor:
    """- Σ A·log p over live tokens, per live token: log_probs and mask [N,T], advantage [N] (a constant)."""
    return -(advantage.detach()[:, None] * log_probs * mask).sum() / mask.sum()


def _metrics(rollout: Rollout, log_probs: Tensor) -> dict[str, float | Tensor]:
    """What shows whether training goes well, or cheats the reward."""
    mask = rollout.sampled.mask
    gap = ((log_probs - rollout.sampled.log_probs).abs() * mask).max()
    words = diversity(rollout.captions)
    return {
        "reward": rollout.reward.mean(),
        "greedy_reward": rollout.greedy_reward.mean(),
        "sample_minus_greedy": (rollout.reward.mean(dim=1) - rollout.greedy_reward).mean(),
        "zero_advantage": (rollout.advantage == 0).float().mean(),
        "ended": rollout.sampled.ended.float().mean(),
        "tokens": mask.sum(dim=1).float().mean(),
        "entropy_estimate": -(log_probs * mask).sum() / mask.sum(),
        "log_prob_gap": gap,
        "bad_endings": words["bad_endings"],
        "distinct_2": words["distinct_2"],
    }
