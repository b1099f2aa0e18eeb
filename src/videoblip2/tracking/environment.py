"""What is installed: the lock that a checkpoint carries, so that its environment can be made again."""

import hashlib
import platform
from importlib import metadata
from pathlib import Path

FILE = "environment.txt"


def environment() -> str:
    """One line for Python and one `name==version` for each installed package, sorted, as pip reads it."""
    packages = {
        str(found.metadata["Name"]).lower().replace("_", "-"): found.version
        for found in metadata.distributions()
        if found.metadata["Name"]
    }
    lines = [f"{name}=={version}" for name, version in sorted(packages.items())]
    return "\n".join([f"# python {platform.python_version()}", *lines]) + "\n"


def write_environment(path: Path) -> None:
    """Write `environment` to a file."""
    path.write_text(environment(), encoding="utf-8")


def lock_digest(text: str) -> str:
    """12 hex digits (sha256) of a lock."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def lock_difference(text: str, other: str) -> list[str]:
    """`name 1.0 -> 2.0` for each package that differs, or is on one side only."""
    old, new = _pins(text), _pins(other)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}" for name in names]


def _pins(text: str) -> dict[str, str]:
    """Name → version; Python, which stands in a comment for pip's sake, is one of them."""
    lines = text.replace("# python ", "python==").splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line)
