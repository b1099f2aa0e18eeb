"""Which source a run came from."""

import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def revision_tags() -> dict[str, str]:
    """Return `git.commit` and `git.dirty` of the package's repository; nothing where git does not track the package.

    The commit is there under MLflow's own name, too, which fills the column Version of its runs table.
    """
    if not _tracked():
        return {}
    commit = _git("rev-parse", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no", ":/"))
    return {"git.commit": commit, "git.dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}


def source_diff() -> str:
    """Return what `git apply` needs to get from the commit to the source as it is; nothing where they are equal."""
    return f"{diff}\n" if _tracked() and (diff := _git("diff", "--binary", "HEAD", "--", ":/")) else ""


def _tracked() -> bool:
    return bool(_git("ls-files", "--error-unmatch", "__init__.py"))


def _git(*arguments: str) -> str:
    """Return what git prints, or nothing where git fails or is not installed."""
    try:
        return subprocess.run(
            ("git", *arguments), cwd=PACKAGE, capture_output=True, text=True, timeout=20, errors="replace"
        ).stdout.strip("\n")
    except (OSError, subprocess.SubprocessError):
        return ""
