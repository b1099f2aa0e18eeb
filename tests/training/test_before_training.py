"""What is told before a training starts: texts that cannot be learnt whole, data that cannot be judged, odd stores."""

import json
import os
import signal
import threading

import numpy as np
import pytest
import torch
from tiny_world import make_world, tiny_config
from tracking_store import place_store

from videoblip2.config import InputError, flatten
from videoblip2.features.store import FeatureStore
from videoblip2.tracking.mlflow.run_records import list_runs
from videoblip2.tracking.tracker import Terminated
from videoblip2.training import stage as stages
from videoblip2.training import workspace
from videoblip2.training.seeds import run_seeds
from videoblip2.training.stage import open_stage, run_stage
from videoblip2.training.state import FOLDER, Identity, StateFile, TrainState

TASKS = ["caption", "qa", "mixed"]


@pytest.fixture
def world(tmp_path, tokenizers):
    return make_world(tmp_path, tokenizers)


def write(world, texts, split="train", count=2, captions=True):
    """Captions of each of `count` videos, and as many questions with these answers."""
    videos = [{"video_id": f"video{n}", "category": 0, "captions": texts} for n in range(count)]
    asked = [
        {"question_id": f"{n}-{place}", "video_id": f"video{n}", "question": "a circle", "answer": text}
        for n in range(count)
        for place, text in enumerate(texts)
    ]
    if captions:
        (world / f"{split}.json").write_text(json.dumps(videos, ensure_ascii=False))
    (world / f"{split}_qa.json").write_text(json.dumps(asked, ensure_ascii=False))


def opened(world, *overrides, stage="ce"):
    return open_stage(stage, tiny_config(world, world / "runs", "run.name=x", "run.tracking=false", *overrides))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("text", ["一个人在弹吉他", "мужчина играет", "男の人がギターを弾いている"])
def test_a_language_that_the_tokenizer_lacks_is_refused_with_the_share_and_the_remedy(world, task, text):
    write(world, [text, text])
    write(world, ["a red circle", "a dog"], "val", captions=False)
    with pytest.raises(
        InputError, match=r"train(_qa)?.json: \d\d\.\d % of the pieces .* unknown .*model.language_model"
    ):
        opened(world, f"data.task={task}")


