"""Decode videos and encode them at the same time.

Threads decode, and collect the frames and windows of several videos into one batch; the thread that fills it encodes
it. Batches hold frames, not videos, so that a three-hour film takes no more memory than a clip.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from videoblip2.errors import InputError, refused
from videoblip2.features.frames import FrameWatch
from videoblip2.features.manifest import VideoNote
from videoblip2.features.media import ONE_THREAD, named, stream_audio, stream_frames
from videoblip2.features.media_features import Encoders, FrameChoice, Loudness, choose_frames
from videoblip2.features.store import write_features
from videoblip2.features.towers import BATCH_WINDOWS
from videoblip2.files import segment_of
from videoblip2.imports import threads_of_torch
from videoblip2.modality import Features

T = TypeVar("T")
Files = Sequence[tuple[str, Path]]  # video ids and their files
POLL = 0.1  # seconds between checks on whether threads have ended
READY = 16  # finished videos that wait in the queue
AT_ONCE = 4  # batches encoded at the same time on a CPU
KEEP_FREED = {-1: 2**30, -2: 2**26, -3: 2**25}  # glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD


@dataclass(frozen=True)
class VideoOutcome:
    """The result for one video: its features and note, or why it failed; neither if it was skipped."""

    video_id: str
    note: VideoNote | None = None
    failure: str | None = None
    features: Features | None = None  # None once they are written to a store
    changes: Sequence[float] | None = None  # seconds at which a new shot begins; None = not detected


class Piece(NamedTuple):
    """A frame or a window of a video, ready for the encoder."""

    video_id: str
    modality: str
    array: Any


@dataclass
class Partial:
    """A video in progress: its encoded rows, None for those still queued, and its note once decoding has ended."""

    rows: dict[str, list[NDArray[np.float32] | None]] = field(default_factory=lambda: {"video": [], "audio": []})
    waiting: int = 0
    note: VideoNote | None = None


def encode_all(
    files: Files, known: Mapping[str, str], out: Path, encoders: Encoders, workers: int
) -> Generator[VideoOutcome, None, None]:
    """Write each video's features to `out`; yield its outcome once they are written, in the order of completion.

    Args:
        files: (id, file); an id that is not the file's name is that of a segment.
        known: video id → sha256 of its source; a video is skipped if its file is unchanged and `out` has its arrays.
        workers: decoding threads.
    """

    def unchanged(video_id: str, digest: str) -> bool:
        return known.get(video_id) == digest and all(
            (out / name / f"{video_id}.npy").is_file() for name in encoders.widths
        )

    with closing(encode_videos(dict(files), unchanged, encoders, workers)) as batches:
        for outcome in chain.from_iterable(batches):
            yield stored(out, outcome)


def stored(out: Path, outcome: VideoOutcome) -> VideoOutcome:
    """Write the features of an outcome to the store, if it has any. Raises `InputError` for a full disk."""
    video_id, remedy = outcome.video_id, "fix that and run the same command again; what is stored is kept"
    if outcome.features is None:
        return outcome
    with refused(f"{out}: {video_id} cannot be written", remedy, OSError):
        try:
            write_features(out, video_id, outcome.features)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return VideoOutcome(video_id, failure=f"{video_id}: its name is too long for a file; shorten it")
    return replace(outcome, features=None)


def encode_videos(
    files: Mapping[str, Path],
    skip: Callable[[str, str], bool],
    encoders: Encoders,
    workers: int,
    watches: Mapping[str, FrameWatch] | None = None,
    pause: float | None = None,
) -> Generator[list[VideoOutcome], None, None]:
    """Decode and encode videos; yield outcomes in groups, as `overlapped` does, and [] last.

    Args:
        files: unique key → file. The outcome has the key as `video_id`; `NAME#start-end` is a segment of NAME.mp4.
        skip: (key, sha256 of the file) → whether to skip it.
        workers: decoding threads, which share torch's threads.
        watches: key → function that gets all frames of that file.
        pause: yield [] if nothing is ready for this many seconds.
    """
    _keep_freed_memory()
    shares = min(workers, AT_ONCE) if encoders.clip.model.device.type == "cpu" else 1
    batches, threads = RowBatches(encoders, shares), max(1, torch.get_num_threads() // shares)

    def encoded(key: str, path: Path) -> Generator[list[VideoOutcome], None, None]:
        with closing(_read(key, path, skip, encoders, (watches or {}).get(key))) as items:
            yield from map(batches.add, items)

    with threads_of_torch(threads):  # a thread that waits for a core delays the others of its operation
        with closing(overlapped((partial(encoded, *file) for file in files.items()), workers, READY, pause)) as ready:
            yield from (list(chain.from_iterable(groups)) for groups in ready)
        yield [*batches.flush("video"), *batches.flush("audio")]
        yield []


def _keep_freed_memory() -> None:
    """Keep it for the next batch: returning it and requesting it again takes a tenth of a core's time."""
    with suppress(AttributeError, TypeError):  # another C library
        for option, size in KEEP_FREED.items():
            ctypes.CDLL(None).mallopt(option, size)


