"""Rows of a captioning job, and the file that holds them: complete at every moment, resumed by content.

JSON lines are appended to. Every other form is written from a journal beside it, `.NAME.journal.jsonl`, now and then
and at the end; the journal is what a later run resumes from.
"""

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from videoblip2.errors import InputError
from videoblip2.files import atomic, write_json, write_text

RENDER_SECONDS = 10.0  # between two writes of a form that cannot be appended to, or 20 times the duration of a write
SUBTITLES = (".srt", ".vtt")


@dataclass(frozen=True)
class Row:
    """What a job found in one video, or in one segment of it, or the answer to one question.

    path: as given; a video id where features are stored. score: mean log-probability of the caption's tokens. ended:
    whether the model ended the caption itself. start, end: seconds, of a segment or of the video; None = not known.
    sample: 1 to K, where several captions were drawn. options: what the command asked for beside the model. sha256: of
    the file. error: why there is no caption.
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
    sound: tuple[tuple[str, float, float], ...] | None = None
    options: str = ""
    sha256: str = ""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Row":
        """A row from what a file holds; keys that a later version added are left out."""
        known = {name: entry[name] for name in COLUMNS if name in entry}
        if known.get("sound") is not None:
            known["sound"] = tuple((str(word), float(a), float(b)) for word, a, b in known["sound"])
        return cls(**known)

    def __str__(self) -> str:
        """One line for a person."""
        timed = "segments=" in self.options and self.start is not None and self.end is not None
        between = f" {self.start:.1f}-{self.end:.1f} s" if timed else ""
        said = f"error: {self.error}" if self.error is not None else self.caption or "(nothing)"
        return f"{self.path}{between}: {f'{self.question}  ' if self.question else ''}{said}"

    def shown(self) -> dict[str, Any]:
        """The row as a file holds it: the nine columns that every row has, and the others that are set."""
        return {
            name: getattr(self, name) for name in COLUMNS if name in ALWAYS or getattr(self, name) not in (None, "")
        }


COLUMNS = tuple(field.name for field in fields(Row))
ALWAYS = COLUMNS[:9]


class RowFile:
    """The output of a job. Opening it reads what an earlier run of the same job left; `add` is safe against kill -9.

    Raises InputError for a suffix that names no form, a place that cannot be written, a file that another process is
    writing, and rows of another model or with other options.
    """

    def __init__(self, path: Path, model_version: str, options: str) -> None:
        self.path, self.form = path, form_of(path)
        self._journal = path if self.form == ".jsonl" else path.with_name(f".{path.name}.journal.jsonl")
        self._due = 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path.with_name(f".{path.name}.lock"))
            self._lock.acquire(timeout=0)
            self.rows = _read_journal(self._journal)
        except Timeout as error:
            raise InputError(f"{path}: another process is writing it; wait for it, or give another --out") from error
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}; give a place that can be written to") from error
        if self._journal != path and path.exists() and not self.rows:
            raise InputError(f"{path}: exists, and this command did not write it; move it, or give another --out")
        for what, own in (("model_version", model_version), ("options", options)):
            if others := {getattr(row, what) for row in self.rows} - {own}:
                raise InputError(
                    f"{path}: holds captions with {what} {others.pop()!r}, not {own!r}; give another --out"
                )
        self.rows = [row for row in self.rows if row.error is None]
        self._rewrite(self.rows)
        self._file = self._journal.open("ab", buffering=0)

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        with suppress(OSError):  # a full disk: the journal has every row
            if self.form != ".jsonl":
                write_rows(self.path, self.rows)
        self._lock.release()

    @property
    def done(self) -> dict[str, str]:
        """Path → sha256 of the files that need no work unless they have changed."""
        return {row.path: row.sha256 for row in self.rows}

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows, in one write. Raises InputError where the disk is full; what is written is kept."""
        new = list(rows)
        paths = {row.path for row in new}
        changed = any(row.path in paths for row in self.rows)
        try:
            if changed:  # the file was replaced since an earlier run
                self.rows = [row for row in self.rows if row.path not in paths]
                self._rewrite(self.rows)
            self._file.write(_lines(new))
            self.rows += new
            if self.form != ".jsonl" and time.monotonic() >= self._due:
                began = time.monotonic()
                write_rows(self.path, self.rows)
                self._due = time.monotonic() + max(RENDER_SECONDS, 20 * (time.monotonic() - began))
        except OSError as error:
            raise InputError(
                f"{self.path}: {error.strerror or error}; fix that and run the same command again; "
                "what is written is kept"
            ) from error

    def finish(self, order: Sequence[str]) -> None:
        """Rows in the order of `order` (paths); those of other paths, from earlier runs, come last."""
        place = {path: number for number, path in enumerate(order)}
        self.rows.sort(key=lambda row: (place.get(row.path, len(place)), row.start or 0.0))
        self._rewrite(self.rows)

    def _rewrite(self, rows: Sequence[Row]) -> None:
        with atomic(self._journal) as file:
            file.write(_lines(rows))
        if self.form != ".jsonl":
            write_rows(self.path, rows)