@pytest.mark.parametrize("has", [{}, {"amx_bf16": True}])
def test_bf16_on_a_processor_without_it_is_warned_of(world, capsys, monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    opened(world, "precision=bf16")
    assert ("precision=bf16: this processor has no bf16" in capsys.readouterr().err) == (not has)


def test_a_few_unknown_pieces_are_counted_in_a_warning(world, capsys):
    write(world, ["a red circle moves left and a red circle moves left", "a dog barks at a man 😀"])
    opened(world)
    assert "pieces are unknown" in capsys.readouterr().err


LONG = "a red circle moves left and a blue square jumps and beeps play and the star is quiet"


@pytest.mark.parametrize("task", TASKS)
def test_texts_longer_than_the_limit_are_counted_and_their_end_is_not_taught(world, capsys, task):
    write(world, [LONG, "a dog"])
    write(world, ["a red circle", "a dog"], "val", captions=False)
    work = opened(world, f"data.task={task}", "data.max_caption_tokens=8", "data.captions_per_video=2").work
    line = capsys.readouterr().err
    assert line.count("2 of 4 texts are longer than data.max_caption_tokens=8") == (2 if task == "mixed" else 1)
    end, rows = work.tokenizers.text.eos_token_id, {}
    for step in range(4):
        for row in work.batches(step).labels:
            rows[tuple(row[row != -100].tolist())] = bool((row == end).any())
    whole, cut = (work.tokenizers.text(text).input_ids for text in ("a dog", LONG))
    assert rows == {tuple(whole): True, tuple(cut[:8]): False}


@pytest.mark.parametrize("weight", [0, 0.1])
def test_references_that_are_only_rewarded_are_not_cut(world, capsys, weight):
    opened(world, "data.max_caption_tokens=3", f"scst.cross_entropy_weight={weight}", stage="scst")
    assert ("longer than" in capsys.readouterr().err) == (weight > 0)


@pytest.mark.parametrize("captions", [["a dog barks"], [LONG, "a dog barks at a man"]])
@pytest.mark.parametrize("count", [1, 3])
def test_validation_videos_whose_cider_is_0_by_definition_are_refused(world, captions, count):
    """One video, or the same captions for all: no n-gram is rarer than another."""
    (features,) = {path.parent for path in world.glob("features/video/*.npy")}
    for kind, rows in (("video", 768), ("audio", 512)):
        np.save(world / "features" / kind / "video2.npy", np.ones((2, rows), "float32"))
    assert features.is_dir()
    write(world, captions, "val", count)
    write(world, ["a red circle", "a dog"])
    with pytest.raises(
        InputError, match=rf"val.json: the CIDEr of {'one' if count == 1 else 3} video.* is 0 by .*; add videos"
    ):
        opened(world)
    opened(world, "data.task=mixed")  # answers can still choose


def test_a_reward_that_is_0_by_definition_is_refused(world):
    write(world, ["a dog barks at a man"], count=1)
    opened(world)
    with pytest.raises(InputError, match=r"train.json: the CIDEr of one video is 0 by .*; add videos, or another"):
        opened(world, stage="scst")
    opened(world, "scst.reward.bleu=1", stage="scst")


@pytest.mark.parametrize(
    ("forget", "overrides", "refused"),
    [
        ("optim.weight_decay", (), ""),
        ("scst.clip", (), ""),
        ("optim.weight_decay", ("optim.weight_decay=0.3",), "to resume it, add optim.weight_decay=0.05"),
        ("decode.compile", ("decode.compile=true",), "add decode.compile=false"),
    ],
)
def test_a_key_that_the_saved_state_lacks_has_its_default(world, forget, overrides, refused):
    config = tiny_config(world, world / "runs", "run.name=x", "run.tracking=false")
    flat = {key: value for key, value in flatten(config).items() if key != forget} | {"gone.since": 3}
    weights = {"a": torch.nn.Parameter(torch.ones(2))}
    file = StateFile(world / "runs" / "x" / FOLDER, Identity(stage="ce", name="x", config=flat))
    file.save(weights, torch.optim.AdamW(weights.values()), TrainState(step=3))
    if not refused:
        assert opened(world, "train.resume=auto", *overrides).saved.step == 3
        return
    with pytest.raises(InputError, match=refused):
        opened(world, "train.resume=auto", *overrides)


def test_videos_without_audio_features_are_counted_before_a_run_opens(world, monkeypatch):
    place_store(world, monkeypatch)
    for path in (world / "features" / "audio").glob("*.npy"):
        path.unlink()
    with pytest.raises(InputError, match=r"train.json: of 2 videos, 2 have no audio \(video0, video1\)"):
        run_stage("ce", tiny_config(world, world / "runs", "run.name=x"))
    assert list_runs() == []


@pytest.mark.parametrize("width", [768, 1024])
def test_frame_features_alone_of_any_width_train(world, width):
    for path in (world / "features" / "audio").glob("*.npy"):
        path.unlink()
    (world / "features" / "audio").rmdir()
    for n in range(2):
        np.save(world / "features" / "video" / f"video{n}.npy", np.ones((3, width), "float32"))
    options = ("model.modalities=video", f"model.video_dim={width}", "train.steps=1", "run.tracking=false")
    result = run_stage("ce", tiny_config(world, world / "runs", "run.name=x", *options))
    assert (result.checkpoint / "model.safetensors").is_file()


def test_seeds_that_are_terminated_between_two_runs_leave_none_running(world, monkeypatch):
    place_store(world, monkeypatch)
    shown = []

    def show_weights(lines, reports):
        shown.append(lines)
        if len(shown) == 2:  # the second seed's run is not open yet
            os.kill(os.getpid(), signal.SIGTERM)

    config = tiny_config(world, world / "runs", "train.steps=1")
    with pytest.raises(Terminated):
        run_seeds("ce", config, 2, show_weights=show_weights)
    assert sorted(run.status for run in list_runs()) == ["FINISHED", "KILLED"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: np.save(path, np.full((3, 512), np.nan, "float32")), "NaN"),
        (lambda path: np.save(path, np.ones((3, 500), "float32")), "shape"),
        (lambda path: np.save(path, np.ones((3, 512), "int64")), "int64"),
        (lambda path: path.write_bytes(path.read_bytes()[:90]), "not a plain .npy array"),
        (lambda path: path.write_bytes(b""), "not a plain .npy array"),
    ],
)
def test_features_that_cannot_be_used_are_counted_before_a_run_opens(world, spoil, reason):
    path = world / "features" / "audio" / "video1.npy"
    spoil(path)
    with pytest.raises(InputError, match=rf"1 of 2 videos .*video1.npy: .*{reason}.*vb2 features check"):
        opened(world)
    opened(world, "model.modalities=video")  # what is not read does not count


@pytest.fixture
def large(world, monkeypatch):
    """Twelve videos to train on, of which a start looks at the features of at most three."""
    for kind, width in (("video", 768), ("audio", 512)):
        for n in range(2, 12):
            np.save(world / "features" / kind / f"video{n}.npy", np.ones((3, width), "float32"))
    monkeypatch.setattr(workspace, "MOST_VIDEOS", 3)
    return world


def test_what_a_start_reads_does_not_grow_with_the_videos(large, monkeypatch):
    """Before the first step: features of a sample of the videos, and of the batch; a thread reads the others."""
    stored, main, reads, counts = FeatureStore.stored, threading.current_thread(), [], []

    def read(*asked):
        reads.append(threading.current_thread() is main)
        return stored(*asked)

    def step(*_):
        counts.append(sum(reads))
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureStore, "stored", read)
    monkeypatch.setattr(stages, "ce_step", step)
    for count in (6, 12):
        write(large, ["a red circle", "a dog"], count=count)
        reads.clear()
        with pytest.raises(KeyboardInterrupt):
            run_stage("ce", tiny_config(large, large / "runs", "run.name=x", "run.tracking=false"))
    assert counts[0] == counts[1] <= 2 * (3 + 2)


def test_features_that_a_start_did_not_look_at_are_checked_in_training(large):
    write(large, ["a red circle", "a dog"], count=12)
    options = "run.name=x", "run.tracking=false", "train.steps=1", "train.batch_size=1"
    unseen = {f"video{n}" for n in (1, 2, 3)}.difference(opened(large, *options).work.batches(0).video_ids)
    np.save(large / "features" / "audio" / f"{max(unseen)}.npy", np.full((3, 512), np.nan, "float32"))
    with pytest.raises(InputError, match=rf"{max(unseen)}.npy: contains NaN"):
        run_stage("ce", tiny_config(large, large / "runs", *options))
