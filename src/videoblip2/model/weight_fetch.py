"""Download published weights by name: a LAVIS file, or a model folder from the Hugging Face hub.

LAVIS publishes no sha256. A file is checked against the user's sha256, if given, the MD5 that Google's storage sends
and, on later runs, the sha256 recorded after the download. The hub publishes a sha256 for each large file; only the
needed files of a folder are fetched, at one commit, and their checksums are recorded.
"""

import base64
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from videoblip2.errors import InputError, Progress, first_line, no_progress, refused
from videoblip2.files import write_text

_CHUNK = 1 << 20  # bytes: one step of the progress bar
_TEXTS = (".json", ".txt", ".model")
_SUMS = "SHA256SUMS"
_RECORDED, _GIVEN = "the sha256 recorded when it was fetched", "the sha256 given"
_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models"


@dataclass(frozen=True)
class KnownWeights:
    """Weights that can be fetched by name: from a `url`, or from a hub `repository`."""

    name: str
    what: str
    url: str = ""
    repository: str = ""
    copy: str = ""  # name of the same weights on the hub, used when the url is refused


_FILES = (
    ("blip2-flant5xl", "BLIP-2 stage 2: no text branch", "BLIP2/blip2_pretrained_flant5xl.pth"),
    ("blip2-stage1", "BLIP-2 stage 1: with text branch", "BLIP2/blip2_pretrained.pth"),
    ("instructblip-flant5xl", "InstructBLIP: with text branch", "InstructBLIP/instruct_blip_flanxl_trimmed.pth"),
)
_COPIES = ("Salesforce/blip2-flan-t5-xl", "Salesforce/blip2-itm-vit-g", "Salesforce/instructblip-flan-t5-xl")
_FOLDERS = (
    ("bert-base-uncased", "text side of the Q-Formers", "google-bert/bert-base-uncased"),
    ("google/flan-t5-base", "language model", "google/flan-t5-base"),
    ("openai/clip-vit-large-patch14", "frame encoder", "openai/clip-vit-large-patch14"),
    ("laion/clap-htsat-unfused", "audio encoder", "laion/clap-htsat-unfused"),
)
_COPIED = tuple(zip(_FILES, _COPIES, strict=True))
_KNOWN = (
    *(KnownWeights(name, what, url=f"{_LAVIS}/{file}", copy=copy) for (name, what, file), copy in _COPIED),
    *(KnownWeights(copy, f"{name} on the hub, image encoder included", "", copy) for (name, _, _), copy in _COPIED),
    *(KnownWeights(name, what, repository=repository) for name, what, repository in _FOLDERS),
)
KNOWN = {known.name: known for known in _KNOWN}


@dataclass(frozen=True)
class Fetched:
    """Fetched files: `files` has the sha256 of each, `checked` names what they were compared with."""

    name: str
    path: Path
    files: dict[str, str]
    checked: str
    downloaded: bool
    revision: str = ""


def fetch_weights(name: str, out: Path, sha256: str | None = None, progress: Progress = no_progress) -> Fetched:
    """Fetch the weights known as `name` into the folder `out`; existing files are only verified.

    Raises InputError for an unknown name, an unreachable or refusing server, a full disk and a wrong checksum.
    """
    known = KNOWN.get(name)
    if known is None:
        raise InputError(f"{name}: not a known name; choose from {', '.join(KNOWN)}")
    if known.url:
        return fetch_file(name, known.url, out / known.url.rpartition("/")[2], sha256, progress)
    if sha256 is not None:
        raise InputError(f"--sha256 is for a single file; {name} is a folder whose checksums the hub publishes")
    return fetch_repository(name, known.repository, out / name.rpartition("/")[2])


def fetch_file(
    name: str, url: str, target: Path, sha256: str | None = None, progress: Progress = no_progress
) -> Fetched:
    """Download `url` to `target`, or verify an existing file; one process at a time.

    Raises InputError for an unreachable or refusing server, a full disk and a wrong checksum.
    """
    from filelock import FileLock, Timeout

    given = (sha256 or "").strip().lower()
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", given):
        raise InputError(f"--sha256 {sha256}: must be 64 hexadecimal digits")
    target.parent.mkdir(parents=True, exist_ok=True)
    busy = refused(f"{target}: another process is fetching it", "wait until it ends", Timeout)
    with busy, FileLock(target.with_name(f".{target.name}.lock"), timeout=0):
        return _fetch_file(name, url, target, given, progress)


def _fetch_file(name: str, url: str, target: Path, given: str, progress: Progress) -> Fetched:
    from videoblip2.model.tensor_files import sniff  # torch

    there, sums = target.exists(), target.with_name(f"{target.name}.sha256")
    file, sent = (target, "") if there else _receive(url, target)
    sha256, md5 = digests(file, progress)
    recorded = _read_sums(sums).get(target.name, "") if there else ""
    remedy = "delete it and fetch it again" if there else "it was discarded: fetch it again"
    checked = "nothing: no sha256 is given, published or recorded; it is recorded for later runs"
    checks = ((md5, sent, "the MD5 that the server sent"), (sha256, recorded, _RECORDED), (sha256, given, _GIVEN))
    try:
        for found, wanted, whose in checks:
            if wanted:
                _compare(file, found, wanted, whose, remedy)
                checked = whose
        sniff(file)
    except InputError:
        if not there:
            file.unlink()  # complete but wrong, so resuming cannot help
        raise
    if not there:
        os.replace(file, target)
    if not recorded:
        _write_sums(sums, {target.name: sha256})
    return Fetched(name, target, {target.name: sha256}, checked, downloaded=not there)


