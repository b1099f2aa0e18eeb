"""The feature store: `video/ID.npy` float32 [F, 768], `audio/ID.npy` float32 [A, 512], and `manifest.json`."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoblip2.config import InputError

WIDTHS = {"video": 768, "audio": 512}

Features = NDArray[np.float32]


class FeatureStore:
    """Read the features in `root`. A folder of a user's own .npy files will do: `manifest` is None there."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not (self.root / "video").is_dir():
            raise InputError(f"{self.root}: holds no video/ folder; make features with `vb2 features extract`")

    @cached_property
    def ids(self) -> list[str]:
        """The videos that have frame features, sorted; numbers count as numbers (video2 before video10)."""
        return sorted((path.stem for path in (self.root / "video").glob("*.npy")), key=lambda name: (len(name), name))

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """What `vb2 features extract` noted, or None where there is no manifest.json."""
        return read_manifest(self.root)

    def video(self, video_id: str) -> Features:
        """Frame features -> float32 [F, 768], F >= 1. Raises `InputError` for a missing or unusable file."""
        features = read_features(self._path("video", video_id), WIDTHS["video"])
        if not len(features):
            raise InputError(f"{self._path('video', video_id)}: holds no frame; extract {video_id} again")
        return features

    def audio(self, video_id: str) -> Features:
        """Audio features -> float32 [A, 512]; A = 0 for a video without audio. Raises `InputError` as `video` does."""
        return read_features(self._path("audio", video_id), WIDTHS["audio"])

    def _path(self, modality: str, video_id: str) -> Path:
        path = self.root / modality / f"{video_id}.npy"
        if path.parent != self.root / modality or not path.is_file():
            rows = " (a video without audio has an array of shape [0, 512])" if modality == "audio" else ""
            raise InputError(f"{path}: {video_id} has no {modality} features{rows}; extract it or leave it out")
        return path


def read_features(path: Path, width: int) -> Features:
    """One array [rows, width] of finite floats -> float32. Raises `InputError` that names the file."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a plain .npy array ({error}); extract it again") from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{path}: holds {kind}, not floating-point numbers; extract it again")
    if array.ndim != 2 or array.shape[1] != width:
        raise InputError(
            f"{path}: has the shape {list(array.shape)}, wanted [rows, {width}]; extract it with that encoder"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{path}: holds NaN or infinity; extract it again")
    return array.astype(np.float32, copy=False)


def digest(store: FeatureStore, ids: Iterable[str]) -> str:
    """12 hex digits (sha256) over the files of these videos: what a run was trained on."""
    state = hashlib.sha256()
    for video_id in sorted(ids):
        state.update(video_id.encode())
        for modality in WIDTHS:
            state.update(store._path(modality, video_id).read_bytes())
    return state.hexdigest()[:12]


def write_features(root: Path, video_id: str, video: Features, audio: Features) -> None:
    """Write both arrays of one video, each atomically; the video's last, since `ids` goes by it."""
    for modality, array in (("audio", audio), ("video", video)):
        _replace(root / modality / f"{video_id}.npy", array)


def read_manifest(root: Path) -> dict[str, Any] | None:
    """`manifest.json` of a store, None where there is none. Raises `InputError` if it is unreadable."""
    path = root / "manifest.json"
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and extract again") from error
    if not isinstance(manifest, dict) or "videos" not in manifest:
        raise InputError(f'{path}: has no "videos"; delete it and extract again')
    return manifest


def write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json`, atomically."""
    _replace(root / "manifest.json", manifest)


def _replace(path: Path, content: Features | dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
        try:
            if isinstance(content, dict):
                file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())
            else:
                np.save(file, content, allow_pickle=False)
            file.close()
            os.replace(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)
