"""Features that a user already has in one array, into a feature store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videoblip2.errors import InputError
from videoblip2.features.manifest import FeatureManifest, VideoNote
from videoblip2.features.store import write_features
from videoblip2.modality import MODALITIES

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def import_arrays(
    video: Path, ids: Path, out: Path, audio: Path | None = None, progress: Progress = lambda items, *_: items
) -> int:
    """One .npy of frame features [N,F,D], a JSON list of N video ids (and audio [N,A,D']) → a store of N videos.

    Rows narrower than the modality's usual width are padded with zeros, which a linear layer ignores. Returns N.
    Raises InputError for other shapes, a different number of ids, and ids that are not file names.
    """
    frames = _open(video, "video")
    names = _names(ids, len(frames), video)
    windows = None if audio is None else _open(audio, "audio")
    if windows is not None and len(windows) != len(frames):
        raise InputError(f"{audio}: holds {len(windows)} videos, {video} {len(frames)}; give arrays of the same videos")
    silence = np.zeros((0, MODALITIES["audio"].width), np.float32)
    for row in progress(range(len(names)), len(names), "features"):
        sound = silence if windows is None else _filled(windows[row], "audio")
        write_features(out, names[row], {"video": _filled(frames[row], "video"), "audio": sound})
    count = 0 if windows is None else windows.shape[1]
    note = VideoNote(frames=frames.shape[1], audio_windows=count, audio="present" if count else "absent")
    FeatureManifest(imported_from=video.name, videos=dict.fromkeys(names, note), failed={}).write(out)
    return len(names)


def _open(path: Path, modality: str) -> Any:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a plain .npy array ({error}); give one array [videos, rows, width]") from error
    if array.ndim != 3 or array.dtype.kind != "f" or not array.shape[2]:
        raise InputError(
            f"{path}: {array.dtype} of shape {list(array.shape)}; {modality} features are floats [videos, rows, width]"
        )
    return array


def _names(path: Path, count: int, array: Path) -> Sequence[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a JSON list of video ids ({error}); give one id for each row of {array}"
        ) from error
    if not isinstance(names, list) or len(names) != count or len(set(map(str, names))) != count:
        raise InputError(f"{path}: not {count} different video ids, one for each row of {array}; correct the list")
    wrong = [name for name in names if not isinstance(name, str) or not name or Path(name).name != name]
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} cannot be a file name; give plain video ids such as video0")
    return names


def _filled(rows: Any, modality: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    wide = np.zeros((len(rows), max(rows.shape[1], MODALITIES[modality].width)), np.float32)
    wide[:, : rows.shape[1]] = rows
    return wide
