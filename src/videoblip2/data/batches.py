"""Build batches from annotations, questions and features, ahead of the training step.

Letters: B videos · N captions per video · L rows of a modality · C its width · P prompt pieces · T caption tokens.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from torch import Tensor

from videoblip2.config import DataConfig, InputError
from videoblip2.data.annotations import Entry
from videoblip2.modality import Features

Batches = Callable[[int], "Batch"]  #: Batch number `step`, as a pure function of (seed, step).
CONTROL_GROUP = Path("/sys/fs/cgroup")


class FeatureSource(Protocol):
    """Returns float32 [L,C] of each modality, the same modalities for every video; L = 0 if a video lacks one."""

    def features(self, video_id: str) -> Features: ...


class CachedFeatures:
    """A FeatureSource with a cache of up to `megabytes` and a quarter of the memory now free."""

    def __init__(self, source: FeatureSource, megabytes: int = 2048) -> None:
        self._source = source
        # A packed store needs no cache: the operating system caches its pages.
        self._room = 0 if getattr(source, "packed", False) else min(megabytes * 2**20, free_memory() // 4)
        self._kept: dict[str, Features] = {}

    def features(self, video_id: str) -> Features:
        if video_id in self._kept:
            return self._kept[video_id]
        try:
            found = self._source.features(video_id)
        except InputError:
            raise  # already names the video
        except Exception as error:
            raise RuntimeError(f"features of {video_id}: {type(error).__name__}: {error}") from error
        size = sum(array.nbytes for array in found.values())
        if size <= self._room:
            self._room -= size
            self._kept[video_id] = found
        return found


def free_memory() -> int:
    """Bytes available on the machine or, if less, within the container's limit; file caches count as free."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((CONTROL_GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return available
    return min(available, max(0, limit - used + int(stat.get("inactive_file", 0))))


class TextEncoder(Protocol):
    """The model's tokenizers."""

    def prompts(self, texts: Sequence[str]) -> dict[str, Tensor]: ...
    def labels(self, captions: Sequence[str], max_tokens: int) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """The input of a training step."""

    video_ids: tuple[str, ...]
    features: Mapping[str, Tensor]  # [B,L,C] of each modality
    masks: Mapping[str, Tensor]  # [B,L]
    qformer_ids: Tensor  # [B,P], as its mask
    qformer_mask: Tensor
    prompt_ids: Tensor  # [B,P'], as its mask
    prompt_mask: Tensor
    labels: Tensor | None = None  # [B·N,T], -100 = padding; None without training targets
    lengths: tuple[int, ...] = ()  # live tokens of each label row

    @property
    def live(self) -> Tensor:
        """Flat places [L] of the live tokens in the labels, without waiting for a GPU."""
        assert self.labels is not None
        width = self.labels.shape[1]
        places = [row * width + place for row, length in enumerate(self.lengths) for place in range(length)]
        return torch.tensor(places, dtype=torch.long).to(self.labels.device, non_blocking=True)

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of `VideoBlip2.encode`."""
        return {name: value for name, value in vars(self).items() if name not in ("video_ids", "labels", "lengths")}

    def to(self, device: torch.device) -> "Batch":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with `change` applied to every tensor."""
        changed: Any = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        features, masks = ({key: change(t) for key, t in group.items()} for group in (self.features, self.masks))
        return replace(self, features=features, masks=masks, **changed)


def collate(
    video_ids: Sequence[str],
    features: Sequence[Features],
    prompts: Sequence[str],
    text: TextEncoder,
    max_positions: int,
    labels: Tensor | None = None,
) -> Batch:
    """Pad the features of B videos to one length, with masks; the first video sets the modalities."""
    padded = {name: pad([item[name] for item in features], max_positions) for name in features[0]}
    arrays, masks = ({name: pair[place] for name, pair in padded.items()} for place in (0, 1))
    different = text.prompts(prompts if len(set(prompts)) > 1 else prompts[:1])
    pieces = {name: ids.expand(len(prompts), -1).contiguous() for name, ids in different.items()}
    lengths = () if labels is None else tuple((labels != -100).sum(dim=1).tolist())
    return Batch(tuple(video_ids), arrays, masks, **pieces, labels=labels, lengths=lengths)


