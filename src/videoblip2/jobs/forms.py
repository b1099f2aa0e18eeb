"""The rows of a captioning job, and the file formats for them."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from videoblip2.errors import InputError
from videoblip2.files import atomic, json_text, write_json, write_text
from videoblip2.modality import ExplainedWord


@dataclass(frozen=True)
class Row:
    """A result of a job: the caption of a video or segment, or the answer to a question.

    path: as given, or a video id of a feature store. score: mean log-probability of the caption's tokens. ended:
    whether the model ended the caption itself. start, end: of the segment or video in seconds; None = unknown.
    sample: 1 to K of several captions. words: how much each depends on sound and picture. options: how it was made,
    unless as a greedy caption of the whole video. sha256: of the file. error: why there is no caption.
    """

    path: str
    video_id: str
    caption: str | None = None
    score: float | None = None
    ended: bool | None = None
    start: float | None = None
    end: float | None = None
    model_version: str = ""
    error: str | None = None
    question: str | None = None
    sample: int | None = None
    words: tuple[ExplainedWord, ...] | None = None
    options: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        """One line for display."""
        timed = "segments=" in self.options and self.start is not None and self.end is not None
        between = f" {self.start:.1f}-{self.end:.1f} s" if timed else ""
        text = f"error: {self.error}" if self.error is not None else self.caption or "(nothing)"
        for name, needed in (("sound", "needs_sound"), ("picture", "needs_picture")):
            words = [f"{word.word} {getattr(word, name):.1f}" for word in self.words or () if getattr(word, needed)]
            text += f"  [{name}: {', '.join(words)}]" if words else ""
        return f"{self.path}{between}: {f'{self.question}  ' if self.question else ''}{text}"

    def shown(self) -> dict[str, Any]:
        """The row as written to a file: the nine columns of every row, and the others that are set."""
        return {name: getattr(self, name) for name in _columns([self])}


#: Reads a row from JSON; keys that a later version added are ignored.
ROW = TypeAdapter(Row)
COLUMNS = tuple(field.name for field in fields(Row))
ALWAYS = COLUMNS[:9]


def form_of(path: Path) -> str:
    """The format that a path's suffix names. Raises InputError for an unknown one."""
    if (suffix := path.suffix.lower()) not in WRITERS:
        raise InputError(
            f"--out {path}: the suffix {suffix or '(none)'} is not an output format; use {', '.join(WRITERS)}"
        )
    return suffix


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in the format that the suffix names, atomically."""
    WRITERS[form_of(path)](path, rows)


def as_lines(rows: Iterable[Row]) -> str:
    """Rows as JSON lines."""
    return "".join(json_text(row.shown()) + "\n" for row in rows)


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    write_text(path, as_lines(rows))


def _write_json(path: Path, rows: Sequence[Row]) -> None:
    write_json(path, [row.shown() for row in rows])


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    columns = _columns(rows)
    writer.writerow(columns)
    writer.writerows([_text(getattr(row, name)) for name in columns] for row in rows)
    write_text(path, text.getvalue())


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    number, text = pa.float64(), pa.string()
    types = {"score": number, "start": number, "end": number, "ended": pa.bool_(), "sample": pa.int64()}
    columns = _columns(rows)
    schema = pa.schema([(name, types.get(name, text)) for name in columns])
    entries = [{name: _text(getattr(row, name)) for name in columns} for row in rows]
    with atomic(path) as file:
        parquet.write_table(pa.Table.from_pylist(entries, schema), file)


def _text(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else value


def _columns(rows: Sequence[Row]) -> list[str]:
    return [name for name in COLUMNS if name in ALWAYS or any(getattr(row, name) not in (None, "") for row in rows)]


def _write_subtitles(path: Path, rows: Sequence[Row]) -> None:
    """One file for one video; for several, a folder with `ID.srt` for each."""
    videos: dict[str, list[Row]] = {}
    for row in rows:
        if row.caption:
            videos.setdefault(row.path, []).append(row)
    paths = {row.path: row.video_id for row in rows}
    if len(paths) <= 1 and not path.is_dir():
        write_text(path, subtitles(next(iter(videos.values()), []), path.suffix))
        return
    if path.is_file():  # written when there was only one video
        path.unlink()
    shared = Counter(paths.values())
    for video, own in videos.items():
        name = paths[video]
        if shared[name] > 1:  # include the folders of files with the same name
            (path / f"{name}{path.suffix}").unlink(missing_ok=True)
            name = "-".join(part for part in Path(video).parts if part not in ("/", ".."))
        write_text(path / f"{name}{path.suffix}", subtitles(own, path.suffix))


def subtitles(rows: Iterable[Row], suffix: str) -> str:
    """SubRip (`.srt`) or WebVTT: one cue per row, sorted by time, without blank lines inside."""
    vtt = suffix.lower() == ".vtt"
    cues = []
    for number, row in enumerate(sorted(rows, key=lambda row: row.start or 0.0), 1):
        start, end = row.start or 0.0, row.end if row.end is not None else (row.start or 0.0) + 10.0
        text = " ".join((row.caption or "").split())
        if vtt:
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        between = f"{_clock(start, vtt)} --> {_clock(max(end, start + 0.001), vtt)}"
        cues.append(f"{between}\n{text}\n" if vtt else f"{number}\n{between}\n{text}\n")
    return ("WEBVTT\n\n" if vtt else "") + "\n".join(cues)


def _clock(seconds: float, vtt: bool) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    text = f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"
    return text.replace(",", ".") if vtt else text


WRITERS: dict[str, Callable[[Path, Sequence[Row]], None]] = {
    ".jsonl": _write_lines,
    ".json": _write_json,
    ".csv": _write_table,
    ".tsv": _write_table,
    ".parquet": _write_parquet,
    ".srt": _write_subtitles,
    ".vtt": _write_subtitles,
}
