"""The interface between a stage and its run, and early endings of a run. No MLflow: training works without it."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


class Stopped(Exception):
    """Ends a run early on purpose: its status becomes KILLED, and its logs stay."""


class Terminated(SystemExit):
    """SIGTERM in the main thread; the process exits 143 as the shell expects."""


@dataclass(frozen=True)
class RunSpec:
    """The run to open."""

    stage: str
    name: str
    experiment: str
    enabled: bool = True  # False gives a tracker that logs nothing
    resume_run_id: str | None = None  # reopen this run; points up to its last logged step are not logged twice
    folder: Path | None = None  # the run's folder: in its tags, and for unsent data
    parent_run_id: str | None = None  # the new run is its child, in its experiment; MLFLOW_RUN_ID is ignored


class Tracker:
    """One run; this base class logs nothing. Metrics are grouped by their name up to the last slash: `val/CIDEr`."""

    run_id: str | None = None

    def log_config(self, config: Mapping[str, object]) -> None:
        """Log flat, dotted keys (`optim.lr`) as parameters; a key that the run already has is unchanged."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffer one point per metric; points are sent together in one batch."""

    def log_best(self, metrics: Mapping[str, float]) -> None:
        """Log the values of the chosen checkpoint under `best/`; the runs table otherwise shows the last values."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log at most 200 rows as NAME.json, or append them; the same name in all runs makes them comparable."""

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts."""

    def log_data(self, name: str, digest: str, context: str) -> None:
        """Record a data set as an input of the run (36 characters of its digest); context: train, val or test."""

    def log_checkpoint(self, folder: Path, name: str, metrics: Mapping[str, float]) -> str:
        """Log a checkpoint folder as a model with these metrics; return MODEL: `models:/m-…` or the folder."""
        return str(folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""

    def note(self, markdown: str) -> None:
        """Set the text at the top of the run's page."""
        self.set_tags({"mlflow.note.content": markdown})

    def flush(self) -> None:
        """Send buffered data; write unsent data to a file."""

    def keep_state(self) -> None:
        """Called when the run is stopped: let another machine resume it, if possible."""

    def drop_state(self) -> None:
        """Called when the run is over: delete what `keep_state` logged."""

    def close(self, status: str) -> None:
        """Send everything and end the run as FINISHED, FAILED or KILLED."""


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, with cells on one line."""
    lines = (
        [" ".join(cell.replace("|", r"\|").split()) for cell in line]
        for line in (columns, ["---"] * len(columns), *rows)
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise Terminated on the first SIGTERM, in the main thread; any later one, or one after Ctrl-C, is ignored.

    On Ctrl-C `mlflow run` also sends SIGTERM, which must not interrupt the shutdown.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ending(close: Callable[[str], None]) -> Iterator[None]:
    """Close a run as FINISHED, FAILED on an exception, or KILLED; SIGTERM no longer interrupts that."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated, Stopped):
        status = "KILLED"
        raise
    finally:
        _stop_listening()
        close(status)


def _stop_listening() -> None:
    """Ignore SIGTERM until the `sigterm_raises` block ends."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _terminate(signum: int, frame: FrameType | None) -> None:
    _stop_listening()
    raise Terminated(128 + signum)
