"""Extraction and captioning on Ray Data: each actor loads its models once and processes videos in batches.

Videos, models and stores must have the same paths on all machines. Extraction actors write to the store themselves and
return only notes; captions return to the process that writes them. If an actor dies, Ray gives its videos in flight to
another.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoblip2.errors import InputError
from videoblip2.features.engines import Files, VideoOutcome, encode_all
from videoblip2.features.media_features import Encoders, load_encoders
from videoblip2.features.sources import VideoSource, keepable
from videoblip2.jobs.caption import JobPlan
from videoblip2.jobs.forms import Row

VIDEOS_AT_ONCE = 32  # per actor: enough to fill batches, and few to repeat if the actor dies
Work = Callable[[Sequence[Any]], Iterable[Any]]  # items → their results, in any order


def extract_on_ray(
    encoders: Encoders, out: Path, device: str, actors: int, workers: int, files: Files, known: Mapping[str, str]
) -> Generator[VideoOutcome, None, None]:
    """The outcome of each file, from `actors` processes; on "cuda" each gets a GPU, otherwise a core."""
    items = [(video_id, path.resolve()) for video_id, path in files]
    return on_actors(items, extraction(encoders, out, device, workers, known), actors, device)


def extraction(
    encoders: Encoders, out: Path, device: str, workers: int, known: Mapping[str, str]
) -> Callable[[], Work]:
    """A function that an actor calls first: it loads the encoders from the folders that this process used."""
    out, settings = out.resolve(), encoders.settings
    load = partial(load_encoders, encoders.origin, device, f"{out}", encoders.dtype)

    def open_work() -> Work:
        loaded = replace(load(), settings=settings)
        return partial(encode_all, known=known, out=out, encoders=loaded, workers=workers)

    return open_work


def caption_on_ray(
    plan: JobPlan, actors: int, sources: Sequence[VideoSource], done: Mapping[str, str]
) -> Generator[list[Row], None, None]:
    """`CaptionJob.run` in `actors` processes."""
    import torch

    if plan.keep_features is not None and actors > 1:
        raise InputError(
            "--keep-features: only one process can write the store; drop --actors, or run "
            "`vb2 features extract --engine ray` and caption with --features"
        )
    sources = keepable(sources) if plan.keep_features is not None else sources
    folder = os.getcwd()

    def open_work() -> Work:
        os.chdir(folder)  # paths may be relative
        return partial(plan.open().run, done=done)

    yield from on_actors(sources, open_work, actors, "cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Wrapped:
    """Keeps Arrow from converting its content, such as a name that is not UTF-8."""

    content: Any


class Actor:
    """A Ray actor."""

    def __init__(self, open_work: Callable[[], Work]) -> None:
        self.work = open_work()

    def __call__(self, batch: Mapping[str, Sequence[Wrapped]]) -> dict[str, NDArray[np.object_]]:
        results = self.work([item.content for item in batch["item"]])
        return {"result": np.fromiter(map(Wrapped, results), dtype=object)}


def on_actors(
    items: Sequence[Any], open_work: Callable[[], Work], actors: int, device: str
) -> Generator[Any, None, None]:
    """Process items in batches with `actors` Ray processes; yield the results as they arrive.

    Uses a running Ray, or starts a local one.
    """
    if not items:
        return
    require_ray()
    import ray

    if not ray.is_initialized():  # a local one, unless RAY_ADDRESS names another
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_fallback_to_arrow_object_ext_type = True  # items and results stay Python objects
    rows = [{"item": Wrapped(item)} for item in items]
    batches = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // VIDEOS_AT_ONCE)).map_batches(
        Actor,
        fn_constructor_args=(open_work,),
        batch_size=VIDEOS_AT_ONCE,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if device.startswith("cuda") else 0,
    )
    yield from (row["result"].content for row in batches.iter_rows())


def require_ray() -> None:
    """Raise `InputError` if Ray Data is not installed."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise InputError("--engine ray: Ray is not installed; `pip install 'videoblip2[ray]'`, or leave --engine out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
