"""What every command prints: progress bars, one JSON object, one line for an error."""

import json as json_module
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
TOLD_SECONDS = 60  # between lines of progress where no terminal shows a bar


def emit(result: Mapping[str, object], json: bool, text: str) -> None:
    """Print `text` for a person; with `json`, `result` as one JSON object on the last line of standard output."""
    if text:
        print(text)
    if json:
        print(json_module.dumps(result, ensure_ascii=False, default=str))
    sys.stdout.flush()


def progress(items: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
    """Yield `items` behind a progress bar (speed, time left) on a terminal; elsewhere a line a minute says the same."""
    if not sys.stderr.isatty():
        yield from _told(items, total, description)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        size = total if total is not None else (len(items) if isinstance(items, Sized) else None)
        task = bar.add_task(description, total=size, speed="", note="")
        for item in items:
            yield item
            speed = bar.tasks[0].speed
            note = str(getattr(items, "note", ""))
            bar.update(task, advance=1, speed=f"{speed:.1f}/s" if speed else "", note=note)


def _told(items: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - last >= TOLD_SECONDS:
            last, speed = now, done / (now - start)
            of = f" of {total}, {(total - done) / speed / 60:.0f} min left" if total else ""
            print(f"{description}: {done}{of}, {speed:.1f}/s", file=sys.stderr, flush=True)


@contextmanager
def interruptible(remains: str) -> Iterator[None]:
    """Within, SIGTERM ends the work as Ctrl-C does: what is on its way is noted, and a line says what remains."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(remains, file=sys.stderr, flush=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def table(title: str, columns: list[str], rows: list[list[str]], fold: tuple[str, ...] = ()) -> str:
    """A table as text, drawn by rich at the terminal's width (at least 120 columns); as wide as need be in a file.

    Args:
        fold: columns whose text goes on in the next line where the width is short; the others stay whole.
    """
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for name in columns:
        drawn.add_column(name, no_wrap=name not in fold, overflow="fold" if name in fold else "ellipsis")
    for row in rows:
        drawn.add_row(*row)
    width = max(120, Console().width) if sys.stdout.isatty() else 1000
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(drawn)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]
