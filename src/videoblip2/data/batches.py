"""From annotations, questions and features to batches.

Letters: B videos · N captions a video · L rows of a modality · C its width · P prompt pieces · T caption tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from videoblip2.config import QUESTION_PROMPT, DataConfig, InputError
from videoblip2.data.annotations import VideoAnnotation
from videoblip2.data.cached_features import FeatureSource
from videoblip2.data.questions import Question
from videoblip2.modality import Features

#: Batch number `step`, as a pure function of (seed, step).
Batches = Callable[[int], "Batch"]


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


@dataclass(frozen=True)
class Example:
    """One entry of a batch: a video, the prompt beside it, and the texts that it teaches."""

    video_id: str
    prompt: str
    texts: Sequence[str]


@dataclass(frozen=True)
class BatchMaker:
    """What every kind of batch is made with. Each kind shuffles by a `stream` of random numbers of its own."""

    source: FeatureSource
    text: TextEncoder
    config: DataConfig
    batch_size: int
    seed: int
    max_positions: int

    def batches(self, count: int, stream: int, example: Callable[[int, int], Example]) -> Batches:
        """Batch number `step`, as a pure function of (seed, step): nothing to save and restore when training resumes.

        Args:
            count: entries an epoch, in a new order each epoch.
            example: (epoch, index) → what entry `index` teaches in that epoch.
        """

        @lru_cache(maxsize=2)  # a batch may span two epochs
        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng([self.seed, stream, epoch]).permutation(count)

        def batch(step: int) -> Batch:
            places = [divmod(step * self.batch_size + n, count) for n in range(self.batch_size)]
            return self._batch([example(epoch, int(order(epoch)[position])) for epoch, position in places])

        return batch

    def _batch(self, examples: Sequence[Example]) -> Batch:
        ids = [example.video_id for example in examples]
        return collate(
            ids,
            [self.source.features(video_id) for video_id in ids],
            [example.prompt for example in examples],
            self.text,
            self.max_positions,
            self.text.labels([text for each in examples for text in each.texts], self.config.max_caption_tokens),
        )


def caption_batches(videos: Sequence[VideoAnnotation], maker: BatchMaker) -> Batches:
    """B videos a step, N captions each."""
    config = maker.config
    if not videos:
        raise InputError(f"{config.annotations}/{config.train}: no videos to train on; run `vb2 data prepare` first")

    def example(epoch: int, index: int) -> Example:
        video = videos[index]
        order = np.random.default_rng([maker.seed, 1, index]).permutation(len(video.captions))
        return Example(video.video_id, config.prompt, taught(video.captions, order, epoch, config.captions_per_video))

    return maker.batches(len(videos), 0, example)


def taught(captions: Sequence[str], order: np.ndarray, epoch: int, count: int) -> list[str]:
    """The `count` captions of a video that an epoch teaches: its own order, in turns, so that all are equally often."""
    return [captions[order[(epoch * count + k) % len(captions)]] for k in range(count)]


def question_batches(questions: Sequence[Question], maker: BatchMaker) -> Batches:
    """B questions a step, each the prompt of its own video, with one answer to teach."""
    config = maker.config
    if not questions:
        raise InputError(f"{config.annotations}/{config.train_qa}: no questions to train on")

    def example(epoch: int, index: int) -> Example:
        asked = questions[index]
        return Example(asked.video_id, question_prompt(asked.question), [asked.answer])

    return maker.batches(len(questions), 2, example)


def mixed(captions: Batches, questions: Batches, qa_share: float) -> Batches:
    """Whole steps of either kind, spread evenly: after s steps, ⌊s · qa_share⌋ have taught answers.

    Each kind counts its own steps, so that neither skips a batch.
    """

    def batch(step: int) -> Batch:
        before, after = int(step * qa_share), int((step + 1) * qa_share)
        return questions(before) if after > before else captions(step - before)

    return batch


def question_prompt(question: str) -> str:
    """What the Q-Formers and the language model read beside the queries."""
    return QUESTION_PROMPT.format(question.strip())


class Prefetcher:
    """`batches(step)`, made by one thread up to `depth` steps ahead of the step that takes it; 0: made when asked for.

    A batch is a function of its step alone, so batches made ahead are not state: a resumed training starts at its
    step. One thread, so that `batches` need not be thread-safe.
    """

    def __init__(self, batches: Callable[[int], Batch], total: int, depth: int = 2) -> None:
        self._batches, self._total, self._depth = batches, total, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of a step. Raises here what making it raised."""
        if not self._depth:
            return self._batches(step)
        wanted = {step, *range(step, min(step + self._depth + 1, self._total))}
        for other in self._made.keys() - wanted:
            self._made.pop(other).cancel()
        for number in sorted(wanted - self._made.keys()):
            self._made[number] = self._thread.submit(self._batches, number)
        return self._made.pop(step).result()

    def close(self) -> None:
        """Drop what was made ahead, and end the thread."""
        self._made.clear()
        self._thread.shutdown(cancel_futures=True)
