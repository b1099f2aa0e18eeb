"""The packed form of a feature store: one memory-mapped safetensors file.

video, audio … [rows, width]    the rows of all N videos, one after another, in the stored type
video_rows, audio_rows … [N]    int64, number of rows of each video; 0 if it lacks the modality
ids, manifest [bytes]           JSON: the N video ids in the same order; the store's manifest, or null
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from videoblip2.errors import InputError, refused
from videoblip2.modality import MODALITIES

FORMAT = "1"
TENSORS = ("video", "video_rows", "ids", "manifest")  # in every file; other modalities are optional
KINDS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def open_packed(path: Path) -> tuple[dict[str, PackedRows], bytes]:
    """Open a packed store: its modalities, and its manifest as JSON.

    Raises `InputError` for any other file, and for one that is truncated or has a wrong index.
    """
    with refused(f"{path}: not packed features, or truncated", "pack them again", SafetensorError, OSError):
        file = safe_open(path, framework="numpy")
    version, names = (file.metadata() or {}).get("format"), set(file.keys())
    if version is None or not set(TENSORS) <= names:
        raise InputError(f"{path}: is a safetensors file, but not packed features; give a feature store")
    if version != FORMAT:
        raise InputError(f"{path}: is packed in format {version}; update videoblip2, or pack the features again")
    try:
        ids = TypeAdapter(list[str]).validate_json(file.get_tensor("ids").tobytes(), strict=True)
    except ValueError as error:
        raise _malformed(path, "ids is not a JSON list of videos") from error
    if len(set(ids)) != len(ids):
        raise _malformed(path, "lists a video twice")
    counts = {name: file.get_tensor(f"{name}_rows") for name in MODALITIES if {name, f"{name}_rows"} <= names}
    with path.open("rb") as opened:
        pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    rows = {name: PackedRows(path, pages, name, ids, count) for name, count in counts.items()}
    return rows, file.get_tensor("manifest").tobytes()


class PackedRows:
    """One modality: video id → a copy of its rows, in the stored type.

    Rows are copied from the map, since safetensors copies a slice twice. Each read prefetches its own rows and not the
    megabytes around them. After `FIRST` reads, a thread prefetches all rows in order, unless they need more than half
    of the memory.
    """

    PIECE = 2 * 2**20
    FIRST = 64  # a reader that stops before this needs little of the file

    def __init__(self, path: Path, pages: mmap.mmap, name: str, ids: Sequence[str], counts: NDArray[Any]) -> None:
        begin = 8 + int.from_bytes(pages[:8], "little")
        entry = json.loads(pages[8:begin])[name]
        kind, shape = entry["dtype"], entry["shape"]
        if kind not in KINDS or len(shape) != 2:
            raise _malformed(path, f"{name} is {kind} {shape}, not rows of floats")
        if counts.shape != (len(ids),) or counts.dtype != np.int64 or (counts < 0).any():
            raise _malformed(path, f"{name}_rows is not one count for each of {len(ids)} videos")
        if counts.sum() != shape[0]:
            raise _malformed(path, f"{name} has {shape[0]} rows, but the videos have {counts.sum()}")
        start, end = (begin + offset for offset in entry["data_offsets"])  # relative to the data
        self.width: int = shape[1]
        self._rows = np.frombuffer(memoryview(pages)[start:end], KINDS[kind]).reshape(shape)
        self._places = dict(zip(ids, pairwise([0, *np.cumsum(counts).tolist()]), strict=True))
        self._path, self._pages, self._start, self._end, self._reads = path, pages, start, end, 0
        self._done = not hasattr(os, "posix_fadvise") or not hasattr(mmap, "MADV_RANDOM")
        self._fits = not self._done and end - start <= psutil.virtual_memory().total // 2
        self._advise("MADV_RANDOM", start, end)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, video_id: str) -> NDArray[Any]:
        first, last = self._places[video_id]
        if not self._done:
            size = self._rows.strides[0]
            self._advise("MADV_WILLNEED", self._start + first * size, self._start + last * size)
            self._reads += 1
            if self._reads > self.FIRST and self._fits:
                self._fits = False
                threading.Thread(target=self._prefetch_all, daemon=True, name="read-ahead").start()
        return self._rows[first:last].copy()

    def _prefetch_all(self) -> None:
        with suppress(OSError), self._path.open("rb") as file:  # only a hint: without it, reading is slower
            for place in range(self._start, self._end, self.PIECE):
                os.posix_fadvise(file.fileno(), place, self.PIECE, os.POSIX_FADV_WILLNEED)
        self._advise("MADV_NORMAL", self._start, self._end)
        self._done = True

    def _advise(self, advice: str, start: int, end: int) -> None:
        """Call madvise, which needs a start at a page boundary and at least one byte."""
        start -= start % mmap.PAGESIZE
        if not self._done and end > start:
            self._pages.madvise(getattr(mmap, advice), start, end - start)


def _malformed(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: {reason}; pack the features again")
