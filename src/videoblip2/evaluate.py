"""Captions against references, answers against the expected ones: metrics and rows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from videoblip2.captioner import Captioner
from videoblip2.captions import caption_metrics
from videoblip2.captions.answers import answer_accuracy, blind_answers, common_answers, typed_answer
from videoblip2.captions.metrics import default_metrics
from videoblip2.captions.predictions import TABLES, AnswerRow, CaptionRow, Kind, Row
from videoblip2.config import InputError
from videoblip2.data.questions import Question


@dataclass(frozen=True)
class Evaluation:
    """What a model said, and its scores.

    corpus: metric → score in the metric's own scale. unavailable: metric → why it could not be computed.
    """

    corpus: Mapping[str, float] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    caption_rows: tuple[CaptionRow, ...] = ()
    answer_rows: tuple[AnswerRow, ...] = ()

    @property
    def captions(self) -> dict[str, str]:
        return {row.video_id: row.caption for row in self.caption_rows}

    @property
    def references(self) -> dict[str, Sequence[str]]:
        return {row.video_id: row.references for row in self.caption_rows}

    @property
    def rows(self) -> dict[Kind, Sequence[Row]]:
        """The rows of each kind present."""
        both: dict[Kind, Sequence[Row]] = {"captions": self.caption_rows, "answers": self.answer_rows}
        return {kind: rows for kind, rows in both.items() if rows}

    @property
    def videos(self) -> list[str]:
        """The videos that were captioned, or asked about."""
        return list(dict.fromkeys(row.video_id for rows in self.rows.values() for row in rows))

    @property
    def sound_shares(self) -> dict[str, float]:
        """Share of the captions' words that need the sound: of all, then of each category; empty if not explained."""
        explained = [row for row in self.caption_rows if row.words]
        categories = sorted({row.category for row in explained if row.category is not None})
        groups = {"all": explained}
        groups |= {f"category {n}": [row for row in explained if row.category == n] for n in categories}
        needs = {name: [word.needs_sound for row in rows for word in row.words or ()] for name, rows in groups.items()}
        return {name: sum(needed) / len(needed) for name, needed in needs.items() if needed}

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Table's name → what it shows."""
        return {TABLES[kind]: [row.shown() for row in rows] for kind, rows in self.rows.items()}


def evaluate(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] | None = None,
    categories: Mapping[str, int] | None = None,
) -> Evaluation:
    """Score one caption per video against that video's references; metrics: names in METRICS, None = the defaults.

    Raises InputError as `caption_metrics` does.
    """
    result = caption_metrics(references, captions, default_metrics() if metrics is None else metrics)
    rows = tuple(
        CaptionRow(video, text, result.per_video[video], tuple(references[video]), (categories or {}).get(video))
        for video, text in captions.items()
    )
    return Evaluation(result.corpus, result.unavailable, rows)


def evaluate_answers(
    answers: Mapping[str, str],
    questions: Sequence[Question],
    train: Sequence[Question] = (),
    answer_map: Collection[str] | None = None,
) -> Evaluation:
    """Score one answer per question, by question id.

    Args:
        train: training questions, for baselines without video: `accuracy_common` of the most common training answer to
            each type of question, and `accuracy_blind` of that to the same words, where training has them.
        answer_map: MSRVTT-QA's 1,500 answers.
    """
    if missing := [question.question_id for question in questions if question.question_id not in answers]:
        raise InputError(f"question {missing[0]}: has no answer ({len(missing)} such); answer every question")
    asked, expected = [question.question for question in questions], [question.answer for question in questions]
    given = [answers[question.question_id] for question in questions]
    scores = answer_accuracy(asked, given, expected, answer_map)
    if train:
        texts, labels = [question.question for question in train], [question.answer for question in train]
        common = common_answers(texts, labels)
        same_type, same_words = [typed_answer(common, text) for text in asked], blind_answers(asked, texts, labels)
        scores["accuracy_common"] = answer_accuracy(asked, same_type, expected)["accuracy"]
        scores["accuracy_blind"] = answer_accuracy(asked, same_words, expected)["accuracy"]
    pairs = zip(questions, given, strict=True)
    rows = tuple(AnswerRow.of(q.video_id, q.question_id, q.question, text, q.answer) for q, text in pairs)
    return Evaluation(scores, answer_rows=rows)


def explained(result: Evaluation, captioner: Captioner, source: Any, batch_size: int) -> Evaluation:
    """The evaluation with what each word of each caption owes to the sound and to the picture.

    Args:
        source: gives a video's features, as a feature store does.
    """
    rows: list[CaptionRow] = []
    for start in range(0, len(result.caption_rows), batch_size):
        part = result.caption_rows[start : start + batch_size]
        items = [source.features(row.video_id) for row in part]
        words = captioner.explain(items, [row.caption for row in part])
        rows += [replace(row, words=each) for row, each in zip(part, words, strict=True)]
    return replace(result, caption_rows=tuple(rows))


def together(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of captions and of answers as one."""
    return Evaluation(
        corpus={name: value for each in evaluations for name, value in each.corpus.items()},
        unavailable={name: reason for each in evaluations for name, reason in each.unavailable.items()},
        caption_rows=tuple(row for each in evaluations for row in each.caption_rows),
        answer_rows=tuple(row for each in evaluations for row in each.answer_rows),
    )