def pad(sequences: Sequence[np.ndarray], max_positions: int) -> tuple[Tensor, Tensor]:
    """B arrays [L,C] → [B,max L,C] and a mask [B,max L]; arrays longer than `max_positions` are thinned evenly.

    max L is at least 1: a batch without any audio needs a place for the learned "no audio" state.
    numpy copies with one thread; torch would take threads from the running training step.
    """
    sequences = [thin(sequence, max_positions) for sequence in sequences]
    longest = max(1, *map(len, sequences))
    padded = np.zeros((len(sequences), longest, sequences[0].shape[1]), np.float32)
    mask = np.zeros((len(sequences), longest), np.int64)
    for row, own, sequence in zip(padded, mask, sequences, strict=True):
        row[: len(sequence)], own[: len(sequence)] = sequence, 1
    return torch.from_numpy(padded), torch.from_numpy(mask)


def thin(sequence: np.ndarray, max_positions: int) -> np.ndarray:
    """At most `max_positions` rows, evenly spaced, first and last kept."""
    if len(sequence) <= max_positions:
        return sequence
    return np.asarray(sequence[np.linspace(0, len(sequence) - 1, max_positions).round().astype(int)])


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches of any kind. share: this process's part of each batch, if there are several processes."""

    source: FeatureSource
    text: TextEncoder
    config: DataConfig
    batch_size: int
    seed: int
    max_positions: int
    share: slice | None = None

    def batches(self, entries: Sequence[Entry], stream: int, count: int) -> Batches:
        """B entries per step in a new order each epoch, `count` texts of each. stream: seeds this kind of batch."""

        @lru_cache(maxsize=2)  # a batch may span two epochs
        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng([self.seed, stream, epoch]).permutation(len(entries))

        def texts(epoch: int, index: int) -> list[str]:  # in turn, in an order per entry: all equally often
            own = entries[index].texts
            order = np.random.default_rng([self.seed, 1, index]).permutation(len(own))
            return [own[order[(epoch * count + k) % len(own)]] for k in range(count)]

        def batch(step: int) -> Batch:
            rows = range(self.batch_size)[self.share or slice(None)]
            places = [divmod(step * self.batch_size + row, len(entries)) for row in rows]
            chosen = [(epoch, int(order(epoch)[place])) for epoch, place in places]
            ids = [entries[index].video_id for _, index in chosen]
            prompts = [entries[index].prompt or self.config.prompt for _, index in chosen]
            features = [self.source.features(video_id) for video_id in ids]
            labels = self.text.labels([t for each in chosen for t in texts(*each)], self.config.max_caption_tokens)
            return collate(ids, features, prompts, self.text, self.max_positions, labels)

        return batch


def mixed(captions: Batches, questions: Batches, qa_share: float) -> Batches:
    """Each step is of one kind, spread evenly: after s steps, ⌊s · qa_share⌋ were answers. No batch is skipped."""

    def batch(step: int) -> Batch:
        before, after = int(step * qa_share), int((step + 1) * qa_share)
        return questions(before) if after > before else captions(step - before)

    return batch


def ahead(batches: Batches, steps: Iterable[int], depth: int) -> Generator[Batch, None, None]:
    """The batches of these steps, made by a thread up to `depth` steps ahead; 0 = made on request.

    Raises an error from making a batch when that batch is due. Closing waits for the current one.
    """
    if not depth:
        yield from map(batches, steps)
        return
    made, thread = deque[Future[Batch]](), ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        for step in steps:
            made.append(thread.submit(batches, step))
            if len(made) > depth:
                yield made.popleft().result()
        yield from (batch.result() for batch in made)
    finally:
        thread.shutdown(cancel_futures=True)
