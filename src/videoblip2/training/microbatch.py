"""A step in micro-batches that fit in memory; their gradients add up to the whole batch's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from videoblip2.data.batches import Batch


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch's share of an update.

    loss: divided by the live tokens of the whole batch, not of the micro-batch, so that the losses add up.
    metrics: shares that add up over a step, or values that appear in one micro-batch only.
    last: whether the optimizer moves after this one.
    rows: a few captions for the table of samples.
    """

    loss: Tensor
    metrics: Mapping[str, float | Tensor]
    video_ids: Sequence[str]
    last: bool = True
    rows: Sequence[Mapping[str, object]] = field(default=())


#: (batch, step) → the micro-batches of a step, one after the other: the next one sees the optimizer's last move.
StepFunction = Callable[[Batch, int], Iterator[MicroBatch]]


def cut(videos: int, count: int) -> list[slice]:
    """At most `count` slices of almost equal size, none empty."""
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
