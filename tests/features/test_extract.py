"""Extraction: complete, resumable, and not stopped by a bad file."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from videoblip2.captioner import Caption
from videoblip2.errors import InputError
from videoblip2.features.extract import extract_features
from videoblip2.features.media import write_video
from videoblip2.features.media_features import FeatureSettings
from videoblip2.features.sources import VideoSource, find_videos
from videoblip2.features.store import FeatureStore
from videoblip2.jobs.caption import CaptionJob, JobPlan
from videoblip2.provenance import EncoderIdentity

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "msrvtt" / "videos"
RATE = 16_000


def with_settings(encoders, **changed):
    return replace(encoders, settings=encoders.settings.model_copy(update=changed))


@pytest.fixture
def videos(tmp_path):
    """Three videos of 2 s: with sound, with silence, and without an audio stream."""
    rng = np.random.default_rng(0)
    sounds = {"present": rng.normal(0, 0.1, 2 * RATE).astype(np.float32), "silent": np.zeros(2 * RATE, np.float32)}
    for kind in ("present", "silent", "absent"):
        frames = np.repeat(rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8), 8, axis=1).repeat(8, axis=2)
        write_video(tmp_path / "in" / f"{kind}.mp4", frames, 8, sounds.get(kind), RATE)
    return tmp_path / "in"


def test_every_video_becomes_two_arrays_and_a_note(encoders, videos, tmp_path):
    report = extract_features(find_videos([videos]), tmp_path / "out", encoders)
    assert report.done == ["absent", "present", "silent"] and not report.failed and not report.skipped
    store = FeatureStore(tmp_path / "out")
    assert {name: (len(store.array("video", name)), len(store.array("audio", name))) for name in store.ids} == {
        "absent": (8, 0), "present": (8, 2), "silent": (8, 2),
    }  # fmt: skip
    manifest = store.manifest
    assert {name: note.audio for name, note in manifest.videos.items()} == {n: n for n in store.ids}
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert content["clip"] == {"name": encoders.clip.identity.name, "fingerprint": encoders.clip.identity.fingerprint}
    assert manifest.origin == store.origin == encoders.origin and content["settings"]["window_seconds"] == 1.0
    assert (manifest.dtype, manifest.sampling_rate) == ("float32", 48_000) and manifest.versions["av"]
    assert manifest.widths == {"video": 768, "audio": 512}


def test_one_video_alone_gives_what_the_batch_gave(encoders, videos, tmp_path):
    extract_features(find_videos([videos]), tmp_path / "out", encoders)
    video, audio = encoders.encode_file(videos / "present.mp4").values()
    store = FeatureStore(tmp_path / "out")
    np.testing.assert_allclose(video, store.array("video", "present"), atol=1e-4)
    np.testing.assert_allclose(audio, store.array("audio", "present"), atol=1e-4)
    assert not np.allclose(video, store.array("video", "absent"), atol=1e-2)


def test_max_frames_and_fps_are_heeded(encoders, videos):
    video = replace(encoders, settings=FeatureSettings(fps=8)).encode_file(videos / "absent.mp4")["video"]
    few = replace(encoders, settings=FeatureSettings(fps=8, max_frames=3)).encode_file(videos / "absent.mp4")["video"]
    assert len(video) == 16 and len(few) == 3
    np.testing.assert_allclose(few[0], video[0], atol=1e-4)


def test_what_is_there_is_kept_and_what_changed_is_done_again(encoders, videos, tmp_path):
    paths, out = find_videos([videos]), tmp_path / "out"
    extract_features(paths, out, encoders)
    (out / "audio" / "silent.npy").unlink()
    (videos / "absent.mp4").write_bytes((videos / "present.mp4").read_bytes())
    report = extract_features(paths, out, encoders)
    assert report.skipped == ["present"] and report.done == ["absent", "silent"]
    assert FeatureStore(out).manifest.videos["absent"].audio == "present"


def test_a_bad_file_is_reported_and_the_rest_is_extracted(encoders, videos, tmp_path):
    whole = (videos / "present.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "text.mp4").write_text("no video")
    paths = [*find_videos([videos]), tmp_path / "none.mp4"]
    report = extract_features(paths, tmp_path / "out", encoders)
    assert report.done == ["absent", "present", "silent"] and sorted(report.failed) == ["cut", "none", "text"]
    assert all(f"{name}.mp4" in reason for name, reason in report.failed.items())
    store = FeatureStore(tmp_path / "out")
    assert store.ids == ["absent", "silent", "present"] and sorted(store.manifest.failed) == ["cut", "none", "text"]
    (videos / "cut.mp4").write_bytes(whole)
    report = extract_features([videos / "cut.mp4"], tmp_path / "out", encoders)
    assert report.done == ["cut"] and "cut" not in FeatureStore(tmp_path / "out").manifest.failed


def test_an_interruption_loses_nothing_that_was_written(encoders, videos, tmp_path):
    def interrupted(paths, total, description):
        assert (total, description) == (3, "features")
        yield from islice(paths, 2)
        raise KeyboardInterrupt

    one_at_a_time = with_settings(encoders, batch_frames=1)
    with pytest.raises(KeyboardInterrupt):
        extract_features(find_videos([videos]), tmp_path / "out", one_at_a_time, progress=interrupted)
    report = extract_features(find_videos([videos]), tmp_path / "out", one_at_a_time)
    assert len(report.skipped) == 2 and sorted(report.skipped + report.done) == ["absent", "present", "silent"]


def test_encoders_and_settings_are_not_mixed_in_one_store(encoders, videos, tmp_path):
    paths, out = find_videos([videos]), tmp_path / "out"
    extract_features(paths, out, encoders)
    before = (out / "manifest.json").read_bytes()
    other = replace(encoders.clip, identity=EncoderIdentity(fingerprint="of another"))
    with pytest.raises(InputError, match="a clip of fingerprint"):
        extract_features(paths, out, replace(encoders, clip=other))
    with pytest.raises(InputError, match=r"with fps 4\.0, not 2\.0"):
        extract_features(paths, out, with_settings(encoders, fps=2.0))
    assert (out / "manifest.json").read_bytes() == before
    (out / "manifest.json").unlink()
    with pytest.raises(InputError, match="without a manifest"):
        extract_features(paths, out, encoders)


def test_files_of_one_name_fail_together_and_the_rest_is_extracted(encoders, videos, tmp_path):
    for name in ("present.avi", "absent.ts", "absent.mkv"):
        (videos / name).write_bytes((videos / "present.mp4").read_bytes())
    report = extract_features(find_videos([videos]), tmp_path / "out", encoders)
    assert report.done == ["silent"] and list(report.failed) == ["absent", "present"]
    assert all(name in report.failed["absent"] for name in ("absent.mp4", "absent.ts", "absent.mkv", "rename"))
    twice = [videos / "silent.mp4", *find_videos([videos])]
    assert extract_features(twice, tmp_path / "out", encoders).skipped == ["silent"], "one file, named twice"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no video in this folder"):
        find_videos([tmp_path / "empty"])


def test_a_captioning_job_keeps_its_features(encoders, videos, tmp_path):
    model = SimpleNamespace(
        version="m/1",
        media_encoders=encoders,
        timeline=lambda features, frames: (2.0, 1.0),
        caption=lambda items, *_: [Caption("a ball", -1.0) for _ in items],
    )
    job = CaptionJob(model, JobPlan(keep_features=tmp_path / "out"))
    rows = [row.caption for rows in job.run([VideoSource(str(videos / "present.mp4"))], {}) for row in rows]
    store = FeatureStore(tmp_path / "out")
    assert rows == ["a ball"] and store.array("video", "present").shape == (8, 768)
    assert store.manifest.videos["present"].audio == "present"


def test_commands_make_prepare_extract_and_check(encoders, tmp_path):
    from videoblip2.cli import data, features

    def call(app, *arguments):
        result = CliRunner().invoke(app, [str(a) for a in (*arguments, "--json")])
        return result.exit_code, json.loads(result.stdout.splitlines()[-1])

    code, world = call(data.app, "toy", tmp_path / "toy", "--videos", 10)
    assert code == 0 and world["counts"] == {"train": 7, "validate": 1, "test": 2}
    code, prepared = call(data.app, "prepare", *world["annotations"], "--out", tmp_path / "data")
    assert code == 0 and prepared["captions"] == {"train": 140, "validate": 20, "test": 40}
    models = ["--clip", encoders.clip.identity.name, "--clap", encoders.clap.identity.name, "--fps", 2]
    code, extracted = call(features.app, "extract", world["videos"], "--out", tmp_path / "features", *models)
    assert code == 0 and len(extracted["done"]) == 10
    code, checked = call(features.app, "check", tmp_path / "features", "--annotations", prepared["files"]["train"])
    assert code == 0 and checked["ok"] and checked["videos"] == 7
    (tmp_path / "features" / "video" / "video0.npy").unlink()
    code, checked = call(features.app, "check", tmp_path / "features", "--annotations", prepared["files"]["train"])
    assert code == 3 and checked["missing"] == ["video0"]
    (tmp_path / "bad.mp4").write_text("no video")
    code, failed = call(features.app, "extract", tmp_path / "bad.mp4", "--out", tmp_path / "bad", *models)
    assert code == 1 and list(failed["failed"]) == ["bad"]


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real videos (../shared/data/msrvtt/videos) are not here")
def test_real_videos(encoders, tmp_path):
    names = ["video7010", "video7013", "video7014", "video9771"]  # digitally silent, without sound, with, without
    report = extract_features(
        [SHARED / f"{name}.mp4" for name in names], tmp_path / "out", with_settings(encoders, fps=1.0)
    )
    assert report.done == names and not report.failed
    store = FeatureStore(tmp_path / "out")
    assert [store.manifest.videos[name].audio for name in names] == ["silent", "absent", "present", "absent"]
    assert all(10 <= len(store.array("video", name)) <= 25 for name in names)
    assert [len(store.array("audio", name)) == 0 for name in names] == [False, True, False, True]
