"""Videos to a feature store: decode, encode, save; resumable, and one bad file does not stop the rest.

1. `read_video` and `encode_videos` are the one road from a media file to features; serving takes it, too.
2. `extract_features` takes many files the same road, decoding some while it encodes others (`features.pipeline`).
3. A video is skipped where the store has it already from the same bytes, encoders and settings.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from videoblip2.config import InputError
from videoblip2.features.encoders import ClapEncoder, ClipEncoder
from videoblip2.features.ledger import ExtractionReport as ExtractionReport
from videoblip2.features.ledger import Ledger, Outcome, open_ledger
from videoblip2.features.media import decode_audio, stream_frames
from videoblip2.features.pipeline import encode_all
from videoblip2.features.prepare import PreparedVideo as PreparedVideo
from videoblip2.features.prepare import prepare_video as prepare_video
from videoblip2.features.settings import SAMPLING_RATE, FeatureSettings
from videoblip2.modality import Features

Progress = Callable[[Iterable[Path], int, str], Iterable[Path]]
#: (files, sha256 of what is known by id) -> what became of each, in any order.
Engine = Callable[[Sequence[Path], dict[str, str]], Generator[Outcome, None, None]]

MEDIA_SUFFIXES = {
    *(".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg"),
    *(".ts", ".m2ts", ".mts", ".wmv", ".asf", ".flv", ".3gp", ".ogv"),
}
#: How files of these kinds begin, whatever their names are: (place, bytes).
SIGNATURES = ((4, b"ftyp"), (8, b"AVI "), (0, b"\x1a\x45\xdf\xa3"), (0, b"\x00\x00\x01\xba"), (0, b"FLV\x01"))


def encode_video(path: str | Path, clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings) -> Features:
    """One media file -> its features. Raises `InputError` for one that cannot be read."""
    return encode_videos([read_video(path, clip, clap, settings)], clip, clap, settings)[0]


def read_video(path: str | Path, clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings) -> PreparedVideo:
    """Decode one media file and prepare its frames and audio windows."""
    frames = stream_frames(path, settings.fps)
    return prepare_video(frames, lambda: decode_audio(path, SAMPLING_RATE), clip, clap, settings)


def encode_videos(
    videos: Sequence[PreparedVideo], clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings
) -> list[Features]:
    """Prepared videos -> features of each; with patch tokens F * P rows of video."""
    frames = clip.encode_pixels([p for video in videos for p in video.pixels], settings.batch_frames)
    windows = clap.encode_windows([w for video in videos for w in video.windows])
    visual = np.split(frames, np.cumsum([len(video.pixels) * clip.rows for video in videos])[:-1])
    audio = np.split(windows, np.cumsum([len(video.windows) for video in videos])[:-1])
    return [{"video": rows, "audio": sound} for rows, sound in zip(visual, audio, strict=True)]


def extract_features(
    videos: Iterable[str | Path],
    out: str | Path,
    clip: ClipEncoder,
    clap: ClapEncoder,
    settings: FeatureSettings,
    progress: Progress | None = None,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    resume: bool = True,
    engine: Engine | None = None,
) -> ExtractionReport:
    """Encode `videos` into the store `out` and note everything in its manifest.

    Args:
        workers: threads that decode; default: one a core, 8 at most.
        shard: (i, n), 1 <= i <= n: take the i-th part of `videos`, which depends on each id alone; parts can go on at
            the same time, into one store.
        resume: False encodes anew what the store has.
        engine: what runs the files through the encoders; default: this process.

    Raises `InputError` for two files of one name, for a store made with other encoders or settings, and where the
    store cannot be written; a file that cannot be read is reported as failed.
    """
    paths = [path for path in _by_id(videos) if shard is None or shard_of(path.stem, shard[1]) == shard[0]]
    _refuse_settings(clip, clap, settings)
    here = partial(encode_all, out=Path(out), clip=clip, clap=clap, settings=settings, workers=workers or _cores())
    with (
        open_ledger(Path(out), clip, clap, settings, shard) as ledger,
        closing((engine or here)(paths, ledger.known if resume else {})) as outcomes,
    ):
        ended = _noted(outcomes, ledger)
        for _ in progress(ended, len(paths), "features") if progress else ended:
            pass
    ledger.report.sort([path.stem for path in paths])
    return ledger.report


def shard_of(video_id: str, count: int) -> int:
    """Which of `count` shards, from 1, has this video: the same on every machine, whatever other videos there are."""
    return int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8]) % count + 1


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """ "2/4" -> (2, 4). Raises `InputError` for anything else than I/N with 1 <= I <= N."""
    if text is None:
        return None
    numbers = [int(number) if number.isdecimal() else 0 for number in text.split("/")]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise InputError(f"--shard {text}: is not I/N with 1 <= I <= N; give 1/4, 2/4, 3/4 and 4/4, for example")
    return numbers[0], numbers[1]


def find_videos(paths: Iterable[str | Path]) -> list[Path]:
    """Files as given, and the media files of each folder, sorted. Raises `InputError` where there is none.

    In a folder, a file counts by its suffix or, whatever that is, by how it begins.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.glob("*") if _is_media(p)) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: holds no video ({', '.join(sorted(MEDIA_SUFFIXES))}); give another folder")
        found += inside
    return found


def passed_over(paths: Iterable[str | Path]) -> list[Path]:
    """What lies in these folders and is no video to `find_videos`: other files, and folders, where it does not look."""
    folders = [path for path in map(Path, paths) if path.is_dir()]
    inside = [path for folder in folders for path in sorted(folder.glob("*"))]
    return [path for path in inside if not path.name.startswith(".") and not _is_media(path)]


def _is_media(path: Path) -> bool:
    if not path.is_file() or path.name.startswith("."):
        return False
    if path.suffix.lower() in MEDIA_SUFFIXES:
        return True
    with path.open("rb") as file:
        head = file.read(16)
    return any(head[place:].startswith(mark) for place, mark in SIGNATURES)


def _noted(outcomes: Iterator[Outcome], ledger: Ledger) -> Iterator[Path]:
    for outcome in outcomes:
        ledger.note(outcome)
        yield Path(outcome.video_id)


def _refuse_settings(clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings) -> None:
    clap.windows(np.zeros(0, np.float32), settings.window_seconds)
    for name, made, wanted in (("output", clip.output, settings.output), ("tokens", clip.tokens, settings.tokens)):
        if made != wanted:
            raise InputError(f"{name}={wanted}: {clip.name} was loaded for {made}; load it with the settings' {name}")


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _by_id(videos: Iterable[str | Path]) -> list[Path]:
    """The paths, once it is sure that their names without suffix, which become the ids, differ."""
    seen: dict[str, Path] = {}
    for path in map(Path, videos):
        if path.stem in seen:
            raise InputError(f"{path}: has the same name as {seen[path.stem]}; rename one, names become video ids")
        seen[path.stem] = path
    return list(seen.values())
