"""Questions about videos, with one answer each: MSRVTT-QA's files and users' own tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videoblip2.captions.answers import MAP_SIZE, question_type
from videoblip2.config import InputError
from videoblip2.data.annotations import flaws, refuse_duplicates
from videoblip2.data.documents import SPLIT_WORDS, Document, media_id, read_documents, value_of
from videoblip2.files import write_json

QUESTION_FILES = {"train": "train_qa.json", "validate": "val_qa.json", "test": "test_qa.json"}
ANSWER_MAP = "ans2label.json"
VIDEO = ("video", "video_id", "video_name", "file")
ID = ("question_id", "id")


@dataclass(frozen=True)
class Question:
    """One question about one video, and the one answer that counts as right."""

    question_id: str
    video_id: str
    question: str
    answer: str


@dataclass(frozen=True)
class QuestionReport:
    """What was read and written, by split. Flaws are counted, with an example each; every question is kept."""

    questions: dict[str, int]
    videos: dict[str, int]
    types: dict[str, dict[str, int]]  # questions by type and split
    in_map: dict[str, float]  # share of the answers inside the answer map
    files: dict[str, str]
    map_from: str  # where the answer map comes from
    without_features: list[str]  # videos left out on request
    repeated: int  # the same question about the same video (MSRVTT-QA has some)
    empty: int
    control_character: int
    shared_videos: int  # with questions in more than one split
    examples: dict[str, str]


def read_questions(path: str | Path) -> list[Question]:
    """Read `train_qa.json` and its siblings, or MSRVTT-QA's own JSON.

    An entry has `question`, `answer`, `video` (or `video_id`: a name, or MSR-VTT's number) and perhaps an id.
    Raises `InputError` for a missing file, any other layout and a repeated id.
    """
    return questions_in(Document.open(path, "make it with `vb2 data prepare --task qa`"))


def questions_in(document: Document) -> list[Question]:
    """The questions of one document: JSON (a list, or a mapping by id), JSON lines, CSV, TSV, parquet."""
    content = document.json if document.kind == "json" else []
    by_id = list(content.values()) if isinstance(content, dict) else []
    if not isinstance(content, list) and not (by_id and all(isinstance(q, dict) and "question" in q for q in by_id)):
        remedy = "give MSRVTT-QA's file or make one with `vb2 data prepare --task qa`"
        raise InputError(f"{document.name}: not a list of question, answer and video; {remedy}")
    questions = []
    for number, (where, row) in enumerate(document.rows()):
        video = value_of(where, row, VIDEO)
        texts = {name: value_of(where, row, (name,)) for name in ("question", "answer")}
        if wrong := [f"the {name} is {text!r:.60}" for name, text in texts.items() if not isinstance(text, str)]:
            raise InputError(f"{where}: {wrong[0]}; give text")
        own = next((str(row[key]) for key in ID if row.get(key) is not None), str(number))
        questions.append(Question(own, f"video{video}" if isinstance(video, int) else media_id(video), **texts))
    if not questions:
        raise InputError(f"{document.name}: holds no questions; give one in each line or entry")
    refuse_duplicates((question.question_id for question in questions), f"{document.name}, question ids")
    return questions


def read_answer_map(path: str | Path) -> dict[str, int]:
    """MSRVTT-QA's `ans2label.json`: the usual answers, with the number of each."""
    content: dict[str, int] = Document.open(path).json
    if not _is_answer_map(content):
        raise InputError(f'{path}: not a mapping of answers to numbers, such as {{"man": 0}}; give ans2label.json')
    return content


def prepare_questions(
    paths: Sequence[str | Path], out: str | Path, split: str | None = None, keep: Callable[[str], bool] = bool
) -> QuestionReport:
    """MSRVTT-QA's files, or tables of `video_id, question, answer` → train_qa.json, val_qa.json, test_qa.json in `out`.

    A document's split is the one in its name (`train_qa.json`), or `split`. A given `ans2label.json` is copied;
    without one, the 1,500 most frequent training answers make one. Only videos whose id satisfies `keep` are kept.
    """
    found, answers = _read(paths, split)
    kept = {name: [q for q in found.get(name, []) if keep(q.video_id)] for name in QUESTION_FILES}
    splits = {name: asked for name, asked in kept.items() if asked}
    files = {name: Path(out) / QUESTION_FILES[name] for name in splits}
    for name, file in files.items():
        write_json(file, [asdict(question) for question in splits[name]])
    map_from = "given" if answers else "none"
    if not answers and "train" in splits:
        frequent = Counter(question.answer for question in splits["train"]).most_common(MAP_SIZE)
        answers = {answer: label for label, (answer, _) in enumerate(frequent)}
        map_from = f"the {len(answers):,} most frequent training answers"
    if answers:
        write_json(Path(out) / ANSWER_MAP, answers)
    counts, examples = Counter[str](), dict[str, str]()
    for asked in splits.values():  # a question may occur again in another split
        own, first = flaws((q.video_id, q.question, q.answer) for q in asked)
        counts, examples = counts + own, first | examples
    videos = {name: {question.video_id for question in asked} for name, asked in splits.items()}
    everywhere = Counter(video for ids in videos.values() for video in ids)
    return QuestionReport(
        questions={name: len(asked) for name, asked in splits.items()},
        videos={name: len(ids) for name, ids in videos.items()},
        types={name: dict(Counter(question_type(q.question) for q in qs).most_common()) for name, qs in splits.items()},
        in_map={name: sum(q.answer in answers for q in qs) / len(qs) for name, qs in splits.items()} if answers else {},
        files={name: str(file) for name, file in files.items()},
        map_from=map_from,
        without_features=sorted({q.video_id for asked in found.values() for q in asked if not keep(q.video_id)}),
        repeated=counts["duplicate"],
        empty=counts["empty"],
        control_character=counts["control_character"],
        shared_videos=sum(count > 1 for count in everywhere.values()),
        examples={"repeated" if flaw == "duplicate" else flaw: example for flaw, example in examples.items()},
    )


def _read(paths: Sequence[str | Path], split: str | None) -> tuple[dict[str, list[Question]], dict[str, int]]:
    """The questions of each split, and the answer map, if one is given."""
    if split not in (None, "train", "val", "test"):
        raise InputError(f"--split {split}: questions keep the split of their videos; give train, val or test")
    found: dict[str, list[Question]] = {}
    answers: dict[str, int] = {}
    for document in read_documents(paths):
        if document.kind == "json" and _is_answer_map(document.json):
            answers = document.json
        elif chosen := SPLIT_WORDS.get(split or "") or document.split:
            found.setdefault(chosen, []).extend(questions_in(document))
        else:
            raise InputError(f"{document.name}: its name does not say train, val or test; rename it or give --split")
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no questions; give train_qa.json, val_qa.json or test_qa.json")
    for name, asked in found.items():
        refuse_duplicates((question.question_id for question in asked), f"{name} questions, ids")
    return found, answers


def _is_answer_map(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(label, int) for label in content.values())
