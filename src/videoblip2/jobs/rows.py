"""The output file of a captioning job: valid at all times, and resumable from its content.

JSON lines are appended. Any other format is written from a journal beside it, `.NAME.journal.jsonl`, periodically and
at the end; a later run resumes from the journal.
"""

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from videoblip2.errors import InputError, refused
from videoblip2.files import json_text
from videoblip2.jobs.forms import ROW, Row, as_lines, form_of, write_rows

BEGINS = b'{"path": "'  # the start of every row
RENDER_SECONDS = 10.0  # between writes of a format that cannot be appended to, or 20 times as long as a write


class RowFile:
    """The output of a job. Opening it reads the rows of an earlier run of the same job; `add` survives kill -9.

    Raises InputError for an unknown suffix, a path that cannot be written, a file that another process is writing, and
    rows of another model or with other options.
    """

    def __init__(self, path: Path, model_version: str, options: str) -> None:
        self.path, self.form = path, form_of(path)
        self._journal = _journal_of(path)
        self._due = 0.0
        busy = refused(f"{path}: another process is writing it", "wait for it, or give another --out", Timeout)
        with refused(f"{path}: cannot be written", "give a path that can be written", OSError), busy:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path.with_name(f".{path.name}.lock"))
            self._lock.acquire(timeout=0)
            resumed = self._journal.exists()
            self.rows, unfinished = _read_journal(self._journal)
        if path.exists() and not resumed:
            raise InputError(f"{path}: exists, and this command did not write it; move it, or give another --out")
        _refuse_mixed(path, self.rows, "give another --out", (model_version, options))
        self._unfinished = unfinished | {row.path for row in self.rows if row.error is not None}
        self.rows = [row for row in self.rows if row.error is None]
        self._paths = {row.path for row in self.rows}
        self._rewrite(self.rows)

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk: the journal has every row
            if self.form != ".jsonl":
                write_rows(self.path, self.rows)
        self._lock.release()

    @property
    def done(self) -> dict[str, str]:
        """Path → sha256 of the finished files; they are skipped unless they change."""
        return {row.path: row.sha256 for row in self.rows if row.path not in self._unfinished}

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows of a video. A failure does not replace an earlier run's result.

        Raises InputError if the disk is full; rows already written are kept.
        """
        paths = {row.path for row in rows}
        failed = all(row.error is not None for row in rows)
        changed = not failed and not paths.isdisjoint(self._paths)
        if not rows or (failed and paths <= self._paths - self._unfinished):
            return
        remedy = "fix that and run the same command again; rows already written are kept"
        with refused(f"{self.path}: cannot be written", remedy, OSError):
            if changed:  # the video file changed since an earlier run
                kept = [*(row for row in self.rows if row.path not in paths), *rows]
                self._rewrite(kept)
                self.rows = kept
            else:
                self._append(as_lines(rows).encode())
                self.rows += rows
            self._paths |= paths
            self._unfinished -= set() if failed else paths
            if self.form != ".jsonl" and time.monotonic() >= self._due:
                began = time.monotonic()
                write_rows(self.path, self.rows)
                self._due = time.monotonic() + max(RENDER_SECONDS, 20 * (time.monotonic() - began))

    def finish(self, order: Sequence[str]) -> None:
        """Sort rows by `order` (paths); rows of other paths, from earlier runs, come last."""
        place = {path: number for number, path in enumerate(order)}
        self.rows.sort(key=lambda row: (place.get(row.path, len(place)), row.start or 0.0))
        self._rewrite(self.rows)

    def _append(self, lines: bytes) -> None:
        """Append all of the lines or, if the disk is full, none."""
        with self._journal.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                while lines:
                    lines = lines[file.write(lines) :]
            except BaseException:
                file.truncate(size)
                raise

    def _rewrite(self, rows: Sequence[Row]) -> None:
        for path in dict.fromkeys((self._journal, self.path)):
            write_rows(path, rows)


def _journal_of(path: Path) -> Path:
    return path if path.suffix.lower() == ".jsonl" else path.with_name(f".{path.name}.journal.jsonl")


def _refuse_mixed(path: Path, rows: Iterable[Row], remedy: str, *wanted: tuple[str, str]) -> None:
    made_by = sorted({(row.model_version, row.options) for row in rows}.union(wanted))
    if len(made_by) > 1:
        mixture = " and ".join(f"{version!r} ({options or 'greedy'})" for version, options in made_by)
        raise InputError(f"{path}: would mix captions of {mixture}; {remedy}")


def read_row_file(path: Path) -> list[Row]:
    """The rows of a `.jsonl` file, or of the journal of another format. Raises InputError for any other file."""
    journal = _journal_of(path)
    if not journal.is_file():
        raise InputError(f"{path}: no rows to read; give the --out file of an earlier `vb2 caption`")
    return _read_journal(journal)[0]


def _read_journal(path: Path) -> tuple[list[Row], set[str]]:
    """All complete rows, without a last line cut off by a kill; and the paths whose rows may be incomplete."""
    if not path.is_file():
        return [], set()
    rows: list[Row] = []
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(ROW.validate_json(line))
        except ValueError as error:
            raise InputError(f"{path} line {number}: not a row of `vb2 caption`; give another file") from error
    if rest[: len(BEGINS)] != BEGINS[: len(rest)]:
        raise InputError(f"{path}: its last line is not a row of `vb2 caption`; give another file")
    if not rest or not rows:
        return rows, set()
    begins = json_text({"path": rows[-1].path})[:-1].encode() + b","
    same = rest[: len(begins)] == begins[: len(rest)]  # the partial line belongs to the video of the last row
    return rows, {rows[-1].path} if same else set()


def merge(out: Path, parts: Sequence[Path]) -> list[Row]:
    """Merge the rows of several outputs into one, each video once; a caption replaces a failure.

    Without `parts`, merges what `--shard` wrote beside `out`. Raises InputError if a shard is missing.
    """
    chosen: dict[tuple[object, ...], Row] = {}
    for part in parts or shards_of(out):
        for row in read_row_file(part):
            key = (row.path, row.start, row.question, row.sample)
            if key not in chosen or chosen[key].error is not None:
                chosen[key] = row
    captioned = {row.path for row in chosen.values() if row.error is None}
    rows = [  # without videos that failed in one part only
        row
        for row in chosen.values()
        if row.error is None or (row.end, row.question) != (None, None) or row.path not in captioned
    ]
    _refuse_mixed(out, rows, "merge files of one model and the same options")
    write_rows(out, rows)
    return rows


def shard_file(out: Path, shard: tuple[int, int] | None) -> Path:
    """`captions.jsonl` → `captions.2-of-4.jsonl`."""
    return out if shard is None else out.with_name(f"{out.stem}.{shard[0]}-of-{shard[1]}{out.suffix}")


def shards_of(out: Path) -> list[Path]:
    """The files that the shards of one job wrote. Raises InputError if there are none, or one is missing."""
    name = re.compile(rf"{re.escape(out.stem)}\.\d+-of-(\d+){re.escape(out.suffix)}")
    counts = {int(part[1]) for path in out.parent.glob("*") if (part := name.fullmatch(path.name))}
    if len(counts) != 1:
        found = f"shards of {len(counts)} jobs" if counts else "no shards"
        raise InputError(f"{out}: {found} beside it ({out.stem}.1-of-N{out.suffix}); name the files to merge")
    (count,) = counts
    every = [shard_file(out, (number, count)) for number in range(1, count + 1)]
    if missing := [path.name for path in every if not path.exists()]:
        raise InputError(f"{out}: {', '.join(missing)} is missing; run that shard, or name the files to merge")
    return every
