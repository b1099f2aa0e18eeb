"""The feature store: features float32 [rows, width] of each video, in each modality.

Two forms, one reader. A folder with `video/ID.npy`, `audio/ID.npy` and so on, and `manifest.json`, is what extraction
writes; it can grow. A packed file holds the same in one memory-mapped piece (`features.packed`), for reading only.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from videoblip2.errors import InputError, Progress, no_progress
from videoblip2.features.manifest import FeatureManifest, VideoNote
from videoblip2.features.packed import PackedFile
from videoblip2.files import atomic
from videoblip2.modality import MODALITIES, Features
from videoblip2.provenance import FeatureOrigin


class FeatureStore:
    """The features in `root`, a folder or a packed file. A folder of a user's own .npy files will do: its `manifest` is
    None. Can be pickled: the copy opens the store again.

    Args:
        modalities: what to read; by default all that the store has.
    """

    def __init__(self, root: str | Path, modalities: Sequence[str] | None = None) -> None:
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
        self.modalities = tuple(filter(self._files.has, MODALITIES) if modalities is None else modalities)

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path, tuple[str, ...]]]:
        return FeatureStore, (self.root, self.modalities)

    @property
    def packed(self) -> bool:
        """Whether this is one memory-mapped file, which is best left to the operating system's cache."""
        return isinstance(self._files, PackedFile)

    @cached_property
    def ids(self) -> list[str]:
        """The videos that have frame features, sorted numerically (video2 before video10)."""
        return self._files.ids()

    def holds(self, modality: str, video_id: str) -> bool:
        """Whether there is an array of this modality for the video, even if it has 0 rows."""
        return self._files.holds(modality, video_id)

    def complete(self, video_id: str) -> bool:
        """Whether the video has every modality that is read."""
        return all(self.holds(modality, video_id) for modality in self.modalities)

    @cached_property
    def manifest(self) -> FeatureManifest | None:
        """What `vb2 features extract` recorded; None if there is no manifest."""
        return self._files.manifest()

    @property
    def origin(self) -> FeatureOrigin | None:
        """What the features were made with; None if that is not recorded."""
        origin = self.manifest.origin if self.manifest else None
        return origin if origin and (origin.encoders or origin.settings.recorded) else None

    @cached_property
    def widths(self) -> dict[str, int]:
        """Width of each modality, from the manifest or else from the first video."""
        return {name: self._files.width(name) or MODALITIES[name].width for name in self.modalities}

    def features(self, video_id: str) -> Features:
        """All modalities of one video. Raises `InputError` as `array` does."""
        return {name: self.array(name, video_id) for name in self.modalities}

    def array(self, modality: str, video_id: str) -> NDArray[np.float32]:
        """float32 [rows, width]; 0 rows if the video lacks the modality.

        Raises `InputError` for features that are missing or cannot be used.
        """
        return self.stored(modality, video_id).astype(np.float32, copy=False)

    def stored(self, modality: str, video_id: str) -> NDArray[np.floating[Any]]:
        """The same as `array`, in the type that it is stored in, such as float16."""
        array, width = self._files.array(modality, video_id), self.widths[modality]
        if array.dtype.kind != "f":
            problem = f"holds {array.dtype}, not floating-point numbers; extract it again"
        elif array.ndim != 2 or array.shape[1] != width:
            problem = f"has the shape {list(array.shape)}, expected [rows, {width}]; extract it with that encoder"
        elif MODALITIES[modality].required and not len(array):
            problem = "holds no row; extract it again"
        elif not np.isfinite(array).all():
            problem = "holds NaN or infinity; extract it again"
        else:
            return array
        raise InputError(f"{self._files.where(modality, video_id)}: {problem}")


