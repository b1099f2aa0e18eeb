"""The registered model through MLflow: the captions of `vb2 caption`, in Python and over its scoring server."""

from types import SimpleNamespace

import pandas as pd
import pytest
from small_stage import stages

from videoblip2.captioner import Caption
from videoblip2.features.sources import VideoSource
from videoblip2.jobs.caption import CaptionJob, CaptionOptions, JobPlan
from videoblip2.predict import load_captioner

IDS = ("video0", "video1", "video2")


@pytest.fixture
def made(monkeypatch):
    return stages(monkeypatch)


@pytest.fixture
def model(made):
    import mlflow

    return mlflow.pyfunc.load_model("models:/videoblip2/1")


def rows(root, ids=IDS):
    return [
        {"video": str(root / f"features/video/{i}.npy"), "audio": str(root / f"features/audio/{i}.npy")} for i in ids
    ]


def captions(made, prompt=None, num_beams=None):
    captioner = load_captioner("models:/videoblip2/1", "cpu")
    options = CaptionOptions(captioner.model.decoding.but(num_beams=num_beams), prompt)
    job = CaptionJob(captioner, JobPlan("", options, store=made.root / "features"))
    return [row.caption for rows in job.run(list(map(VideoSource, IDS)), {}) for row in rows]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prompt": "the square"}])
def test_python_gives_the_captions_of_the_command(made, model, options):
    result = model.predict(rows(made.root), params=options)
    assert list(result["caption"]) == captions(made, **options)
    assert all(result["caption"]) and list(result["score"].round(3)) != [0.0] * 3


def test_options_matter(made, model):
    plain, beams = (list(model.predict(rows(made.root), params=p)["score"]) for p in ({}, {"num_beams": 3}))
    assert plain != beams


def test_the_scoring_server_gives_the_same(made, model):
    from mlflow.pyfunc.scoring_server import init
    from starlette.testclient import TestClient

    client = TestClient(init(model))
    answer = client.post("/invocations", json={"dataframe_records": rows(made.root), "params": {"num_beams": 3}})
    assert answer.status_code == 200, answer.text
    assert [row["caption"] for row in answer.json()["predictions"]] == captions(made, num_beams=3)


def test_media_and_feature_files_come_back_in_order(made, model, monkeypatch):
    python_model = model.unwrap_python_model()
    captioner = python_model.captioner
    encoders = SimpleNamespace(encode_file=lambda path: {"audio": path.name})
    monkeypatch.setitem(vars(captioner), "media_encoders", encoders)
    monkeypatch.setattr(
        captioner, "caption", lambda items, *options: [Caption(str(len(i.get("audio", ()))), 0.0) for i in items]
    )
    silent = {"video": rows(made.root)[1]["video"], "audio": None}
    mixed = [{"video": "a.mp4"}, rows(made.root)[0], {"video": "b.webm"}, silent]
    assert list(python_model.predict(None, pd.DataFrame(mixed)).caption) == ["5", "2", "6", "0"]
