"""Downloads of the published weights: checked, resumable, and clear about what a checksum here can and cannot show.

LAVIS publishes no sha256. What is checked: a sha256 that the user gives; the MD5 that Google's storage sends with the
file, where it does; and, on every later run, the sha256 recorded beside the file when it was first fetched. The hub
publishes a sha256 for each large file, and that one is checked (`hub_fetch`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.model.qformer.checksums import Fetched, digests, read_checksums, write_checksums
from videoblip2.model.qformer.http_download import Progress, receive, unhurried
from videoblip2.model.qformer.hub_fetch import fetch_repository

_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models"


@dataclass(frozen=True)
class KnownWeights:
    """Weights that can be fetched by name: from a `url`, or from a hub `repository`."""

    name: str
    what: str
    url: str = ""
    repository: str = ""


KNOWN = {
    weights.name: weights
    for weights in (
        KnownWeights(
            "blip2-flant5xl", "BLIP-2 stage 2: no text branch", f"{_LAVIS}/BLIP2/blip2_pretrained_flant5xl.pth"
        ),
        KnownWeights("blip2-stage1", "BLIP-2 stage 1: with text branch", f"{_LAVIS}/BLIP2/blip2_pretrained.pth"),
        KnownWeights(
            "instructblip-flant5xl",
            "InstructBLIP: with text branch",
            f"{_LAVIS}/InstructBLIP/instruct_blip_flanxl_trimmed.pth",
        ),
        KnownWeights("bert-base-uncased", "text side of the Q-Formers", repository="google-bert/bert-base-uncased"),
        KnownWeights("google/flan-t5-base", "language model", repository="google/flan-t5-base"),
        KnownWeights("openai/clip-vit-large-patch14", "frame encoder", repository="openai/clip-vit-large-patch14"),
        KnownWeights("laion/clap-htsat-unfused", "audio encoder", repository="laion/clap-htsat-unfused"),
    )
}


def fetch_weights(name: str, out: Path, sha256: str | None = None, progress: Progress = unhurried) -> Fetched:
    """Fetch the weights known as `name` into the folder `out`; what is there already is only verified.

    Raises InputError for an unknown name, an unreachable or refusing server, a full disk and a wrong checksum.
    """
    known = KNOWN.get(name)
    if known is None:
        raise InputError(f"{name}: not among the known weights; choose from {', '.join(KNOWN)}")
    if known.url:
        return fetch_file(name, known.url, out / known.url.rpartition("/")[2], sha256, progress)
    if sha256 is not None:
        raise InputError(f"--sha256 is for a single file; {name} is a folder whose checksums the hub publishes")
    return fetch_repository(name, known.repository, out / name.rpartition("/")[2])


def fetch_file(name: str, url: str, target: Path, sha256: str | None = None, progress: Progress = unhurried) -> Fetched:
    """Download `url` to `target`, through `target.part`; only one process at a time. See `fetch_weights`."""
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
    from videoblip2.model.tensor_files import sniff

    part = target.with_name(target.name + ".part")
    published_md5 = receive(url, part, target, progress)
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
        part.unlink()  # complete and wrong: going on from it could never end well
        raise
    os.replace(part, target)
    _record(target, sha256)
    return Fetched(name, target, {target.name: sha256}, checked, downloaded=True)


def _verified(name: str, target: Path, wanted: str | None, progress: Progress) -> Fetched:
    sha256, _ = digests(target, progress)
    recorded = _recorded(target)
    checked = "nothing: no sha256 given and none recorded; it is recorded now"
    for value, what in ((recorded, "the sha256 recorded when it was fetched"), (wanted, "the sha256 given")):
        if value:
            _compare(target, sha256, value, what, "delete it and fetch it again")
            checked = what
    if not recorded:
        _record(target, sha256)
    return Fetched(name, target, {target.name: sha256}, checked, downloaded=False)


def _record(target: Path, sha256: str) -> None:
    write_checksums(target.with_name(target.name + ".sha256"), {target.name: sha256})


def _recorded(target: Path) -> str | None:
    return read_checksums(target.with_name(target.name + ".sha256")).get(target.name)


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