class _Folder:
    """Features as `MODALITY/ID.npy`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, modality: str) -> bool:
        return (self._root / modality).is_dir()

    def width(self, modality: str) -> int | None:
        manifest = self.manifest()
        if manifest and modality in manifest.widths:
            return manifest.widths[modality]
        first = next(iter(sorted((self._root / modality).glob("*.npy"))), None)
        shape = () if first is None else self.array(modality, first.stem).shape
        return shape[1] if len(shape) == 2 else None

    def holds(self, modality: str, video_id: str) -> bool:
        return self.where(modality, video_id).is_file()

    def ids(self) -> list[str]:
        return sorted((path.stem for path in (self._root / "video").glob("*.npy")), key=lambda name: (len(name), name))

    @cached_property
    def _manifest(self) -> FeatureManifest | None:
        return FeatureManifest.read(self._root)

    def manifest(self) -> FeatureManifest | None:
        return self._manifest

    def where(self, modality: str, video_id: str) -> Path:
        return self._root / modality / f"{video_id}.npy"

    def array(self, modality: str, video_id: str) -> NDArray[Any]:
        path = self.where(modality, video_id)
        if path.parent != self._root / modality or not path.is_file():
            entry = MODALITIES[modality]
            rows = "" if entry.required else f" (a video without {modality} has an array of shape [0, {entry.width}])"
            raise InputError(f"{path}: {video_id} has no {modality} features{rows}; extract it or leave it out")
        return _load(path, "extract it again")


def digest(store: FeatureStore, ids: Iterable[str]) -> str:
    """12 hex digits (sha256) over the features of these videos: what a run was trained on, packed or not.

    What the package extracts counts where it exists, so that runs that read a part of a store name it alike. Raises
    InputError for features that are read and cannot be used.
    """
    state = hashlib.sha256()
    for video_id in sorted(ids):
        state.update(video_id.encode())
        for name, modality in MODALITIES.items():
            if name in store.modalities or (modality.encoder and store.holds(name, video_id)):
                read = store.stored if name in store.modalities else store._files.array
                np.save(content := io.BytesIO(), read(name, video_id), allow_pickle=False)
                state.update(content.getbuffer())
    return state.hexdigest()[:12]


def write_features(root: Path, video_id: str, features: Features) -> None:
    """Write the arrays of one video, each atomically; those that every video has come last, since `ids` lists them."""
    for modality in sorted(features, key=lambda name: MODALITIES[name].required):
        with atomic(root / modality / f"{video_id}.npy") as file:
            np.save(file, features[modality], allow_pickle=False)


def import_arrays(
    video: Path, ids: Path, out: Path, audio: Path | None = None, progress: Progress = no_progress
) -> int:
    """One .npy of frame features [N,F,D], a JSON list of N video ids (and audio [N,A,D']) → a store of N videos.

    Rows narrower than the modality's usual width are padded with zeros, which a linear layer ignores. Returns N.
    Raises InputError for other shapes, a different number of ids, and ids that are not file names.
    """
    frames, width = _open_array(video, "video"), MODALITIES["audio"].width
    names = _read_ids(ids, len(frames), video)
    sound = np.zeros((len(names), 0, width), np.float32) if audio is None else _open_array(audio, "audio")
    if len(sound) != len(names):
        raise InputError(f"{audio}: holds {len(sound)} videos, {video} {len(names)}; give arrays of the same videos")
    for row in progress(range(len(names)), len(names), "features"):
        features = {}
        for name, array in (("video", frames[row]), ("audio", sound[row])):
            missing = max(0, MODALITIES[name].width - array.shape[1])
            features[name] = np.pad(array.astype(np.float32), ((0, 0), (0, missing)))
        write_features(out, names[row], features)
    count = sound.shape[1]
    note = VideoNote(frames=frames.shape[1], audio_windows=count, audio="present" if count else "absent")
    FeatureManifest(imported_from=video.name, videos=dict.fromkeys(names, note), failed={}).write(out)
    return len(names)


def _load(path: Path, remedy: str, mode: Literal["r"] | None = None) -> NDArray[Any]:
    try:
        array = np.load(path, mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a plain .npy array ({error}); {remedy}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: holds {type(array).__name__}, not one array; {remedy}")
    return array


def _open_array(path: Path, modality: str) -> NDArray[Any]:
    array = _load(path, "give one array [videos, rows, width]", "r")
    if array.ndim != 3 or array.dtype.kind != "f" or not array.shape[2]:
        raise InputError(
            f"{path}: {array.dtype} of shape {list(array.shape)}; {modality} features are floats [videos, rows, width]"
        )
    return array


def _read_ids(path: Path, count: int, array: Path) -> Sequence[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON list of video ids ({error}); give one for each row of {array}") from error
    if not isinstance(names, list) or len(names) != count or len(set(map(str, names))) != count:
        raise InputError(f"{path}: not {count} different video ids, one for each row of {array}; correct the list")
    wrong = [name for name in names if not isinstance(name, str) or not name or Path(name).name != name]
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} cannot be a file name; give plain video ids such as video0")
    return names
