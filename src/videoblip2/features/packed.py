"""The packed form of a feature store: one safetensors file, memory-mapped.

video, audio … [rows, width]    the rows of all N videos, one after the other, in their own type
video_rows, audio_rows … [N]    int64, how many rows each video has; 0 where it lacks the modality
ids, manifest [bytes]           JSON: the N video ids in that order; what extraction noted, or null
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
TENSORS = ("video", "video_rows", "ids", "manifest")  # in every file; other modalities as they come
KINDS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def open_packed(path: Path) -> tuple[dict[str, PackedRows], bytes]:
    """A packed store's modalities, and its manifest as JSON.

    Raises `InputError` for any other file, a truncated one, or a wrong index.
    """
    with refused(f"{path}: not packed features, or truncated", "pack them again", SafetensorError, OSError):
        file = safe_open(path, framework="numpy")
    made, names = (file.metadata() or {}).get("format"), set(file.keys())
    if made is None or not set(TENSORS) <= names:
        raise InputError(f"{path}: a safetensors file, but not packed features; give a feature store")
    if made != FORMAT:
        raise InputError(f"{path}: packed features of format {made}; update videoblip2 or pack them again")
    try:
        ids = TypeAdapter(list[str]).validate_json(file.get_tensor("ids").tobytes(), strict=True)
    except ValueError as error:
        raise _unfit(path, "ids is not a JSON list of videos") from error
    if len(set(ids)) != len(ids):
        raise _unfit(path, "it names a video twice")
    counts = {name: file.get_tensor(f"{name}_rows") for name in MODALITIES if {name, f"{name}_rows"} <= names}
    with path.open("rb") as opened:
        pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    rows = {name: PackedRows(path, pages, name, ids, count) for name, count in counts.items()}
    return rows, file.get_tensor("manifest").tobytes()


class PackedRows:
    """One modality: a copy of each video's rows, in the stored type, by id.

    They are in the mapped file itself: a slice that safetensors gives is copied twice. Each read requests just its
    rows, not the megabytes around them; after `FIRST` reads a thread requests everything, front to back, unless that is
    more than half of the memory.
    """

    PIECE = 2 * 2**20
    FIRST = 64  # a reader that stops before needs little of the file

    def __init__(self, path: Path, pages: mmap.mmap, name: str, ids: Sequence[str], counts: NDArray[Any]) -> None:
        begin = 8 + int.from_bytes(pages[:8], "little")
        entry = json.loads(pages[8:begin])[name]
        kind, shape = entry["dtype"], entry["shape"]
        if kind not in KINDS or len(shape) != 2:
            raise _unfit(path, f"{name} is {kind} {shape}, not rows of floats")
        if counts.shape != (len(ids),) or counts.dtype != np.int64 or (counts < 0).any():
            raise _unfit(path, f"{name}_rows is not one count for each of {len(ids)} videos")
        if counts.sum() != shape[0]:
            raise _unfit(path, f"{name} has {shape[0]} rows, where the videos have {counts.sum()}")
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
                threading.Thread(target=self._everything, daemon=True, name="read-ahead").start()
        return self._rows[first:last].copy()

    def _everything(self) -> None:
        with suppress(OSError), self._path.open("rb") as file:  # a hint: failing makes reading slower, not wrong
            for place in range(self._start, self._end, self.PIECE):
                os.posix_fadvise(file.fileno(), place, self.PIECE, os.POSIX_FADV_WILLNEED)
        self._advise("MADV_NORMAL", self._start, self._end)
        self._done = True

    def _advise(self, advice: str, start: int, end: int) -> None:
        """Advice must start at a whole page and cover at least one byte."""
        start -= start % mmap.PAGESIZE
        if not self._done and end > start:
            self._pages.madvise(getattr(mmap, advice), start, end - start)


def _unfit(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: {reason}; pack the features again")
