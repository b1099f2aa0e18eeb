"""The feature store: features float32 [rows, width] of each video in each modality.

It has two forms. Extraction writes a folder with `video/ID.npy`, `audio/ID.npy` and so on, and `manifest.json`, which
can grow. A packed file (`features.packed`) has the same content, memory-mapped and read-only.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from videoblip2.config import ModelConfig
from videoblip2.errors import InputError, refused
from videoblip2.features.manifest import FeatureManifest
from videoblip2.features.packed import PackedRows, open_packed
from videoblip2.files import atomic
from videoblip2.modality import MODALITIES, Features
from videoblip2.provenance import ENCODERS, FeatureOrigin


class FeatureStore:
    """The features in `root`, a folder or a packed file. Without a manifest, as in a folder of a user's own .npy files,
    `manifest` is None. It can be pickled; the copy opens the store again.

    Args:
        modalities: which to read; None = all that the store has.
    """

    def __init__(self, root: str | Path, modalities: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        #: Whether this is one memory-mapped file, which the operating system caches.
        self.packed = self.root.is_file()
        self._arrays: Mapping[str, PackedRows | NpyFolder]
        if self.packed:
            self._arrays, self._manifest = open_packed(self.root)
        elif (self.root / "video").is_dir():
            folders = {name: self.root / name for name in MODALITIES}
            self._arrays = {name: NpyFolder(folder) for name, folder in folders.items() if folder.is_dir()}
        else:
            raise InputError(f"{self.root}: no packed features and no video/ folder; run `vb2 features extract`")
        self.modalities = tuple(self._arrays if modalities is None else modalities)

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path, tuple[str, ...]]]:
        return FeatureStore, (self.root, self.modalities)

    @cached_property
    def ids(self) -> list[str]:
        """The videos that have frame features, sorted numerically (video2 before video10)."""
        return list(self._arrays["video"])

    def holds(self, modality: str, video_id: str) -> bool:
        """Whether there is an array of this modality for the video, even if it has 0 rows."""
        return video_id in self._arrays.get(modality, ())

    def complete(self, video_id: str) -> bool:
        """Whether the video has all of `modalities`."""
        return all(self.holds(modality, video_id) for modality in self.modalities)

    @cached_property
    def manifest(self) -> FeatureManifest | None:
        """What `vb2 features extract` recorded; None if there is none."""
        if not self.packed:
            return FeatureManifest.read(self.root)
        text = self._manifest
        return None if text == b"null" else FeatureManifest.parse(text, self.root, "pack the features again")

    @property
    def origin(self) -> FeatureOrigin | None:
        """What the features were made with; None if it is not recorded."""
        origin = self.manifest.origin if self.manifest else None
        return origin if origin and (origin.encoders or origin.settings.recorded) else None

    @cached_property
    def widths(self) -> dict[str, int]:
        """Width of each modality, from the manifest or else from the first video."""
        recorded, arrays = self.manifest.widths if self.manifest else {}, self._arrays
        return {
            name: recorded.get(name) or (arrays[name].width if name in arrays else 0) or MODALITIES[name].width
            for name in self.modalities
        }

    def features(self, video_id: str) -> Features:
        """All modalities of one video. Raises `InputError` like `array`."""
        return {name: self.array(name, video_id) for name in self.modalities}

    def array(self, modality: str, video_id: str) -> NDArray[np.float32]:
        """float32 [rows, width]; 0 rows if the video lacks the modality.

        Raises `InputError` for features that are missing or cannot be used.
        """
        return self.stored(modality, video_id).astype(np.float32, copy=False)

    def stored(self, modality: str, video_id: str) -> NDArray[np.floating[Any]]:
        """The same as `array`, in the stored type, such as float16."""
        entry, width = MODALITIES[modality], self.widths[modality]
        array = self._arrays[modality][video_id] if self.holds(modality, video_id) else None
        if array is None:
            rows = "" if entry.required else f" (a video without {modality} has an array of shape [0, {entry.width}])"
            problem = f"{video_id} has no {modality} features{rows}; extract it or leave it out"
        elif array.dtype.kind != "f":
            problem = f"contains {array.dtype}, not floating-point numbers; extract it again"
        elif array.ndim != 2 or array.shape[1] != width:
            problem = f"has the shape {list(array.shape)}, expected [rows, {width}]; extract it with that encoder"
        elif entry.required and not len(array):
            problem = "has no rows; extract it again"
        elif not np.isfinite(array).all():
            problem = "contains NaN or infinity; extract it again"
        else:
            return array
        path = self.root / modality / f"{video_id}.npy"
        where = f"{self.root} ({modality} features of {video_id})" if self.packed else path
        raise InputError(f"{where}: {problem}")


class NpyFolder:
    """One modality in a folder: each video's array, by id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, video_id: str) -> bool:
        path = self._folder / f"{video_id}.npy"
        return path.parent == self._folder and path.is_file()

    def __iter__(self) -> Iterator[str]:
        names = (path.stem for path in self._folder.glob("*.npy"))
        return iter(sorted(names, key=lambda name: (len(name), name)))

    def __getitem__(self, video_id: str) -> NDArray[Any]:
        return load_array(self._folder / f"{video_id}.npy", "extract it again")

    @property
    def width(self) -> int:
        """Width of the first array; 0 if there is none."""
        shape = next((self[video_id].shape for video_id in sorted(self)), ())
        return shape[1] if len(shape) == 2 else 0


