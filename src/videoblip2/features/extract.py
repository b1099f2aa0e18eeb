"""Extract a feature store from videos: resumable, and one bad file does not stop the rest.

A run writes its manifest as it works, so an interruption loses nothing that was stored.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from videoblip2.errors import InputError, Progress, no_progress, refused
from videoblip2.features.engines import Files, VideoOutcome, encode_all
from videoblip2.features.manifest import MAIN, FeatureManifest, VideoNote
from videoblip2.features.media_features import Encoders
from videoblip2.features.sources import VideoSource, in_shard, keepable
from videoblip2.files import printable, segment_of

#: (files, sha256 of the recorded source by video id) → the outcome of each file, in any order.
Engine = Callable[[Files, dict[str, str]], Generator[VideoOutcome, None, None]]

SAVE_SECONDS = 5.0  # between writes of the manifest, or 20 times as long as a write
PACKAGES = ("videoblip2", "torch", "transformers", "av", "numpy")


@dataclass(frozen=True)
class ExtractionRun:
    """Options of one extraction.

    workers: decoding threads; None = one per core, at most 8. shard: (i, n), 1 <= i <= n: only the i-th of n parts; see
    `in_shard`. Parts can run in parallel into one store. resume: skip videos that the store has. ids: only these videos
    and segments, which are `ID#start-end` in seconds.
    """

    workers: int | None = None
    shard: tuple[int, int] | None = None
    resume: bool = True
    ids: Collection[str] | None = None

    @property
    def threads(self) -> int:
        """Decoding threads."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.workers or min(8, cores or 1)


@dataclass(frozen=True)
class ExtractionReport:
    """Ids of videos that were encoded, that were already in the store, and that failed, with the reason.

    noted: which parts of an encoded video were skipped or changed. missing: requested ids without a file.
    """

    done: list[str]
    skipped: list[str]
    failed: dict[str, str]
    noted: dict[str, str]
    missing: list[str]


def extract_features(
    videos: Iterable[str | Path],
    out: str | Path,
    encoders: Encoders,
    run: ExtractionRun = ExtractionRun(),
    progress: Progress = no_progress,
    engine: Engine | None = None,
) -> ExtractionReport:
    """Encode `videos` into the store `out`, and record each in its manifest.

    Files that cannot be read are reported as failed, as are files that share an id.

    Args:
        engine: encodes the files; None = in this process.

    Raises `InputError` for a store made with different encoders or settings, and if the store cannot be written.
    """
    out, (by_id, missing) = Path(out), _chosen(videos, run)
    files = [(video_id, Path(source.path)) for video_id, source in by_id.items() if not source.error]
    with open_ledger(out, encoders, run) as ledger:
        known = ledger.known if run.resume else {}
        for video_id, source in by_id.items():
            if source.error:
                ledger.note(VideoOutcome(video_id, failure=printable(source.error)))
        outcomes = engine(files, known) if engine else encode_all(files, known, out, encoders, run.threads)
        with closing(outcomes):
            for _ in progress(map(ledger.note, outcomes), len(files), "features"):
                pass
    return _report([ledger.ended[video_id] for video_id in by_id], missing)


def _chosen(videos: Iterable[str | Path], run: ExtractionRun) -> tuple[dict[str, VideoSource], list[str]]:
    """The sources of this run by video id, and the requested ids without a file."""
    given = keepable(VideoSource(str(path)) for path in dict.fromkeys(map(Path, videos)))
    by_name = {printable(Path(source.path).stem): source for source in given}
    found = {i: by_name.get(i) or by_name.get(segment_of(i)[0]) for i in (by_name if run.ids is None else run.ids)}
    chosen = {i: source for i, source in found.items() if source and in_shard(i, run.shard)}
    return chosen, [i for i, source in found.items() if not source]


def _report(ended: Sequence[VideoOutcome], missing: list[str]) -> ExtractionReport:
    notes = {outcome.video_id: outcome.note for outcome in ended if outcome.note}
    failed = {outcome.video_id: outcome.failure for outcome in ended if outcome.failure is not None}
    skipped = [outcome.video_id for outcome in ended if outcome.note is None and outcome.failure is None]
    noted = {name: f"{note.source}: {'; '.join(note.caveats)}" for name, note in notes.items() if note.caveats}
    return ExtractionReport(list(notes), skipped, failed, noted, missing)


@dataclass
class Ledger:
    """The manifest that a run writes as it works. known: sha256 of every source in the store, by video id."""

    path: Path
    start: FeatureManifest
    known: dict[str, str]
    videos: dict[str, VideoNote]
    failed: dict[str, str]
    ended: dict[str, VideoOutcome] = field(default_factory=dict)
    due: float = 0.0

    def note(self, outcome: VideoOutcome) -> None:
        """Record one outcome; save the manifest if the last save was a while ago."""
        video_id = outcome.video_id
        self.ended[video_id] = outcome
        if outcome.failure is not None:
            self.failed[video_id] = outcome.failure
        elif outcome.note:
            self.videos[video_id] = outcome.note.model_copy(update={"at": round(time.time(), 3)})
            self.failed.pop(video_id, None)
        if time.monotonic() >= self.due:
            self.save()

    def save(self) -> None:
        """Write the manifest."""
        begin = time.monotonic()
        manifest = self.start.model_copy(update={"videos": self.videos, "failed": self.failed})
        manifest.write(self.path.parent, self.path.name)
        self.due = time.monotonic() + max(SAVE_SECONDS, 20 * (time.monotonic() - begin))


def _empty_manifest(encoders: Encoders) -> FeatureManifest:
    return FeatureManifest(
        **dict(encoders.origin),
        widths=encoders.widths,
        dtype=encoders.dtype,
        sampling_rate=encoders.clap.rate,
        versions={package: importlib.metadata.version(package) for package in PACKAGES},
        videos={},
        failed={},
    )


@contextmanager
def open_ledger(out: Path, encoders: Encoders, run: ExtractionRun) -> Iterator[Ledger]:
    """The run's ledger, saved however the block ends.

    Raises `InputError` for a store made with different encoders or settings, and if another run is writing this shard.
    """
    path = out / ("manifest.{}-of-{}.json".format(*run.shard) if run.shard else MAIN)
    whole, fresh = FeatureManifest.read(out), _empty_manifest(encoders)
    if whole is None and any((out / "video").glob("*.npy")):
        raise InputError(f"{out}: holds features without a manifest.json; give another --out folder")
    if whole and (found := whole.difference(fresh)):
        raise InputError(f"{out}: was made with {found}; give another --out folder")
    out.mkdir(parents=True, exist_ok=True)
    busy = refused(f"{path}: another extraction is writing it", "wait for it, or use --shard", Timeout)
    with busy, FileLock(out / f".{path.name}.lock", timeout=0):
        start = FeatureManifest.parse(path.read_bytes(), path) if path.is_file() else fresh
        known = {video_id: note.sha256 for video_id, note in (whole or fresh).videos.items()}
        ledger = Ledger(path, start, known, dict(start.videos), dict(start.failed))
        try:
            ledger.save()
            yield ledger
        except BaseException:
            with suppress(OSError):  # a full disk: report the first error, and keep the last manifest
                ledger.save()
            raise
        ledger.save()
