"""Extraction on Ray Data: the same files through the same code, on as many machines as the Ray cluster has.

Each actor loads the encoders once and takes paths in batches; it writes features to the store itself, so videos and
store lie on a disk that all machines see under one path. Only the notes come back: one process writes the manifest.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videoblip2.config import InputError
from videoblip2.features.encoders import ClapEncoder, ClipEncoder, load_clap, load_clip
from videoblip2.features.ledger import Outcome
from videoblip2.features.pipeline import encode_all
from videoblip2.features.settings import FeatureSettings

VIDEOS_AT_ONCE = 32  # to an actor: enough to fill batches, and few to do again if it dies
Rows = dict[str, Any]


@dataclass(frozen=True)
class RayEngine:
    """An engine of `extract_features`; start Ray before, or a local one is started.

    Args:
        actors: encoders that work at the same time; a GPU each on "cuda", else one core.
        workers: decoding threads of each.
    """

    clip: ClipEncoder
    clap: ClapEncoder
    out: Path
    settings: FeatureSettings
    device: str = "cpu"
    actors: int = 1
    workers: int = 1

    def __call__(self, paths: Sequence[Path], known: dict[str, str]) -> Generator[Outcome, None, None]:
        """What became of each file, as Ray gives it back."""
        if not paths:
            return
        require_ray()
        import ray

        _start(ray)
        rows = [{"path": str(path.resolve()), "known": known.get(path.stem, "")} for path in paths]
        parts = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // VIDEOS_AT_ONCE))
        notes = parts.map_batches(
            Actor,
            fn_constructor_args=(self._task(),),
            batch_size=VIDEOS_AT_ONCE,
            compute=ray.data.ActorPoolStrategy(size=self.actors),
            num_gpus=1 if self.device.startswith("cuda") else 0,
        )
        for row in notes.iter_rows():
            yield Outcome(**json.loads(row["outcome"]))

    def _task(self) -> Rows:
        dtype = str(self.clip.model.dtype).removeprefix("torch.")
        clip = (self.clip.name, self.device, self.clip.revision, dtype, self.clip.output, self.clip.tokens)
        clap = (self.clap.name, self.device, self.clap.revision, dtype)
        marks = (self.clip.fingerprint, self.clap.fingerprint)
        settings = self.settings.model_dump()
        out = str(self.out.resolve())
        return {"clip": clip, "clap": clap, "marks": marks, "settings": settings, "out": out, "workers": self.workers}


class Actor:
    """Encoders in a process of Ray."""

    def __init__(self, task: Rows) -> None:
        self.task = task
        self.clip, self.clap = load_clip(*task["clip"]), load_clap(*task["clap"])
        if (self.clip.fingerprint, self.clap.fingerprint) != tuple(task["marks"]):
            raise InputError(f"{self.clip.name}, {self.clap.name}: other weights on this machine; copy them there")

    def __call__(self, batch: Rows) -> Rows:
        """Paths and known digests -> outcomes as JSON."""
        paths = [Path(path) for path in batch["path"]]
        known = {path.stem: str(mark) for path, mark in zip(paths, batch["known"], strict=True)}
        settings = FeatureSettings.model_validate(self.task["settings"])
        out, workers = Path(self.task["out"]), self.task["workers"]
        outcomes = encode_all(paths, known, out, self.clip, self.clap, settings, workers)
        return {"outcome": [json.dumps(asdict(outcome)) for outcome in outcomes]}


def _start(ray: Any) -> None:
    """A local Ray unless one runs or RAY_ADDRESS names one; it says what went wrong and nothing else."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def require_ray() -> None:
    """Raise `InputError` where Ray Data is not installed."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise InputError("--engine ray: Ray is not installed; `pip install 'videoblip2[ray]'`, or leave --engine out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
