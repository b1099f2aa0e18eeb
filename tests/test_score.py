"""`vb2 score`: any form of predictions and references, equal to pycocoevalcap, without torch and mlflow."""

import csv
import json
import os
import subprocess
import sys

import pytest

from videoblip2.captions import caption_metrics
from videoblip2.errors import InputError
from videoblip2.score import read_predictions, record, score_predictions

CAPTIONS = {"video1": "a man plays a guitar", "video2": "two dogs run on grass", "video3": "a woman, cooking"}
OTHERS = {"video1": "a man sings", "video2": "two dogs run on grass", "video3": "someone is cooking food"}
REFERENCES = {
    "video1": ["a man is playing guitar", "a man plays the guitar"],
    "video2": ["two dogs run on the grass", "dogs are running"],
    "video3": ["a woman is cooking", "a woman cooks food"],
    "video4": ["nobody captioned this"],
}
FAST = ["CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"]


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    monkeypatch.setattr("videoblip2.captions.metrics.shutil.which", lambda name: None)


def listed(video, caption):
    return [{video: name, caption: text} for name, text in CAPTIONS.items()]


def lines(entries):
    return "\n".join(json.dumps(entry) for entry in entries)


FORMS = {
    "coco.json": json.dumps(listed("image_id", "caption")),
    "with_suffix.json": json.dumps([{"video": f"clips/{k}.mp4", "caption": v} for k, v in CAPTIONS.items()]),
    "mapping.json": json.dumps(CAPTIONS),
    "pycocoevalcap.json": json.dumps({k: [{"caption": v}] for k, v in CAPTIONS.items()}),
    "vatex.json": json.dumps({"version": "1", "result": {k: [v] for k, v in CAPTIONS.items()}}),
    "annotations.json": json.dumps({"annotations": listed("image_id", "caption")}),
    "ours.jsonl": lines([*listed("video_id", "caption"), {"path": "video9.mp4", "caption": None, "error": "damaged"}]),
    "table.tsv": "video_id\tcaption\n" + "\n".join(f"{k}\t{v}" for k, v in CAPTIONS.items()),
}


@pytest.mark.parametrize("name", FORMS)
def test_captions_are_read_in_the_forms_that_systems_write(tmp_path, name):
    path = tmp_path / name
    path.write_text(FORMS[name], encoding="utf-8")
    assert read_predictions(path) == CAPTIONS


@pytest.fixture()
def files(tmp_path):
    predictions, other, references = (tmp_path / name for name in ("a.json", "b.csv", "refs.json"))
    predictions.write_text(json.dumps(listed("image_id", "caption")))
    with other.open("w", newline="") as file:
        csv.writer(file).writerows([("video_id", "caption"), *OTHERS.items()])
    references.write_text(json.dumps([{"video_id": k, "captions": v} for k, v in REFERENCES.items()]))
    return predictions, other, references


def test_scores_are_those_of_pycocoevalcap_with_intervals(files):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    found = record(score_predictions(files[0], [files[2]]), per_video=True)
    tidy = {video: [text.replace(",", "")] for video, text in CAPTIONS.items()}  # what the PTB tokeniser leaves
    groups = {video: REFERENCES[video] for video in CAPTIONS}
    expected = dict(zip(FAST[1:5], Bleu(4).compute_score(groups, tidy, verbose=0)[0], strict=True))
    expected |= {"CIDEr": Cider().compute_score(groups, tidy)[0], "ROUGE_L": Rouge().compute_score(groups, tidy)[0]}
    assert {name: found["metrics"][name] for name in FAST} == pytest.approx(expected, abs=1e-9)
    assert (found["videos"], found["unpredicted"]) == (3, 1)
    assert found["unavailable"].keys() == {"METEOR", "SPICE"}
    low, high = found["intervals"]["CIDEr"]
    assert low < found["metrics"]["CIDEr"] < high
    assert found["per_video"]["video2"]["CIDEr"] > found["per_video"]["video3"]["CIDEr"]


def test_against_gives_the_paired_difference(files):
    predictions, other, references = files
    found = record(score_predictions(predictions, [references], against=other))["against"]
    groups = {video: REFERENCES[video] for video in CAPTIONS}
    expected = [caption_metrics(groups, texts, ["CIDEr"]).corpus["CIDEr"] for texts in (CAPTIONS, OTHERS)]
    assert found["metrics"]["CIDEr"] == pytest.approx(expected[1])
    assert found["differences"]["CIDEr"]["difference"] == pytest.approx(expected[0] - expected[1])
    back = record(score_predictions(other, [references], against=predictions))["against"]
    assert back["differences"]["CIDEr"]["difference"] == pytest.approx(expected[1] - expected[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"video_id": "video7", "caption": "a"}], "1 of 1 videos have no references: video7"),
        (
            [{"video_id": "video1", "caption": "a"}, {"video_id": "video1", "caption": "b"}],
            "a second caption for video1",
        ),
        ([{"video_id": "video1", "caption": ["a", "b"]}], "give one caption per video"),
        ([{"video_id": "video1"}], "no caption or captions"),
        (["video1"], "is not an object"),
        ([], "no captions found"),
    ],
)
def test_what_cannot_be_scored_is_named(files, content, message):
    files[0].write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        score_predictions(files[0], [files[2]])


def test_the_command_loads_neither_torch_nor_mlflow(files):
    code = (
        "import sys; from videoblip2.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'mlflow', 'transformers', 'scipy', 'pandas'} & sys.modules.keys(), sys.modules.keys()"
    )
    words = ["score", str(files[0]), str(files[2]), "--against", str(files[1]), "--per-video", "--json"]
    run = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env={**os.environ, "PATH": ""}
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["metrics"]["CIDEr"] > 0
    assert "difference" in run.stdout
