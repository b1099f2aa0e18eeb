"""Captions against references, answers against the expected ones: metrics, scores, a predictions file."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from videoblip2.captions import caption_metrics
from videoblip2.captions.answers import (
    answer_accuracy,
    blind_answers,
    common_answers,
    normalise_answer,
    question_type,
    typed_answer,
)
from videoblip2.captions.metrics import PRIMARY, default_metrics
from videoblip2.config import InputError
from videoblip2.files import write_text

if TYPE_CHECKING:
    from videoblip2.data.questions import Question


@dataclass(frozen=True)
class Evaluation:
    """corpus: metric → score in pycocoevalcap's scale. per_video: id → metric → score. unavailable: metric → reason."""

    corpus: dict[str, float]
    per_video: dict[str, dict[str, float]]
    unavailable: dict[str, str]
    captions: dict[str, str]
    references: dict[str, Sequence[str]]
    answers: "tuple[AnsweredQuestion, ...]" = ()

    def rows(self) -> list[dict[str, object]]:
        """One row a video for tables and files, `video_id` first."""
        return [
            {
                "video_id": video_id,
                "caption": caption,
                **{name: round(score, 4) for name, score in self.per_video[video_id].items() if name == PRIMARY},
                "reference": self.references[video_id][0],
            }
            for video_id, caption in self.captions.items()
        ]

    def answer_rows(self) -> list[dict[str, object]]:
        """One row a question, `video_id` first."""
        return [answered.row() for answered in self.answers]


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question, and what the model answered."""

    question: "Question"
    answer: str

    @property
    def correct(self) -> bool:
        return normalise_answer(self.answer) == normalise_answer(self.question.answer)

    def row(self) -> dict[str, object]:
        """For tables and files."""
        question = self.question
        return {
            "video_id": question.video_id,
            "question_id": question.question_id,
            "type": question_type(question.question),
            "question": question.question,
            "answer": self.answer,
            "expected": question.answer,
            "correct": self.correct,
        }


def evaluate(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], metrics: Sequence[str] | None = None
) -> Evaluation:
    """Score one caption per video against that video's references; metrics: names in METRICS, None = the defaults."""
    missing = sorted(set(references) - set(captions))
    if missing:
        raise InputError(
            f"video {missing[0]}: has references but no caption ({len(missing)} such); caption every video"
        )
    result = caption_metrics(references, captions, default_metrics() if metrics is None else metrics)
    return Evaluation(result.corpus, result.per_video, result.unavailable, dict(captions), dict(references))


NOTHING = Evaluation({}, {}, {}, {}, {})


def with_answers(
    evaluation: Evaluation,
    answers: Mapping[str, str],
    questions: "Sequence[Question]",
    train: "Sequence[Question]" = (),
    answer_map: Collection[str] | None = None,
) -> Evaluation:
    """Add answers, by question id, to an evaluation (NOTHING where no captions were judged), with their accuracies.

    Args:
        train: training questions; with them the corpus has what needs no video: `accuracy_common` of the most frequent
            training answer to each question type, and `accuracy_blind` of that to the same words, where training has
            them.
        answer_map: MSRVTT-QA's 1,500 answers.
    """
    missing = [question.question_id for question in questions if question.question_id not in answers]
    if missing:
        raise InputError(f"question {missing[0]}: has no answer ({len(missing)} such); answer every question")
    asked, expected = [question.question for question in questions], [question.answer for question in questions]
    given = [answers[question.question_id] for question in questions]
    scores = answer_accuracy(asked, given, expected, answer_map)
    if train:
        texts, labels = [question.question for question in train], [question.answer for question in train]
        common = common_answers(texts, labels)
        same_type = [typed_answer(common, question) for question in asked]
        scores["accuracy_common"] = answer_accuracy(asked, same_type, expected)["accuracy"]
        scores["accuracy_blind"] = answer_accuracy(asked, blind_answers(asked, texts, labels), expected)["accuracy"]
    answered = tuple(AnsweredQuestion(question, text) for question, text in zip(questions, given, strict=True))
    return replace(evaluation, corpus={**evaluation.corpus, **scores}, answers=answered)


def write_predictions(path: Path, evaluation: Evaluation, categories: Mapping[str, int] | None = None) -> None:
    """One JSON line a video: video_id, caption, scores, references, category if given; then one a question."""
    lines = [
        json.dumps(
            {
                "video_id": video_id,
                "caption": caption,
                "scores": evaluation.per_video[video_id],
                "references": list(evaluation.references[video_id]),
                **({"category": categories[video_id]} if categories else {}),
            },
            ensure_ascii=False,
        )
        for video_id, caption in evaluation.captions.items()
    ]
    lines += [json.dumps(row, ensure_ascii=False) for row in evaluation.answer_rows()]
    write_text(path, "\n".join(lines) + "\n")
