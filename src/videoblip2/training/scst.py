"""Stage 2, self-critical sequence training (Rennie et al. 2017): maximize the CIDEr-D of sampled captions.

    ∇L = - Σ_k A_k ∇ log p(c_k | video, audio, prompt)  /  live tokens of the batch        (their eq. 8)
    A_k = r(c_k) - b        b = r(greedy caption)  (the paper's, default)
                            b = mean reward of the video's other samples  (Luo 2020, "a better variant"; = RLOO)

A step decodes and rewards captions (`roll_out`), subtracts a baseline (`baseline`) and trains on them (`Objective`).

1. Two passes: sample without gradient, then one teacher-forced pass with gradient over the sampled tokens. Dropout is
   off by default, so both passes use the same policy; `train/log_prob_gap` is their largest difference, and training
   stops if it exceeds `scst.log_prob_tolerance`.
2. Sampling draws from the whole distribution: no top-k, no top-p, no penalties.
3. If a caption ended, its first end token counts in the log-probability and, in n-grams, in the reward; nothing after
   it does. Without the end token, captions learn to end badly (their appendix E).
4. The reward is CIDEr-D with document frequencies from the whole training set, never from the batch.
5. The loss is divided by the live tokens of the whole batch, not per caption (no preference for short or long ones)
   and not per micro-batch.
6. Off by default: cross-entropy on the references, KL to the network at the start (k3, Schulman 2020), an entropy
   bonus, and repeated updates from the same samples with the clipped ratio of PPO (Schulman et al. 2017, eq. 7).

Not included: division by the rewards' spread, which would weight videos by how much the samples agree (Liu et al. 2025,
"Dr. GRPO"); a value network; overlap of the reward with the next forward pass: it takes 0.02 % (full size)
to 1.5 % (toy size) of a step, less than a second thread costs (`docs/decisions/0005-decoding-and-reward.md`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from videoblip2.captions.rewards import Scorer
from videoblip2.config import ScstConfig
from videoblip2.data.batches import Batch
from videoblip2.model.decode import Sampling, greedy_and_sample
from videoblip2.model.network import VideoBlip2
from videoblip2.training.ce import cross_entropy, live_tokens
from videoblip2.training.rollout import Rollout, check_finite, check_same_policy, gathered, rewards
from videoblip2.training.sharding import unsharded
from videoblip2.training.update import MicroBatch, cut, take
from videoblip2.training.workspace import Workspace

Encoded = tuple[Tensor, Tensor]  # encoder states [B,S,E] and their mask [B,S]


def scst_step(
    work: Workspace, scorer: Scorer, batch: Batch, step: int, start: VideoBlip2 | None = None
) -> Iterator[MicroBatch]:
    """The micro-batches of one step: `scst.reuse` updates of `train.accumulate` micro-batches each.

    Args:
        start: the network at the start of training, for the KL term.
    """
    config, slices = work.config.scst, cut(len(batch.video_ids), work.config.train.accumulate)
    dropout = config.dropout and work.config.train.dropout
    shared = len(slices) == 1 and not dropout  # one encoding then serves both passes
    encoded = encode(work, batch, dropout=False, gradient=shared)
    everyone = roll_out(work, scorer, batch, encoded, step)
    first, _ = work.place(batch)
    rollout = everyone.of(slice(first, first + len(batch.video_ids)))
    objective = Objective.of(work, batch, everyone, start)
    old: list[Tensor] = []  # log p of the samples at the first update, slice by slice
    for update, (place, videos) in product(range(config.reuse), enumerate(slices)):
        some, last = take(batch, videos), place == len(slices) - 1
        states = encoded if shared and not update else encode(work, some, dropout)
        terms, log_probs = objective(some, rollout.of(videos), states, old[place] if update else None)
        loss = total(terms, config)
        if update:
            yield MicroBatch(loss, {}, some.video_ids, last)
            continue
        old.append(log_probs.detach())
        metrics = {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
        about = describe(work, everyone, rollout, torch.cat(old)) if last else {}
        rows = everyone.rows(batch.video_ids) if last and work.world.leads else ()
        yield MicroBatch(loss, {**metrics, **about}, some.video_ids, last, rows)


def encode(work: Workspace, batch: Batch, dropout: bool, gradient: bool = True) -> Encoded:
    """Encode the batch. The network stays in this mode, so that dropout is the same in the decoder."""
    work.model.train(dropout)
    with work.autocast(), torch.set_grad_enabled(gradient):
        states, mask = work.model.encode(**batch.inputs)
    return states, mask


@torch.no_grad()
def roll_out(work: Workspace, scorer: Scorer, batch: Batch, encoded: Encoded, step: int) -> Rollout:
    """Decode B greedy captions and B·K samples, and reward them. Raises FloatingPointError naming videos for NaN.

    The result covers the whole batch: the videos of all processes.
    """
    config, (states, attended), (first, videos) = work.config.scst, encoded, work.place(batch)
    generator = torch.Generator(states.device).manual_seed(work.config.seed * 1_000_003 + step)
    longest = work.config.decode.max_new_tokens
    with work.autocast(), unsharded(work.model.language_model.get_decoder()):
        rows = config.samples + 1  # per video, greedy caption included
        sampling = Sampling(config.samples, config.temperature, generator, (first * rows, videos * rows))
        greedy, sampled = greedy_and_sample(work.model.text, states.detach(), attended, longest, sampling)
    check_finite(batch.video_ids, states)  # only now, since reading captions waits for the device anyway
    captions, greedy_captions = work.tokenizers.texts(sampled.ids), work.tokenizers.texts(greedy.ids)
    repeated, count = [video_id for video_id in batch.video_ids for _ in range(config.samples)], len(captions)
    ended = torch.cat([sampled.ended, greedy.ended]).tolist()
    scores, terms = rewards(scorer, [*repeated, *batch.video_ids], [*captions, *greedy_captions], ended)
    own = [captions, greedy_captions, scores[:count].tolist(), scores[count:].tolist()]
    own += [values[:count].tolist() for values in terms.values()]
    captions, greedy_captions, r, r_greedy, *values = work.world.rows(own)
    sampled = gathered(sampled, work.world, first * config.samples, work.model.text.tokens.pad)
    reward, greedy_reward = torch.tensor(r).view(-1, config.samples), torch.tensor(r_greedy)  # r(c_k) [B,K], [B]
    advantage = (reward - baseline(reward, greedy_reward, config)).to(states.device)  # A_k = r(c_k) - b
    live = sampled.mask * sampled.ended[:, None] if config.mask_unended else sampled.mask
    means = dict(zip(terms, map(float, map(np.mean, values)), strict=True))
    return Rollout(sampled, captions, greedy_captions, reward, greedy_reward, advantage, live, means)


def baseline(reward: Tensor, greedy_reward: Tensor, config: ScstConfig) -> Tensor:
    """The baseline b: reward [B,K], greedy_reward [B] → [B,1] or [B,K]."""
    return {
        "greedy": greedy_reward[:, None],
        "leave_one_out": leave_one_out_mean(reward),
        "batch_mean": reward.mean().expand(len(reward), 1),
        "none": torch.zeros(len(reward), 1),
    }[config.baseline]


def leave_one_out_mean(reward: Tensor) -> Tensor:
    """Mean of the video's other samples: [B,K] → [B,K]; 0 for a single sample."""
    others = max(1, reward.shape[1] - 1)
    return (reward.sum(dim=1, keepdim=True) - reward) / others