def digest(store: FeatureStore, ids: Iterable[str]) -> str:
    """12 hex digits (sha256) of the features of these videos, the same for a folder and its packed file.

    Includes every modality that the package extracts, even if the store does not read it: runs that read different
    modalities of one store record the same digest. Raises InputError for features that are read and cannot be used.
    """
    state = hashlib.sha256()
    for video_id in sorted(ids):
        state.update(video_id.encode())
        for name, modality in MODALITIES.items():
            if name in store.modalities or (modality.extracted and store.holds(name, video_id)):
                array = store.stored(name, video_id) if name in store.modalities else store._arrays[name][video_id]
                np.save(content := io.BytesIO(), array, allow_pickle=False)
                state.update(content.getbuffer())
    return state.hexdigest()[:12]


def write_features(root: Path, video_id: str, features: Features) -> None:
    """Write the arrays of one video, each atomically. Required modalities come last, since `ids` lists those videos."""
    for modality in sorted(features, key=lambda name: MODALITIES[name].required):
        with atomic(root / modality / f"{video_id}.npy") as file:
            np.save(file, features[modality], allow_pickle=False)


def load_array(path: Path, remedy: str, mode: Literal["r"] | None = None) -> NDArray[Any]:
    with refused(f"{path}: not a plain .npy array", remedy, OSError, ValueError, EOFError):
        array = np.load(path, mode, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: contains {type(array).__name__}, not one array; {remedy}")
    return array


@dataclass(frozen=True)
class CheckReport:
    """Counts, and video ids by finding; `ok` if every requested video can be read."""

    videos: int
    frames: tuple[int, int]  # fewest and most per video
    audio_windows: tuple[int, int]
    silent: list[str]  # by the manifest
    empty: list[str]  # by the manifest: an audio stream without samples
    absent: list[str]
    missing: list[str]
    unusable: dict[str, str]  # wrong width, NaN, wrong type; with the reason
    unannotated: list[str]  # in the store, but not requested

    @property
    def ok(self) -> bool:
        return not self.missing and not self.unusable


def check_features(root: str | Path, video_ids: Iterable[str] | None = None) -> CheckReport:
    """Read the features of `video_ids` (None = all videos in the store) and report on them.

    Raises `InputError` only if `root` is not a feature store.
    """
    store = FeatureStore(root)
    wanted, present = dict.fromkeys(store.ids if video_ids is None else video_ids), set(store.ids)
    frames, windows, unusable = dict[str, int](), dict[str, int](), dict[str, str]()
    for video_id in filter(present.__contains__, wanted):
        try:
            features = store.features(video_id)
        except InputError as error:
            unusable[video_id] = str(error)
            continue
        frames[video_id], windows[video_id] = len(features["video"]), len(features.get("audio", ()))
    notes = store.manifest.videos if store.manifest else {}
    silent, empty = ([i for i in wanted if i in notes and notes[i].audio == kind] for kind in ("silent", "empty"))
    return CheckReport(
        videos=len(frames),
        frames=(min(frames.values(), default=0), max(frames.values(), default=0)),
        audio_windows=(min(windows.values(), default=0), max(windows.values(), default=0)),
        silent=silent,
        empty=empty,
        absent=[i for i in wanted if windows.get(i) == 0 and i not in empty],
        missing=[i for i in wanted if i not in present],
        unusable=unusable,
        unannotated=[i for i in store.ids if i not in wanted],
    )


def refuse_unnoted(store: FeatureStore, video_ids: Iterable[str]) -> None:
    """Raise `InputError` if an extracted store has a video that its manifest lacks: its encoder is unknown."""
    manifest = store.manifest
    if manifest is None or not manifest.encoders:
        return  # a user's own arrays
    if missing := [video_id for video_id in video_ids if video_id not in manifest.videos]:
        raise InputError(
            f"{store.root}: its manifest lacks {missing[0]} ({len(missing)} in all), which another encoder may have "
            "made; run `vb2 features extract` on these videos, or remove them"
        )


def refuse_other_widths(store: FeatureStore, model: ModelConfig) -> None:
    """Raise `InputError` if the width of a modality differs from the configuration."""
    for name in model.modality_names:
        if (found := store.widths[name]) != model.width(name):
            key = model.width_key(name)
            raise InputError(
                f"{store.root}: {name} features are {found} wide, {key}={model.width(name)}; "
                f"set {key}={found}, or use features of another encoder"
            )


def refuse_other_encoders(store: FeatureStore, trained_on: FeatureOrigin | None, by: str) -> None:
    """Raise `InputError` if checkpoint `by` was trained on features of other encoders than the store's.

    It does not if either lacks a record of its encoders. Frame rate and window length may differ.
    """
    stored = store.manifest
    if not stored or not trained_on or "clip" not in stored.encoders or "clip" not in trained_on.encoders:
        return
    for name, found, wanted in (
        *((kind.upper(), stored.fingerprint(kind), trained_on.fingerprint(kind)) for kind in ENCODERS),
        *((key, getattr(stored.settings, key), getattr(trained_on.settings, key)) for key in ("output", "tokens")),
    ):
        if found != wanted:
            raise InputError(
                f"{store.root}: holds features of {name} {found}, {by} was trained on those of {wanted}; "
                "extract with the same encoders, or use another checkpoint"
            )
