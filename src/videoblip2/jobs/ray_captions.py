"""A captioning job on Ray Data: every actor loads the model once and captions its share of the videos.

Rows come back to the process that writes them. Where an actor dies, Ray gives its videos in flight to another.
"""

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from videoblip2.errors import InputError
from videoblip2.features.ray_engine import Work, through_actors
from videoblip2.features.sources import VideoSource, keepable
from videoblip2.jobs.caption import JobPlan
from videoblip2.jobs.forms import Row


@dataclass(frozen=True)
class RayCaptions:
    """The rows of a job, from `actors` processes; videos and model are on disks that all machines see."""

    plan: JobPlan
    actors: int = 1

    @property
    def version(self) -> str:
        """Of the model."""
        return self.plan.version

    def run(self, sources: Sequence[VideoSource], done: Mapping[str, str]) -> Generator[list[Row], None, None]:
        """As `CaptionJob.run`."""
        import torch

        if self.plan.keep_features is not None and self.actors > 1:
            raise InputError(
                "--keep-features: one process writes the store; drop --actors, or run `vb2 features extract "
                "--engine ray` and caption with --features"
            )
        sources = keepable(sources) if self.plan.keep_features is not None else sources
        plan, folder = self.plan, os.getcwd()

        def open_work() -> Work:
            os.chdir(folder)  # paths may be relative
            return partial(plan.open().run, done=done)

        device = "cuda" if torch.cuda.is_available() else "cpu"
        yield from through_actors(sources, open_work, self.actors, device)
