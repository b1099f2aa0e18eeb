"""Annotation files as documents: unpacked, decoded, and read as JSON or rows by content, regardless of names."""

import csv
import gzip
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from videoblip2.errors import InputError, refused, some
from videoblip2.files import MEDIA_SUFFIXES

LINES, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
SUFFIXES = (".json", *LINES, *TABLES, ".txt", ".parquet")
OTHER_MEDIA = {".wav", ".flac", ".mp3", ".ogg", ".m4a", ".jpg", ".jpeg", ".png"}
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "development", "restval"), "train"),  # Clotho's, and Karpathy's of COCO
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validate"),
    **dict.fromkeys(("test", "testing", "evaluation"), "test"),
}
VIDEO = (
    *("video_id", "videoid", "video", "video_name", "file", "file_name", "filename"),
    *("youtube_id", "clip_id", "image_id", "id"),
)
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
Paths = Sequence[str | Path]  # files, as the user names them
SourceRow = tuple[str, Mapping[str, Any]]  # its place, such as `mine.csv line 3`; its values by column


@dataclass(frozen=True)
class Document:
    """One file; `name` is its name in errors, such as `msvd.zip/AllVideoDescriptions.txt`."""

    name: str
    data: bytes

    @classmethod
    def open(cls, path: str | Path, remedy: str = "give an annotation file") -> Self:
        """Read a file, unpacked if it is gzipped. Raises `InputError` if it is missing or cannot be unpacked."""
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; {remedy}")
        data = Path(path).read_bytes()
        if not data.startswith(b"\x1f\x8b"):
            return cls(str(path), data)
        with refused(f"{path}: not a readable gzip file", "download it again", OSError, EOFError):
            return cls(str(path).removesuffix(".gz"), gzip.decompress(data))

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    @property
    def split(self) -> str | None:
        """The split in the file's name, if it names exactly one: `train_qa.json` → train."""
        words = re.split(r"[^a-z]+", PurePosixPath(self.name).stem.lower())
        found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        return found.pop() if len(found) == 1 else None

    @cached_property
    def kind(self) -> Literal["parquet", "json", "table", "text"]:
        """The format by content; the suffix decides if the content cannot be read that way."""
        if self.data.startswith(b"PAR1"):
            return "parquet"
        if self.text.lstrip()[:1] in ("{", "[") or self.suffix in (".json", *LINES):
            return "json"
        return "table" if self.suffix in TABLES or (len(self.header) > 1 and self.header & set(VIDEO)) else "text"

    @property
    def header(self) -> set[str]:
        """The columns in the first line, named as in rows."""
        return {column(name) for name in re.split(r"[,;|\t]", self.lines()[0][1])}

    @cached_property
    def text(self) -> str:
        """Text in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark. Raises `InputError` for anything else."""
        try:
            return self.data.decode(json.detect_encoding(self.data))
        except UnicodeDecodeError as error:
            line = self.data.count(b"\n", 0, error.start) + 1
            raise InputError(f"{self.name} line {line}: not UTF-8 (byte {error.start}); save it as UTF-8") from error

    def lines(self) -> list[tuple[int, str]]:
        """Number and text of each line. Only line feeds end a line: captions may contain other line separators."""
        return [(number, line.strip(" \t\r")) for number, line in enumerate(self.text.split("\n"), 1)]

    @cached_property
    def json(self) -> Any:
        """The JSON content; JSON lines, under any file name, become a list. Raises `InputError` for anything else."""
        try:
            content = json.loads(self.text)
            alone = isinstance(content, dict) and (self.suffix in LINES or "video_id" in content)
            return [content] if alone else content
        except json.JSONDecodeError as error:
            if self.suffix not in LINES and error.msg != "Extra data":
                raise InputError(f"{self.name}: not JSON ({error}); give annotations, or MSR-VTT's zip") from error
        entries = []
        for number, line in self.lines():
            with refused(f"{self.name} line {number}: not JSON", "correct the line", json.JSONDecodeError):
                entries += [json.loads(line)] if line else []
        return entries

    def rows(self, key: str | None = None) -> Iterator[SourceRow]:
        """Rows of a table, JSON lines, a list, a mapping by id or split. Raises `InputError` for any other layout.

        key: read only this key of a JSON object.
        """
        if self.kind == "table":
            yield from self._csv_rows()
            return
        entries: Any = self._parquet_rows() if self.kind == "parquet" else self.json
        entries, name = (entries, self.name) if key is None else (entries.get(key) or [], f"{self.name} {key}")
        if not isinstance(entries, dict | list):
            raise InputError(f"{self.name}: neither MSR-VTT's layout nor a list of video_id and caption; give either")
        if isinstance(entries, dict):
            listed = [("split", key, row) for key, rows in entries.items() if key in SPLIT_WORDS for row in rows]
            pairs = listed or [("id", key, v if isinstance(v, dict) else {"captions": v}) for key, v in entries.items()]
            entries = [{name: key, **row} if isinstance(row, dict) else row for name, key, row in pairs]
        for number, entry in enumerate(entries, 1):
            where = f"{name} entry {number}"
            if not isinstance(entry, dict):
                shown = json.dumps(entry)[:60]
                raise InputError(f"{where}: {shown} is not an object; give video_id and caption in one")
            yield where, {column(name): value for name, value in entry.items()}

    def _parquet_rows(self) -> list[dict[str, Any]]:
        from pyarrow import parquet, types

        with refused(f"{self.name}: not a readable parquet file", "download it again", OSError, ValueError):
            file = parquet.ParquetFile(io.BytesIO(self.data))
            kinds = zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)
            columns = [name for name, kind in kinds if not (types.is_struct(kind) or types.is_binary(kind))]  # no media
            rows: list[dict[str, Any]] = file.read(columns).to_pylist()
        return rows

    @property
    def delimiter(self) -> str:
        """The most frequent separator in a table's first line, outside quotes; the suffix breaks ties."""
        header, usual = re.sub('"[^"]*"', "", self.lines()[0][1]), "\t" if self.suffix == ".tsv" else ","
        return max(DELIMITERS, key=lambda sign: (header.count(sign), sign == usual))

    def _csv_rows(self) -> Iterator[SourceRow]:
        reader = csv.DictReader(io.StringIO(self.text, newline=""), delimiter=self.delimiter, strict=True)
        called = DELIMITERS[self.delimiter]
        remedy = f"separate them by {called}, and put captions that contain {called} in double quotes"
        try:
            for row in reader:
                where = f"{self.name} line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{where}: its number of fields differs from the first line; {remedy}")
                yield where, {column(str(key)): value for key, value in row.items()}
        except csv.Error as error:
            raise InputError(f"{self.name} line {reader.line_num}: {error}; correct the file") from error


