"""One file over HTTP through huggingface_hub's client: resumed, checked, and recorded for later checks.

What is checked: a sha256 that the user gives; the MD5 that Google's storage sends with a file; and, on every later run,
the sha256 recorded beside the file when it was fetched. A part is named after the server's own name for this version of
the file (its ETag), so the parts of two versions are never spliced.
"""

import base64
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from videoblip2.errors import InputError, first_line
from videoblip2.files import write_text
from videoblip2.model.tensor_files import sniff

_CHUNK = 1 << 20  # bytes: one step of the progress bar


class Progress(Protocol):
    """A wrapper that yields the chunks it is given and shows how far they are."""

    def __call__(self, chunks: Iterable[bytes], total: int | None, description: str, /) -> Iterable[bytes]:
        """chunks: one MiB each; total: how many, where known."""


def unhurried(chunks: Iterable[bytes], total: int | None, description: str, /) -> Iterable[bytes]:
    """The Progress that shows nothing."""
    return chunks


@dataclass(frozen=True)
class Fetched:
    """What is on the disk now: `files` gives each file's sha256, `checked` says what they were compared with."""

    name: str
    path: Path
    files: dict[str, str]
    checked: str
    downloaded: bool
    revision: str = ""


@dataclass(frozen=True)
class _Remote:
    """The file as the server describes it: `size` is -1 and `etag` empty where it does not say."""

    size: int
    etag: str
    md5: str


def fetch_file(name: str, url: str, target: Path, sha256: str | None = None, progress: Progress = unhurried) -> Fetched:
    """Download `url` to `target`, or verify what is there already; only one process at a time.

    Raises InputError for an unreachable or refusing server, a full disk and a wrong checksum.
    """
    from filelock import FileLock, Timeout

    wanted = _checked_digest(sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=0):
            if target.exists():
                return _verified(name, target, wanted, progress)
            return _downloaded(name, url, target, wanted, progress)
    except Timeout as error:
        raise InputError(f"{target}: another process is fetching it; wait for that one to end") from error


def _downloaded(name: str, url: str, target: Path, wanted: str | None, progress: Progress) -> Fetched:
    part, published_md5 = _receive(url, target)
    sha256, md5 = digests(part, progress)
    checked = "nothing: no sha256 given and none published; it is recorded for later runs"
    try:
        sniff(part)
        sent = (md5, published_md5, "the MD5 that the server sent")
        for found, value, what in (sent, (sha256, wanted, "the sha256 given")):
            if value:
                _compare(part, found, value, what, "it was discarded: fetch it again")
                checked = what
    except InputError:
        part.unlink()  # complete and wrong, so resuming cannot help
        raise
    os.replace(part, target)
    _record(target, sha256)
    return Fetched(name, target, {target.name: sha256}, checked, downloaded=True)


def _receive(url: str, target: Path) -> tuple[Path, str]:
    """The complete part of `target`, and its MD5 (hexadecimal) if the server sent one, or ""."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.file_download import http_get

    quiet_hub()
    part = target.with_name(f"{target.name}.part")
    try:
        answer = get_session().head(url, follow_redirects=True, timeout=60)
        answer.raise_for_status()
        remote = _described(answer.headers)
        part = _part(url, target, remote)
        with part.open("ab") as file:
            kept = file.tell()
            _refuse_full_disk(part.parent, remote.size - kept)
            size = remote.size if remote.size >= 0 else None
            headers = {"If-Range": remote.etag, "Accept-Encoding": "identity"}
            http_get(url, file, resume_size=kept, headers=headers, expected_size=size, displayed_filename=target.name)
    except (HTTPError, OSError) as error:
        raise InputError(f"{urlsplit(url).hostname}: {_reason(error)}{_kept(part)}; {_advice(target)}") from error
    return part, remote.md5


def quiet_hub() -> None:
    """Without a terminal, huggingface_hub shows no progress bars."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()


def _described(headers: Mapping[str, str]) -> _Remote:
    etag = headers.get("ETag", "")
    hashes = (item.strip().partition("=") for item in headers.get("x-goog-hash", "").split(","))
    md5 = next((base64.b64decode(value).hex() for kind, _, value in hashes if kind == "md5"), "")
    return _Remote(int(headers.get("Content-Length", -1)), "" if etag.startswith("W/") else etag, md5)


def _part(url: str, target: Path, remote: _Remote) -> Path:
    """Where this version of the file is collected; parts of others, and one that cannot be resumed, are removed."""
    version = hashlib.sha256(f"{url} {remote.etag}".encode()).hexdigest()[:8]
    part = target.with_name(f"{target.name}.{version}.part")
    for other in target.parent.glob(f"{target.name}.*.part"):
        if other != part or not remote.etag or (0 <= remote.size < other.stat().st_size):
            other.unlink()
    return part


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder}: {free:,} bytes free, {needed:,} needed; make room and run again")


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code} {response.reason_phrase} for {response.url.path}"
    return f"cannot be reached ({first_line(error)})"


def _kept(part: Path) -> str:
    size = part.stat().st_size if part.exists() else 0
    return f"; {size:,} bytes are kept, run again to resume" if size else ""


def _advice(target: Path) -> str:
    return f"behind a proxy set HTTPS_PROXY, or copy the file from another machine to {target}"


def _verified(name: str, target: Path, wanted: str | None, progress: Progress) -> Fetched:
    sha256, _ = digests(target, progress)
    recorded = read_checksums(target.with_name(f"{target.name}.sha256")).get(target.name)
    checked = "nothing: no sha256 given and none recorded; it is recorded now"
    for value, what in ((recorded, "the sha256 recorded when it was fetched"), (wanted, "the sha256 given")):
        if value:
            _compare(target, sha256, value, what, "delete it and fetch it again")
            checked = what
    if not recorded:
        _record(target, sha256)
    return Fetched(name, target, {target.name: sha256}, checked, downloaded=False)


def _record(target: Path, sha256: str) -> None:
    write_checksums(target.with_name(f"{target.name}.sha256"), {target.name: sha256})


def _compare(path: Path, found: str, wanted: str, what: str, remedy: str) -> None:
    if found != wanted:
        raise InputError(f"{path}: its checksum {found} is not {what} ({wanted}); {remedy}")


def _checked_digest(sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    digest = sha256.strip().lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise InputError(f"--sha256 {sha256}: must be 64 hexadecimal digits")
    return digest


def digests(path: Path, progress: Progress = unhurried) -> tuple[str, str]:
    """(sha256, MD5) of a file, as hexadecimal; the MD5 shows a damaged transfer, never a forgery."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    chunks = -(-path.stat().st_size // _CHUNK)
    with path.open("rb") as file:
        for chunk in progress(iter(lambda: file.read(_CHUNK), b""), chunks, f"checking {path.name} (MiB)"):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def write_checksums(path: Path, files: Mapping[str, str]) -> None:
    """Write name → sha256 in the form that `sha256sum --check` reads."""
    write_text(path, "".join(f"{digest}  {name}\n" for name, digest in files.items()))


def read_checksums(path: Path) -> dict[str, str]:
    """name → sha256 from a file that `write_checksums` wrote; empty where there is none."""
    if not path.exists():
        return {}
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    return {parts[1].strip(): parts[0].lower() for parts in lines if len(parts) == 2}
