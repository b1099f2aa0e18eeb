"""Score captions against references, and answers against expected ones: metrics and rows."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from videoblip2.captioner import Captioner
from videoblip2.captions import BootstrapResult, caption_metrics, paired_bootstrap
from videoblip2.captions.functions import answer_accuracy, blind_answers, typed_answers
from videoblip2.captions.metrics import default_metrics
from videoblip2.captions.predictions import NAMES, AnswerRow, CaptionRow, Kind, Prediction
from videoblip2.config import InputError
from videoblip2.data.annotations import Question
from videoblip2.modality import FeatureReader


@dataclass(frozen=True)
class Evaluation:
    """The captions and answers of a model, and their scores.

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
    def rows(self) -> dict[Kind, Sequence[Prediction]]:
        """The rows of each kind present."""
        both: dict[Kind, Sequence[Prediction]] = {"captions": self.caption_rows, "answers": self.answer_rows}
        return {kind: rows for kind, rows in both.items() if rows}

    @property
    def videos(self) -> list[str]:
        """The videos that were captioned or asked about."""
        return list(dict.fromkeys(row.video_id for rows in self.rows.values() for row in rows))

    @property
    def sound_shares(self) -> dict[str, float]:
        """Share of caption words that need the sound: overall, then by category; empty if not explained."""
        groups = by_category([row for row in self.caption_rows if row.words])
        needs = {name: [word.needs_sound for row in rows for word in row.words or ()] for name, rows in groups.items()}
        return {name: sum(needed) / len(needed) for name, needed in needs.items() if needed}

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Name of each table → its rows."""
        return {NAMES[kind]: [row.shown() for row in rows] for kind, rows in self.rows.items()}


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
            each type of question, and `accuracy_blind` of that to the same question, if training has it.
        answer_map: MSRVTT-QA's 1,500 answers.
    """
    if missing := [question.question_id for question in questions if question.question_id not in answers]:
        raise InputError(f"question {missing[0]}: has no answer ({len(missing)} in all); answer every question")
    asked, expected = [question.question for question in questions], [question.answer for question in questions]
    given = [answers[question.question_id] for question in questions]
    scores = answer_accuracy(asked, given, expected, answer_map)
    if train:
        texts, labels = [question.question for question in train], [question.answer for question in train]
        for name, guess in (("accuracy_common", typed_answers), ("accuracy_blind", blind_answers)):
            scores[name] = answer_accuracy(asked, guess(asked, texts, labels), expected)["accuracy"]
    pairs = zip(questions, given, strict=True)
    rows = tuple(AnswerRow.of(q.video_id, q.question_id, q.question, text, q.answer) for q, text in pairs)
    return Evaluation(scores, answer_rows=rows)


def explained(result: Evaluation, captioner: Captioner, features: FeatureReader, batch_size: int) -> Evaluation:
    """Add to the evaluation how much each word of each caption depends on the sound and on the picture."""
    rows = list[CaptionRow]()
    for start in range(0, len(result.caption_rows), batch_size):
        part = result.caption_rows[start : start + batch_size]
        items = [features(row.video_id) for row in part]
        words = captioner.explain(items, [row.caption for row in part])
        rows += [replace(row, words=each) for row, each in zip(part, words, strict=True)]
    return replace(result, caption_rows=tuple(rows))


def by_category(rows: Sequence[CaptionRow]) -> dict[str, Sequence[CaptionRow]]:
    """All rows, then those of each category."""
    categories = sorted({row.category for row in rows if row.category is not None})
    return {"all": rows, **{f"category {n}": [row for row in rows if row.category == n] for n in categories}}


def other_sounds(features: FeatureReader, videos: Sequence[str], silent: str | None = None) -> dict[str, FeatureReader]:
    """Readers with the sound withheld, as if a video had none; silenced, with the sound of a `silent` video if given;
    and swapped among the videos that have any."""

    def own(video_id: str) -> Any:
        return features(video_id)["audio"]

    def with_sound(sound: Callable[[str], Any]) -> FeatureReader:
        return lambda video_id: {**features(video_id), "audio": sound(video_id)}

    heard = [video_id for video_id in videos if len(own(video_id))]
    random.Random(0).shuffle(heard)
    other = dict(zip(heard, [*heard[1:], *heard[:1]], strict=True))
    sounds: dict[str, Callable[[str], Any]] = {"withheld": lambda video_id: own(video_id)[:0]}
    if silent is not None:
        sounds["silenced"] = lambda video_id: own(silent)[:1].repeat(len(own(video_id)), axis=0)
    sounds["swapped"] = lambda video_id: own(other.get(video_id, video_id))
    return {name: with_sound(sound) for name, sound in sounds.items()}


@dataclass(frozen=True)
class SoundEffect:
    """The change of the metric that ranks videos with other sound. group: all videos, or a category."""

    group: str
    videos: int
    sound: str
    score: float
    difference: BootstrapResult


def sound_effects(result: Evaluation, others: Mapping[str, Evaluation]) -> list[SoundEffect]:
    """The effect of each other sound on each group, against the same videos with their own."""
    effects = []
    for group, rows in by_category(result.caption_rows).items():
        before = [row.scores[row.metric] for row in rows]
        for sound, other in others.items():
            scores = {row.video_id: row.scores[row.metric] for row in other.caption_rows}
            gain = paired_bootstrap([scores[row.video_id] for row in rows], before)
            effects.append(SoundEffect(group, len(rows), sound, sum(before) / len(rows), gain))
    return effects


def combined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Combine evaluations of captions and of answers."""
    return Evaluation(
        corpus={name: value for each in evaluations for name, value in each.corpus.items()},
        unavailable={name: reason for each in evaluations for name, reason in each.unavailable.items()},
        caption_rows=tuple(row for each in evaluations for row in each.caption_rows),
        answer_rows=tuple(row for each in evaluations for row in each.answer_rows),
    )
