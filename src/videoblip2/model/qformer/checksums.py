"""What was fetched, and the checksums that show it is still what it was."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from videoblip2.files import write_text
from videoblip2.model.qformer.http_download import Progress, unhurried

_CHUNK = 1 << 20  # bytes: one step of the progress bar


@dataclass(frozen=True)
class Fetched:
    """What lies on the disk now: `files` gives each file's sha256, `checked` says what they were held against."""

    name: str
    path: Path
    files: dict[str, str]
    checked: str
    downloaded: bool
    revision: str = ""


def digests(path: Path, progress: Progress = unhurried) -> tuple[str, str]:
    """(sha256, MD5) of a file, as hexadecimal; the MD5 shows a damaged transfer, never a forgery."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    chunks = -(-path.stat().st_size // _CHUNK)
    with path.open("rb") as file:
        for chunk in progress(iter(lambda: file.read(_CHUNK), b""), chunks, f"checking {path.name} (MiB)"):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def write_checksums(path: Path, files: dict[str, str]) -> None:
    """Write name → sha256 in the form that `sha256sum --check` reads, atomically."""
    write_text(path, "".join(f"{digest}  {name}\n" for name, digest in files.items()))


def read_checksums(path: Path) -> dict[str, str]:
    """name → sha256 from a file that `write_checksums` wrote; empty where there is none."""
    if not path.exists():
        return {}
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    return {parts[1].strip(): parts[0].lower() for parts in lines if len(parts) == 2}