class RowBatches:
    """Collects pieces of many videos into full batches, and assigns the encoded rows to their videos.

    Threads share it. Up to `shares` batches are encoded at once, with `batch_frames` frames in total.
    """

    def __init__(self, encoders: Encoders, shares: int) -> None:
        self._encoders = encoders
        frames = encoders.settings.batch_frames
        self._full = {"video": max(1, frames // shares), "audio": max(1, min(BATCH_WINDOWS, frames // 2 // shares))}
        self._videos = defaultdict[str, Partial](Partial)
        self._queued: dict[str, list[tuple[Piece, int]]] = {"video": [], "audio": []}
        self._lock, self._encoding = threading.Lock(), threading.Semaphore(shares)

    def add(self, item: Piece | VideoOutcome) -> list[VideoOutcome]:
        """Add a piece or the end of a video; encode the batch if it is full. Returns the videos that this completes."""
        if isinstance(item, Piece):
            with self._lock:
                video, queued = self._videos[item.video_id], self._queued[item.modality]
                queued.append((item, len(video.rows[item.modality])))
                video.rows[item.modality].append(None)
                video.waiting += 1
                full = len(queued) >= self._full[item.modality]
            return self.flush(item.modality, self._full[item.modality]) if full else []
        with self._lock:
            if item.note is None:
                self._videos.pop(item.video_id, None)
                return [item]
            self._videos[item.video_id].note = item.note
            return self._completed(item.video_id)

    def flush(self, modality: str, least: int = 1) -> list[VideoOutcome]:
        """Encode the first batch of the queue if it has `least` pieces. Returns the videos that this completes."""
        size = self._full[modality]
        with self._encoding:
            with self._lock:
                queued = self._queued[modality]
                batch = queued[:size] if len(queued) >= least else []
                del queued[: len(batch)]
            if not batch:
                return []
            arrays, encoders = [piece.array for piece, _ in batch], self._encoders
            video = modality == "video"
            encoded = encoders.clip.encode_pixels(arrays, size) if video else encoders.clap.encode_windows(arrays)
        outcomes = list[VideoOutcome]()
        with self._lock:
            for (piece, place), rows in zip(batch, np.split(encoded, len(batch)), strict=True):
                if piece.video_id in self._videos:  # unless decoding it has failed since
                    self._videos[piece.video_id].rows[modality][place] = rows
                    self._videos[piece.video_id].waiting -= 1
                    outcomes += self._completed(piece.video_id)
        return outcomes

    def _completed(self, video_id: str) -> list[VideoOutcome]:
        """The outcome of the video, if it is complete."""
        video = self._videos[video_id]
        if video.note is None or video.waiting:
            return []
        del self._videos[video_id]
        features = {
            name: np.concatenate([np.zeros((0, width), np.float32), *(r for r in video.rows[name] if r is not None)])
            for name, width in self._encoders.widths.items()
        }
        if not all(np.isfinite(array).all() for array in features.values()):
            return [VideoOutcome(video_id, failure=f"{video.note.source}: an encoder gave NaN; use another --dtype")]
        frames = video.note.frames or len(features["video"]) // self._encoders.clip.rows
        windows = len(features["audio"])
        note = video.note.model_copy(update={"frames": frames, "audio_windows": windows})
        return [VideoOutcome(video_id, note, features=features)]


def overlapped(
    tasks: Iterable[Callable[[], Generator[T, None, None]]], workers: int, room: int, pause: float | None = None
) -> Generator[list[T], None, None]:
    """Run generators in `workers` threads; yield their items in groups, each as soon as one item is ready.

    Yields [] if no item is ready for `pause` seconds. Threads wait while about `room` items are ready. Empty items are
    dropped. An error in a generator is raised here; closing this generator ends the threads.
    """
    ready: queue.Queue[T | BaseException | None] = queue.Queue(room)
    stop, todo = threading.Event(), iter(list(tasks))
    threads = [threading.Thread(target=_work, args=(todo, ready, stop), daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while workers:
            try:
                found = [ready.get(timeout=pause), *(ready.get() for _ in range(ready.qsize()))]
            except queue.Empty:
                found = []
            workers -= found.count(None)
            yield [item for item in found if item is not None and not isinstance(item, BaseException)]
            for error in found:
                if isinstance(error, BaseException):
                    raise error
    finally:
        stop.set()
        while any(thread.is_alive() for thread in threads):  # make room for threads that wait for it
            with suppress(queue.Empty):
                ready.get(timeout=POLL)


def _work(todo: Iterator[Any], ready: queue.Queue[Any], stop: threading.Event) -> None:
    """Put the items of all tasks into a queue, and then None, or the error that ended this thread."""
    try:
        for task in todo:  # an iterator of a list, which threads can share
            with closing(task()) as items:
                for item in items:
                    if item:
                        ready.put(item)
                    if stop.is_set():
                        return
    except BaseException as error:
        ready.put(error)
    else:
        ready.put(None)


def _read(
    video_id: str, path: Path, skip: Callable[[str, str], bool], encoders: Encoders, watch: FrameWatch | None
) -> Generator[Piece | VideoOutcome, None, None]:
    """The pieces of one file, and then its outcome."""
    settings, caveats = encoders.settings, list[str]()
    name, span = segment_of(video_id)
    span = span if name == path.stem else None
    try:
        if span and span[0] >= span[1]:
            raise InputError(f"{video_id}: a segment must end after it starts; correct its times")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if skip(video_id, digest):
            yield VideoOutcome(video_id)
            return
        choice = FrameChoice(encoders)
        frames = stream_frames(path, settings.fps, ONE_THREAD, caveats, span=span, watch=watch, pick=choice)
        for frame in choose_frames(map(encoders.clip.pixels, frames), settings):
            yield Piece(video_id, "video", frame)
        loudness = Loudness()
        sound = loudness.heard(stream_audio(path, encoders.clap.rate, caveats=caveats, span=span))
        for window in encoders.clap.windows(sound, settings.window_seconds):
            yield Piece(video_id, "audio", window)
        note = VideoNote(
            frames=choice.count, audio=loudness.level, source=path.name, sha256=digest, caveats=tuple(caveats)
        )
        yield VideoOutcome(video_id, note)
    except Exception as error:  # one bad file among ten thousand must not stop the others
        yield VideoOutcome(video_id, failure=str(named(error, path)))
