"""Validation by what the network generates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from videoblip2.captions.predictions import Kind
from videoblip2.training.tasks import Task, Texts, tasks_of
from videoblip2.training.workspace import Workspace


@dataclass(frozen=True)
class Validation:
    """The network at one step. metrics: the score of each task. said: kind → what it said, by video or question id."""

    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    said: Mapping[Kind, Texts] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """What the best is chosen by: CIDEr, accuracy, or their sum (both about 0.5 on MSR-VTT)."""
        return sum(self.metrics.values()) if self.metrics else -math.inf


class Validator:
    """Judges a network, as it is now, on the validation entries of every task."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self._tasks = [(task, task.scorer(work.val[task.kind])) for task in tasks_of(work.config)]

    def judge(self, step: int) -> Validation:
        """What the network says, and how well."""
        said = {task.kind: self._say(task) for task, _ in self._tasks}
        return Validation(step, {task.metric: score(said[task.kind]) for task, score in self._tasks}, said)

    def _say(self, task: Task) -> dict[str, str]:
        work = self._work
        work.model.eval()
        with work.autocast():
            stream = task.say(work.captioner, work.val[task.kind], work.features, work.config.decode)
            return {key: caption.text for key, caption in stream}
