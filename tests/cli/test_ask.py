"""A model that answers: one video, a whole split, and the command line."""

import json

import numpy as np
import pytest

from videoblip2.captioner import Captioner
from videoblip2.captions.functions import normalise_answer
from videoblip2.captions.predictions import read_rows, write_rows
from videoblip2.config import InputError, parse_config
from videoblip2.data.annotations import Question, VideoAnnotation, write_annotations
from videoblip2.evaluate import evaluate_answers, other_sounds
from videoblip2.features.manifest import FeatureManifest
from videoblip2.features.sources import VideoSource
from videoblip2.features.store import FeatureStore, write_features
from videoblip2.jobs.caption import CaptionJob, CaptionOptions, JobPlan
from videoblip2.model.checkpoint import Checkpoint, save_checkpoint
from videoblip2.model.network import VideoBlip2
from videoblip2.provenance import Provenance
from videoblip2.training.evaluation import evaluate_model

ASKED = [("a circle?", "red"), ("a dog?", "two"), ("a man?", "quiet")]


@pytest.fixture
def world(tmp_path, tiny_config, tokenizers):
    """A checkpoint that reads features of full width, three videos with features, captions, questions."""
    import torch

    torch.manual_seed(1)
    tiny_config.video_dim, tiny_config.audio_dim = 768, 512
    rng = np.random.default_rng(0)
    for n in range(3):
        video, audio = rng.normal(size=(3, 768)).astype("float32"), rng.normal(size=(n, 512)).astype("float32")
        write_features(tmp_path / "features", f"video{n}", {"video": video, "audio": audio})
    paths = [f"data.annotations={tmp_path / 'data'}", f"data.features={tmp_path / 'features'}"]
    settings = parse_config(
        {}, [*paths, "data.task=qa", "device=cpu", "decode.max_new_tokens=6", "decode.batch_size=2"]
    )
    write_annotations(tmp_path / "data" / "val.json", [VideoAnnotation(f"video{n}", 0, ("a dog",)) for n in range(3)])
    rows = [{"id": n, "video": n % 3, "question": q, "answer": a} for n, (q, a) in enumerate(ASKED * 2)]
    for name in ("train", "val"):
        (tmp_path / "data" / f"{name}_qa.json").write_text(json.dumps(rows))
    (tmp_path / "data" / "ans2label.json").write_text(json.dumps({"red": 0, "two": 1}))
    checkpoint = Checkpoint(VideoBlip2(tiny_config).eval(), tokenizers, config=settings.model_dump(mode="json"))
    save_checkpoint(tmp_path / "best", checkpoint)
    return tmp_path


def ask(captioner, video, question, features=None):
    """The rows that `vb2 ask` prints."""
    options = CaptionOptions(captioner.model.decoding, questions=(question,))
    return next(CaptionJob(captioner, JobPlan(options=options, store=features)).run([VideoSource(video)], {}))


def judge(world, *overrides, **options):
    out = world / "predictions.jsonl"
    return evaluate_model(str(world / "best"), "val", ["run.tracking=false", *overrides], out, **options)


