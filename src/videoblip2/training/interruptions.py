"""What interrupts training, each reported in one line: a signal, a full disk, too little memory, a locked folder."""

import errno
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from videoblip2.config import InputError
from videoblip2.errors import refused
from videoblip2.tracking.tracker import Tracker

NUMBERS = (signal.SIGINT, signal.SIGTERM)
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def only_one_in(folder: Path) -> Iterator[None]:
    """Lock a run's folder; the lock ends with the process. Raises InputError if another process holds it."""
    remedy = "stop it, or set run.name to another name"
    busy = refused(f"{folder}: another training run is writing there", remedy, Timeout)
    with refused(f"run.out={folder.parent}: cannot be used", "set run.out to a writable folder", OSError), busy:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0).acquire()
    with lock:
        yield


@contextmanager
def stop_well(tracker: Tracker, folder: Path) -> Iterator[None]:
    """On a stop, let another machine resume; on a full disk, tell the user how to resume here."""
    resume = f"resume={tracker.run_id}" if tracker.run_id else "train.resume=auto"
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; {resume} resumes it", file=sys.stderr, flush=True)
        tracker.keep_state()
        raise
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        place, free = getattr(error, "filename", None) or folder, shutil.disk_usage(folder).free / 2**20
        remedy = f"data written before is intact: free some space and resume with {resume}"
        raise InputError(f"{place}: no space left on the device ({free:.0f} MB free); {remedy}") from error


def memory_for(phase: str, remedy: str) -> AbstractContextManager[None]:
    """Report running out of memory, on a GPU or not, in one line."""
    return refused(f"out of memory in {phase}", remedy, RuntimeError, MemoryError, when=is_out_of_memory)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's allocator on a CPU says so only in words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full; safetensors says so only in words."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"os error {number}" in str(error) for number in FULL)


@contextmanager
def signals_wait() -> Iterator[list[int]]:
    """Defer signals until the block ends, then act on the first; a second Ctrl-C acts at once.

    Yields the list of signals received so far, to which the block may add.
    A SIGTERM after another signal is deferred too: `mlflow run` sends one after Ctrl-C, and schedulers repeat theirs.
    Only the main thread gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    arrived: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if arrived.count(signal.SIGINT) > 1:
            act(number)

    def act(number: int) -> None:
        signal.signal(number, before[number])
        signal.raise_signal(number)

    before: dict[int, Any] = {number: signal.signal(number, hold) for number in NUMBERS}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        act(arrived[0])
