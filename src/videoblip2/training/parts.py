"""A step in parts: micro-batches that fit in memory, whose gradients add up to the whole batch's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from videoblip2.data.dataset import Batch


@dataclass(frozen=True)
class Part:
    """One micro-batch's share of an update.

    loss: divided by the live tokens of the whole batch, not of the part, so that the parts' losses add up.
    metrics: shares that add up over the parts of a step, or values that stand in one part only.
    last: whether the optimizer moves after this part.
    rows: a few captions for the table of samples.
    """

    loss: Tensor
    metrics: Mapping[str, float | Tensor]
    video_ids: Sequence[str]
    last: bool = True
    rows: Sequence[Mapping[str, object]] = field(default=())


#: (batch, step) → the parts of a step, made one after the other: the next one sees the optimizer's last move.
StepFunction = Callable[[Batch, int], Iterator[Part]]


def cut(videos: int, count: int) -> list[slice]:
    """Places of at most `count` parts of almost equal size, none empty."""
    count = min(videos, count)
    edges = [videos * place // count for place in range(count + 1)]
    return [slice(edges[place], edges[place + 1]) for place in range(count)]


def take(batch: Batch, videos: slice) -> Batch:
    """Some videos of a batch, with all their captions; padding stays as wide as the whole batch's."""
    labels = batch.labels
    if labels is not None:
        labels = labels.view(len(batch.video_ids), -1, labels.shape[1])[videos].flatten(0, 1)
    chosen = replace(batch, labels=None).map(lambda tensor: tensor[videos])
    return replace(chosen, video_ids=batch.video_ids[videos], labels=labels)