def test_a_split_is_answered_and_judged(world):
    result = judge(world)
    scores = result.evaluation.corpus
    assert {"accuracy", "accuracy_other", "accuracy_in_map"} <= set(scores) and "CIDEr" not in scores
    assert scores["expected_in_map"] == pytest.approx(2 / 3)
    assert scores["accuracy_common"] == pytest.approx(1 / 3) and scores["accuracy_blind"] == 1
    rows = [json.loads(line) for line in (world / "predictions.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [str(n) for n in range(6)] and len(result.evaluation.videos) == 3
    assert scores["accuracy"] == sum(row["correct"] for row in rows) / 6
    assert all(row["correct"] == (normalise_answer(row["answer"]) == normalise_answer(row["expected"])) for row in rows)


def test_words_that_need_the_sound_are_counted(world):
    result = judge(world, "data.task=caption", metrics=("CIDEr",), extras=["explain"])
    shares = result.evaluation.sound_shares
    assert shares.keys() == {"all", "category 0"} and 0 <= shares["all"] == shares["category 0"] < 1
    rows = read_rows(world / "predictions.jsonl", "captions")
    assert rows == list(result.evaluation.caption_rows) and all(row.words for row in rows)
    assert all(word.sound == 0 for word in rows[0].words) and any(word.sound for row in rows for word in row.words)
    words = [word for row in rows for word in row.words]
    assert shares["all"] == sum(word.sound > 0.6931472 for word in words) / len(words)
    assert judge(world, "data.task=caption", metrics=("CIDEr",)).evaluation.sound_shares == {}
    with pytest.raises(InputError, match="answers questions, and --explain is for captions"):
        judge(world, extras=["explain"])


def test_captions_with_another_sound_are_scored_beside_those_with_their_own(world, monkeypatch, capsys):
    from videoblip2.cli import main

    words = ["run.tracking=false", "data.task=caption", "--ablate", "--json", "--out", str(world / "own.jsonl")]
    monkeypatch.setattr("sys.argv", ["vb2", "evaluate", str(world / "best"), *words])
    monkeypatch.setenv("PATH", "")  # without Java there is no METEOR, which takes seconds
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    text = capsys.readouterr().out
    found = json.loads(text.splitlines()[-1])["ablation"]
    assert [(e["group"], e["sound"]) for e in found][:2] == [("all", "withheld"), ("all", "swapped")]  # none is silent
    assert "category 0" in text and "withheld" in text and {e["videos"] for e in found} == {3}
    assert all(e["difference"]["low"] <= e["difference"]["difference"] <= e["difference"]["high"] for e in found)
    with pytest.raises(InputError, match="answers questions, and --ablate is for captions"):
        judge(world, extras=["ablate"])


def test_sounds_are_withheld_silenced_and_swapped_among_the_videos_that_have_any():
    def features(video_id):
        count, value = {"a": (2, 1.0), "b": (3, 2.0), "mute": (0, 0.0), "silent": (1, 9.0)}[video_id]
        return {"video": np.ones((1, 2)), "audio": np.full((count, 2), value)}

    sounds = other_sounds(features, ["a", "b", "mute"], "silent")
    heard = {name: [read(v)["audio"] for v in ("a", "b", "mute")] for name, read in sounds.items()}
    assert {name: [len(each) for each in rows] for name, rows in heard.items()} == {
        "withheld": [0, 0, 0],
        "silenced": [2, 3, 0],
        "swapped": [3, 2, 0],
    }
    assert (heard["silenced"][0] == 9).all() and (heard["swapped"][0] == 2).all() and (heard["swapped"][1] == 1).all()
    assert list(other_sounds(features, ["a", "b"])) == ["withheld", "swapped"]


def test_a_model_of_captions_is_not_judged_by_questions(world):
    Provenance.model_validate({"kinds": ["captions"]}).write(world / "best")
    with pytest.raises(InputError, match=r"best: was never trained on questions; leave out data\.task=mixed"):
        judge(world, "data.task=mixed")


def test_a_mixed_model_is_judged_at_both(world):
    result = judge(world, "data.task=mixed", metrics=("CIDEr",))
    assert {"CIDEr", "accuracy"} <= set(result.evaluation.corpus)
    assert len((world / "predictions.jsonl").read_text().splitlines()) == 3
    assert len((world / "predictions_answers.jsonl").read_text().splitlines()) == 6


def test_answers_are_the_same_alone_among_others_and_by_command(world, monkeypatch, capsys):
    import sys

    from videoblip2.cli import main
    from videoblip2.predict import load_captioner

    captioner, store = load_captioner(world / "best", "cpu"), FeatureStore(world / "features")
    asked = [Question(str(n), f"video{n}", question, "") for n, (question, _) in enumerate(ASKED)]
    decode = parse_config({}, ["decode.max_new_tokens=6"]).decode
    entries = [(q.question_id, q.video_id, q.prompt) for q in asked]
    together = dict(captioner.in_batches(entries, store.features, decode))
    for question in asked:
        (alone,) = ask(captioner, question.video_id, question.question, world / "features")
        assert alone.caption == together[question.question_id].text
    words = ["ask", str(world / "best"), "video1", "a dog?", "a man?", "--features", str(world / "features"), "--json"]
    monkeypatch.setattr(sys, "argv", ["vb2", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["question"] for row in last["answers"]] == ["a dog?", "a man?"]
    assert last["answers"][0]["answer"] == together["1"].text
    monkeypatch.setattr(sys, "argv", [*sys.argv[:3], "video7", "a dog?", *sys.argv[-3:]])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith(f"error: {world}/features/video/video7.npy: video7 has no video features")


def test_features_of_other_encoders_are_refused(tiny_model, tokenizers, world):
    manifest = {"clip": {"fingerprint": "c1"}, "clap": {"fingerprint": "c2"}, "videos": {}}
    FeatureManifest.model_validate(manifest).write(world / "features")
    other = Provenance.model_validate({"features": {**manifest, "clip": {"fingerprint": "c9"}}})
    captioner = Captioner(tiny_model, tokenizers, other, "tiny", "1")
    with pytest.raises(InputError, match="features of CLIP c1, tiny was trained on those of c9"):
        ask(captioner, "video0", "a dog?", world / "features")
    with pytest.raises(InputError, match="tiny was trained on those of c9"):
        list(CaptionJob(captioner, JobPlan(store=world / "features")).run([VideoSource("video0")], {}))


def test_bad_questions_and_videos_are_named(tiny_model, tokenizers, world):
    captioner = Captioner(tiny_model, tokenizers, Provenance(), "tiny", "1")
    with pytest.raises(InputError, match="question ' ': is empty"):
        ask(captioner, "video0", " ", world / "features")
    (row,) = ask(captioner, "video7", "a dog?", world / "features")
    assert row.caption is None and "video7 has no video features" in row.error
    with pytest.raises(InputError, match="manifest"):
        ask(captioner, "a.mp4", "a dog?")


def test_every_question_needs_an_answer(tmp_path):
    questions = [Question("1", "v", "what?", "dog"), Question("2", "v", "who?", "man")]
    with pytest.raises(InputError, match=r"question 2: has no answer \(1 in all\)"):
        evaluate_answers({"1": "dog"}, questions)
    result = evaluate_answers({"1": "Dog.", "2": "cat"}, questions)
    assert result.corpus == {"accuracy": 0.5, "accuracy_what": 1.0, "accuracy_who": 0.0}
    write_rows(tmp_path / "p.jsonl", result.answer_rows)
    first = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert (first["video_id"], first["type"], first["correct"]) == ("v", "what", True)
