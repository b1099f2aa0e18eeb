"""The process that owns a run, a trial or a lock, and whether it still runs."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class ProcessRecord:
    """One process, told apart from a later one with the same pid. Stored as flat text: tags, attributes, JSON.

    Args:
        namespace: the process namespace and the start of the machine on Linux, since containers, and machines, can
            share a host name; empty = unknown.
        started: seconds between the start of the machine and of the process, which no clock change moves;
            empty = unknown, as in the records of older versions.
    """

    host: str
    pid: int
    namespace: str = ""
    started: str = ""

    @classmethod
    def current(cls) -> "ProcessRecord":
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "ProcessRecord":
        """A process of this machine that runs."""
        return cls(socket.gethostname(), pid, _namespace(), _started(psutil.Process(pid)))

    @classmethod
    def read(cls, fields: Mapping[str, object]) -> "ProcessRecord | None":
        """The inverse of `fields`; None if a record is absent or malformed."""
        host, pid = str(fields.get("host", "")), str(fields.get("pid", ""))
        if not host or not pid.isdecimal():
            return None
        return cls(host, int(pid), str(fields.get("pid_namespace", "")), str(fields.get("pid_started", "")))

    def fields(self) -> dict[str, str]:
        """`host`, `pid`, `pid_namespace` and `pid_started`."""
        process = {"host": self.host, "pid": str(self.pid)}
        return {**process, "pid_namespace": self.namespace, "pid_started": self.started}

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
