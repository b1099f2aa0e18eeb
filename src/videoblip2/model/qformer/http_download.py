"""One file over HTTP, resumed where the last try broke off.

Beside FILE.part lies FILE.part.json with what the server said of the file. A broken download goes on by `Range` with
`If-Range`, so a file that has changed on the server is sent anew and never spliced onto the old beginning.
"""

import base64
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from videoblip2.config import InputError
from videoblip2.files import write_json

_CHUNK = 1 << 20  # bytes: one step of the progress bar
_TIMEOUT = 60  # seconds without a byte
_RECONNECTS = 5  # after a connection that broke in the middle


class Progress(Protocol):
    """A wrapper that yields the chunks it is given and shows how far they are."""

    def __call__(self, chunks: Iterable[bytes], total: int | None, description: str, /) -> Iterable[bytes]:
        """chunks: one MiB each; total: how many, where known."""


def unhurried(chunks: Iterable[bytes], total: int | None, description: str, /) -> Iterable[bytes]:
    """The Progress that shows nothing."""
    return chunks


class _BrokenOff(Exception):
    """The connection ended before the file did."""


@dataclass(frozen=True)
class _Remote:
    """The file as the server described it: `validator` is a strong ETag or a date, `size` -1 where unknown."""

    url: str
    validator: str = ""
    size: int = -1
    md5: str = ""


def receive(url: str, part: Path, target: Path, progress: Progress) -> str:
    """Complete `part` from `url`; returns the MD5 (hexadecimal) the server sent with it, or "".

    Raises InputError where the server cannot be reached, refuses, or keeps breaking off; `part` stays for the next try.
    """
    for _ in range(_RECONNECTS + 1):
        remote, kept = _state(url, part)
        try:
            with _open(remote, kept) as response:
                remote = _append(response, remote, part, kept, progress)
        except _BrokenOff:
            continue
        except HTTPError as error:
            if error.code != 416:
                answer = f"{error.code} {error.reason}"
                raise InputError(f"{url}: the server answered {answer}; {_advice(target)}") from error
            part.unlink()  # longer than the file on the server: begin anew
            continue
        except URLError as error:
            raise InputError(_unreachable(url, part, target, error.reason)) from error
        if part.stat().st_size == remote.size or remote.size < 0:
            _state_file(part).unlink(missing_ok=True)
            return remote.md5
    raise InputError(_unreachable(url, part, target, "the connection keeps breaking off"))


def _state(url: str, part: Path) -> tuple[_Remote, int]:
    """What is known of the file and how many bytes of it are here; (nothing, 0) where it cannot be resumed."""
    try:
        remote = _Remote(**json.loads(_state_file(part).read_text(encoding="utf-8")))
        kept = part.stat().st_size
    except (OSError, ValueError, TypeError):
        return _Remote(url), 0
    resumable = remote.url == url and remote.validator and kept
    return (remote, kept) if resumable else (_Remote(url), 0)


def _open(remote: _Remote, kept: int) -> HTTPResponse:
    headers = {"User-Agent": "videoblip2", "Accept-Encoding": "identity"}
    if kept:
        headers |= {"Range": f"bytes={kept}-", "If-Range": remote.validator}
    try:
        response: HTTPResponse = urlopen(Request(remote.url, headers=headers), timeout=_TIMEOUT)
    except URLError:
        raise
    except (OSError, HTTPException) as error:
        raise _BrokenOff from error
    return response


def _append(response: HTTPResponse, known: _Remote, part: Path, kept: int, progress: Progress) -> _Remote:
    """Write the body behind the `kept` bytes, or from the start when the server sends the whole file."""
    start = kept if response.status == 206 else 0
    if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        part.unlink()  # not the rest that was asked for
        raise _BrokenOff
    remote = _describe(response, known, start)
    left = remote.size - start if remote.size >= 0 else None
    free = shutil.disk_usage(part.parent).free
    if left is not None and left > free:
        raise InputError(f"{part.parent}: {free:,} bytes free, {left:,} needed; make room and run again")
    if not start:
        _save_state(part, remote)
    total = -(-left // _CHUNK) if left is not None else None
    with part.open("ab" if start else "wb") as file:
        for chunk in progress(_chunks(response), total, f"{part.name.removesuffix('.part')} (MiB)"):
            file.write(chunk)
    return remote


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _BrokenOff from error


def _describe(response: HTTPResponse, known: _Remote, start: int) -> _Remote:
    """The file as this response, which begins at byte `start`, describes it."""
    length = response.headers.get("Content-Length")
    etag = response.headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    size = start + int(length) if length is not None else -1
    md5 = _google_md5(response.headers.get_all("x-goog-hash") or []) or (known.md5 if start else "")
    return _Remote(known.url, validator, size, md5)


def _google_md5(values: list[str]) -> str:
    """The MD5 among Google storage's hashes (`crc32c=…,md5=BASE64`), as hexadecimal; "" where there is none."""
    for item in ",".join(values).split(","):
        kind, _, value = item.strip().partition("=")
        if kind == "md5":
            return base64.b64decode(value).hex()
    return ""


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _save_state(part: Path, remote: _Remote) -> None:
    write_json(_state_file(part), asdict(remote))


def _unreachable(url: str, part: Path, target: Path, reason: object) -> str:
    size = part.stat().st_size if part.exists() else 0
    kept = f"; {size:,} bytes are kept, run again to go on" if size else ""
    return f"{urlsplit(url).hostname}: cannot be reached ({reason}){kept}; {_advice(target)}"


def _advice(target: Path) -> str:
    return f"behind a proxy set HTTPS_PROXY, or copy the file from another machine to {target}"
