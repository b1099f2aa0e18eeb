"""What a stage may tell its run, and what ends a run early. No MLflow here: training runs without it."""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol


class Stopped(Exception):
    """Ends a run early and on purpose: its status becomes KILLED, and what it has logged stays."""


class Tracker(Protocol):
    """One run. Metric names are grouped by what stands before the last slash: `train/loss`, `val/CIDEr`."""

    run_id: str | None

    def log_config(self, config: Mapping[str, object]) -> None:
        """Log flat, dotted keys (`optim.lr`) as parameters; a key that the run already has is left as it is."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffer one point a metric; points leave together in one batch."""

    def log_best(self, metrics: Mapping[str, float]) -> None:
        """Log the values of the chosen checkpoint under `best/`; the runs table shows the last value otherwise."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log at most 200 rows as NAME.json, `video_id` first; the same name in all runs makes them comparable."""

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts."""

    def log_data(self, name: str, digest: str, context: str) -> None:
        """Record a data set as an input of the run; context is `train`, `val` or `test`."""

    def log_checkpoint(self, folder: Path, name: str, metrics: Mapping[str, float]) -> str:
        """Log a checkpoint folder as a model with these metrics; return its MODEL name, `models:/m-…` with MLflow."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""

    def note(self, markdown: str) -> None:
        """Set the text at the head of the run's page."""

    def flush(self) -> None:
        """Send what is buffered; what cannot be sent is safe afterwards."""

    def keep_state(self) -> None:
        """The run is being stopped: let another machine go on with its folder, where that is possible."""

    def drop_state(self) -> None:
        """The run is over: take back what `keep_state` logged."""


class NullTracker:
    """Keeps nothing: for tests, and for machines without MLflow."""

    run_id: str | None = None

    def log_config(self, config: Mapping[str, object]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_best(self, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Do nothing."""

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Do nothing."""

    def log_data(self, name: str, digest: str, context: str) -> None:
        """Do nothing."""

    def log_checkpoint(self, folder: Path, name: str, metrics: Mapping[str, float]) -> str:
        """Return the folder itself, which is a MODEL as well."""
        return str(folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def note(self, markdown: str) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def keep_state(self) -> None:
        """Do nothing."""

    def drop_state(self) -> None:
        """Do nothing."""


class Terminated(SystemExit):
    """SIGTERM, raised in the main thread as an exception; the process exits 143 as the shell expects."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise Terminated on the first SIGTERM; those that follow, or follow Ctrl-C, change nothing until the block ends.

    On Ctrl-C `mlflow run` sends a SIGTERM after it, which must not cut off what Ctrl-C began. Outside the main thread,
    where Python allows no handler, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_listening() -> None:
    """The process is ending already: ignore SIGTERM from here on, to the end of the `sigterm_raises` block."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _terminate(signum: int, frame: FrameType | None) -> None:
    stop_listening()
    raise Terminated(128 + signum)
