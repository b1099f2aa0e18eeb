"""Annotation files of any kind, also inside zips, as named bytes; and tables (CSV, JSON lines) as rows."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from videoblip2.config import InputError
from videoblip2.data.annotations import parse_json, some

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt")
MEDIA_SUFFIXES = (
    ".mp4",
    ".avi",
    ".webm",
    ".mkv",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".m2ts",
    ".mts",
    ".wmv",
    ".asf",
    ".flv",
    ".3gp",
    ".ogv",
)
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validate",
    "valid": "validate",
    "validate": "validate",
    "validation": "validate",
    "dev": "validate",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Document:
    """One file; `name` is how errors call it, such as `msvd.zip/AllVideoDescriptions.txt`."""

    name: str
    content: bytes

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    @property
    def split(self) -> str | None:
        """The split that the file's name says, if it says exactly one: `train_qa.json` → train."""
        words = re.split(r"[^a-z]+", PurePosixPath(self.name).stem.lower())
        found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        return found.pop() if len(found) == 1 else None

    def text(self) -> str:
        """UTF-8, with or without a byte-order mark. Raises `InputError` for anything else."""
        try:
            return self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = self.content.count(b"\n", 0, error.start) + 1
            raise InputError(f"{self.name} line {line}: not UTF-8 (byte {error.start}); save it as UTF-8") from error

    def lines(self) -> list[tuple[int, str]]:
        """Number and text of each line. Only line feeds end one: a caption may hold other characters that look so."""
        return [(number, line.strip(" \t\r")) for number, line in enumerate(self.text().split("\n"), 1)]

    def json(self) -> Any:
        return parse_json(self.content, self.name)


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Every file, and every annotation file inside a zip: its JSON files, or where it has none its tables and texts.

    Raises `InputError` for a missing file, a pickle, an unreadable zip and a zip without annotations.
    """
    return [document for path in paths for document in _documents(Path(path))]


def _documents(path: Path) -> list[Document]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an annotation file")
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise InputError(f"{path}: a pickle can run any code and is not read; give the text, CSV or JSON form")
    if not zipfile.is_zipfile(path):
        if path.suffix.lower() == ".zip":
            raise InputError(f"{path}: not a zip file, or truncated; download it again")
        return [Document(str(path), path.read_bytes())]
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX")]
            wanted = [n for n in names if n.lower().endswith(".json")] or [n for n in names if _is_table(n)]
            contents = [Document(f"{path}/{name}", archive.read(name)) for name in wanted]
    except (zipfile.BadZipFile, RuntimeError, OSError) as error:  # encrypted, or packed in an unknown way
        raise InputError(f"{path}: not a readable zip ({error}); download it again") from error
    if not contents:
        raise InputError(
            f"{path}: holds no annotations ({', '.join(SUFFIXES)}), only {some(names) or 'nothing'}; "
            "give the data set's annotation zip"
        )
    return contents


def _is_table(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and "readme" not in name.lower()


Row = tuple[str, Mapping[str, object]]  # where it is, such as `mine.csv line 3`; its values by column


def rows_of(document: Document) -> Iterator[Row]:
    """The rows of a CSV, TSV, JSON-lines or JSON-list file. Raises `InputError` for a row that is not a mapping."""
    if document.suffix in (".csv", ".tsv"):
        yield from _csv_rows(document)
        return
    if document.suffix == ".jsonl":
        entries = [(f"{document.name} line {n}", line) for n, line in document.lines() if line]
        found = [(where, parse_json(text.encode(), where)) for where, text in entries]
    else:
        content = document.json()
        listed = content.values() if isinstance(content, dict) else content
        found = [(f"{document.name} entry {n}", entry) for n, entry in enumerate(listed, 1)]
    for where, entry in found:
        if not isinstance(entry, dict):
            raise InputError(f"{where}: {json.dumps(entry)[:60]} is not an object of names and values; see the README")
        yield where, entry


def _csv_rows(document: Document) -> Iterator[Row]:
    delimiter = "\t" if document.suffix == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(document.text(), newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{document.name} line {reader.line_num}: not as many fields as the first line has; part them by "
                    f"{'tabs' if delimiter == chr(9) else 'commas'}, put captions that hold some in double quotes"
                )
            yield f"{document.name} line {reader.line_num}", {str(key).strip(): value for key, value in row.items()}
    except csv.Error as error:
        raise InputError(f"{document.name} line {reader.line_num}: {error}; correct the file") from error


def value_of(where: str, row: Mapping[str, object], names: Sequence[str]) -> Any:
    """The value of the first of `names` (any case) that the row has. Raises `InputError` naming what there is."""
    by_name = {name.lower(): value for name, value in row.items()}
    for name in names:
        if by_name.get(name) is not None:
            return by_name[name]
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise InputError(f"{where}: no {names[0]!r}{others} among {', '.join(row) or 'nothing'}; add it")


def media_id(value: object) -> str:
    """A video's id: a file name without folder and media suffix, as features are named; anything else as it is."""
    text = str(value).strip()
    path = PurePosixPath(text)
    return path.stem if path.suffix.lower() in MEDIA_SUFFIXES else text
