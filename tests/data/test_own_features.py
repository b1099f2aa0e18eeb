"""Features that are not all there, or not the usual ones: named at once, left out on request, trained on."""

import json
import shutil

import numpy as np
import pytest
from tiny_world import make_world, tiny_config
from tracking_store import place_store
from typer.testing import CliRunner

from videoblip2.cli.data import app
from videoblip2.config import InputError
from videoblip2.data.annotations import VideoAnnotation, compare_with_features, require_features
from videoblip2.features.store import FeatureStore, write_features
from videoblip2.training.stage import run_stage


@pytest.fixture
def store(tmp_path):
    """Six videos, of which video4 has no audio file and video5 no frames."""
    for n in range(6):
        write_features(tmp_path / "store", f"video{n}", {"video": np.ones((2, 8)), "audio": np.zeros((0, 4))})
    (tmp_path / "store" / "audio" / "video4.npy").unlink()
    (tmp_path / "store" / "video" / "video5.npy").unlink()
    return tmp_path / "store"


def prepare(*words):
    return CliRunner().invoke(app, ["prepare", *map(str, words), "--json"], catch_exceptions=False).stdout.splitlines()


def test_all_videos_without_features_are_named_at_once_audio_too(store):
    videos = [VideoAnnotation(f"video{n}", 0, ("a",)) for n in (0, 4, 5, 6)]
    with pytest.raises(InputError) as caught:
        require_features(videos, FeatureStore(store), "train.json")
    assert "of 4 videos, 2 have no video (video5, video6), 2 have no audio (video4, video6)" in str(caught.value)
    assert f"--only-with {store}" in str(caught.value)
    assert require_features(videos[:2], FeatureStore(store, ("video",)), "train.json") == videos[:2]


def test_only_videos_with_all_features_are_kept_and_counted(store, tmp_path):
    rows = "".join(f"video{n},a caption\n" for n in range(8))
    (tmp_path / "train.csv").write_text(f"video_id,caption\n{rows}")
    said = prepare(tmp_path / "train.csv", "--out", tmp_path / "out", "--only-with", store)
    assert json.loads(said[-1])["without_features"] == ["video4", "video5", "video6", "video7"]
    assert any("4" in line and "video4, video5" in line and "left out" in line for line in said[:-1])
    assert [video["video_id"] for video in json.loads((tmp_path / "out" / "train.json").read_text())] == [
        "video0",
        "video1",
        "video2",
        "video3",
    ]
    report = compare_with_features(tmp_path / "out", FeatureStore(store))
    assert report.ok and report.unannotated == ["video4"]


def test_only_questions_on_videos_with_all_features_are_kept(store, tmp_path):
    asked = [{"video": n, "question": "what?", "answer": "a"} for n in (0, 0, 4, 5, 5)]
    (tmp_path / "val_qa.json").write_text(json.dumps(asked))
    said = prepare("--task", "qa", tmp_path / "val_qa.json", "--out", tmp_path / "out", "--only-with", store)
    report = json.loads(said[-1])
    assert report["questions"] == {"validate": 2} and report["without_features"] == ["video4", "video5"]


def test_nothing_left_is_refused(store, tmp_path):
    (tmp_path / "train.csv").write_text("video_id,caption\nvideo9,a\n")
    with pytest.raises(InputError, match=r"--only-with .*has none of these videos; extract features of video9"):
        prepare(tmp_path / "train.csv", "--out", tmp_path / "out", "--only-with", store)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", ["model.modalities=video", "model.video_dim=1024"])
def test_one_modality_alone_and_another_width_train(tmp_path, tokenizers, monkeypatch, override):
    place_store(tmp_path, monkeypatch)
    world = make_world(tmp_path, tokenizers)
    if override.startswith("model.modalities"):
        shutil.rmtree(world / "features" / "audio")
    else:
        for path in (world / "features" / "video").iterdir():
            np.save(path, np.ones((3, 1024), np.float32))
    result = run_stage("ce", tiny_config(world, tmp_path / "runs", override, "train.steps=2", "train.validate_every=2"))
    assert result.checkpoint.is_dir()
