"""Which process a run belongs to, and whether that process is still there."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

SILENCE = 300.0  # seconds without a sign of life after which a process on another machine may be dead


def process_tags() -> dict[str, str]:
    """`host`, `pid`, `process` (tells this process from a later one of the same number) and `heartbeat` of a run."""
    pid = os.getpid()
    heartbeat = str(int(time.time()))
    return {"host": socket.gethostname(), "pid": str(pid), "process": process_mark(pid), "heartbeat": heartbeat}


def process_mark(pid: int) -> str:
    """Machine start and process start, on Linux; empty where that cannot be read."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot[:8]}:{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return ""


def is_here(tags: Mapping[str, str]) -> bool:
    """Whether a run's process was one of this machine."""
    return tags.get("host") == socket.gethostname()


def is_gone(tags: Mapping[str, str]) -> bool:
    """Whether a run's process, one of this machine, has ended."""
    pid = int(tags.get("pid") or 0)
    if not _exists(pid):
        return True
    known = tags.get("process", "")
    return bool(known) and process_mark(pid) not in ("", known)


def last_sign(tags: Mapping[str, str], started: float) -> float:
    """When a run's process was last heard of, in seconds since 1970."""
    return float(tags.get("heartbeat", started))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to somebody else
        return True
    return True
