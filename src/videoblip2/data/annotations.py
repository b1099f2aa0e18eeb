"""Annotation files: any file, zipped or not, as a document with rows; and the lists of videos that other parts read."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from videoblip2.errors import InputError, some
from videoblip2.files import MEDIA_SUFFIXES, write_json

TABLES = (".csv", ".tsv", ".txt")
SUFFIXES = (".json", ".jsonl", *TABLES)
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validate"),
    **dict.fromkeys(("test", "testing"), "test"),
}
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
Row = tuple[str, Mapping[str, object]]  # where it is, such as `mine.csv line 3`; its values by column
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
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """One file; `name` is what errors call it, such as `msvd.zip/AllVideoDescriptions.txt`."""

    name: str
    data: bytes

    @classmethod
    def open(cls, path: str | Path, remedy: str = "give an annotation file") -> Document:
        """Read a file. Raises `InputError` if it is missing."""
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; {remedy}")
        return cls(str(path), Path(path).read_bytes())

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    @property
    def split(self) -> str | None:
        """The split in the file's name, if it names exactly one: `train_qa.json` → train."""
        words = re.split(r"[^a-z]+", PurePosixPath(self.name).stem.lower())
        found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        return found.pop() if len(found) == 1 else None

    def text(self) -> str:
        """UTF-8, UTF-16 or UTF-32, with or without a byte-order mark. Raises `InputError` for anything else."""
        try:
            return self.data.decode(json.detect_encoding(self.data))
        except UnicodeDecodeError as error:
            line = self.data.count(b"\n", 0, error.start) + 1
            raise InputError(f"{self.name} line {line}: not UTF-8 (byte {error.start}); save it as UTF-8") from error

    def lines(self) -> list[tuple[int, str]]:
        """Number and text of each line. Only line feeds end a line: captions may hold other line separators."""
        return [(number, line.strip(" \t\r")) for number, line in enumerate(self.text().split("\n"), 1)]

    @cached_property
    def json(self) -> Any:
        """Its content; JSON lines, whatever the file is called, are a list. Raises `InputError` for anything else."""
        try:
            content = json.loads(self.text())
            alone = isinstance(content, dict) and (self.suffix == ".jsonl" or "video_id" in content)
            return [content] if alone else content
        except json.JSONDecodeError as error:
            if self.suffix != ".jsonl" and error.msg != "Extra data":
                raise InputError(f"{self.name}: not JSON ({error}); give annotations, or MSR-VTT's zip") from error
        entries = []
        for number, line in self.lines():
            try:
                entries += [json.loads(line)] if line else []
            except json.JSONDecodeError as error:
                raise InputError(f"{self.name} line {number}: not JSON ({error}); correct the line") from error
        return entries

    def rows(self) -> Iterator[Row]:
        """The rows of a table, of JSON lines, of a JSON list, or of a mapping by id (under `id`) or by split (`split`).

        Raises `InputError` for a row that is not a mapping.
        """
        if self.suffix in TABLES:
            yield from self._csv_rows()
            return
        entries = self.json
        if isinstance(entries, dict):
            listed = [("split", key, row) for key, rows in entries.items() if key in SPLIT_WORDS for row in rows]
            pairs = listed or [("id", key, v if isinstance(v, dict) else {"captions": v}) for key, v in entries.items()]
            entries = [{name: key, **row} if isinstance(row, dict) else row for name, key, row in pairs]
        for number, entry in enumerate(entries, 1):
            where = f"{self.name} entry {number}"
            if not isinstance(entry, dict):
                raise InputError(
                    f"{where}: {json.dumps(entry)[:60]} is not an object; give video_id and caption in one"
                )
            yield where, entry

    @property
    def delimiter(self) -> str:
        """The separator that is most frequent in a table's first line, outside quotes; the suffix breaks ties."""
        header, usual = re.sub('"[^"]*"', "", self.lines()[0][1]), "\t" if self.suffix == ".tsv" else ","
        return max(DELIMITERS, key=lambda sign: (header.count(sign), sign == usual))

    def _csv_rows(self) -> Iterator[Row]:
        reader = csv.DictReader(io.StringIO(self.text(), newline=""), delimiter=self.delimiter, strict=True)
        try:
            for row in reader:
                where = f"{self.name} line {reader.line_num}"
                if None in row or None in row.values():
                    called = DELIMITERS[self.delimiter]
                    raise InputError(
                        f"{where}: not as many fields as in the first line; separate them by {called}, and put "
                        f"captions that contain {called} in double quotes"
                    )
                yield where, {str(key).strip(): value for key, value in row.items()}
        except csv.Error as error:
            raise InputError(f"{self.name} line {reader.line_num}: {error}; correct the file") from error


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Every file, and every annotation file inside a zip: its JSON files or, if it has none, its tables and texts.

    Raises `InputError` for a missing file, a pickle, an unreadable zip and a zip without annotations.
    """
    return [document for path in paths for document in _documents(Document.open(path))]


def _documents(file: Document) -> list[Document]:
    path, content = file.name, io.BytesIO(file.data)
    if file.suffix in (".pkl", ".pickle"):
        raise InputError(f"{path}: a pickle can run any code and is not read; give the text, CSV or JSON version")
    if file.suffix != ".zip" and not zipfile.is_zipfile(content):
        return [file]
    try:
        with zipfile.ZipFile(content) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX")]
            tables = [n for n in names if n.lower().endswith(SUFFIXES) and "readme" not in n.lower()]
            wanted = [n for n in names if n.lower().endswith(".json")] or tables
            contents = [Document(f"{path}/{name}", archive.read(name)) for name in wanted]
    except (zipfile.BadZipFile, RuntimeError, OSError) as error:  # truncated, encrypted, or an unknown compression
        raise InputError(f"{path}: not a readable zip ({error}); download it again") from error
    if not contents:
        raise InputError(
            f"{path}: holds no annotations ({', '.join(SUFFIXES)}), only {some(names) or 'nothing'}; "
            "give the data set's annotation zip"
        )
    return contents


def value_of(where: str, row: Mapping[str, object], names: Sequence[str]) -> Any:
    """The value of the first of `names` (in any case) that the row has. Raises `InputError` listing its columns."""
    by_name = {name.lower(): value for name, value in row.items() if value is not None}
    if not (there := [name for name in names if name in by_name]):
        raise InputError(f"{where}: no {' or '.join(names)} among {', '.join(row) or 'nothing'}; add it")
    return by_name[there[0]]


def media_id(value: object) -> str:
    """A video's id: a file name without folder and media suffix, as features are named; anything else unchanged."""
    path = PurePosixPath(text := str(value).strip())
    return path.stem if path.suffix.lower() in MEDIA_SUFFIXES else text