@dataclass(frozen=True)
class Objective:
    """The enabled terms of the loss, before their weights.

    tokens, taught: live tokens in the samples and in the references of the whole batch, over all processes.
    """

    work: Workspace
    start: VideoBlip2 | None
    tokens: Tensor
    taught: Tensor

    @classmethod
    def of(cls, work: Workspace, batch: Batch, rollout: Rollout, start: VideoBlip2 | None) -> "Objective":
        tokens = rollout.mask.sum().clamp(min=1)
        return cls(work, start, tokens, tokens if batch.labels is None else work.world.sum(live_tokens(batch.labels)))

    def __call__(
        self, batch: Batch, rollout: Rollout, encoded: Encoded, old: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms, and log p of the samples [B·K,T]; `old`: log p at the first update, None in that update."""
        config, ids, live = self.work.config.scst, rollout.sampled.ids, rollout.mask
        places = live.flatten().nonzero().squeeze(1)  # no logits for tokens outside the loss
        with self.work.autocast():
            logits = self.work.model.decode(*encoded, ids, places)  # [L,V]
        log_probs = spread(token_log_probs(logits, ids.flatten()[places], config.temperature), places, ids)
        advantage = rollout.advantage.flatten()
        terms = {"policy": policy_loss(log_probs, live, advantage, self.tokens)}
        if old is not None:  # a later update from the same samples
            terms["policy"] = clipped_loss(log_probs, old, live, advantage, config.clip, self.tokens)
        if config.kl_weight:
            terms["kl"] = (k3(log_probs, self.at_start(batch, ids, places)) * live).sum() / self.tokens
        if config.entropy_weight:
            terms["entropy"] = token_entropy(logits, config.temperature).sum() / self.tokens
        if config.cross_entropy_weight:
            terms["cross_entropy"] = self.on_references(batch, encoded)
        return terms, log_probs

    @torch.no_grad()
    def at_start(self, batch: Batch, ids: Tensor, places: Tensor) -> Tensor:
        """log p of the samples [B·K,T] under the network at the start of training."""
        assert self.start is not None
        with self.work.autocast():
            logits = self.start.decode(*self.start.encode(**batch.inputs), ids, places)
        return spread(token_log_probs(logits, ids.flatten()[places], self.work.config.scst.temperature), places, ids)

    def on_references(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Cross-entropy of the references of the batch."""
        assert batch.labels is not None
        with self.work.autocast():
            logits = self.work.model.decode(*encoded, batch.labels, batch.live)
        return cross_entropy(logits, batch.labels.flatten()[batch.live], tokens=self.taught)


def total(terms: dict[str, Tensor], config: ScstConfig) -> Tensor:
    """policy + w_kl KL + w_ce CE - w_entropy entropy."""
    weights = {"kl": config.kl_weight, "cross_entropy": config.cross_entropy_weight, "entropy": -config.entropy_weight}
    return sum((weights[name] * term for name, term in terms.items() if name != "policy"), terms["policy"])


def spread(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """Values [L] at flat places of [N,T], 0 elsewhere."""
    return values.new_zeros(like.numel()).index_put((places,), values).view_as(like)


# --- quantities of a policy at sampled tokens: N captions · T tokens · V vocabulary; all in float32, in nats


def token_log_probs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token: logits [...,V], ids [...] → [...]."""
    logits = logits.float() if temperature == 1.0 else logits.float() / temperature
    return torch.log_softmax(logits, dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of each token's distribution: logits [...,V] → [...]."""
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def policy_loss(log_probs: Tensor, mask: Tensor, advantage: Tensor, tokens: Tensor | None = None) -> Tensor:
    """- Σ A·log p over live tokens, per live token: log_probs and mask [N,T], advantage [N] (a constant)."""
    return -(advantage.detach()[:, None] * log_probs * mask).sum() / (mask.sum() if tokens is None else tokens)


def clipped_loss(
    log_probs: Tensor, old: Tensor, mask: Tensor, advantage: Tensor, clip: float, tokens: Tensor
) -> Tensor:
    """- Σ min(ρA, clip(ρ, 1±clip)A) per live token, ρ = p/p_old; at ρ = 1 its gradient is `policy_loss`'s."""
    ratio, advantage = (log_probs - old).exp(), advantage.detach()[:, None]
    return -(torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage) * mask).sum() / tokens


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(policy || reference) at sampled tokens: [N,T], [N,T] → [N,T]."""
    ratio = reference - log_probs
    return ratio.exp() - 1 - ratio


def describe(work: Workspace, everyone: Rollout, own: Rollout, log_probs: Tensor) -> dict[str, float | Tensor]:
    """Metrics of the whole batch; also checks that log_probs [B·K,T] are those of the sampling pass."""
    gap = max(work.world.gather(float(((log_probs - own.sampled.log_probs).abs() * own.mask).max())))
    check_same_policy(gap, work.config)
    entropy = -(log_probs * own.mask).sum() / everyone.mask.sum().clamp(min=1)
    metrics = {**everyone.metrics(), "log_prob_gap": gap} if work.world.leads else {}
    return {**metrics, "entropy_estimate": entropy}
