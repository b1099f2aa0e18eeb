"""From a feature store to a packed one: every video is read and checked, and the new file appears in one rename.

Rows are written one video at a time: a store may be larger than memory. A store that mixes types gets the widest.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from videoblip2.errors import InputError, Progress, no_progress
from videoblip2.features.packed import FORMAT, KINDS, PackedFile
from videoblip2.features.store import FeatureStore
from videoblip2.files import atomic

Tensors = dict[str, tuple[str, list[int], int]]  # name: safetensors' type, shape, end of its bytes

HEADER = 4096  # bytes kept free at the start; the entries of a modality need about 150
NAMES = {np.dtype(kind): name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class PackReport:
    """What a packed store holds. kinds: "float32" and the like for each modality."""

    out: Path
    videos: int
    megabytes: float
    kinds: dict[str, str]
    absent: int  # videos without audio


def pack_features(source: str | Path, out: str | Path, progress: Progress = no_progress) -> PackReport:
    """Write all videos of the store `source` into one packed file `out`, with the manifest.

    Raises `InputError` for the first video that cannot be used, and if `out` cannot be written; `out` is then
    unchanged.
    """
    store, out = FeatureStore(source), Path(out)
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name a file, such as {out / 'features.safetensors'}")
    if not store.ids:
        raise InputError(f"{source}: holds no video; make features with `vb2 features extract`")
    try:
        with _locked_draft(out) as file:
            rows, tensors = _write(file, store, progress)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); free space or give another place; nothing changed"
        ) from error
    kinds = {modality: np.dtype(KINDS[tensors[modality][0]]).name for modality in store.modalities}
    return PackReport(out, len(store.ids), out.stat().st_size / 2**20, kinds, rows["audio"].count(0))


def _write(file: IO[bytes], store: FeatureStore, progress: Progress) -> tuple[dict[str, list[int]], Tensors]:
    """The whole file. safetensors' header of exactly HEADER bytes comes last: its length, JSON, and spaces."""
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
    """One modality of all videos → rows per video, and the type; starts again when a wider type turns up."""
    start, kind = file.tell(), min(store.stored(modality, store.ids[0]).dtype.newbyteorder("="), np.dtype(np.float64))
    while True:
        file.seek(start)
        file.truncate()
        counts, before = list[int](), kind
        for video_id in progress(store.ids, len(store.ids), f"pack {modality}"):
            array = store.stored(modality, video_id)
            if len(array):
                kind = min(np.promote_types(kind, array.dtype), np.dtype(np.float64))  # 64 bits: the format's limit
            if kind != before:
                break
            file.write(np.ascontiguousarray(array, dtype=kind).tobytes())
            counts.append(len(array))
        else:
            return counts, kind


@contextmanager
def _locked_draft(out: Path) -> Iterator[IO[bytes]]:
    """A draft of `out` that is on disk and opens as a packed store before it takes that name.

    It is locked while it is written, so an unlocked draft is one that a killed process left.
    """
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        with suppress(OSError), left.open("rb") as file:  # locked: its process is still writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    with atomic(out) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
        file.flush()
        os.fsync(file.fileno())
        PackedFile(Path(file.name))
