"""A captioning job on Ray Data: every actor loads the model once and captions its share of the videos.

Rows come back to the process that writes them. Where an actor dies, Ray gives its videos in flight to another.
"""

import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from videoblip2.errors import InputError
from videoblip2.features.ray_engine import through_actors
from videoblip2.features.sources import VideoSource
from videoblip2.files import printable
from videoblip2.jobs.caption import JobPlan, keepable
from videoblip2.jobs.forms import Row
from videoblip2.predict import find_model


@dataclass(frozen=True)
class RayCaptions:
    """The rows of a job, from `actors` processes; videos and model are on disks that all machines see."""

    plan: JobPlan
    actors: int = 1

    @property
    def version(self) -> str:
        """Of the model."""
        return find_model(self.plan.model).version

    def run(self, sources: Sequence[VideoSource], done: Mapping[str, str]) -> Generator[list[Row], None, None]:
        """As `CaptionJob.run`."""
        import torch

        if self.plan.keep_features is not None and self.actors > 1:
            raise InputError(
                "--keep-features: one process writes the store; drop --actors, or run `vb2 features extract "
                "--engine ray` and caption with --features"
            )
        sources = keepable(sources) if self.plan.keep_features is not None else sources
        rows = [  # as JSON: Arrow holds no name that is not UTF-8
            {"source": json.dumps([source.path, source.error, done.get(printable(source.path))])} for source in sources
        ]
        job = {"plan": self.plan, "folder": os.getcwd()}
        for row in through_actors(rows, CaptionActor, job, self.actors, torch.cuda.is_available()):
            yield [Row.of(entry) for entry in json.loads(row["rows"])]


class CaptionActor:
    """A model in a process of Ray, with the working folder of the command: paths may be relative."""

    def __init__(self, plan: JobPlan, folder: str) -> None:
        os.chdir(folder)
        self.job = plan.open()

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Sources -> the rows of each, as JSON."""
        given = [json.loads(source) for source in batch["source"]]
        sources = [VideoSource(path, error) for path, error, _ in given]
        done = {printable(path): digest for path, _, digest in given if digest is not None}
        return {"rows": [json.dumps([row.shown() for row in rows]) for rows in self.job.run(sources, done)]}
