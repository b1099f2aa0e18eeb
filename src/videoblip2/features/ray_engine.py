"""Extraction on a Ray cluster.

Each actor loads the encoders once and takes paths in batches; it writes features to the store itself, so videos
and store are on a disk that all machines see under one path. Only the notes come back.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from videoblip2.errors import InputError
from videoblip2.features.engines import VideoOutcome, encode_all
from videoblip2.features.manifest import VideoNote
from videoblip2.features.media_features import Encoders, FeatureSettings, load_encoders
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
        rows = [{"path": str(path.resolve()), "known": known.get(path.stem, "")} for path in paths]
        gpu = self.device.startswith("cuda")
        for row in through_actors(rows, Actor, self.job, self.actors, gpu):
            video_id, note, failure = json.loads(row["outcome"])
            yield VideoOutcome(video_id, None if note is None else VideoNote.model_validate(note), failure)

    @property
    def job(self) -> dict[str, object]:
        """What every actor needs to rebuild the encoders, and where it writes."""
        made = self.encoders
        identity = {"origin": made.origin, "settings": made.settings, "dtype": made.dtype, "device": self.device}
        return {**identity, "out": self.out.resolve(), "workers": self.workers}


class Actor:
    """Encoders in a process of Ray; see `RayEngine.job`."""

    def __init__(
        self, origin: FeatureOrigin, settings: FeatureSettings, dtype: str, device: str, out: Path, workers: int
    ) -> None:
        encoders = load_encoders(origin, device, f"extraction into {out}", dtype)
        for kind, wanted in origin.encoders.items():
            if encoders.origin.fingerprint(kind) != wanted.fingerprint:
                raise InputError(f"{wanted.name}: other weights on this machine; copy them there")
        self.encode = partial(encode_all, out=out, encoders=replace(encoders, settings=settings), workers=workers)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Paths and known digests -> outcomes as JSON."""
        paths = [Path(path) for path in batch["path"]]
        known = {path.stem: str(digest) for path, digest in zip(paths, batch["known"], strict=True)}
        notes = ((end, end.note and end.note.model_dump(exclude_unset=True)) for end in self.encode(paths, known))
        return {"outcome": [json.dumps([end.video_id, note, end.failure]) for end, note in notes]}


def through_actors(
    rows: Sequence[Mapping[str, str]], actor: type, job: Mapping[str, object], actors: int, gpu: bool
) -> Iterator[Mapping[str, str]]:
    """Rows through `actors` processes of Ray, in batches; the rows that `actor(**job)` returns, as they come.

    Uses a running Ray, or starts a local one. Where a process dies, its batch goes to another.
    """
    if not rows:
        return
    require_ray()
    import ray

    if not ray.is_initialized():  # a local one, unless RAY_ADDRESS names another
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    batches = ray.data.from_items(list(rows), override_num_blocks=-(-len(rows) // VIDEOS_AT_ONCE))
    yield from batches.map_batches(
        actor,
        fn_constructor_kwargs=dict(job),
        batch_size=VIDEOS_AT_ONCE,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if gpu else 0,
    ).iter_rows()


def require_ray() -> None:
    """Raise `InputError` if Ray Data is not installed."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise InputError("--engine ray: Ray is not installed; `pip install 'videoblip2[ray]'`, or leave --engine out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
