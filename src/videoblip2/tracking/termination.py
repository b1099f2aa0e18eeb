"""SIGTERM as an exception, so that a run is flushed and closed before the process ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
