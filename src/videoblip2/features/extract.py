"""Videos to a feature store: decode, encode, save; resumable, and one bad file does not stop the rest.

1. `read_video` and `encode_videos` are the one road from a media file to features; serving takes it, too.
2. Frames of several videos share a forward pass, up to `batch_frames`.
3. A video is skipped where the store has it already from the same bytes, encoders and settings.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoblip2.config import InputError
from videoblip2.features.encoders import ClapEncoder, ClipEncoder
from videoblip2.features.media import Audio, Frame, decode_audio, stream_frames, thin
from videoblip2.features.settings import SAMPLING_RATE, FeatureSettings
from videoblip2.features.store import Features, read_manifest, write_features, write_manifest

Progress = Callable[[Iterable[Path], int, str], Iterable[Path]]

MEDIA_SUFFIXES = {".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg"}
SILENCE = 1e-4  # full scale is 1; a stream that never exceeds -80 dB is silent
SAVE_EVERY = 20  # videos between two writes of the manifest


@dataclass(frozen=True)
class PreparedVideo:
    """One decoded video, ready for the encoders."""

    pixels: list[NDArray[np.float32]]  # F of [3, S, S]
    windows: list[NDArray[np.float32]]  # A of [samples]
    audio: str  # "present", "silent" or "absent"


@dataclass
class ExtractionReport:
    """Video ids that were encoded, that were in the store already, and that failed, with the reason."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def encode_video(
    path: str | Path, clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings
) -> tuple[Features, Features]:
    """One media file -> (float32 [F, 768], float32 [A, 512]), A = 0 without audio. `InputError` if unreadable."""
    return encode_videos([read_video(path, clip, clap, settings)], clip, clap, settings)[0]


def read_video(path: str | Path, clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings) -> PreparedVideo:
    """Decode one media file and prepare its frames and audio windows."""
    frames = stream_frames(path, settings.fps)
    return prepare_video(frames, lambda: decode_audio(path, SAMPLING_RATE), clip, clap, settings)


def prepare_video(
    raw_frames: Iterable[Frame],
    sound_after: Callable[[], Audio | None],
    clip: ClipEncoder,
    clap: ClapEncoder,
    settings: FeatureSettings,
) -> PreparedVideo:
    """Frames [H, W, 3], and then the sound that `sound_after` gives, made ready for the encoders."""
    pixels = (clip.pixels(frame) for frame in raw_frames)
    frames = list(pixels) if settings.max_frames is None else thin(pixels, settings.max_frames)
    sound = sound_after()
    if sound is None:
        return PreparedVideo(frames, [], "absent")
    silent = not len(sound) or float(np.abs(sound).max()) < SILENCE
    return PreparedVideo(frames, clap.windows(sound, settings.window_seconds), "silent" if silent else "present")


def encode_videos(
    videos: Sequence[PreparedVideo], clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings
) -> list[tuple[Features, Features]]:
    """Prepared videos -> (float32 [F, 768], float32 [A, 512]) each."""
    frames = clip.encode_pixels([p for video in videos for p in video.pixels], settings.batch_frames)
    windows = clap.encode_windows([w for video in videos for w in video.windows])
    visual = np.split(frames, np.cumsum([len(video.pixels) for video in videos])[:-1])
    audio = np.split(windows, np.cumsum([len(video.windows) for video in videos])[:-1])
    return list(zip(visual, audio, strict=True))


def extract_features(
    videos: Iterable[str | Path],
    out: str | Path,
    clip: ClipEncoder,
    clap: ClapEncoder,
    settings: FeatureSettings,
    progress: Progress | None = None,
) -> ExtractionReport:
    """Encode `videos` into the store `out` and note everything in its manifest.

    Raises `InputError` for two files of one name and for a store made with other encoders or settings; a file that
    cannot be read is reported as failed.
    """
    paths = _by_id(videos)
    extraction = _Extraction(Path(out), clip, clap, settings, _open_manifest(Path(out), clip, clap, settings))
    try:
        for path in progress(paths, len(paths), "features") if progress else paths:
            extraction.add(path)
        extraction.flush()
    finally:
        write_manifest(Path(out), extraction.manifest)
    return extraction.report


