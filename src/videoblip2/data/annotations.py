"""Annotation files: lists of videos with captions, and of questions about videos; and their missing features."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from videoblip2.config import QUESTION_PROMPT
from videoblip2.data.documents import Document, media_id, value_of
from videoblip2.errors import InputError, some
from videoblip2.files import write_json

SPLIT_FILES = {"train": "train.json", "validate": "val.json", "test": "test.json"}
QUESTION_FILES = {"train": "train_qa.json", "validate": "val_qa.json", "test": "test_qa.json"}
ANSWER_MAP = "ans2label.json"
ASKED_ABOUT = ("video", "video_id", "video_name", "file")  # columns that name a question's video
Entries = TypeVar("Entries", bound=Sequence[Any])  # VideoAnnotation or Question


class Store(Protocol):
    """A feature store."""

    root: Path
    modalities: tuple[str, ...]

    @property
    def ids(self) -> list[str]: ...
    def holds(self, modality: str, video_id: str) -> bool: ...


@dataclass(frozen=True)
class VideoAnnotation:
    """One video and its human captions (its references), in the order in which they were published."""

    video_id: str
    category: int
    captions: Annotated[tuple[str, ...], Field(min_length=1)]  # checked on reading
    prompt: ClassVar[None] = None  # the model's own

    @property
    def key(self) -> str:
        """The video's id, unique in its file."""
        return self.video_id

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts to train on."""
        return self.captions


_VIDEOS = TypeAdapter(Annotated[list[VideoAnnotation], Field(min_length=1)])


def read_annotations(path: str | Path) -> list[VideoAnnotation]:
    """Read `[{"video_id": "video0", "category": 9, "captions": ["…"]}]`; other keys (of a top-5 file) are ignored.

    Raises `InputError` for a missing file, any other layout, a video without captions, and a repeated video.
    """
    content = Document.open(path).json
    entries = content if isinstance(content, list) else [content]
    try:
        videos = _VIDEOS.validate_python([{"category": 0, **e} if isinstance(e, dict) else e for e in entries])
    except ValidationError as error:
        (place, *keys), problem = error.errors()[0]["loc"] or (0,), error.errors()[0]["msg"]
        entry = entries[int(place)] if entries else None
        where = entry.get("video_id", f"entry {int(place) + 1}") if isinstance(entry, dict) else f"entry {place}"
        detail = f"{' '.join([str(where), *map(str, keys)])}: {problem}"
        remedy = f"`vb2 data prepare {path} --out DIR` makes one"
        raise InputError(f"{path}: not a list of videos with captions ({detail}); {remedy}") from error
    refuse_duplicates((video.video_id for video in videos), path)
    return videos


def write_annotations(path: str | Path, videos: Iterable[VideoAnnotation]) -> None:
    """Write the list that `read_annotations` reads, atomically."""
    write_json(Path(path), [vars(video) for video in videos])


def require_features(entries: Entries, store: Store, file: str | Path) -> Entries:
    """Return the entries unchanged. Raises `InputError` if a video lacks features of a modality."""
    videos = list(dict.fromkeys(entry.video_id for entry in entries))
    if missing := [f"{len(ids)} have no {name} ({some(ids)})" for name, ids in lacking(videos, store).items() if ids]:
        remedy = f"extract them, or `vb2 data prepare … --only-with {store.root}`; `vb2 data check` lists all"
        raise InputError(f"{file}: of {len(videos)} videos, {', '.join(missing)} features in {store.root}; {remedy}")
    return entries


def lacking(videos: Iterable[str], store: Store) -> dict[str, list[str]]:
    """Modality in use → the videos without an array in the store."""
    ids = list(videos)
    return {name: [video for video in ids if not store.holds(name, video)] for name in store.modalities}


def refuse_duplicates(ids: Iterable[str], where: object) -> None:
    """Raise `InputError` naming duplicate ids."""
    if again := [name for name, count in Counter(ids).items() if count > 1]:
        raise InputError(f"{where}: listed more than once: {some(again)}; list each only once")


def flaws(entries: Iterable[tuple[str, ...]]) -> tuple[Counter[str], dict[str, str]]:
    """Counts of duplicate, empty and control_character texts, and the first example of each.

    entries: (video, text, …). An entry is a duplicate if its first text repeats an earlier one of its video.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for video, *texts in entries:
        found = {
            "duplicate": (video, texts[0]) in seen,
            "empty": not all(text.strip() for text in texts),
            "control_character": not all(text.isprintable() for text in texts),
        }
        for flaw in (name for name, present in found.items() if present):
            counts[flaw] += 1
            examples.setdefault(flaw, f"{video}: {' '.join(map(repr, texts))}")
        seen.add((video, texts[0]))
    return counts, examples


