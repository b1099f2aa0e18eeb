"""Stage 1, cross-entropy: train the network on the human captions of each video, token by token.

    loss = - mean over tokens of log p(w_t | w_<t, video, audio, prompt)

1. Each step takes B videos and N captions of each; a video is encoded once for all its captions.
2. The end token counts like any other; padding does not, and no logits are computed for it.
3. The language model stays frozen: gradients reach Q-Formers, queries, upscaler, projections, norms and LoRA.
4. The mean is over the tokens of the whole batch, even if micro-batches split it (`train.accumulate`).

Not included: weighting captions by consensus (Phan et al. 2017), scheduled sampling.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from videoblip2.data.batches import Batch
from videoblip2.training.update import MicroBatch, cut, take
from videoblip2.training.workspace import Workspace


def ce_step(work: Workspace, batch: Batch, step: int) -> Iterator[MicroBatch]:
    """One update, in `train.accumulate` micro-batches."""
    assert batch.labels is not None
    work.model.train(work.config.train.dropout)
    tokens = work.world.sum(live_tokens(batch.labels))  # of the whole batch, so that all shares add up to its mean
    slices = cut(len(batch.video_ids), work.config.train.accumulate)
    for videos in slices:
        part = take(batch, videos)
        assert part.labels is not None
        labels, live = part.labels.flatten(), part.live  # no logits of padding
        with work.autocast():
            logits = work.model(part.labels, live, **part.inputs)  # [L,V]
        loss = cross_entropy(logits, labels[live], work.config.train.label_smoothing, tokens)
        metrics = {"loss": loss.detach(), "token_accuracy": token_accuracy(logits, labels[live], tokens)}
        yield MicroBatch(loss, metrics, part.video_ids, last=videos is slices[-1])


def live_tokens(labels: Tensor) -> Tensor:
    """Number of live labels, at least 1, since it is a divisor."""
    return (labels != -100).sum().clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, tokens: Tensor | None = None) -> Tensor:
    """Sum over live tokens divided by `tokens` (default: their number, which makes it the mean).

    logits [...,V], labels [...] with -100 = padding. Computed in float32 for logits of any type.
    """
    summed = functional.cross_entropy(
        logits.float().flatten(0, -2),
        labels.flatten(),
        ignore_index=-100,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return summed / (live_tokens(labels) if tokens is None else tokens)


@torch.no_grad()
def token_accuracy(logits: Tensor, labels: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Correctly predicted live tokens, divided by `tokens` (default: the number of live tokens)."""
    hits = (logits.argmax(dim=-1) == labels) & (labels != -100)
    return hits.sum() / (live_tokens(labels) if tokens is None else tokens)
