"""One update of the network: gradients summed over micro-batches, and AdamW (Loshchilov & Hutter 2019) by groups.

Learning rates warm up linearly and decay along a cosine (Loshchilov & Hutter 2017).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from videoblip2.config import OptimConfig
from videoblip2.data.batches import Batch
from videoblip2.training.sharding import is_sharded

NOT_DECAYED = ("query_tokens", "positions", "embeddings", "shared", "relative_attention_bias")


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch's share of an update.

    loss: divided by the live tokens of the whole batch, not of the micro-batch, so that losses add up.
    metrics: shares that add up over a step, or values given by a single micro-batch.
    last: whether the optimizer steps after this one.
    rows: a few captions for the table of samples.
    """

    loss: Tensor
    metrics: Mapping[str, float | Tensor]
    video_ids: Sequence[str]
    last: bool = True
    rows: Sequence[Mapping[str, object]] = ()


#: (batch, step) → the micro-batches of a step, lazily: each sees the optimizer's last step.
StepFunction = Callable[[Batch, int], Iterator[MicroBatch]]


def cut(videos: int, count: int) -> list[slice]:
    """At most `count` slices of almost equal size, none empty."""
    count = min(videos, count)
    return [slice(*edges) for edges in pairwise(videos * place // count for place in range(count + 1))]


def take(batch: Batch, videos: slice) -> Batch:
    """Some videos of a batch, with all their captions; padding stays as wide as the whole batch's."""
    repeats = len(batch.lengths) // len(batch.video_ids)
    rows = slice(videos.start * repeats, videos.stop * repeats)
    labels = None if batch.labels is None else batch.labels[rows]
    chosen = replace(batch, labels=None).map(lambda tensor: tensor[videos])
    return replace(chosen, video_ids=batch.video_ids[videos], labels=labels, lengths=batch.lengths[rows])


def build_optimizer(trainable: Mapping[str, nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """One group per kind (Q-Formers, projections, LoRA or language model), each split by weight decay."""
    scales = {"qformer": 1.0, "projection": config.lr_scale_projections, "lora": config.lr_scale_lora}
    members: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        sharded = is_sharded(parameter)  # the fused update cannot mix sharded and whole tensors
        members.setdefault((kind_of(name), decays(name, parameter), sharded), []).append(parameter)
    groups = [
        {"params": some, "weight_decay": config.weight_decay * decayed, "peak_lr": config.lr * scales[kind]}
        for (kind, decayed, _), some in members.items()
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def kind_of(name: str) -> str:
    """The kind of a parameter, which sets its learning rate."""
    if "lora_" in name or name.startswith("language_model."):
        return "lora"
    return "qformer" if ".qformer." in name else "projection"


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices decay; biases, norms, queries, positions and token embeddings do not."""
    return parameter.ndim > 1 and not any(part in name for part in NOT_DECAYED)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, total: int, config: OptimConfig) -> float:
    """Set each group's rate for `step` (from 0) of `total`; return the base rate."""
    factor = schedule(step, total, config.warmup_steps, config.final_lr)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return config.lr * factor


def schedule(step: int, total: int, warmup: int, final: float) -> float:
    """Linear from 1/warmup to 1, then a half cosine down to `final` at the last step."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - 1 - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
