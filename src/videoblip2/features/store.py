"""The feature store: frame features float32 [F, 768] and audio features float32 [A, 512] of each video.

Two forms, one reader. A folder with `video/ID.npy`, `audio/ID.npy` and `manifest.json` is what extraction writes, and
grows. A packed file holds the same in one memory-mapped piece (`features.packed`), for reading only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoblip2.config import InputError
from videoblip2.features.manifest import read_manifest as read_manifest
from videoblip2.features.manifest import write_manifest as write_manifest
from videoblip2.features.packed import WIDTHS as WIDTHS
from videoblip2.features.packed import PackedFile
from videoblip2.files import atomic

Features = NDArray[np.float32]


class FeatureStore:
    """Read the features in `root`, a folder or a packed file. A folder of a user's own .npy files will do: `manifest`
    is None there. Can be pickled: the copy opens the store again.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._files: _Folder | PackedFile
        if self.root.is_file():
            self._files = PackedFile(self.root)
        elif (self.root / "video").is_dir():
            self._files = _Folder(self.root)
        else:
            raise InputError(
                f"{self.root}: no packed features and no folder with video/ in it; "
                "make features with `vb2 features extract`"
            )

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.root,)

    @property
    def packed(self) -> bool:
        """Whether this is one memory-mapped file, which the operating system caches better than anyone."""
        return isinstance(self._files, PackedFile)

    @cached_property
    def ids(self) -> list[str]:
        """The videos that have frame features, sorted; numbers count as numbers (video2 before video10)."""
        return self._files.ids()

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """What `vb2 features extract` noted, or None where there is no manifest."""
        return self._files.manifest()

    def video(self, video_id: str) -> Features:
        """Frame features -> float32 [F, 768], F >= 1. Raises `InputError` for missing or unusable ones."""
        features = self._features("video", video_id)
        if not len(features):
            raise InputError(f"{self._files.where('video', video_id)}: holds no frame; extract {video_id} again")
        return features

    def audio(self, video_id: str) -> Features:
        """Audio features -> float32 [A, 512]; A = 0 for a video without audio. Raises `InputError` as `video` does."""
        return self._features("audio", video_id)

    def stored(self, modality: str, video_id: str) -> NDArray[np.floating[Any]]:
        """The same as `video` and `audio` give, in the type that it is stored in, float16 for example."""
        array = self._files.array(modality, video_id)
        problem = _problem(array, WIDTHS[modality])
        if problem:
            raise InputError(f"{self._files.where(modality, video_id)}: {problem}")
        return array

    def content(self, modality: str, video_id: str) -> bytes:
        """One array as a .npy file: the same bytes whichever form the store has."""
        return self._files.content(modality, video_id)

    def _features(self, modality: str, video_id: str) -> Features:
        return self.stored(modality, video_id).astype(np.float32, copy=False)


def _problem(array: NDArray[Any], width: int) -> str | None:
    """What makes an array unfit to be features [rows, width], with the remedy; None where nothing does."""
    if array.dtype.kind != "f":
        return f"holds {array.dtype}, not floating-point numbers; extract it again"
    if array.ndim != 2 or array.shape[1] != width:
        return f"has the shape {list(array.shape)}, wanted [rows, {width}]; extract it with that encoder"
    if not np.isfinite(array).all():
        return "holds NaN or infinity; extract it again"
    return None


class _Folder:
    """Features as `video/ID.npy` and `audio/ID.npy`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def ids(self) -> list[str]:
        return sorted((path.stem for path in (self._root / "video").glob("*.npy")), key=lambda name: (len(name), name))

    def manifest(self) -> dict[str, Any] | None:
        return read_manifest(self._root)

    def where(self, modality: str, video_id: str) -> str:
        return str(self._root / modality / f"{video_id}.npy")

    def array(self, modality: str, video_id: str) -> NDArray[Any]:
        path = self._path(modality, video_id)
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not a plain .npy array ({error}); extract it again") from error
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path}: holds {type(array).__name__}, not one array; extract it again")
        return array

    def content(self, modality: str, video_id: str) -> bytes:
        return self._path(modality, video_id).read_bytes()

    def _path(self, modality: str, video_id: str) -> Path:
        path = self._root / modality / f"{video_id}.npy"
        if path.parent != self._root / modality or not path.is_file():
            rows = " (a video without audio has an array of shape [0, 512])" if modality == "audio" else ""
            raise InputError(f"{path}: {video_id} has no {modality} features{rows}; extract it or leave it out")
        return path


def digest(store: FeatureStore, ids: Iterable[str]) -> str:
    """12 hex digits (sha256) over the features of these videos: what a run was trained on, packed or not."""
    state = hashlib.sha256()
    for video_id in sorted(ids):
        state.update(video_id.encode())
        for modality in WIDTHS:
            state.update(store.content(modality, video_id))
    return state.hexdigest()[:12]


def write_features(root: Path, video_id: str, video: Features, audio: Features) -> None:
    """Write both arrays of one video, each atomically; the video's last, since `ids` goes by it."""
    for modality, array in (("audio", audio), ("video", video)):
        with atomic(root / modality / f"{video_id}.npy") as file:
            np.save(file, array, allow_pickle=False)
