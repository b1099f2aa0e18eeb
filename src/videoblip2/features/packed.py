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
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from videoblip2.errors import InputError
from videoblip2.features.manifest import FeatureManifest
from videoblip2.modality import MODALITIES

FORMAT = "1"
TENSORS = ("video", "video_rows", "ids", "manifest")  # in every file; other modalities as they come
KINDS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


class PackedFile:
    """Reads a packed store. Raises `InputError` for any other file, a truncated one, or a wrong index."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not packed features, or truncated ({error}); pack them again") from error
        made = (self._file.metadata() or {}).get("format")
        if made is None or not set(TENSORS) <= set(self._file.keys()):
            raise InputError(f"{path}: a safetensors file, but not packed features; give a feature store")
        if made != FORMAT:
            raise InputError(f"{path}: packed features of format {made}; update videoblip2 or pack them again")
        try:
            self._ids = TypeAdapter(list[str]).validate_json(self._bytes("ids"), strict=True)
        except ValueError as error:
            raise self._unfit("ids is not a JSON list of videos") from error
        self._places = {video_id: place for place, video_id in enumerate(self._ids)}
        if len(self._places) != len(self._ids):
            raise self._unfit("it names a video twice")
        self._rows: dict[str, NDArray[Any]] = {}
        self._ahead: dict[str, ReadAhead] = {}
        self._edges: dict[str, list[int]] = {}
        self._map_rows()

    def has(self, modality: str) -> bool:
        return modality in self._rows

    def width(self, modality: str) -> int | None:
        return self._rows[modality].shape[1] if modality in self._rows else None

    def holds(self, modality: str, video_id: str) -> bool:
        return modality in self._rows and video_id in self._places

    def ids(self) -> list[str]:
        return list(self._ids)

    def manifest(self) -> FeatureManifest | None:
        text = self._bytes("manifest")
        return None if text == b"null" else FeatureManifest.parse(text, self._path, "pack the features again")

    def where(self, modality: str, video_id: str) -> str:
        return f"{self._path} ({modality} features of {video_id})"

    def array(self, modality: str, video_id: str) -> NDArray[Any]:
        """A copy of one video's rows, in the stored type."""
        place = self._places.get(video_id)
        if place is None or modality not in self._rows:
            raise InputError(f"{self._path}: {video_id} has no {modality} features; extract it or leave it out")
        start, end = self._edges[modality][place : place + 2]
        rows = self._rows[modality]
        self._ahead[modality].advance(start * rows.strides[0], end * rows.strides[0])
        return rows[start:end].copy()

    def _map_rows(self) -> None:
        """The rows in the mapped file itself: a slice that safetensors gives is copied twice."""
        with self._path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        begin = 8 + int.from_bytes(pages[:8], "little")
        header = json.loads(pages[8:begin])
        for modality in MODALITIES:
            if not {modality, f"{modality}_rows"} <= header.keys():
                continue
            kind, shape = header[modality]["dtype"], header[modality]["shape"]
            if kind not in KINDS or len(shape) != 2:
                raise self._unfit(f"{modality} is {kind} {shape}, not rows of floats")
            start, end = (begin + offset for offset in header[modality]["data_offsets"])  # relative to the data
            self._ahead[modality] = ReadAhead(self._path, pages, start, end)
            self._rows[modality] = np.frombuffer(memoryview(pages)[start:end], KINDS[kind]).reshape(shape)
            counts = self._file.get_tensor(f"{modality}_rows")
            if counts.shape != (len(self._ids),) or counts.dtype != np.int64 or (counts < 0).any():
                raise self._unfit(f"{modality}_rows is not one count for each of {len(self._ids)} videos")
            if counts.sum() != shape[0]:
                raise self._unfit(f"{modality} has {shape[0]} rows, where the videos have {counts.sum()}")
            self._edges[modality] = [0, *np.cumsum(counts).tolist()]  # N+1 places: where each video's rows begin

    def _bytes(self, name: str) -> bytes:
        return bytes(self._file.get_tensor(name).tobytes())

    def _unfit(self, reason: str) -> InputError:
        return InputError(f"{self._path}: {reason}; pack the features again")


class ReadAhead:
    """Brings bytes `start` to `end` of a mapped file into memory in few large requests.

    Each read requests just its rows, not the megabytes around them; after `FIRST` reads a thread requests everything,
    front to back, unless that is more than half of the memory.
    """

    PIECE = 2 * 2**20
    FIRST = 64  # a reader that stops before needs little of the file

    def __init__(self, path: Path, pages: mmap.mmap, start: int, end: int) -> None:
        self._path, self._pages, self._start, self._end, self._reads = path, pages, start, end, 0
        self._fits = end - start <= psutil.virtual_memory().total // 2
        self._done = not hasattr(os, "posix_fadvise") or not hasattr(mmap, "MADV_RANDOM")
        self._advise("MADV_RANDOM", start, end)

    def advance(self, start: int, end: int) -> None:
        """Bytes `start` to `end` of the tensor are read next."""
        if self._done:
            return
        self._advise("MADV_WILLNEED", self._start + start, self._start + end)
        self._reads += 1
        if self._reads > self.FIRST and self._fits:
            self._fits = False
            threading.Thread(target=self._everything, daemon=True, name="read-ahead").start()

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
