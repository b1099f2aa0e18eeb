"""Stage 1, cross-entropy: teach the network the human captions of each video, token by token.

    loss = - mean over tokens of log p(w_t | w_<t, video, audio, prompt)

1. Each step takes B videos and N captions of each; a video is encoded once for all its captions.
2. The end token is a token like any other; padding counts nothing.
3. T5 stays frozen: gradients reach Q-Formers, queries, upscaler, projections, norms and LoRA.
4. The mean is over the tokens of the whole batch, also where micro-batches share it (`train.accumulate`).

Left out: no weighting of captions by consensus (Phan et al. 2017 weight them), no scheduled sampling.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from videoblip2.data.dataset import Batch
from videoblip2.training.parts import Part, cut, take
from videoblip2.training.workspace import Workspace


def ce_step(work: Workspace, batch: Batch, step: int) -> Iterator[Part]:
    """The parts of one step: one update, in `train.accumulate` micro-batches."""
    assert batch.labels is not None
    config = work.config.train
    work.model.train()
    tokens = live_tokens(batch.labels)
    places = cut(len(batch.video_ids), config.accumulate)
    for place in places:
        part = take(batch, place) if len(places) > 1 else batch
        assert part.labels is not None
        with work.autocast():
            logits = work.model(part.labels, **part.inputs)  # [B·N,T,V]
        loss = cross_entropy(logits, part.labels, config.label_smoothing, tokens)
        accuracy = token_accuracy(logits, part.labels, tokens)
        yield Part(loss, {"loss": loss.detach(), "token_accuracy": accuracy}, part.video_ids, place is places[-1])


def live_tokens(labels: Tensor) -> Tensor:
    """How many labels count; at least 1, so that it can divide."""
    return (labels != -100).sum().clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, tokens: Tensor | None = None) -> Tensor:
    """Sum over live tokens divided by `tokens` (default: their number, which makes it the mean).

    logits [N,T,V], labels [N,T] with -100 = padding. In float32 whatever came in.
    """
    summed = functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=-100,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return summed / (live_tokens(labels) if tokens is None else tokens)


@torch.no_grad()
def token_accuracy(logits: Tensor, labels: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Live tokens that are the likeliest one, divided by `tokens` (default: the live ones)."""
    hits = (logits.argmax(dim=-1) == labels) & (labels != -100)
    return hits.sum() / (live_tokens(labels) if tokens is None else tokens)
