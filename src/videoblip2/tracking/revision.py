"""Which source a run came from."""

import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def revision_tags() -> dict[str, str]:
    """Return `git.commit` and `git.dirty` of the package's repository; nothing where git does not track the package."""
    if not _git("ls-files", "--error-unmatch", "__init__.py"):
        return {}
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no", ":/"))
    return {"git.commit": _git("rev-parse", "HEAD"), "git.dirty": str(dirty).lower()}


def _git(*arguments: str) -> str:
    """Return what git prints, or nothing where git fails or is not installed."""
    try:
        return subprocess.run(
            ("git", *arguments), cwd=PACKAGE, capture_output=True, text=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
