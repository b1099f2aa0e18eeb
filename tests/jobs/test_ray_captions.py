"""A captioning job on two workers of a local Ray, one of which is killed midway."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from videoblip2.features.sources import VideoSource
from videoblip2.jobs.forms import Row
from videoblip2.jobs.ray import caption_on_ray

pytest.importorskip("ray")


@dataclass(frozen=True)
class Plan:
    """Opens a job that captions each video with its name; the first worker to see video 40 dies."""

    folder: Path
    keep_features: Path | None = None

    def open(self):
        return self

    def run(self, sources, done):
        for source in sources:
            if source.path == "40.mp4" and not (self.folder / "killed").exists():
                (self.folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with (self.folder / "seen").open("a") as file:
                file.write(f"{source.path}\n")
            yield [Row(source.path, source.video_id, f"a video named {source.video_id}")]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Ray itself
def test_a_killed_worker_costs_only_its_videos_in_flight(tmp_path):
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        names = [f"{number}.mp4" for number in range(96)]
        batches = caption_on_ray(Plan(tmp_path), 2, [VideoSource(name) for name in names], {})
        rows = [row for rows in batches for row in rows]
    finally:
        ray.shutdown()
    assert (tmp_path / "killed").exists()
    assert sorted(row.path for row in rows) == sorted(names) and not any(row.error for row in rows)
    repeated = len((tmp_path / "seen").read_text().split()) - len(names)
    assert 0 <= repeated < 32  # one batch of one worker
