"""What can come between a training and its end, said in a line: a stop, a full disk, another training in its folder."""

import errno
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from videoblip2.config import InputError
from videoblip2.tracking.tracker import Tracker

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def only_one_in(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the system gives it back however the process ends. Raises InputError where it is held."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder}: another training writes there; stop it, or set run.name to another name"
        ) from error
    except OSError as error:
        raise InputError(
            f"run.out={folder.parent}: {error.strerror}; set run.out to a folder that can be written"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def stop_well(tracker: Tracker, folder: Path) -> Iterator[None]:
    """On a stop, let another machine go on; on a full disk, say how to go on here."""
    go_on = f"resume={tracker.run_id}" if tracker.run_id else "train.resume=auto"
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; {go_on} goes on", file=sys.stderr, flush=True)
        tracker.keep_state()
        raise
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        free = shutil.disk_usage(folder).free / 2**20
        raise InputError(
            f"{getattr(error, 'filename', None) or folder}: no space left on the device ({free:.0f} MB free); what was "
            f"written before is whole: make room and go on with {go_on}"
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room; safetensors says so only in words."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"os error {number}" in str(error) for number in FULL)
