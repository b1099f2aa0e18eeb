"""The published weights by name: a file of LAVIS, or a model folder from the Hugging Face hub.

LAVIS publishes no sha256 (`weight_download` says what is checked). The hub publishes one for each large file; a folder
is fetched at one commit, only the files that are read here, and its checksums are recorded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from videoblip2.errors import InputError, first_line
from videoblip2.model.qformer.weight_download import (
    Fetched,
    Progress,
    digests,
    fetch_file,
    quiet_hub,
    read_checksums,
    unhurried,
    write_checksums,
)

_TEXTS = (".json", ".txt", ".model")
_SUMS = "SHA256SUMS"
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


class Hub(Protocol):
    """The two calls of huggingface_hub.HfApi that are used here."""

    def model_info(self, repo_id: str, *, files_metadata: bool) -> Any:
        """`.sha` and `.siblings`, each with `rfilename` and, for a large file, `lfs.sha256`."""

    def snapshot_download(self, repo_id: str, *, revision: str, local_dir: Path, allow_patterns: list[str]) -> object:
        """Download the files named by `allow_patterns` into `local_dir`."""


def fetch_repository(name: str, repository: str, folder: Path, hub: Hub | None = None) -> Fetched:
    """Fetch configuration, tokenizer and weights of `repository` into `folder`; a folder that verifies is kept.

    Safetensors are preferred; pytorch_model.bin is taken where there are none. The hub's client resumes and honours
    HTTPS_PROXY and HF_ENDPOINT. Raises InputError where the hub cannot be reached or a checksum differs.
    """
    recorded = read_checksums(folder / _SUMS)
    if recorded:
        _compare(folder, recorded, "recorded when it was fetched")
        return Fetched(name, folder, recorded, "the sha256 recorded when it was fetched", downloaded=False)
    info = _download(repository, folder, hub)
    published = {file.rfilename: file.lfs.sha256 for file in _wanted(info.siblings) if file.lfs is not None}
    _compare(folder, published, "published by the hub")
    files = {file.rfilename: digests(folder / file.rfilename)[0] for file in _wanted(info.siblings)}
    write_checksums(folder / _SUMS, files)
    checked = f"the sha256 published by the hub ({len(published)} of {len(files)} files have one)"
    return Fetched(name, folder, files, checked, downloaded=True, revision=info.sha)


def _download(repository: str, folder: Path, hub: Hub | None) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    quiet_hub()
    client: Any = hub or HfApi()
    try:
        info = client.model_info(repository, files_metadata=True)
        names = [file.rfilename for file in _wanted(info.siblings)]
        client.snapshot_download(repository, revision=info.sha, local_dir=folder, allow_patterns=names)
    except (HTTPError, OSError) as error:
        raise InputError(
            f"{repository}: the hub cannot be reached or refuses ({first_line(error)}); behind a proxy set "
            f"HTTPS_PROXY, for a mirror HF_ENDPOINT, or copy the folder from another machine to {folder}"
        ) from error
    return info


def _wanted(siblings: Iterable[Any]) -> list[Any]:
    """The files at the top of the repository that are read here."""
    files = [file for file in siblings if "/" not in file.rfilename]
    safetensors = [file for file in files if file.rfilename.endswith(".safetensors")]
    weights = safetensors or [file for file in files if file.rfilename.startswith("pytorch_model")]
    return [file for file in files if file.rfilename.endswith(_TEXTS) and file not in weights] + weights


def _compare(folder: Path, wanted: dict[str, str], whose: str) -> None:
    for name, digest in wanted.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing; delete {folder} and fetch it again")
        found, _ = digests(path)
        if found != digest:
            raise InputError(f"{path}: its sha256 {found} is not the one {whose} ({digest}); delete it and fetch again")
