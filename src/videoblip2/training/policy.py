"""Quantities of a policy at sampled tokens. Letters: N captions · T tokens · V vocabulary. All in float32, in nats."""

import torch
from torch import Tensor


def token_log_probs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token: logits [N,T,V], ids [N,T] → [N,T], in float32."""
    return torch.log_softmax(logits.float() / temperature, dim=-1).gather(2, ids.unsqueeze(2)).squeeze(2)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of each token's distribution in nats: logits [N,T,V] → [N,T], in float32."""
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


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
