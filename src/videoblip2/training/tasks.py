"""The tasks of `data.task`: captions of videos, answers to questions, or both.

A `Task` owns all that differs between them: data files, batches, generated texts, the validation score, the full
evaluation. All other code calls `tasks_of`; a mixture is two tasks, and its score is their sum.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from videoblip2.captioner import Captioner
from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.captions.functions import answer_accuracy
from videoblip2.captions.predictions import AnswerRow, CaptionRow, Kind
from videoblip2.config import Config, DataConfig, DecodeConfig
from videoblip2.data import annotations
from videoblip2.data.annotations import Question, VideoAnnotation, require_features
from videoblip2.data.batches import Batches, BatchMaker, FeatureSource, mixed
from videoblip2.errors import Progress, no_progress
from videoblip2.evaluate import Evaluation, combined, evaluate, evaluate_answers
from videoblip2.features.store import FeatureStore
from videoblip2.training.distributed import World
from videoblip2.training.interruptions import memory_for

Texts = Mapping[str, str]  # generated texts, by video id or question id
Entries = list[Any]  # VideoAnnotation for captions, Question for answers


class CaptionTask:
    """Captions of videos. metric: the validation score, higher is better."""

    kind: Kind = CaptionRow.kind
    metric = CaptionRow.metric
    read = staticmethod(annotations.read_annotations)  # an annotation file → its entries

    def file(self, data: DataConfig, split: str) -> Path:
        """The annotation file of a split (train, val, test)."""
        return Path(data.annotations, data.train if split == "train" else f"{split}.json")

    def batches(self, entries: list[VideoAnnotation], maker: BatchMaker) -> Batches:
        """Batches that teach these entries."""
        return maker.batches(entries, 0, maker.config.captions_per_video)

    def scorer(self, entries: list[VideoAnnotation]) -> Callable[[Texts], float]:
        """Return a function from the texts of all entries to `metric`; built once, called at each validation."""
        references = {video.video_id: video.captions for video in entries}
        scorer = CiderD(references, DocumentFrequencies.from_references(references))  # as pycocoevalcap on this split
        return lambda captions: float(scorer.score(list(captions), list(captions.values())).mean())

    def evaluate(
        self, entries: list[VideoAnnotation], texts: Texts, data: DataConfig, metrics: Sequence[str] | None
    ) -> Evaluation:
        """All metrics, with a row for each entry. metrics: caption metrics, None = the defaults."""
        references = {video.video_id: video.captions for video in entries}
        return evaluate(texts, references, metrics, {video.video_id: video.category for video in entries})


class AnswerTask:
    """Answers to questions about videos; the same methods."""

    kind: Kind = AnswerRow.kind
    metric = AnswerRow.metric
    read = staticmethod(annotations.read_questions)

    def file(self, data: DataConfig, split: str) -> Path:
        return Path(data.annotations, data.train_qa if split == "train" else f"{split}_qa.json")

    def batches(self, entries: list[Question], maker: BatchMaker) -> Batches:
        return maker.batches(entries, 2, 1)

    def scorer(self, entries: list[Question]) -> Callable[[Texts], float]:
        asked, expected = [question.question for question in entries], [question.answer for question in entries]
        keys = [question.question_id for question in entries]
        return lambda answers: answer_accuracy(asked, [answers[key] for key in keys], expected)[self.metric]

    def evaluate(
        self, entries: list[Question], texts: Texts, data: DataConfig, metrics: Sequence[str] | None
    ) -> Evaluation:
        train, answer_map = self.file(data, "train"), Path(data.annotations, annotations.ANSWER_MAP)
        taught = annotations.read_questions(train) if train.exists() else []
        known = annotations.read_answer_map(answer_map) if answer_map.exists() else None
        return evaluate_answers(texts, entries, taught, known)


Task = CaptionTask | AnswerTask
CAPTIONS, ANSWERS = CaptionTask(), AnswerTask()
TASKS: Mapping[str, tuple[Task, ...]] = {"caption": (CAPTIONS,), "qa": (ANSWERS,), "mixed": (CAPTIONS, ANSWERS)}


def tasks_of(config: Config) -> tuple[Task, ...]:
    """The tasks that `data.task` names."""
    return TASKS[config.data.task]


def read_split(config: Config, split: str, store: FeatureStore) -> dict[Kind, Entries]:
    """Kind → the entries of a split (train, val, test), of every task. Raises InputError if features are missing."""
    files = {task: task.file(config.data, split) for task in tasks_of(config)}
    return {task.kind: require_features(task.read(file), store, file) for task, file in files.items()}


def inputs_of(config: Config, entries: Mapping[str, Mapping[Kind, Entries]]) -> list[tuple[str, str, Path, set[str]]]:
    """(name, split, annotation file, ids of its videos) of every file read. entries: of every task, by split."""
    return [
        (
            f"{split}_qa" if number else split,  # of a second task
            split,
            task.file(config.data, split),
            {entry.video_id for entry in own[task.kind]},
        )
        for number, task in enumerate(tasks_of(config))
        for split, own in entries.items()
    ]


def say_all(
    task: Task,
    captioner: Captioner,
    entries: Entries,
    source: FeatureSource,
    decode: DecodeConfig,
    world: World,
    progress: Progress = no_progress,
) -> dict[str, str]:
    """Generate the text of every entry, by key; each process decodes its share."""
    requests = [(entry.key, entry.video_id, entry.prompt) for entry in entries[world.share(len(entries))]]
    stream = captioner.in_batches(requests, source.features, decode)
    with memory_for(f"decoding {task.kind}", f"lower decode.batch_size={decode.batch_size} or decode.num_beams"):
        texts = {key: caption.text for key, caption in progress(stream, len(requests), task.kind)}
    parts = world.gather(texts)
    return {key: text for part in parts for key, text in part.items()}


def batches_of(config: Config, entries: Mapping[Kind, Entries], maker: BatchMaker) -> Batches:
    """Training batches; in a mixture, a share `data.qa_share` of the steps trains on answers."""
    each = [task.batches(entries[task.kind], maker) for task in tasks_of(config) if task.kind in entries]
    return mixed(each[0], each[1], config.data.qa_share) if len(each) == 2 else each[0]


def evaluate_tasks(
    config: Config, entries: Mapping[Kind, Entries], texts: Mapping[Kind, Texts], metrics: Sequence[str] | None = None
) -> Evaluation:
    """All metrics of all tasks."""
    tasks = tasks_of(config)
    return combined([task.evaluate(entries[task.kind], texts[task.kind], config.data, metrics) for task in tasks])
