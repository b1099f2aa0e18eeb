"""Validation by generated captions and answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.captions.answers import answer_accuracy
from videoblip2.training.workspace import Workspace


@dataclass(frozen=True)
class Validation:
    """The network at one step: what it scores, says and answers. metrics: those of what `data.task` teaches.

    captions: by video id. answers: by question id.
    """

    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """What the best is chosen by: CIDEr, accuracy, or their sum (both about 0.5 on MSR-VTT)."""
        return sum(self.metrics.values()) if self.metrics else -math.inf


class Validator:
    """Captions of the validation videos with their CIDEr as pycocoevalcap computes it on that split, and answers."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self.references = {video.video_id: video.captions for video in work.val_videos}
        if self.references:
            self._scorer = CiderD(self.references, DocumentFrequencies.from_references(self.references))

    def judge(self, step: int) -> Validation:
        """The network as it is now, at everything that `data.task` teaches."""
        metrics, captions, answers = {}, {}, {}
        if self.references:
            captions = self.captions()
            metrics["CIDEr"] = float(self._scorer.score(list(captions), list(captions.values())).mean())
        if self._work.val_questions:
            answers = self.answers()
            metrics["accuracy"] = self.accuracy(answers)
        return Validation(step, metrics, captions, answers)

    def captions(self) -> dict[str, str]:
        work = self._work
        work.model.eval()
        with work.autocast():
            stream = work.captioner.caption_videos(list(self.references), work.features, work.config.decode)
            return {video_id: caption.text for video_id, caption in stream}

    def answers(self) -> dict[str, str]:
        work = self._work
        work.model.eval()
        with work.autocast():
            stream = work.captioner.answer_questions(work.val_questions, work.features, work.config.decode)
            return {question_id: answer.text for question_id, answer in stream}

    def accuracy(self, answers: Mapping[str, str]) -> float:
        questions = self._work.val_questions
        given = [answers[question.question_id] for question in questions]
        return answer_accuracy([q.question for q in questions], given, [q.answer for q in questions])["accuracy"]
