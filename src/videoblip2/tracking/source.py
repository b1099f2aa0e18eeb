"""The origin of a run: process, commit, installed packages, command, and the run of its first weights."""

import hashlib
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from videoblip2.errors import masked
from videoblip2.provenance import Provenance

PACKAGE = Path(__file__).resolve().parents[1]


def revision_tags() -> dict[str, str]:
    """`git.commit` and `git.dirty` of the package's repository; nothing if git does not track the package."""
    if not _tracked():
        return {}
    commit = _git("rev-parse", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no", ":/"))
    column = {"mlflow.source.git.commit": commit}  # Version in MLflow's table of runs
    return {"git.commit": commit, "git.dirty": str(dirty).lower(), **column}


def source_diff() -> str:
    """Return the diff from the commit to the current source; empty if they are equal."""
    return f"{diff}\n" if _tracked() and (diff := _git("diff", "--binary", "HEAD", "--", ":/")) else ""


def _tracked() -> bool:
    return bool(_git("ls-files", "--error-unmatch", "__init__.py"))


def _git(*arguments: str) -> str:
    """Return what git prints, or nothing if git fails or is not installed."""
    try:
        return subprocess.run(
            ("git", *arguments), cwd=PACKAGE, capture_output=True, text=True, timeout=20, errors="replace"
        ).stdout.strip("\n")
    except (OSError, subprocess.SubprocessError):
        return ""


ENVIRONMENT_FILE = "environment.txt"


@cache  # reading the metadata of all packages takes a second
def environment() -> str:
    """One line for Python and one `name==version` per installed package, sorted, readable by pip."""
    found = (distribution.metadata for distribution in metadata.distributions())
    packages = {str(about["Name"]).lower().replace("_", "-"): about["Version"] for about in found if about["Name"]}
    lines = [f"{name}=={version}" for name, version in sorted(packages.items())]
    return "\n".join([f"# python {platform.python_version()}", *lines]) + "\n"


def short_digest(content: str | bytes) -> str:
    """12 hex digits (sha256)."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:12]


def lock_difference(text: str, other: str) -> list[str]:
    """`name 1.0 -> 2.0` for each package that differs, or is on one side only."""
    locks = (lock.replace("# python ", "python==").splitlines() for lock in (text, other))  # Python is a comment there
    old, new = (dict(line.split("==", 1) for line in lines if "==" in line) for lines in locks)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}" for name in names]


def lineage_tags(checkpoint: Path) -> dict[str, str]:
    """Name the run that made a checkpoint: `lineage.parent_run`, `_name`, `_stage`, `_step`, and its `_cider`."""
    made, cider = Provenance.read(checkpoint, optional=True), read_scores(checkpoint).get("CIDEr")
    known = {"run": made.run_id, "name": made.name, "stage": made.stage, "step": made.step, "cider": cider}
    return {f"lineage.parent_{key}": str(value) for key, value in known.items() if value is not None}


def read_scores(checkpoint: Path) -> dict[str, float]:
    """metrics.json of a checkpoint; empty if it has none."""
    file = checkpoint / "metrics.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def command_line() -> str:
    """The command of this process as typed, without passwords."""
    return masked(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


class ProcessRecord(BaseModel):
    """Identifies one process, even after its pid is reused. Stored as flat text; empty = unknown."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    pid_namespace: str = ""  # with the boot time on Linux: containers and machines can share a host name
    pid_started: str = ""  # seconds after boot, unaffected by clock changes

    @classmethod
    def current(cls, pid: int | None = None) -> "ProcessRecord":
        """This process, or another one that runs on this machine."""
        process = psutil.Process(pid)
        started = {"pid_namespace": _namespace(), "pid_started": _started(process)}
        return cls(host=socket.gethostname(), pid=process.pid, **started)

    @classmethod
    def read(cls, fields: Mapping[str, object]) -> "ProcessRecord | None":
        """The inverse of `fields`; None if a record is absent or malformed."""
        with suppress(ValidationError):
            return cls.model_validate(fields)
        return None

    def fields(self) -> dict[str, str]:
        """The record as flat text."""
        return {name: str(value) for name, value in self}

    def is_local(self) -> bool:
        """Whether the process certainly belongs to this machine and container, so that `is_running` is valid."""
        return self.host == socket.gethostname() and self.pid_namespace == _namespace()

    def is_running(self) -> bool:
        """Whether a local process still runs; a zombie does not count."""
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and self.pid_started in ("", _started(process))
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # it exists but belongs to another user
            return True


def _namespace() -> str:
    try:
        return f"{os.readlink('/proc/self/ns/pid')} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:
        return ""


def _started(process: psutil.Process) -> str:
    return f"{process.create_time() - psutil.boot_time():.2f}"