def read_annotations(path: str | Path) -> list[VideoAnnotation]:
    """Read `[{"video_id": "video0", "category": 9, "captions": ["…"]}]`; other keys (of a top-5 file) are ignored.

    Raises `InputError` for a missing file, any other layout, a video without captions and a repeated video.
    """
    entries = Document.open(path).json
    if isinstance(entries, dict) and "sentences" in entries:
        raise InputError(f"{path}: is in MSR-VTT's own layout; run `vb2 data prepare {path} --out DIR` first")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: not a list of videos; make it with `vb2 data prepare`")
    videos = [_video(entry, path) for entry in entries]
    refuse_duplicates((video.video_id for video in videos), path)
    return videos


def _video(entry: Any, path: str | Path) -> VideoAnnotation:
    fields = entry if isinstance(entry, dict) else {}
    video_id, category, captions = fields.get("video_id"), fields.get("category", 0), fields.get("captions")
    if not isinstance(video_id, str):
        problem = 'an entry has no "video_id"'
    elif not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        problem = f'"captions" of {video_id} is not a list of strings'
    elif not captions:
        problem = f"{video_id} has no captions"
    elif not isinstance(category, int):
        problem = f"the category of {video_id} is {category!r}, not a number"
    else:
        return VideoAnnotation(video_id, category, tuple(captions))
    raise InputError(f"{path}: {problem}; make the file with `vb2 data prepare`")


def write_annotations(path: str | Path, videos: Iterable[VideoAnnotation]) -> None:
    """Write the list that `read_annotations` reads, atomically."""
    write_json(Path(path), [asdict(video) for video in videos])


def require_features(entries: Entries, store: Store, file: str) -> Entries:
    """The entries of an annotation file, unchanged. Raises `InputError` if a video lacks features of a modality."""
    videos = list(dict.fromkeys(entry.video_id for entry in entries))
    if missing := [f"{len(ids)} have no {name} ({some(ids)})" for name, ids in lacking(videos, store).items() if ids]:
        raise InputError(
            f"{file}: of {len(videos)} videos, {', '.join(missing)} features in {store.root}; extract them, or leave "
            f"these videos out with `vb2 data prepare … --only-with {store.root}`; `vb2 data check` lists all"
        )
    return entries


def lacking(videos: Iterable[str], store: Store) -> dict[str, list[str]]:
    """Modality that the store is read for → the videos for which it has no array."""
    ids = list(videos)
    return {name: [video for video in ids if not store.holds(name, video)] for name in store.modalities}


def refuse_duplicates(ids: Iterable[str], where: object) -> None:
    """Raise `InputError` naming the ids that occur more than once."""
    if again := [name for name, count in Counter(ids).items() if count > 1]:
        raise InputError(f"{where}: listed more than once: {some(again)}; list each one once")


def flaws(entries: Iterable[tuple[str, ...]]) -> tuple[Counter[str], dict[str, str]]:
    """Counts of duplicate, empty and control_character texts, and the first example of each.

    entries: (video, text, …). Only an entry's first text counts as a duplicate of an earlier one of its video.
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