def read_documents(paths: Paths) -> list[Document]:
    """Every file, and every annotation file inside a zip or tar: its JSON files or, if none, its tables and texts.

    Raises `InputError` for a missing file, a pickle, an unreadable archive, or one without annotations.
    """
    return [document for path in paths for document in _documents(Document.open(path))]


def _documents(file: Document) -> list[Document]:
    path, content = file.name, io.BytesIO(file.data)
    if file.suffix in (".pkl", ".pickle"):
        raise InputError(f"{path}: a pickle can run any code and is not read; give the text, CSV or JSON version")
    tarred = file.data[257:262] == b"ustar"
    if file.suffix != ".zip" and not tarred and not zipfile.is_zipfile(content):
        return [file]
    archive: Any
    fault = f"{path}: not a readable {'tar' if tarred else 'zip'}"
    damaged = zipfile.BadZipFile, tarfile.TarError, RuntimeError, OSError  # truncated, or encrypted
    with (
        refused(fault, "download it again", *damaged),
        tarfile.open(fileobj=content) if tarred else zipfile.ZipFile(content) as archive,
    ):
        inside, read = (archive.getnames(), archive.extractfile) if tarred else (archive.namelist(), archive.open)
        names = [n for n in inside if not n.endswith("/") and not n.startswith("__MACOSX")]
        tables = [n for n in names if n.lower().endswith(SUFFIXES) and "readme" not in n.lower()]
        wanted = [n for n in names if n.lower().endswith(".json")] or tables
        contents = [Document(f"{path}/{name}", read(name).read()) for name in wanted]
    if not contents:
        held = f"contains no annotations ({', '.join(SUFFIXES)}), only {some(names) or 'nothing'}"
        raise InputError(f"{path}: {held}; give the data set's annotation zip")
    return contents


def value_of(where: str, row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of `names` in the row. Raises `InputError` listing the row's columns."""
    if not (there := [row[name] for name in names if row.get(name) is not None]):
        raise InputError(f"{where}: no {' or '.join(names)} among {', '.join(row) or 'nothing'}; add it")
    return there[0]


def column(name: str) -> str:
    """A normalized column name: "Video ID" → "video_id"."""
    return name.strip().lower().replace(" ", "_")


def media_id(value: object) -> str:
    """A video's id: a file name without folder and media suffix, as features are named; anything else unchanged."""
    path = PurePosixPath(text := str(value).strip())
    return path.stem if path.suffix.lower() in MEDIA_SUFFIXES | OTHER_MEDIA else text
