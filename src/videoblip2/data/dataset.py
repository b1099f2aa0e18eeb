"""From annotations and features to batches.

Letters: B videos · N captions a video · L rows of a modality · C its width · P prompt pieces · T caption tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from videoblip2.config import DataConfig, InputError
from videoblip2.data.annotations import VideoAnnotation
from videoblip2.data.memory import free_memory
from videoblip2.modality import Features


class FeatureSource(Protocol):
    """Anything that gives features by video id, such as the feature store."""

    def features(self, video_id: str) -> Features:
        """float32 [L,C] of each modality that is read, the same ones for every video; L = 0 where a video lacks it."""


class TextEncoder(Protocol):
    """The model's tokenizers."""

    def prompts(self, texts: Sequence[str]) -> dict[str, Tensor]: ...

    def labels(self, captions: Sequence[str], max_tokens: int) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """Everything a step needs.

    features, masks: [B,L,C] and [B,L] of each modality. qformer_ids, qformer_mask: [B,P].
    prompt_ids, prompt_mask: [B,P']. labels: [B·N,T], -100 = padding; None where captions are not taught.
    """

    video_ids: tuple[str, ...]
    features: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    qformer_ids: Tensor
    qformer_mask: Tensor
    prompt_ids: Tensor
    prompt_mask: Tensor
    labels: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of `VideoBlip2.encode`."""
        names = (field.name for field in fields(self) if field.name not in ("video_ids", "labels"))
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device) -> "Batch":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """A batch of the same videos with every tensor changed."""
        features, masks = ({name: change(t) for name, t in group.items()} for group in (self.features, self.masks))
        names = ("qformer_ids", "qformer_mask", "prompt_ids", "prompt_mask")
        text = {name: change(getattr(self, name)) for name in names}
        labels = None if self.labels is None else change(self.labels)
        return Batch(self.video_ids, features, masks, **text, labels=labels)


def collate(
    video_ids: Sequence[str],
    features: Sequence[Features],
    prompts: Sequence[str],
    text: TextEncoder,
    max_positions: int,
    labels: Tensor | None = None,
) -> Batch:
    """Pad the features of B videos, which come in ragged lengths, with masks; the first video names the modalities."""
    padded = {name: pad([item[name] for item in features], max_positions) for name in features[0]}
    different = text.prompts(prompts if len(set(prompts)) > 1 else prompts[:1])
    pieces = {name: ids.expand(len(prompts), -1).contiguous() for name, ids in different.items()}
    arrays, masks = ({name: pair[place] for name, pair in padded.items()} for place in (0, 1))
    return Batch(tuple(video_ids), arrays, masks, **pieces, labels=labels)


def pad(sequences: Sequence[np.ndarray], max_positions: int) -> tuple[Tensor, Tensor]:
    """B arrays [L,C] → [B,max L,C] and a mask [B,max L]; longer ones than `max_positions` are thinned evenly.

    max L is at least 1, so that a batch without any audio keeps a place for the learned "no audio" state.
    In numpy, which copies with one thread: torch would take all of them away from the step that runs meanwhile.
    """
    sequences = [thin(sequence, max_positions) for sequence in sequences]
    length = max(1, *(len(sequence) for sequence in sequences))
    padded = np.zeros((len(sequences), length, sequences[0].shape[1]), dtype=np.float32)
    mask = np.zeros((len(sequences), length), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)


def thin(sequence: np.ndarray, max_positions: int) -> np.ndarray:
    """At most `max_positions` rows, evenly spaced, first and last kept."""
    if len(sequence) <= max_positions:
        return sequence
    kept: np.ndarray = sequence[np.linspace(0, len(sequence) - 1, max_positions).round().astype(int)]
    return kept


class CachedFeatures:
    """A FeatureSource that keeps what it has read, up to `megabytes` and to a quarter of the memory that is free now.

    A packed store is left to the operating system, which keeps its pages as long as nobody needs the room.
    """

    def __init__(self, source: FeatureSource, megabytes: int = 2048) -> None:
        self._source = source
        self._room = 0 if getattr(source, "packed", False) else min(megabytes * 2**20, free_memory() // 4)
        self._kept: dict[str, Features] = {}

    def features(self, video_id: str) -> Features:
        kept = self._kept.get(video_id)
        if kept is None:
            kept = self._read(video_id)
            size = sum(array.nbytes for array in kept.values())
            if size <= self._room:
                self._room -= size
                self._kept[video_id] = kept
        return kept

    def _read(self, video_id: str) -> Features:
        """What the source gives, or an error that names the video."""
        try:
            return self._source.features(video_id)
        except InputError:
            raise  # names it already
        except Exception as error:
            raise RuntimeError(f"features of {video_id}: {type(error).__name__}: {error}") from error


class TrainingBatches:
    """Batch number `step`, as a pure function of (seed, step): nothing to save and restore when training resumes.

    Videos come in a new order each epoch. The captions of a video come in an order of its own, N a time, so that all
    are taught equally often.
    """

    def __init__(
        self,
        videos: Sequence[VideoAnnotation],
        source: FeatureSource,
        text: TextEncoder,
        config: DataConfig,
        batch_size: int,
        seed: int,
        max_positions: int,
    ) -> None:
        if not videos:
            raise InputError(
                f"{config.annotations}/{config.train}: no videos to train on; run `vb2 data prepare` first"
            )
        self.videos = list(videos)
        self.batch_size = batch_size
        self._source, self._text, self._config = source, text, config
        self._seed, self._max_positions = seed, max_positions
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> Batch:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        chosen = [(place // len(self.videos), self._index(place)) for place in places]
        videos = [self.videos[index] for _, index in chosen]
        captions = [text for epoch, index in chosen for text in self.captions(epoch, index)]
        return collate(
            [video.video_id for video in videos],
            [self._source.features(video.video_id) for video in videos],
            [self._config.prompt] * len(videos),
            self._text,
            self._max_positions,
            self._text.labels(captions, self._config.max_caption_tokens),
        )

    def captions(self, epoch: int, index: int) -> list[str]:
        """The N captions that video `index` teaches in an epoch."""
        texts = self.videos[index].captions
        order = np.random.default_rng([self._seed, 1, index]).permutation(len(texts))
        count = self._config.captions_per_video
        return [texts[order[(epoch * count + k) % len(texts)]] for k in range(count)]

    def _index(self, place: int) -> int:
        epoch, position = divmod(place, len(self.videos))
        if epoch not in self._orders:
            order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self.videos))
            self._orders = {**{k: v for k, v in self._orders.items() if k == epoch - 1}, epoch: order}
        return int(self._orders[epoch][position])