def form_of(path: Path) -> str:
    """The suffix that names a form. Raises InputError for any other."""
    if (suffix := path.suffix.lower()) not in WRITERS:
        raise InputError(
            f"--out {path}: the suffix {suffix or '(none)'} is no form of output; use {', '.join(WRITERS)}"
        )
    return suffix


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in the form that the suffix names, atomically."""
    WRITERS[form_of(path)](path, rows)


def read_row_file(path: Path) -> list[Row]:
    """The rows of a `.jsonl` file, or of the journal of another form. Raises InputError for a file of neither kind."""
    journal = path if path.suffix.lower() == ".jsonl" else path.with_name(f".{path.name}.journal.jsonl")
    if not journal.is_file():
        raise InputError(f"{path}: no rows to read; give the --out file of an earlier `vb2 caption`")
    return _read_journal(journal)


def _read_journal(path: Path) -> list[Row]:
    """All complete rows. A last line without its end was being written when the process was killed: it is left out."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            rows.append(Row.of(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} line {number}: not a row of `vb2 caption`; give another --out") from error
    return rows


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row.shown(), ensure_ascii=False) + "\n" for row in rows).encode()


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    with atomic(path) as file:
        file.write(_lines(rows))


def _write_json(path: Path, rows: Sequence[Row]) -> None:
    write_json(path, [row.shown() for row in rows])


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    columns = _columns(rows)
    writer.writerow(columns)
    writer.writerows([_cell(getattr(row, name)) for name in columns] for row in rows)
    write_text(path, text.getvalue())


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else "" if value is None else value


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
    """One file for one video; for several, a folder of that name with `ID.srt` for each."""
    videos: dict[str, list[Row]] = {}
    for row in rows:
        if row.caption:
            videos.setdefault(row.video_id, []).append(row)
    paths = {row.path for row in rows}
    if len(paths) <= 1 and not path.is_dir():
        write_text(path, subtitles(next(iter(videos.values()), []), path.suffix))
        return
    if path.is_file():  # a second video has come since the first was written
        path.unlink()
    for video, own in videos.items():
        write_text(path / f"{video}{path.suffix}", subtitles(own, path.suffix))


def subtitles(rows: Iterable[Row], suffix: str) -> str:
    """SubRip (`.srt`) or WebVTT: one cue a row, in order of time, without blank lines inside."""
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


def merge(out: Path, parts: Sequence[Path]) -> list[Row]:
    """Write the rows of several outputs into one, each video once: a caption wins over a failure.

    With no parts, those that `--shard` wrote beside `out`. Raises InputError where one of these is missing.
    """
    chosen: dict[tuple[object, ...], Row] = {}
    for part in parts or shards_of(out):
        for row in read_row_file(part):
            key = (row.path, row.start, row.question, row.sample)
            if key not in chosen or chosen[key].error is not None:
                chosen[key] = row
    captioned = {row.path for row in chosen.values() if row.error is None}
    rows = [row for row in chosen.values() if row.error is None or row.path not in captioned]
    write_rows(out, rows)
    return rows


def shard_file(out: Path, shard: tuple[int, int] | None) -> Path:
    """`captions.jsonl` → `captions.2-of-4.jsonl`."""
    return out if shard is None else out.with_name(f"{out.stem}.{shard[0]}-of-{shard[1]}{out.suffix}")


def shards_of(out: Path) -> list[Path]:
    """The files that the shards of one job wrote. Raises InputError where there are none, or one is missing."""
    found = sorted(out.parent.glob(f"{out.stem}.*-of-*{out.suffix}"))
    counts = {path.stem.rpartition("-of-")[2] for path in found}
    if len(counts) != 1:
        what = "no shards" if not counts else f"shards of {len(counts)} jobs"
        raise InputError(f"{out}: {what} beside it ({out.stem}.1-of-N{out.suffix}); name the files to merge")
    every = [shard_file(out, (number, int(counts.copy().pop()))) for number in range(1, int(counts.copy().pop()) + 1)]
    if missing := [path.name for path in every if path not in found]:
        raise InputError(f"{out}: {', '.join(missing)} is missing; run that shard, or name the files to merge")
    return every
