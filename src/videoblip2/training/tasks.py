"""What `data.task` asks of a model: captions of videos, answers to questions, or both.

A `Task` owns everything that differs between them: the data that are read, batches, what is generated, the score of a
validation, the full evaluation. All other code asks `tasks_of`; a mixture is simply two tasks, and its score their sum.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from videoblip2.captioner import Caption, Captioner
from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.captions.answers import answer_accuracy
from videoblip2.captions.predictions import AnswerRow, CaptionRow, Kind
from videoblip2.config import Config, DataConfig, DecodeConfig
from videoblip2.data.annotations import VideoAnnotation, read_annotations, require_features
from videoblip2.data.batches import Batches, BatchMaker, FeatureSource, caption_batches, mixed, question_batches
from videoblip2.data.questions import ANSWER_MAP, Question, read_answer_map, read_questions
from videoblip2.evaluate import Evaluation, evaluate, evaluate_answers, together
from videoblip2.features.store import FeatureStore

Texts = Mapping[str, str]  # what the model said, by video id or question id
Entries = list[Any]  # VideoAnnotation for captions, Question for answers


class Task(Protocol):
    """One kind of text that a model learns to give. metric: its validation score, higher is better."""

    kind: Kind
    metric: str

    def file(self, data: DataConfig, split: str) -> str:
        """The annotation file of a split (train, val, test)."""

    def read(self, path: Path) -> Entries:
        """The entries of an annotation file: each has a `video_id`."""

    def batches(self, entries: Entries, maker: BatchMaker) -> Batches:
        """Batches that teach these entries."""

    def say(
        self, captioner: Captioner, entries: Entries, source: FeatureSource, decode: DecodeConfig
    ) -> Iterator[tuple[str, Caption]]:
        """What the model says of each entry, with the entry's key."""

    def scorer(self, entries: Entries) -> Callable[[Texts], float]:
        """A function from what was said of all entries to `metric`; made once, called at each validation."""

    def evaluate(self, entries: Entries, said: Texts, data: DataConfig, metrics: Sequence[str] | None) -> Evaluation:
        """All metrics, with a row for each entry. metrics: those of captions, None = the defaults."""


class CaptionTask:
    """Captions of videos."""

    kind: Kind = CaptionRow.kind
    metric = CaptionRow.metric

    def file(self, data: DataConfig, split: str) -> str:
        return data.train if split == "train" else f"{split}.json"

    def read(self, path: Path) -> list[VideoAnnotation]:
        return read_annotations(path)

    def batches(self, entries: list[VideoAnnotation], maker: BatchMaker) -> Batches:
        return caption_batches(entries, maker)

    def say(
        self, captioner: Captioner, entries: list[VideoAnnotation], source: FeatureSource, decode: DecodeConfig
    ) -> Iterator[tuple[str, Caption]]:
        return captioner.caption_videos([video.video_id for video in entries], source, decode)

    def scorer(self, entries: list[VideoAnnotation]) -> Callable[[Texts], float]:
        references = {video.video_id: video.captions for video in entries}
        scorer = CiderD(references, DocumentFrequencies.from_references(references))  # as pycocoevalcap on this split
        return lambda captions: float(scorer.score(list(captions), list(captions.values())).mean())

    def evaluate(
        self, entries: list[VideoAnnotation], said: Texts, data: DataConfig, metrics: Sequence[str] | None
    ) -> Evaluation:
        references = {video.video_id: video.captions for video in entries}
        return evaluate(said, references, metrics, {video.video_id: video.category for video in entries})


class AnswerTask:
    """Answers to questions on videos."""

    kind: Kind = AnswerRow.kind
    metric = AnswerRow.metric

    def file(self, data: DataConfig, split: str) -> str:
        return data.train_qa if split == "train" else f"{split}_qa.json"

    def read(self, path: Path) -> list[Question]:
        return read_questions(path)

    def batches(self, entries: list[Question], maker: BatchMaker) -> Batches:
        return question_batches(entries, maker)

    def say(
        self, captioner: Captioner, entries: list[Question], source: FeatureSource, decode: DecodeConfig
    ) -> Iterator[tuple[str, Caption]]:
        return captioner.answer_questions(entries, source, decode)

    def scorer(self, entries: list[Question]) -> Callable[[Texts], float]:
        asked, expected = [question.question for question in entries], [question.answer for question in entries]
        keys = [question.question_id for question in entries]
        return lambda answers: answer_accuracy(asked, [answers[key] for key in keys], expected)[self.metric]

    def evaluate(
        self, entries: list[Question], said: Texts, data: DataConfig, metrics: Sequence[str] | None
    ) -> Evaluation:
        folder = Path(data.annotations)
        train = read_questions(path) if (path := folder / self.file(data, "train")).exists() else []
        answer_map = read_answer_map(path) if (path := folder / ANSWER_MAP).exists() else None
        return evaluate_answers(said, entries, train, answer_map)


CAPTIONS, ANSWERS = CaptionTask(), AnswerTask()
TASKS: Mapping[str, tuple[Task, ...]] = {"caption": (CAPTIONS,), "qa": (ANSWERS,), "mixed": (CAPTIONS, ANSWERS)}


def tasks_of(config: Config) -> tuple[Task, ...]:
    """The tasks that `data.task` names."""
    return TASKS[config.data.task]


def read_split(config: Config, split: str, store: FeatureStore) -> dict[Kind, Entries]:
    """Kind → the entries of a split (train, val, test), of every task. Raises InputError where features are missing."""
    entries: dict[Kind, Entries] = {}
    for task in tasks_of(config):
        file = task.file(config.data, split)
        entries[task.kind] = require_features(task.read(Path(config.data.annotations) / file), store, file)
    return entries


def batches_of(config: Config, entries: Mapping[Kind, Entries], maker: BatchMaker) -> Batches:
    """Training batches; of a mixture, `data.qa_share` of the steps teach answers."""
    each = [task.batches(entries[task.kind], maker) for task in tasks_of(config)]
    return mixed(each[0], each[1], config.data.qa_share) if len(each) == 2 else each[0]


def evaluate_tasks(
    config: Config, entries: Mapping[Kind, Entries], said: Mapping[Kind, Texts], metrics: Sequence[str] | None = None
) -> Evaluation:
    """All metrics of all tasks."""
    tasks = tasks_of(config)
    return together([task.evaluate(entries[task.kind], said[task.kind], config.data, metrics) for task in tasks])
