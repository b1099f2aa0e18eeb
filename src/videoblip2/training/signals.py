"""Ctrl-C and SIGTERM wait for the end of a step, so that what is saved then is a whole step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Hold signals back until the block ends, then act on the first; a second Ctrl-C acts at once.

    A SIGTERM after another signal waits as well: `mlflow run` sends one after Ctrl-C, and schedulers repeat theirs.
    Only the main thread gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) or signal.SIG_DFL for number in NUMBERS}

    def hold(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if arrived.count(signal.SIGINT) > 1:
            _act(before[signal.SIGINT], number, frame)

    for number in NUMBERS:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    if arrived:
        _act(before[signal.Signals(arrived[0])], arrived[0], None)


def _act(handler: Any, number: int, frame: FrameType | None) -> None:
    """Do what the signal would have done."""
    if callable(handler):
        handler(number, frame)
    elif handler == signal.SIG_DFL:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
