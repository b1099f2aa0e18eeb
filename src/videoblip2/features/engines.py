"""Videos through the encoders, decoding and encoding at the same time.

Threads decode, and collect frames and windows of several videos into one batch; the thread that fills it encodes it.
Frames, not videos, so that a three-hour film takes no more memory than a clip.
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

from videoblip2.errors import InputError
from videoblip2.features.frames import Watch
from videoblip2.features.manifest import VideoNote
from videoblip2.features.media import ONE_THREAD, named, stream_audio, stream_frames
from videoblip2.features.media_features import Encoders, FrameChoice, Loudness, choose_frames
from videoblip2.features.store import write_features
from videoblip2.features.towers import BATCH_WINDOWS
from videoblip2.files import segment_of
from videoblip2.imports import threads_of_torch
from videoblip2.modality import Features

T = TypeVar("T")
Files = Sequence[tuple[str, Path]]  # video ids and where they are
POLL = 0.1  # seconds between checks on whether threads have ended
READY = 16  # videos whose features wait to be taken
AT_ONCE = 4  # batches that are encoded at the same time on a CPU
#: glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD: memory that is freed is kept for the next batch, as handing
#: it back and getting it again takes a tenth of a core's time.
KEEP_FREED = {-1: 2**30, -2: 2**26, -3: 2**25}


@dataclass(frozen=True)
class VideoOutcome:
    """The end of one video: its features and note, or the reason why it failed; neither if it was skipped."""

    video_id: str
    note: VideoNote | None = None
    failure: str | None = None
    features: Features | None = None  # not set when they are written to a store
    changes: Sequence[float] | None = None  # seconds at which a new shot begins, if they were looked for


class Piece(NamedTuple):
    """A frame or a window of a video, ready for the encoder."""

    video_id: str
    modality: str
    array: Any


@dataclass
class Partial:
    """A video in progress: its encoded rows, None for those to come, and its note once decoding has ended."""

    rows: dict[str, list[NDArray[np.float32] | None]] = field(default_factory=lambda: {"video": [], "audio": []})
    waiting: int = 0
    note: VideoNote | None = None


def encode_all(
    files: Files, known: Mapping[str, str], out: Path, encoders: Encoders, workers: int
) -> Generator[VideoOutcome, None, None]:
    """Write each video's features to `out`; yields its outcome once it is written, in the order in which videos end.

    Args:
        files: (id, file); an id that is not the file's name is that of a segment.
        known: sha256 of sources by video id; a video is skipped if its file is unchanged and `out` has its arrays.
        workers: decoding threads.
    """

    def unchanged(video_id: str, digest: str) -> bool:
        return known.get(video_id) == digest and all(
            (out / name / f"{video_id}.npy").is_file() for name in encoders.widths
        )

    with closing(encode_videos(dict(files), unchanged, encoders, workers)) as ended:
        for outcome in chain.from_iterable(ended):
            yield stored(out, outcome)


def stored(out: Path, outcome: VideoOutcome) -> VideoOutcome:
    """The outcome once its features, if it has any, are written to the store. Raises `InputError` for a full disk."""
    if outcome.features is None:
        return outcome
    try:
        write_features(out, outcome.video_id, outcome.features)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            reason = f"{outcome.video_id}: its name is too long for a file; shorten it"
            return VideoOutcome(outcome.video_id, failure=reason)
        raise InputError(
            f"{out}: {outcome.video_id} cannot be written ({error.strerror or error}); fix that and run the same "
            "command again; what is stored is kept"
        ) from error
    return replace(outcome, features=None)


def encode_videos(
    files: Mapping[str, Path],
    skip: Callable[[str, str], bool],
    encoders: Encoders,
    workers: int,
    watches: Mapping[str, Watch] | None = None,
    pause: float | None = None,
) -> Generator[list[VideoOutcome], None, None]:
    """Decode and encode videos; yields those that have ended, with their features, and [] last; see `overlapped`.

    Args:
        files: by a key that is unique; it is the `video_id` of the outcome. A key `NAME#start-end` of a file NAME.mp4
            means this part of it.
        skip: (key, sha256 of the file) → whether there is nothing to do.
        workers: threads, which share torch's.
        watches: key → what sees all frames of that file.
    """
    with suppress(AttributeError, TypeError):  # another C library
        for option, size in KEEP_FREED.items():
            ctypes.CDLL(None).mallopt(option, size)
    shares = min(workers, AT_ONCE) if encoders.clip.model.device.type == "cpu" else 1
    batches, threads = RowBatches(encoders, shares), max(1, torch.get_num_threads() // shares)

    def encoded(key: str, path: Path) -> Generator[list[VideoOutcome], None, None]:
        with closing(_read(key, path, skip, encoders, (watches or {}).get(key))) as items:
            yield from map(batches.add, items)

    with threads_of_torch(threads):  # those of one operation that wait for a core hold up the others
        with closing(overlapped((partial(encoded, *file) for file in files.items()), workers, READY, pause)) as ready:
            yield from (list(chain.from_iterable(ended)) for ended in ready)
        yield [*batches.flush("video"), *batches.flush("audio")]
        yield []


class RowBatches:
    """Collects pieces of many videos into full batches, and hands the rows back to their videos.

    Threads share it: up to `shares` batches are encoded at once, of as many frames in all as the settings say.
    """

    def __init__(self, encoders: Encoders, shares: int) -> None:
        self._encoders = encoders
        frames = encoders.settings.batch_frames
        self._full = {"video": max(1, frames // shares), "audio": max(1, min(BATCH_WINDOWS, frames // 2 // shares))}
        self._videos = defaultdict[str, Partial](Partial)
        self._queued: dict[str, list[tuple[Piece, int]]] = {"video": [], "audio": []}
        self._lock, self._encoding = threading.Lock(), threading.Semaphore(shares)  # of what is above; of the encoders

    def add(self, item: Piece | VideoOutcome) -> list[VideoOutcome]:
        """Take a piece or the end of a video; encode the batch that it fills, and return what is complete then."""
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
        """Encode the first batch of the queue, if that still holds `least`."""
        size = self._full[modality]
        with self._encoding:
            with self._lock:
                queued = self._queued[modality]
                batch = queued[:size] if len(queued) >= least else []
                del queued[: len(batch)]
            if not batch:
                return []
            arrays = [piece.array for piece, _ in batch]
            if modality == "audio":
                encoded = self._encoders.clap.encode_windows(arrays)
            else:
                encoded = self._encoders.clip.encode_pixels(arrays, size)
        ended = list[VideoOutcome]()
        with self._lock:
            for (piece, place), rows in zip(batch, np.split(encoded, len(batch)), strict=True):
                if piece.video_id in self._videos:  # unless decoding of that file has failed since
                    self._videos[piece.video_id].rows[modality][place] = rows
                    self._videos[piece.video_id].waiting -= 1
                    ended += self._completed(piece.video_id)
        return ended

    def _completed(self, video_id: str) -> list[VideoOutcome]:
        """The video, if it is complete."""
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
    """Run generators in `workers` threads; yields what is ready, 1 to `room` items or so, as soon as there is any.

    Yields [] where nothing comes for `pause` seconds. A thread waits while `room` items are ready. What is empty is
    left out. An error in a generator is raised here; closing this ends the threads.
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
        while any(thread.is_alive() for thread in threads):  # make room for those that wait to hand over an item
            with suppress(queue.Empty):
                ready.get(timeout=POLL)


def _work(todo: Iterator[Any], ready: queue.Queue[Any], stop: threading.Event) -> None:
    """What `todo` gives, and then None or the error that ended it, into a queue."""
    end: BaseException | None = None
    try:
        for task in todo:  # of a list: threads can share it
            with closing(task()) as items:
                for item in items:
                    if item:
                        ready.put(item)
                    if stop.is_set():
                        return
    except BaseException as error:
        end = error
    finally:
        ready.put(end)


def _read(
    video_id: str, path: Path, skip: Callable[[str, str], bool], encoders: Encoders, watch: Watch | None
) -> Generator[Piece | VideoOutcome, None, None]:
    """One file's pieces, and then its outcome."""
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
        note = VideoNote(frames=choice.count, audio=loudness.level, source=path.name, sha256=digest)
        note = note.model_copy(update={"caveats": tuple(caveats)}) if caveats else note
        yield VideoOutcome(video_id, note)
    except Exception as error:  # one strange file among ten thousand must not stop the others
        yield VideoOutcome(video_id, failure=str(named(error, path)))
