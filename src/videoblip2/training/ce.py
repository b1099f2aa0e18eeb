"""Stage 1, cross-entropy: teach the network the human captions of each video, token by token.

    loss = - mean over tokens of log p(w_t | w_<t, video, audio, prompt)

1. Each step takes B videos and N captions of each; a video is encoded once for all its captions.
2. The end token is a token like any other; padding counts nothing.
3. T5 stays frozen: gradients reach Q-Formers, queries, upscaler, projections, norms and LoRA.

Left out: no weighting of captions by consensus (Phan et al. 2017 weight them), no scheduled sampling.
"""

import torch
from torch import Tensor
from torch.nn import functional

from videoblip2.data.dataset import Batch
from videoblip2.training.workspace import Workspace


def ce_step(work: Workspace, batch: Batch, step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
    """Loss with gradient, and what to log."""
    assert batch.labels is not None
    work.model.train()
    logits = work.model(batch.labels, **batch.inputs)  # [B·N,T,V]
    loss = cross_entropy(logits, batch.labels, work.config.train.label_smoothing)
    return loss, {"loss": loss.detach(), "token_accuracy": token_accuracy(logits, batch.labels)}


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over live tokens; logits [N,T,V], labels [N,T] with -100 = padding. In float32 whatever came in."""
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, label_smoothing=label_smoothing
    )


@torch.no_grad()
def token_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of live tokens that are the likeliest one."""
    live = labels != -100
    return (logits.argmax(dim=-1) == labels)[live].float().mean()
