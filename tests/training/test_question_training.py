"""Answers learnt by cross-entropy: read from the video, heard in the audio, asked by the prompt; and judged as such."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from tiny_training import Remember, workspace

from videoblip2.captions.functions import answer_accuracy, blind_answers
from videoblip2.config import InputError, parse_config
from videoblip2.data.annotations import Question, VideoAnnotation, require_features, write_annotations
from videoblip2.features.store import FeatureStore, write_features
from videoblip2.training.ce import ce_step
from videoblip2.training.loop import Training, train
from videoblip2.training.stage import run_stage
from videoblip2.training.tasks import inputs_of
from videoblip2.training.workspace import open_workspace

SEEN, HEARD = ("red", "blue"), ("beeps", "quiet")


class Telling:
    """Features that hold, under noise, one of two sights and one of two sounds: bit 0 and bit 1 of the number."""

    def features(self, video_id):
        number = int(video_id[5:])
        return {
            "video": self._draw(video_id, 4, 24, number % 2),
            "audio": self._draw(video_id, 3, 12, number // 2 % 2),
        }

    def _draw(self, video_id, length, width, bit):
        rng = np.random.default_rng([int(video_id[5:]), width])
        return ((1 if bit else -1) + 0.3 * rng.normal(size=(length, width))).astype("float32")


def questions(numbers):
    """Two on each video."""
    for n in numbers:
        yield Question(f"{n}v", f"video{n}", "a circle?", SEEN[n % 2])
        yield Question(f"{n}a", f"video{n}", "a man?", HEARD[n // 2 % 2])


def asking(model, tokenizers, *overrides, train_on=range(24), judge=range(100, 116)):
    work = workspace(model, tokenizers, "data.task=qa", "train.batch_size=8", *overrides)
    asked = {"answers": list(questions(train_on))}, {"answers": list(questions(judge))}
    if work.config.data.task == "qa":
        work.train, work.val = {}, {}
    work.store, work.train, work.val = Telling(), work.train | asked[0], work.val | asked[1]
    return work


def test_unseen_videos_are_answered_better_than_the_question_alone_allows(tiny_model, tokenizers):
    work = asking(tiny_model, tokenizers, "train.steps=60", "optim.lr=0.015", "train.validate_every=30")
    work.model.train = lambda mode=True: work.model  # no dropout
    kept, remember = [], Remember()
    best = train(Training(work, partial(ce_step, work), kept.append, remember))
    asked, expected = zip(*((q.question, q.answer) for q in work.val["answers"]), strict=True)
    train_asked, train_expected = zip(*((q.question, q.answer) for q in work.train["answers"]), strict=True)
    blind = answer_accuracy(asked, blind_answers(asked, train_asked, train_expected), expected)["accuracy"]
    assert blind == 0.5
    assert set(best.metrics) == {"accuracy"} and best.score > 0.7 and kept[-1] == best
    assert [value for name, _, value in remember.points if name == "val/accuracy"][-1] <= best.score


def test_a_mixture_teaches_both_and_is_chosen_by_both(tiny_model, tokenizers):
    work = asking(tiny_model, tokenizers, "data.task=mixed", "data.qa_share=0.5", "train.steps=4")
    steps = [work.batches(step) for step in range(4)]
    prompts = [tokenizers.texts(batch.prompt_ids)[0] for batch in steps]
    assert [prompt.startswith("a video of") for prompt in prompts] == [True, False, True, False]
    kept, remember = [], Remember()
    best = train(Training(work, partial(ce_step, work), kept.append, remember))
    assert set(best.texts["captions"]) == {"video0", "video1", "video2", "video3"} and len(best.texts["answers"]) == 32
    assert best.score == best.metrics["CIDEr"] + best.metrics["accuracy"] and len(best.metrics) == 2
    assert {name for name, _, _ in remember.points if name.startswith("val/")} == {"val/CIDEr", "val/accuracy"}
    inputs = inputs_of(work.config, {"train": work.train, "val": work.val})
    files = [(context, file.name) for _, context, file, _ in inputs]
    assert files == [
        ("train", "train.json"),
        ("val", "val.json"),
        ("train", "train_qa.json"),
        ("val", "val_qa.json"),
    ]


def test_the_question_reaches_both_qformers_and_t5(tiny_model, tokenizers):
    work = asking(tiny_model, tokenizers)
    batch = work.batches(0)
    inputs, other = batch.inputs, work.batches(1).inputs
    before = tiny_model.encode(**inputs)[0]
    for ids, mask in (("qformer_ids", "qformer_mask"), ("prompt_ids", "prompt_mask")):
        swapped = {**inputs, ids: other[ids].flip(0), mask: other[mask].flip(0)}
        assert not torch.allclose(before, tiny_model.encode(**swapped)[0])


@pytest.fixture
def world(tmp_path):
    """Four videos with features, and questions on them, as files."""
    (tmp_path / "data").mkdir()
    for n in range(4):
        wide = {"video": 744, "audio": 500}
        told = {m: np.pad(rows, ((0, 0), (0, wide[m]))) for m, rows in Telling().features(f"video{n}").items()}
        write_features(tmp_path / "features", f"video{n}", told)
    for name in ("train", "val"):
        rows = [vars(question) for question in questions(range(4))]
        (tmp_path / "data" / f"{name}_qa.json").write_text(json.dumps(rows))
    return tmp_path


def config(world, *overrides):
    paths = [f"data.annotations={world / 'data'}", f"data.features={world / 'features'}", "device=cpu"]
    return parse_config({}, [*paths, "data.task=qa", "run.tracking=false", f"run.out={world / 'runs'}", *overrides])


def test_a_workspace_for_questions_needs_no_captions(world, tiny_model, tokenizers, monkeypatch):
    monkeypatch.setattr("videoblip2.training.workspace._network", lambda *_: (tiny_model, tokenizers, {}))
    work = open_workspace(config(world))
    assert (len(work.train["answers"]), work.train_videos) == (8, ())
    inputs = inputs_of(work.config, {"train": work.train, "val": work.val})
    assert [(name, file.name, len(ids)) for name, _, file, ids in inputs] == [
        ("train", "train_qa.json", 4),
        ("val", "val_qa.json", 4),
    ]


def test_questions_on_videos_without_features_are_named(world):
    asked = [*questions(range(4)), *questions(range(8, 16))]
    message = r"train_qa.json: of 12 videos, 8 have no video \(video8, .*video12 and 3 more\), 8 .*`vb2 data check`"
    with pytest.raises(InputError, match=message):
        require_features(asked, FeatureStore(world / "features"), "train_qa.json")
    videos = [VideoAnnotation("video0", 0, ("a",))]
    assert require_features(videos, FeatureStore(world / "features"), "train.json") == videos
    write_annotations(world / "data" / "train.json", videos)


def test_self_critical_training_is_for_captions(world, tiny_model, tokenizers):
    with pytest.raises(InputError, match=r"data.task=qa: self-critical training rewards captions"):
        run_stage("scst", config(world))
    work = asking(tiny_model, tokenizers, "data.task=mixed")
    work.captions_only = True
    assert all(tokenizers.texts(work.batches(step).prompt_ids)[0].startswith("a video of") for step in range(4))
