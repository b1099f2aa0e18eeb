"""Annotation files of any kind, zipped or not, as named bytes; and tables (CSV, JSON lines) as rows."""

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
from videoblip2.files import MEDIA_SUFFIXES

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validate"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Document:
    """One file; `name` is what errors call it, such as `msvd.zip/AllVideoDescriptions.txt`."""

    name: str
    content: bytes

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
        """UTF-8, with or without a byte-order mark. Raises `InputError` for anything else."""
        try:
            return self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = self.content.count(b"\n", 0, error.start) + 1
            raise InputError(f"{self.name} line {line}: not UTF-8 (byte {error.start}); save it as UTF-8") from error

    def lines(self) -> list[tuple[int, str]]:
        """Number and text of each line. Only line feeds end a line: captions may hold other line separators."""
        return [(number, line.strip(" \t\r")) for number, line in enumerate(self.text().split("\n"), 1)]

    def json(self) -> Any:
        return parse_json(self.content, self.name)


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Every file, and every annotation file inside a zip: its JSON files or, if it has none, its tables and texts.

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
            tables = [n for n in names if n.lower().endswith(SUFFIXES) and "readme" not in n.lower()]
            wanted = [n for n in names if n.lower().endswith(".json")] or tables
            contents = [Document(f"{path}/{name}", archive.read(name)) for name in wanted]
    except (zipfile.BadZipFile, RuntimeError, OSError) as error:  # encrypted, or an unknown compression
        raise InputError(f"{path}: not a readable zip ({error}); download it again") from error
    if not contents:
        raise InputError(
            f"{path}: holds no annotations ({', '.join(SUFFIXES)}), only {some(names) or 'nothing'}; "
            "give the data set's annotation zip"
        )
    return contents


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
    delimiter, called = ("\t", "tabs") if document.suffix == ".tsv" else (",", "commas")
    reader = csv.DictReader(io.StringIO(document.text(), newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            where = f"{document.name} line {reader.line_num}"
            if None in row or None in row.values():
                raise InputError(
                    f"{where}: not as many fields as in the first line; separate them by {called}, and put captions "
                    f"that contain {called} in double quotes"
                )
            yield where, {str(key).strip(): value for key, value in row.items()}
    except csv.Error as error:
        raise InputError(f"{document.name} line {reader.line_num}: {error}; correct the file") from error


def value_of(where: str, row: Mapping[str, object], names: Sequence[str]) -> Any:
    """The value of the first of `names` (in any case) that the row has. Raises `InputError` listing its columns."""
    by_name = {name.lower(): value for name, value in row.items()}
    for name in names:
        if by_name.get(name) is not None:
            return by_name[name]
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise InputError(f"{where}: no {names[0]!r}{others} among {', '.join(row) or 'nothing'}; add it")


def media_id(value: object) -> str:
    """A video's id: a file name without folder and media suffix, as features are named; anything else unchanged."""
    text = str(value).strip()
    path = PurePosixPath(text)
    return path.stem if path.suffix.lower() in MEDIA_SUFFIXES else text
