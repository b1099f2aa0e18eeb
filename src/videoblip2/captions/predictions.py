"""Captions of videos and answers to questions, as rows and as the files that hold them: one JSON line per row.

A run has captions in `val_predictions.jsonl`, answers in `val_answers.jsonl`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter

from videoblip2.captions.functions import normalise_answer, question_type
from videoblip2.captions.metrics import PRIMARY
from videoblip2.files import json_text, write_text
from videoblip2.modality import ExplainedWord

Kind = Literal["captions", "answers"]
#: Name of the rows of one kind in files, tables and tags of a run.
NAMES: Mapping[Kind, str] = {"captions": "predictions", "answers": "answers"}


@dataclass(frozen=True)
class CaptionRow:
    """A video's caption with its scores (metric → value in the metric's own scale) and the human references."""

    video_id: str
    caption: str
    scores: Mapping[str, float]
    references: tuple[str, ...]
    category: int | None = None
    words: tuple[ExplainedWord, ...] | None = None  # what each depends on, if requested

    kind: ClassVar[Kind] = "captions"
    metric: ClassVar[str] = PRIMARY  # ranks rows of this kind; training maximizes its mean

    @property
    def key(self) -> str:
        """Key of the row, unique in its file."""
        return self.video_id

    @property
    def text(self) -> str:
        """The generated text."""
        return self.caption

    def shown(self) -> dict[str, object]:
        """The row for a table, `video_id` first."""
        scores = {self.metric: round(self.scores[self.metric], 4)} if self.metric in self.scores else {}
        return {"video_id": self.video_id, "caption": self.caption, **scores, "reference": self.references[0]}


@dataclass(frozen=True)
class AnswerRow:
    """A question about a video, its one right answer (`expected`), and what the model answered."""

    video_id: str
    question_id: str
    type: str
    question: str
    answer: str
    expected: str
    correct: bool

    kind: ClassVar[Kind] = "answers"
    metric: ClassVar[str] = "accuracy"

    @classmethod
    def of(cls, video_id: str, question_id: str, question: str, answer: str, expected: str) -> "AnswerRow":
        correct = normalise_answer(answer) == normalise_answer(expected)
        return cls(video_id, question_id, question_type(question), question, answer, expected, correct)

    @property
    def key(self) -> str:
        return self.question_id

    @property
    def text(self) -> str:
        return self.answer

    def shown(self) -> dict[str, object]:
        return dict(vars(self))

    @property
    def scores(self) -> Mapping[str, float]:
        return {self.metric: float(self.correct)}

    @property
    def references(self) -> tuple[str, ...]:
        return (self.expected,)


Prediction = CaptionRow | AnswerRow
_ROWS: Mapping[Kind, TypeAdapter[Any]] = {"captions": TypeAdapter(CaptionRow), "answers": TypeAdapter(AnswerRow)}


def write_rows(path: Path, rows: Iterable[Prediction]) -> None:
    """Write one JSON line per row, atomically; an unknown category is left out."""
    lines = [{key: value for key, value in vars(row).items() if value is not None} for row in rows]
    write_text(path, "".join(json_text(line) + "\n" for line in lines))


def read_rows(path: Path, kind: Kind) -> list[Prediction]:
    """The rows of a file. Raises OSError for a missing file and ValueError for a malformed one."""
    with path.open(encoding="utf-8") as lines:  # only "\n" ends a line: captions may contain other separators
        return [_ROWS[kind].validate_python(json.loads(line)) for line in lines if line.strip()]


def rows_of_run(folder: Path, kind: Kind) -> list[Prediction]:
    """The validation rows of one kind that a run wrote in its folder; empty if it wrote none."""
    path = folder / f"val_{NAMES[kind]}.jsonl"
    return read_rows(path, kind) if path.is_file() else []


def video_scores(*kinds: Sequence[Prediction]) -> dict[str, float]:
    """Video → its contribution to a run's score: the mean over videos is the sum of the kinds' mean scores.

    Questions about one video count together, because they are not independent.
    """
    shares = {row.video_id: 0.0 for rows in kinds for row in rows}
    for rows in kinds:
        for row in rows:
            shares[row.video_id] += row.scores[row.metric] * (len(shares) / len(rows))
    return shares
