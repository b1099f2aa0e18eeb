"""Videos through the encoders, decoding and encoding at the same time.

Threads decode (FFmpeg, Pillow and NumPy free the interpreter's lock) and hand over pieces of a few frames or windows
through a queue of bounded length; the calling thread puts pieces of several videos into one batch, encodes it, and
writes a video down once it has all of its rows. Pieces, not videos, so that a film of three hours takes no more memory
than a clip of ten seconds.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoblip2.config import InputError
from videoblip2.features.encoders import BATCH_WINDOWS, ClapEncoder, ClipEncoder
from videoblip2.features.ledger import Outcome
from videoblip2.features.media import stream_audio, stream_frames
from videoblip2.features.prepare import Loudness, choose_frames
from videoblip2.features.settings import SAMPLING_RATE, FeatureSettings
from videoblip2.features.store import write_features

PIECE = {"video": 16, "audio": 2}  # frames of 0.6 MB, windows of 2 MB
POLL = 0.1  # seconds after which a thread looks whether it shall stop


@dataclass(frozen=True)
class Piece:
    """Some frames or windows of one video; or its end, with what is noted of it; or its failure."""

    video_id: str
    modality: str = ""
    arrays: Sequence[NDArray[np.float32]] = ()
    outcome: Outcome | None = None


@dataclass
class Partial:
    """A video on its way: rows that are encoded, how many are not yet, and its note once it has ended."""

    rows: dict[str, list[NDArray[np.float32]]] = field(default_factory=lambda: {"video": [], "audio": []})
    waiting: int = 0
    note: dict[str, Any] | None = None


def encode_all(
    paths: Iterable[Path],
    known: Mapping[str, str],
    out: Path,
    clip: ClipEncoder,
    clap: ClapEncoder,
    settings: FeatureSettings,
    workers: int,
) -> Generator[Outcome, None, None]:
    """Each video's features into `out`; its outcome as soon as it is written, in the order in which videos end.

    Args:
        known: sha256 of the source by video id; a video is skipped where its file still has that and `out` its arrays.
        workers: threads that decode.
    """
    batches = Batches(out, clip, clap, settings)
    read = partial(_read, known=known, out=out, clip=clip, clap=clap, settings=settings)
    with _pieces(paths, read, workers) as pieces:
        for piece in pieces:
            yield from batches.add(piece)
        yield from batches.flush("video", 1)
        yield from batches.flush("audio", 1)


class Batches:
    """Pieces of many videos to full batches, and rows back to their videos."""

    def __init__(self, out: Path, clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings) -> None:
        self._out, self._clip, self._clap, self._frames = out, clip, clap, settings.batch_frames
        self._full = {"video": settings.batch_frames, "audio": max(1, min(BATCH_WINDOWS, settings.batch_frames // 4))}
        self._videos: dict[str, Partial] = {}
        self._queued: dict[str, list[tuple[str, NDArray[np.float32]]]] = {"video": [], "audio": []}

    def add(self, piece: Piece) -> Iterator[Outcome]:
        """Take a piece; encode and write what that completes."""
        if piece.outcome is not None:
            yield from self._end(piece.outcome)
            return
        partial = self._videos.setdefault(piece.video_id, Partial())
        partial.waiting += len(piece.arrays)
        self._queued[piece.modality] += [(piece.video_id, array) for array in piece.arrays]
        yield from self.flush(piece.modality, self._full[piece.modality])

    def flush(self, modality: str, full: int) -> Iterator[Outcome]:
        """Encode what is queued, batch by batch, as long as at least `full` is."""
        while len(self._queued[modality]) >= full:
            size = self._full[modality]
            batch, self._queued[modality] = self._queued[modality][:size], self._queued[modality][size:]
            for video_id, rows in zip((name for name, _ in batch), self._encode(modality, batch), strict=True):
                partial = self._videos.get(video_id)
                if partial is None:
                    continue  # the file broke off meanwhile
                partial.rows[modality].append(rows)
                partial.waiting -= 1
                yield from self._write(video_id)

    def _encode(self, modality: str, batch: list[tuple[str, NDArray[np.float32]]]) -> Iterable[NDArray[np.float32]]:
        arrays = [array for _, array in batch]
        if modality == "audio":
            return self._clap.encode_windows(arrays)[:, None]
        return np.split(self._clip.encode_pixels(arrays, self._frames), len(arrays))

    def _end(self, outcome: Outcome) -> Iterator[Outcome]:
        if outcome.note is None:
            self._videos.pop(outcome.video_id, None)
            yield outcome
            return
        self._videos.setdefault(outcome.video_id, Partial()).note = outcome.note
        yield from self._write(outcome.video_id)

    def _write(self, video_id: str) -> Iterator[Outcome]:
        """Write a video that is complete."""
        partial = self._videos[video_id]
        if partial.note is None or partial.waiting:
            return
        del self._videos[video_id]
        features = {
            name: np.concatenate([np.zeros((0, width), np.float32), *partial.rows[name]])
            for name, width in (("video", self._clip.width), ("audio", self._clap.width))
        }
        if not all(np.isfinite(array).all() for array in features.values()):
            yield Outcome(video_id, failure=f"{partial.note['source']}: an encoder gave NaN; use another --dtype")
            return
        try:
            write_features(self._out, video_id, features)
        except OSError as error:
            raise InputError(
                f"{self._out}: {video_id} cannot be written ({error.strerror or error}); mend that and run the same "
                "command again, what is stored is kept"
            ) from error
        counts = {"frames": len(features["video"]) // self._clip.rows, "audio_windows": len(features["audio"])}
        yield Outcome(video_id, note=counts | partial.note)


@contextmanager
def _pieces(paths: Iterable[Path], read: Callable[[Path], Iterator[Piece]], workers: int) -> Iterator[Iterator[Piece]]:
    """What the decoding threads make of `read(path)`; they are gone when the block is left, however it is."""
    todo: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for path in paths:
        todo.put(path)
    ready: queue.Queue[Piece | BaseException | None] = queue.Queue(maxsize=workers + 2)
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                for piece in read(todo.get_nowait()):
                    _put(ready, piece, stop)
        except queue.Empty:
            _put(ready, None, stop)
        except BaseException as error:  # a bug: told where it is heard
            _put(ready, error, stop)

    threads = [threading.Thread(target=work, name=f"decode-{i}", daemon=True) for i in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield _taken(ready, workers)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            ready.put(item, timeout=POLL)
            return
        except queue.Full:
            continue


def _taken(ready: queue.Queue[Any], workers: int) -> Iterator[Piece]:
    running = workers
    while running:
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            running -= 1
        else:
            yield item


def _read(
    path: Path, known: Mapping[str, str], out: Path, clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings
) -> Iterator[Piece]:
    """One file's pieces, and then what became of it."""
    video_id = path.stem
    try:
        source = {"source": path.name, "sha256": sha256(path)}
        if known.get(video_id) == source["sha256"] and _stored(out, video_id):
            yield Piece(video_id, outcome=Outcome(video_id))
            return
        frames = choose_frames(stream_frames(path, settings.fps, threads=1), clip, settings)
        yield from _cut(video_id, "video", frames)
        level = Loudness()
        sound = level.heard(stream_audio(path, SAMPLING_RATE))
        yield from _cut(video_id, "audio", clap.stream_windows(sound, settings.window_seconds))
        yield Piece(video_id, outcome=Outcome(video_id, note={"audio": level.audio, **source}))
    except InputError as error:
        yield Piece(video_id, outcome=Outcome(video_id, failure=str(error)))
    except Exception as error:  # whatever one file among ten thousand brings up, the others go on
        reason = f"{path}: {type(error).__name__}: {' '.join(str(error).split())}; check that it plays"
        yield Piece(video_id, outcome=Outcome(video_id, failure=reason))


def _cut(video_id: str, modality: str, arrays: Iterable[NDArray[np.float32]]) -> Iterator[Piece]:
    stream = iter(arrays)
    while part := list(islice(stream, PIECE[modality])):
        yield Piece(video_id, modality, part)


def _stored(out: Path, video_id: str) -> bool:
    return all((out / modality / f"{video_id}.npy").is_file() for modality in ("video", "audio"))


def sha256(path: Path) -> str:
    """Of a file's content. Raises `InputError` where there is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a video")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
