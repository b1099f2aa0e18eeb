"""Pack a feature store into one file, and import features that are already in one array.

The packed file replaces an older one only after every video is read and checked. Rows are written one video at a time,
so a store may be larger than memory. If a store mixes types, the widest is used.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from videoblip2.errors import InputError, Progress, no_progress, refused, warn
from videoblip2.features.manifest import FeatureManifest, VideoNote
from videoblip2.features.packed import FORMAT, KINDS, open_packed
from videoblip2.features.store import FeatureStore, load_array, write_features
from videoblip2.files import atomic
from videoblip2.modality import MODALITIES

Tensors = dict[str, tuple[str, list[int], int]]  # name → safetensors' type, shape, end of its bytes

HEADER = 4096  # bytes reserved at the start; a modality needs about 150
NAMES = {np.dtype(kind): name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class PackReport:
    """What was packed. kinds: modality → type, such as "float32"."""

    out: Path
    videos: int
    megabytes: float
    kinds: dict[str, str]
    absent: int  # videos without audio


def pack_features(source: str | Path, out: str | Path, progress: Progress = no_progress) -> PackReport:
    """Pack all videos of the store `source`, and its manifest, into the file `out`.

    Raises `InputError` for the first video that cannot be used, and if `out` cannot be written; `out` is then
    unchanged.
    """
    store, out = FeatureStore(source), Path(out)
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name a file, such as {out / 'features.safetensors'}")
    if not store.ids:
        raise InputError(f"{source}: has no videos; make features with `vb2 features extract`")
    folders = [] if store.packed else sorted(path for path in store.root.iterdir() if path.name not in MODALITIES)
    if other := [folder for folder in folders if any(folder.glob("*.npy"))]:
        warn(f"{other[0]}: left out, since it is not a modality; VB2_PLUGINS names modules that add others")
    remedy = "free some space, or give another file; nothing was changed"
    with refused(f"{out}: cannot be written", remedy, OSError), _locked_draft(out) as file:
        rows, tensors = _write(file, store, progress)
    kinds = {modality: np.dtype(KINDS[tensors[modality][0]]).name for modality in store.modalities}
    return PackReport(out, len(store.ids), out.stat().st_size / 2**20, kinds, rows["audio"].count(0))


def _write(file: IO[bytes], store: FeatureStore, progress: Progress) -> tuple[dict[str, list[int]], Tensors]:
    """Write the file; return rows per video, and tensors. The header comes last: its length, JSON, and padding."""
    file.write(b" " * HEADER)
    rows: dict[str, list[int]] = {}
    tensors: Tensors = {}
    for modality in store.modalities:
        rows[modality], kind = _write_rows(file, store, modality, progress)
        tensors[modality] = NAMES[kind], [sum(rows[modality]), store.widths[modality]], file.tell()
    for modality, counts in rows.items():
        file.write(np.asarray(counts, dtype=np.int64).tobytes())
        tensors[f"{modality}_rows"] = "I64", [len(counts)], file.tell()
    manifest = None if store.manifest is None else store.manifest.model_dump()
    for name, content in (("ids", store.ids), ("manifest", manifest)):
        size = file.write(json.dumps(content, ensure_ascii=False).encode())
        tensors[name] = "U8", [size], file.tell()
    entries, begin = dict[str, object]({"__metadata__": {"format": FORMAT}}), 0
    for name, (code, shape, end) in tensors.items():
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end - HEADER]}
        begin = end - HEADER
    file.seek(0)
    file.write(struct.pack("<Q", HEADER - 8) + json.dumps(entries).encode().ljust(HEADER - 8))
    return rows, tensors


def _write_rows(
    file: IO[bytes], store: FeatureStore, modality: str, progress: Progress
) -> tuple[list[int], np.dtype[Any]]:
    """Write one modality of all videos; return the rows per video, and the type. A wider type starts it again."""
    start, kind = file.tell(), min(store.stored(modality, store.ids[0]).dtype.newbyteorder("="), np.dtype(np.float64))
    while True:
        file.seek(start)
        file.truncate()
        counts, before = list[int](), kind
        for video_id in progress(store.ids, len(store.ids), f"pack {modality}"):
            array = store.stored(modality, video_id)
            if len(array):
                kind = min(np.promote_types(kind, array.dtype), np.dtype(np.float64))  # the widest of the format
            if kind != before:
                break
            file.write(np.ascontiguousarray(array, dtype=kind).tobytes())
            counts.append(len(array))
        else:
            return counts, kind


def import_arrays(
    video: Path, ids: Path, out: Path, audio: Path | None = None, progress: Progress = no_progress
) -> int:
    """Make a store of N videos from a .npy of frame features [N,F,D], a JSON list of N ids, and audio [N,A,D'].

    Rows narrower than the modality's usual width are padded with zeros, which a linear layer ignores. Returns N.
    Raises InputError for other shapes, another number of ids, and ids that are not file names.
    """
    frames, width = _open_array(video, "video"), MODALITIES["audio"].width
    names = _read_ids(ids, len(frames), video)
    sound = np.zeros((len(names), 0, width), np.float32) if audio is None else _open_array(audio, "audio")
    if len(sound) != len(names):
        raise InputError(f"{audio}: has {len(sound)} videos, {video} {len(names)}; give arrays of the same videos")
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


@contextmanager
def _locked_draft(out: Path) -> Iterator[IO[bytes]]:
    """A locked draft that is checked as a packed store before it replaces `out`; deletes drafts of killed processes."""
    for draft in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        with suppress(OSError), draft.open("rb") as file:  # locked: its process is still writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()
    with atomic(out) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
        file.flush()
        os.fsync(file.fileno())
        open_packed(Path(file.name))


def _open_array(path: Path, modality: str) -> NDArray[Any]:
    array = load_array(path, "give one array [videos, rows, width]", "r")
    if array.ndim != 3 or array.dtype.kind != "f" or not array.shape[2]:
        raise InputError(
            f"{path}: {array.dtype} of shape {list(array.shape)}; {modality} features are floats [videos, rows, width]"
        )
    return array


def _read_ids(path: Path, count: int, array: Path) -> Sequence[str]:
    with refused(f"{path}: not a JSON list of video ids", f"give one for each row of {array}", OSError, ValueError):
        names = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(names, list) or len(names) != count or len(set(map(str, names))) != count:
        raise InputError(f"{path}: not {count} different video ids, one for each row of {array}; correct the list")
    if wrong := [name for name in names if not isinstance(name, str) or not name or Path(name).name != name]:
        raise InputError(f"{path}: {wrong[0]!r} cannot be a file name; give plain video ids such as video0")
    return names
