"""One run's notes: what it did, skipped and could not read, saved to its own manifest while it goes on."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from videoblip2.config import InputError
from videoblip2.features.encoders import ClapEncoder, ClipEncoder
from videoblip2.features.manifest import MAIN, difference, read_manifest, read_one, write_manifest
from videoblip2.features.settings import SAMPLING_RATE, FeatureSettings

SAVE_SECONDS = 5.0  # between two writes of the manifest, or 20 times what a write takes
PACKAGES = ("videoblip2", "torch", "transformers", "av", "numpy")


@dataclass(frozen=True)
class Outcome:
    """What became of one video: a note for the manifest, or why there is none, or neither: it was there already."""

    video_id: str
    note: dict[str, Any] | None = None
    failure: str | None = None


@dataclass
class ExtractionReport:
    """Video ids that were encoded, that were in the store already, and that failed, with the reason."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def sort(self, ids: Sequence[str]) -> None:
        """Into the order of `ids`: videos end as they come."""
        place = {video_id: number for number, video_id in enumerate(ids)}
        self.done.sort(key=place.__getitem__)
        self.skipped.sort(key=place.__getitem__)
        self.failed = {name: self.failed[name] for name in sorted(self.failed, key=place.__getitem__)}


@dataclass
class Ledger:
    """The manifest that this run writes, and `known`, the videos that any run has noted in this store."""

    out: Path
    name: str
    manifest: dict[str, Any]
    known: dict[str, str]  # sha256 of the source by video id
    report: ExtractionReport = field(default_factory=ExtractionReport)
    _due: float = 0.0

    def note(self, outcome: Outcome) -> None:
        """Write down one outcome, and save all of them where the last time is a while ago."""
        video_id = outcome.video_id
        if outcome.failure is not None:
            self.report.failed[video_id] = self.manifest["failed"][video_id] = outcome.failure
        elif outcome.note is None:
            self.report.skipped.append(video_id)
        else:
            self.manifest["videos"][video_id] = {**outcome.note, "at": round(time.time(), 3)}
            self.manifest["failed"].pop(video_id, None)
            self.report.done.append(video_id)
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write the manifest."""
        start = time.monotonic()
        write_manifest(self.out, self.manifest, self.name)
        self._due = time.monotonic() + max(SAVE_SECONDS, 20 * (time.monotonic() - start))


@contextmanager
def open_ledger(
    out: Path, clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings, shard: tuple[int, int] | None = None
) -> Iterator[Ledger]:
    """This run's ledger, saved at the end, whatever ends it. A store holds one pair of encoders and one setting.

    Raises `InputError` for a store that was made otherwise, and for one that another run of this shard is writing.
    """
    name = f"manifest.{shard[0]}-of-{shard[1]}.json" if shard else MAIN
    fresh = new_manifest(clip, clap, settings)
    whole = _refuse_other(out, fresh)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / f".{name}.lock", timeout=0):
            manifest = read_one(out / name) if (out / name).is_file() else fresh
            known = {video_id: note.get("sha256", "") for video_id, note in whole["videos"].items()}
            yield from _saved(Ledger(out, name, manifest, known))
    except Timeout as error:
        raise InputError(f"{out / name}: another extraction is writing it; wait for that, or use --shard") from error


def _saved(ledger: Ledger) -> Iterator[Ledger]:
    try:
        ledger.save()
        yield ledger
    except BaseException:
        with suppress(OSError):  # a full disk: the error that tells of it goes on, the last manifest stays
            ledger.save()
        raise
    ledger.save()


def new_manifest(clip: ClipEncoder, clap: ClapEncoder, settings: FeatureSettings) -> dict[str, Any]:
    """A manifest without videos."""
    window = clap.max_window_seconds if settings.window_seconds is None else settings.window_seconds
    chosen = settings.model_dump(exclude={"batch_frames"}) | {"window_seconds": window}
    return {
        "clip": {"name": clip.name, "revision": clip.revision, "fingerprint": clip.fingerprint},
        "clap": {"name": clap.name, "revision": clap.revision, "fingerprint": clap.fingerprint},
        "widths": {"video": clip.width, "audio": clap.width},
        "settings": chosen,
        "dtype": str(clip.model.dtype).removeprefix("torch."),
        "sampling_rate": SAMPLING_RATE,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "videos": {},
        "failed": {},
    }


def _refuse_other(out: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """All that the store's manifests hold, if this run may add to it."""
    manifest = read_manifest(out)
    if manifest is None:
        if any((out / "video").glob("*.npy")):
            raise InputError(f"{out}: holds features without a manifest.json; give another --out folder")
        return fresh
    if found := difference(manifest, out / MAIN, fresh, out / MAIN):
        what, old, new = found
        raise InputError(f"{out}: was made with {what} {old}, not {new}; give another --out folder")
    return manifest
