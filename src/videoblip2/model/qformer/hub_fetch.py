"""A model folder from the Hugging Face hub: only the files that are read here, at one commit, checksums verified."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from videoblip2.config import InputError
from videoblip2.errors import first_line
from videoblip2.model.qformer.checksums import Fetched, digests, read_checksums, write_checksums

_TEXTS = (".json", ".txt", ".model")
_SUMS = "SHA256SUMS"


class Hub(Protocol):
    """The two calls of huggingface_hub.HfApi that are used here."""

    def model_info(self, repo_id: str, *, files_metadata: bool) -> Any:
        """`.sha` and `.siblings`, each with `rfilename` and, for a large file, `lfs.sha256`."""

    def snapshot_download(self, repo_id: str, *, revision: str, local_dir: Path, allow_patterns: list[str]) -> Any:
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
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()
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