@dataclass(frozen=True)
class Question:
    """One question about one video, and its one correct answer."""

    question_id: str
    video_id: str
    question: str
    answer: str

    @property
    def key(self) -> str:
        return self.question_id

    @property
    def prompt(self) -> str:
        return question_prompt(self.question)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.answer,)


Entry = VideoAnnotation | Question


def question_prompt(question: str) -> str:
    """The prompt of the Q-Formers and of the language model for a question."""
    return QUESTION_PROMPT.format(question.strip())


def read_questions(path: str | Path) -> list[Question]:
    """Read `train_qa.json` and its siblings, or MSRVTT-QA's own JSON.

    An entry has `question`, `answer`, `video` (or `video_id`: a name, or MSR-VTT's number) and perhaps an id.
    Raises `InputError` for a missing file, any other layout and a repeated id.
    """
    return questions_in(Document.open(path, "make it with `vb2 data prepare --task qa`"))


def questions_in(document: Document) -> list[Question]:
    """The questions of one document: JSON (a list, or a mapping by id), JSON lines, CSV, TSV, parquet."""
    questions = []
    for number, (where, row) in enumerate(document.rows()):
        video = value_of(where, row, ASKED_ABOUT)
        texts = {name: value_of(where, row, (name,)) for name in ("question", "answer")}
        if wrong := [f"the {name} is {text!r:.60}" for name, text in texts.items() if not isinstance(text, str)]:
            raise InputError(f"{where}: {wrong[0]}; give text")
        own = next((str(row[key]) for key in ("question_id", "id") if row.get(key) is not None), str(number))
        questions.append(Question(own, f"video{video}" if isinstance(video, int) else media_id(video), **texts))
    if not questions:
        raise InputError(f"{document.name}: contains no questions; give one per line or entry")
    refuse_duplicates((question.question_id for question in questions), f"{document.name}, question ids")
    return questions


def read_answer_map(path: str | Path) -> dict[str, int]:
    """MSRVTT-QA's `ans2label.json`: the common answers, each with its number."""
    content: dict[str, int] = Document.open(path).json
    if not is_answer_map(content):
        raise InputError(f'{path}: not a mapping of answers to numbers, such as {{"man": 0}}; give ans2label.json')
    return content


def is_answer_map(content: Any) -> bool:
    """Whether JSON maps answers to numbers."""
    return isinstance(content, dict) and bool(content) and all(isinstance(label, int) for label in content.values())


@dataclass(frozen=True)
class Coverage:
    """Which videos of annotation files have features."""

    videos: dict[str, int]  # by file
    missing: dict[str, list[str]]  # videos that lack features of a modality, by file
    lacking: dict[str, list[str]]  # the same, by modality
    unannotated: list[str]  # videos with features only

    @property
    def ok(self) -> bool:
        return not any(self.missing.values())


def compare_with_features(annotations: str | Path, store: Store) -> Coverage:
    """Compare one annotation file, or all in a folder, with a feature store. Raises `InputError` if there is none."""
    path = Path(annotations)
    names = (*SPLIT_FILES.values(), *QUESTION_FILES.values())
    files = [path / name for name in names if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: contains none of {', '.join(names)}; make them with `vb2 data prepare`")
    wanted = {}
    for file in files:
        entries = read_questions(file) if file.stem.endswith("_qa") else read_annotations(file)
        wanted[file.name] = list(dict.fromkeys(entry.video_id for entry in entries))
    without = lacking(dict.fromkeys(chain(*wanted.values())), store)
    bad = {video for videos in without.values() for video in videos}
    return Coverage(
        videos={name: len(videos) for name, videos in wanted.items()},
        missing={name: [video for video in videos if video in bad] for name, videos in wanted.items()},
        lacking=without,
        unannotated=sorted(set(store.ids).difference(*wanted.values())),
    )
