"""The process that owns a run, a trial or a lock, and whether it still runs."""

import os
import socket
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import psutil

FIELDS = ("host", "pid", "pid_namespace", "pid_started")


@dataclass(frozen=True)
class ProcessRecord:
    """One process, told apart from a later one with the same pid. Stored as flat text; empty = unknown."""

    host: str
    pid: int
    namespace: str = ""  # with the start of the machine on Linux: containers, and machines, can share a host name
    started: str = ""  # seconds after the start of the machine, which no clock change moves

    @classmethod
    def current(cls, pid: int | None = None) -> "ProcessRecord":
        """This process, or another one that runs on this machine."""
        process = psutil.Process(pid)
        return cls(socket.gethostname(), process.pid, _namespace(), _started(process))

    @classmethod
    def read(cls, fields: Mapping[str, object]) -> "ProcessRecord | None":
        """The inverse of `fields`; None if a record is absent or malformed."""
        host, pid, *more = (str(fields.get(name, "")) for name in FIELDS)
        return cls(host, int(pid), *more) if host and pid.isdecimal() else None

    def fields(self) -> dict[str, str]:
        """The record under the names in FIELDS."""
        return dict(zip(FIELDS, map(str, astuple(self)), strict=True))

    def is_local(self) -> bool:
        """Whether the process surely belongs to this machine and container, so that `is_running` can tell."""
        return self.host == socket.gethostname() and self.namespace == _namespace()

    def is_running(self) -> bool:
        """Whether a local process still runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and self.started in ("", _started(process))
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # it exists and belongs to another user
            return True


def _namespace() -> str:
    try:
        return f"{os.readlink('/proc/self/ns/pid')} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:
        return ""


def _started(process: psutil.Process) -> str:
    return f"{process.create_time() - psutil.boot_time():.2f}"
