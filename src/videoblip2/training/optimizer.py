"""AdamW (Loshchilov & Hutter 2019) in groups, warm-up and cosine decay (Loshchilov & Hutter 2017)."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from videoblip2.config import OptimConfig

NOT_DECAYED = ("query_tokens", "positions", "embeddings", "shared", "relative_attention_bias")


def build_optimizer(trainable: dict[str, nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """One group a kind (Q-Formers, projections, LoRA or language model), each split by whether it decays."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        groups.setdefault((kind_of(name), decays(name, parameter)), []).append(parameter)
    scales = {"qformer": 1.0, "projection": config.lr_scale_projections, "lora": config.lr_scale_lora}
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decayed else 0.0,
                "peak_lr": config.lr * scales[kind],
                "kind": kind,
            }
            for (kind, decayed), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
    )


def kind_of(name: str) -> str:
    """Which learning rate a parameter has, by its name."""
    if "lora_" in name or name.startswith("language_model."):
        return "lora"
    return "qformer" if ".qformer." in name else "projection"


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices decay; biases, norms, queries, positions and token embeddings do not."""
    return parameter.ndim > 1 and not any(part in name for part in NOT_DECAYED)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, total: int, config: OptimConfig) -> float:
    """Set each group's rate for `step` (from 0) of `total`; returns the base rate."""
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


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to `max_norm`; returns the norm before."""
    return float(torch.nn.utils.clip_grad_norm_(list(parameters), max_norm))