def _receive(url: str, target: Path) -> tuple[Path, str]:
    """The complete part of `target`, and its MD5 (hexadecimal) if the server sent one, or ""."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.file_download import http_get

    try:
        answer = get_session().head(url, follow_redirects=True, timeout=60)
        answer.raise_for_status()
        etag = answer.headers.get("ETag", "")
        etag = "" if etag.startswith("W/") else etag
        size = int(answer.headers.get("Content-Length", -1))
        part = _part(url, target, etag, size)
        with part.open("ab") as file:
            kept = file.tell()
            if (needed := size - kept) > (free := shutil.disk_usage(part.parent).free):
                raise InputError(f"{part.parent}: {free:,} bytes free, {needed:,} needed; make room and run again")
            headers, expected = {"If-Range": etag, "Accept-Encoding": "identity"}, size if size >= 0 else None
            http_get(
                url, file, resume_size=kept, headers=headers, expected_size=expected, displayed_filename=target.name
            )
    except (HTTPError, OSError) as error:
        copy = next((known.copy for known in KNOWN.values() if known.url == url), "")
        raise InputError(f"{urlsplit(url).hostname}: {_reason(error, target, copy)}") from error
    hashes = (item.strip().partition("=") for item in answer.headers.get("x-goog-hash", "").split(","))
    return part, next((base64.b64decode(value).hex() for kind, _, value in hashes if kind == "md5"), "")


def _part(url: str, target: Path, etag: str, size: int) -> Path:
    """The partial file for this version (ETag); parts that cannot be resumed, or of other versions, are removed."""
    version = hashlib.sha256(f"{url} {etag}".encode()).hexdigest()[:8]
    part = target.with_name(f"{target.name}.{version}.part")
    for other in target.parent.glob(f"{target.name}.*.part"):
        if other != part or not etag or (0 <= size < other.stat().st_size):
            other.unlink()
    return part


def _reason(error: Exception, target: Path, copy: str) -> str:
    """Why the download of `target` stopped, how much of it is kept, and the remedy."""
    reason = f"cannot be reached ({first_line(error)})"
    if (answer := getattr(error, "response", None)) is not None:
        reason = f"the server answered {answer.status_code} {answer.reason_phrase} for {answer.url.path}"
    kept = sum(part.stat().st_size for part in target.parent.glob(f"{target.name}.*.part"))
    again = f"; {kept:,} bytes are kept, run again to resume" if kept else ""
    on_hub = f"run `vb2 weights fetch {copy}`, or name {copy} in model.qformer.weights"
    again += f"; the hub has the same weights: {on_hub}" if copy else ""
    return f"{reason}{again}; behind a proxy set HTTPS_PROXY, or copy the file from another machine to {target}"


def fetch_repository(name: str, repository: str, folder: Path) -> Fetched:
    """Fetch configuration, tokenizer and weights of `repository` into `folder`; a folder that verifies is kept.

    Safetensors are preferred, else pytorch_model.bin is used. The hub's client resumes and honors
    HTTPS_PROXY and HF_ENDPOINT. Raises InputError if the hub cannot be reached or a checksum differs.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if recorded := _read_sums(folder / _SUMS):
        _verify(folder, recorded, _RECORDED)
        return Fetched(name, folder, recorded, _RECORDED, downloaded=False)
    if not sys.stderr.isatty():
        disable_progress_bars()
    client: Any = HfApi()
    remedy = "behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT, or copy the folder from another machine to"
    with refused(f"{repository}: the hub cannot be reached or refuses", f"{remedy} {folder}", HTTPError, OSError):
        info = client.model_info(repository, files_metadata=True)
        wanted = _wanted(info.siblings)
        names = [file.rfilename for file in wanted]
        client.snapshot_download(repository, revision=info.sha, local_dir=folder, allow_patterns=names)
    published = {file.rfilename: file.lfs.sha256 for file in wanted if file.lfs is not None}
    files = _verify(folder, published, "the sha256 published by the hub")
    files = {file: files.get(file) or digests(folder / file)[0] for file in names}
    _write_sums(folder / _SUMS, files)
    checked = f"the sha256 published by the hub ({len(published)} of {len(files)} files have one)"
    return Fetched(name, folder, files, checked, downloaded=True, revision=info.sha)


def _wanted(siblings: Iterable[Any]) -> list[Any]:
    """The needed files, from the top folder of the repository."""
    files = [file for file in siblings if "/" not in file.rfilename]
    safetensors = [file for file in files if file.rfilename.endswith(".safetensors")]
    weights = safetensors or [file for file in files if file.rfilename.startswith("pytorch_model")]
    return [file for file in files if file.rfilename.endswith(_TEXTS) and file not in weights] + weights


def _verify(folder: Path, wanted: Mapping[str, str], whose: str) -> dict[str, str]:
    for name, digest in wanted.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing; delete {folder} and fetch it again")
        _compare(folder / name, digests(folder / name)[0], digest, whose, "delete it and fetch it again")
    return dict(wanted)


def _compare(path: Path, found: str, wanted: str, whose: str, remedy: str) -> None:
    if found != wanted:
        raise InputError(f"{path}: its checksum {found} is not {whose} ({wanted}); {remedy}")


def digests(path: Path, progress: Progress = no_progress) -> tuple[str, str]:
    """(sha256, MD5) of a file, as hexadecimal; the MD5 detects a damaged transfer, not a forgery."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    chunks = -(-path.stat().st_size // _CHUNK)
    with path.open("rb") as file:
        for chunk in progress(iter(lambda: file.read(_CHUNK), b""), chunks, f"checking {path.name} (MiB)"):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def _write_sums(path: Path, files: Mapping[str, str]) -> None:
    """Write the format that `sha256sum --check` reads."""
    write_text(path, "".join(f"{digest}  {name}\n" for name, digest in files.items()))


def _read_sums(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name.strip(): digest.lower() for digest, _, name in (line.partition(" ") for line in lines) if name}
