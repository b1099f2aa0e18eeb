"""The two sides of the gate: models on the same validation data, their texts and their speed."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from videoblip2.captions import typical_caption
from videoblip2.captions.functions import typed_answers
from videoblip2.captions.metrics import METRICS, default_metrics
from videoblip2.captions.predictions import Kind
from videoblip2.data.annotations import Question, VideoAnnotation, read_annotations, read_questions
from videoblip2.errors import Progress, no_progress
from videoblip2.evaluate import Evaluation
from videoblip2.features.store import FeatureStore, digest
from videoblip2.predict import OpenModel, open_model
from videoblip2.tracking.source import short_digest
from videoblip2.training.distributed import World
from videoblip2.training.tasks import Entries, Task, evaluate_tasks, read_split, say_all, tasks_of

SPLIT = "val"  # promotion reads the validation split; the test split is for the final number only
TextsByKind = dict[Kind, dict[str, str]]  # captions by video id, answers by question id


@dataclass(frozen=True)
class ValidationManifest:
    """Digests of the data that a score was measured on: videos, references, features, and questions if any."""

    size: int
    videos: str
    references: str
    features: str
    questions: str = ""

    @property
    def digest(self) -> str:
        return _sha({name: value for name, value in asdict(self).items() if name != "size" and value})

    def difference(self, other: "ValidationManifest", same_features: bool = True) -> str:
        """The differences in words; empty if none is relevant."""
        if self.videos != other.videos:
            return f"other videos ({self.size} and {other.size})"
        compared = ("references", "questions", "features") if same_features else ("references", "questions")
        return next((f"other {name}" for name in compared if getattr(self, name) != getattr(other, name)), "")

    def to_json(self) -> str:
        """As stored in a version's tag."""
        return json.dumps({key: value for key, value in asdict(self).items() if value != ""})


@dataclass(frozen=True)
class Contender:
    """A model with the validation data of its own configuration."""

    label: str
    model: OpenModel
    entries: dict[Kind, Entries]
    manifest: ValidationManifest

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tasks_of(self.model.config)

    @property
    def paths(self) -> str:
        """The paths of its validation data, for error messages."""
        data = self.model.config.data
        return f"data.annotations={data.annotations} data.features={data.features}"

    def say(self, task: Task, entries: Entries, progress: Progress = no_progress) -> dict[str, str]:
        """Generate texts for these entries, decoded with the model's own configuration."""
        model = self.model
        return say_all(task, model.captioner, entries, model.store, model.config.decode, World(), progress)


def open_contender(model: str, label: str, overrides: Sequence[str] = ()) -> Contender:
    """Load MODEL and read its validation data; overrides: `key=value` on the configuration of its checkpoint."""
    opened = open_model(model, overrides)
    entries = read_split(opened.config, SPLIT, opened.store)
    return Contender(label, opened, entries, freeze(entries, opened.store))


def freeze(entries: Mapping[Kind, Entries], store: FeatureStore) -> ValidationManifest:
    """Digest videos and questions (in any order), references (in order) and features."""
    videos: Sequence[VideoAnnotation] = entries.get("captions", [])
    questions: Sequence[Question] = entries.get("answers", [])
    ids = sorted({*(video.video_id for video in videos), *(question.video_id for question in questions)})
    texts = {video.video_id: list(video.captions) for video in videos}
    asked = sorted([q.question_id, q.video_id, q.question, q.answer] for q in questions)
    return ValidationManifest(len(ids), _sha(ids), _sha(texts), digest(store, ids), _sha(asked) if asked else "")


def time_in_turn(one: Contender, other: Contender, count: int, progress: Progress) -> list[tuple[float, float]]:
    """(one, other): seconds for each of the first entries, one by one. The models alternate after a warm-up."""
    task = one.tasks[0]
    entries = one.entries[task.kind][:count]
    jobs = list(enumerate([entries[0], *entries]))
    timed = []
    for number, entry in progress(jobs, len(jobs), "latency, in turn"):
        seconds = [0.0, 0.0]
        for side in (1, 0) if number % 2 else (0, 1):
            start = time.perf_counter()
            (one, other)[side].say(task, [entry])
            seconds[side] = time.perf_counter() - start
        timed.append((seconds[0], seconds[1]))
    return timed[1:]


def score(texts: TextsByKind, contender: Contender, metrics: Sequence[str]) -> Evaluation:
    """The default metrics that need no Java plus `metrics`, by entry and for the split."""
    names = dict.fromkeys([*default_metrics(True), *(name for name in metrics if METRICS[name].of == "captions")])
    return evaluate_tasks(contender.model.config, contender.entries, texts, [*names])


def say_trivial(contender: Contender) -> TextsByKind:
    """The baseline for a first champion: the most typical training caption, the most frequent training answers."""
    config, model, texts = contender.model.config, contender.model, TextsByKind()
    if videos := contender.entries.get("captions"):
        train = read_annotations(model.annotations(config.scst.all_references))
        same = typical_caption({video.video_id: video.captions for video in train})
        texts["captions"] = {video.video_id: same for video in videos}
    if questions := contender.entries.get("answers"):
        taught = read_questions(model.annotations(config.data.train_qa))
        learned = [q.question for q in taught], [q.answer for q in taught]
        answers = typed_answers([q.question for q in questions], *learned)
        texts["answers"] = dict(zip([q.question_id for q in questions], answers, strict=True))
    return texts


def _sha(content: object) -> str:
    return short_digest(json.dumps(content, ensure_ascii=False, sort_keys=True))