def find_videos(paths: Iterable[str | Path]) -> list[Path]:
    """Files as given, and the media files of each folder, sorted. Raises `InputError` where there is none."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.glob("*") if p.suffix.lower() in MEDIA_SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: holds no video ({', '.join(sorted(MEDIA_SUFFIXES))}); give another folder")
        found += inside
    return found


@dataclass
class _Extraction:
    """One call's state: what is decoded and waits for the encoders, and what has been noted."""

    out: Path
    clip: ClipEncoder
    clap: ClapEncoder
    settings: FeatureSettings
    manifest: dict[str, Any]
    report: ExtractionReport = field(default_factory=ExtractionReport)
    waiting: dict[str, tuple[PreparedVideo, dict[str, Any]]] = field(default_factory=dict)
    unsaved: int = 0

    def add(self, path: Path) -> None:
        """Decode `path` unless the store has it, and encode what waits when that fills a batch."""
        try:
            source = {"source": path.name, "sha256": _hash(path)}
            if self._has(path.stem, source):
                self.report.skipped.append(path.stem)
                return
            self.waiting[path.stem] = read_video(path, self.clip, self.clap, self.settings), source
        except InputError as error:
            self.report.failed[path.stem] = self.manifest["failed"][path.stem] = str(error)
        if sum(len(video.pixels) for video, _ in self.waiting.values()) >= self.settings.batch_frames:
            self.flush()

    def flush(self) -> None:
        """Encode and save what waits."""
        prepared = [video for video, _ in self.waiting.values()]
        encoded = encode_videos(prepared, self.clip, self.clap, self.settings) if prepared else []
        for (video_id, (video, source)), (frames, windows) in zip(self.waiting.items(), encoded, strict=True):
            write_features(self.out, video_id, frames, windows)
            counts = {"frames": len(frames), "audio_windows": len(windows), "audio": video.audio}
            self.manifest["videos"][video_id] = counts | source
            self.manifest["failed"].pop(video_id, None)
            self.report.done.append(video_id)
        self.unsaved += len(self.waiting)
        self.waiting.clear()
        if self.unsaved >= SAVE_EVERY:
            write_manifest(self.out, self.manifest)
            self.unsaved = 0

    def _has(self, video_id: str, source: dict[str, Any]) -> bool:
        noted = self.manifest["videos"].get(video_id, {})
        files = (self.out / modality / f"{video_id}.npy" for modality in ("video", "audio"))
        return noted.get("sha256") == source["sha256"] and all(file.is_file() for file in files)


def _open_manifest(out: Path, clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings) -> dict[str, Any]:
    """The store's manifest, or a new one. A store holds one pair of encoders and one setting."""
    fresh = _new_manifest(clip, clap, settings)
    manifest = read_manifest(out)
    if manifest is None:
        if any((out / "video").glob("*.npy")):
            raise InputError(f"{out}: holds features without a manifest.json; give another --out folder")
        return fresh
    for made_with, now in zip(_choices(manifest, out), _choices(fresh, out), strict=True):
        if made_with[1] != now[1]:
            what, old = made_with
            raise InputError(f"{out}: was made with {what} {old}, not {now[1]}; give another --out folder")
    return manifest


def _choices(manifest: dict[str, Any], out: Path) -> list[tuple[str, Any]]:
    """(name, value) of all that has to be alike within one store."""
    try:
        encoders = [(f"a {kind} of fingerprint", manifest[kind]["fingerprint"]) for kind in ("clip", "clap")]
        return encoders + [(key, manifest["settings"][key]) for key in ("fps", "max_frames", "window_seconds")]
    except (KeyError, TypeError) as error:
        raise InputError(f"{out / 'manifest.json'}: lacks {error}; give another --out folder") from error


def _new_manifest(clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings) -> dict[str, Any]:
    window = clap.max_window_seconds if settings.window_seconds is None else settings.window_seconds
    packages = ("videoblip2", "torch", "transformers", "av", "numpy")
    return {
        "clip": {"name": clip.name, "fingerprint": clip.fingerprint},
        "clap": {"name": clap.name, "fingerprint": clap.fingerprint},
        "settings": {"fps": settings.fps, "max_frames": settings.max_frames, "window_seconds": window},
        "sampling_rate": SAMPLING_RATE,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "videos": {},
        "failed": {},
    }


def _by_id(videos: Iterable[str | Path]) -> list[Path]:
    """The paths, once it is sure that their names without suffix, which become the ids, differ."""
    seen: dict[str, Path] = {}
    for path in map(Path, videos):
        if path.stem in seen:
            raise InputError(f"{path}: has the same name as {seen[path.stem]}; rename one, names become video ids")
        seen[path.stem] = path
    return list(seen.values())


def _hash(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a video")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
