"""Shot changes are found in all frames of a file during decoding: cuts and fades, and none in mere motion."""

import numpy as np
import pytest

from videoblip2.captioner import Caption
from videoblip2.features.media import stream_frames, write_video
from videoblip2.features.sources import VideoSource
from videoblip2.jobs.caption import CaptionJob, CaptionOptions, JobPlan
from videoblip2.jobs.segments import ShotWatch


def shot(seed, count=40, speed=0):
    """Colored blocks of 16 pixels that move to the right by `speed` pixels per frame."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    return np.stack([np.roll(blocks, speed * number, axis=1) for number in range(count)])


def changes(path, frames, rate=20):
    write_video(path, frames, rate, None, 16_000)
    watch = ShotWatch()
    assert len(list(stream_frames(path, 1, watch=watch))) == -(-len(frames) // rate)
    assert len(watch.times) == len(frames)
    return watch.changes()


@pytest.mark.parametrize("speed", [0, 1])
def test_cuts_are_found_to_the_frame(tmp_path, speed):
    frames = np.concatenate([shot(seed, speed=speed) for seed in (0, 1, 0, 2)])
    assert changes(tmp_path / "v.mp4", frames) == pytest.approx([2.0, 4.0, 6.0], abs=0.01)


def test_what_moves_or_stands_still_has_no_change(tmp_path):
    assert changes(tmp_path / "v.mp4", shot(0, 120, speed=2)) == changes(tmp_path / "w.mp4", shot(0, 60)) == []
    assert changes(tmp_path / "x.mp4", shot(0, 1)) == []


def test_a_cross_fade_is_one_change_in_its_middle(tmp_path):
    weights = np.linspace(0, 1, 20)[:, None, None, None]
    mixed = (shot(0, 20) * (1 - weights) + shot(1, 20) * weights).astype(np.uint8)
    frames = np.concatenate([shot(0, 60), mixed, shot(1, 60)])
    assert changes(tmp_path / "v.mp4", frames) == pytest.approx([3.5], abs=0.3)


def test_a_job_cuts_at_the_changes_of_the_file(encoders, tmp_path):
    class Model:
        version, media_encoders = "m/1", encoders

        def timeline(self, item, frames=None):
            return len(item["video"]) / 4, 1.0

        def caption(self, items, prompts, decoding, seeds):
            return [Caption(f"{len(item['video'])} frames", -1.0) for item in items]

    write_video(tmp_path / "v.mp4", np.concatenate([shot(0, 27), shot(1, 61)]), 20, None, 16_000)
    job = CaptionJob(Model(), JobPlan(options=CaptionOptions(segments="scenes")))
    [rows] = job.run([VideoSource(str(tmp_path / "v.mp4"))], {})
    assert [(row.start, row.end, row.caption) for row in rows] == [(0.0, 1.35, "6 frames"), (1.35, 4.5, "12 frames")]
