"""Validation by generated captions and answers, and the best of a training."""

import math
from dataclasses import dataclass, field

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.captions.answers import answer_accuracy
from videoblip2.training.workspace import Workspace


@dataclass
class Best:
    """The best validation so far. -inf stands for what `data.task` does not teach; answers go by question id."""

    cider: float = -math.inf
    step: int = 0
    captions: dict[str, str] = field(default_factory=dict)
    accuracy: float = -math.inf
    answers: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """CIDEr, accuracy of answers, or both."""
        both = {"CIDEr": self.cider, "accuracy": self.accuracy}
        return {name: value for name, value in both.items() if value > -math.inf}

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

    def judge(self, step: int) -> Best:
        """The network as it is now, at everything that `data.task` teaches."""
        best = Best(step=step)
        if self.references:
            best.captions = self.captions()
            best.cider = self.cider(best.captions)
        if self._work.val_questions:
            best.answers = self.answers()
            best.accuracy = self.accuracy(best.answers)
        return best

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

    def accuracy(self, answers: dict[str, str]) -> float:
        questions = self._work.val_questions
        given = [answers[question.question_id] for question in questions]
        return answer_accuracy([q.question for q in questions], given, [q.answer for q in questions])["accuracy"]

    def cider(self, captions: dict[str, str]) -> float:
        return float(self._scorer.score(list(captions), list(captions.values())).mean())
