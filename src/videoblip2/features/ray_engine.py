"""Extraction on Ray Data: the same files through the same code, on all machines of a Ray cluster.

Each actor loads the encoders once and takes paths in batches; it writes features to the store itself, so videos and
store are on a disk that all machines see under one path. Only the notes come back: one process writes the manifest.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from videoblip2.errors import InputError
from videoblip2.features.manifest import VideoNote
from videoblip2.features.media_features import Encoders, FeatureSettings, load_encoders
from videoblip2.features.pipeline import VideoOutcome, encode_all
from videoblip2.provenance import FeatureOrigin

VIDEOS_AT_ONCE = 32  # per actor: enough to fill batches, and few to repeat if it dies


@dataclass(frozen=True)
class RayEngine:
    """An engine of `extract_features`; uses a running Ray, or starts a local one.

    Args:
        actors: encoders that work in parallel; a GPU each on "cuda", otherwise one core.
        workers: decoding threads of each.
    """

    encoders: Encoders
    out: Path
    device: str = "cpu"
    actors: int = 1
    workers: int = 1

    def __call__(self, paths: Sequence[Path], known: dict[str, str]) -> Generator[VideoOutcome, None, None]:
        """The outcome of each file, as Ray returns it."""
        if not paths:
            return
        require_ray()
        import ray

        if not ray.is_initialized():  # a local one, unless RAY_ADDRESS names another
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"path": str(path.resolve()), "known": known.get(path.stem, "")} for path in paths]
        batches = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // VIDEOS_AT_ONCE))
        notes = batches.map_batches(
            Actor,
            fn_constructor_args=(self.job,),
            batch_size=VIDEOS_AT_ONCE,
            compute=ray.data.ActorPoolStrategy(size=self.actors),
            num_gpus=1 if self.device.startswith("cuda") else 0,
        )
        for row in notes.iter_rows():
            video_id, note, failure = json.loads(row["outcome"])
            yield VideoOutcome(video_id, None if note is None else VideoNote.model_validate(note), failure)

    @property
    def job(self) -> ActorJob:
        """What every actor needs to know."""
        models = self.encoders
        return ActorJob(
            models.origin, models.settings, models.dtype, self.device, str(self.out.resolve()), self.workers
        )


@dataclass(frozen=True)
class ActorJob:
    """How an actor rebuilds the encoders, and where it writes."""

    origin: FeatureOrigin
    settings: FeatureSettings
    dtype: str
    device: str
    out: str
    workers: int


class Actor:
    """Encoders in a process of Ray."""

    def __init__(self, job: ActorJob) -> None:
        self.job = job
        encoders = load_encoders(job.origin, job.device, f"extraction into {job.out}", job.dtype)
        for kind, wanted in job.origin.encoders.items():
            if encoders.origin.fingerprint(kind) != wanted.fingerprint:
                raise InputError(f"{wanted.name}: other weights on this machine; copy them there")
        self.encoders = replace(encoders, settings=job.settings)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Paths and known digests -> outcomes as JSON."""
        paths = [Path(path) for path in batch["path"]]
        known = {path.stem: str(digest) for path, digest in zip(paths, batch["known"], strict=True)}
        outcomes = encode_all(paths, known, Path(self.job.out), self.encoders, self.job.workers)
        notes = ((end, end.note and end.note.model_dump(exclude_unset=True)) for end in outcomes)
        return {"outcome": [json.dumps([end.video_id, note, end.failure]) for end, note in notes]}


def require_ray() -> None:
    """Raise `InputError` if Ray Data is not installed."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise InputError("--engine ray: Ray is not installed; `pip install 'videoblip2[ray]'`, or leave --engine out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
