"""Checkpoints as MLflow models: logged without a pickle, found again by every name."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tracking_store import place_store, write_checkpoint

from videoblip2.config import Decoding, InputError
from videoblip2.tracking import RunSpec, find_model, open_run
from videoblip2.tracking.mlflow.store import connect as client


@pytest.fixture
def store(tmp_path, monkeypatch):
    return place_store(tmp_path, monkeypatch)


@pytest.fixture
def logged(store):
    """A run with two logged checkpoints; the address of the second."""
    with open_run(RunSpec("ce", "name", "toy")) as tracker:
        tracker.log_checkpoint(write_checkpoint(store / "old"), "ce", {})
        newest = write_checkpoint(store / "new")
        (newest / "metrics.json").write_text('{"CIDEr": 0.6}')
        uri = tracker.log_checkpoint(newest, "scst-greedy-lr0.001-seed0", {"val/CIDEr": 0.6})
        tracker.log_best({"val/CIDEr": 0.6, "val/Bleu_4": 0.3})
    return SimpleNamespace(run_id=tracker.run_id, uri=uri, store=store)


def test_a_checkpoint_is_found_again_by_run_and_by_model(logged):
    for name in (logged.run_id, logged.run_id[:7], "name", logged.uri):
        found = find_model(name)
        assert json.loads((found.folder / "metrics.json").read_text()) == {"CIDEr": 0.6}
        assert found.version == logged.uri.removeprefix("models:/")
        assert found.folder.is_relative_to(logged.store / "mlruns")  # read in place, not copied


def test_best_metrics_are_on_the_run_once_and_on_the_model(logged):
    model = client().get_logged_model(logged.uri.removeprefix("models:/"))
    assert {m.key: m.value for m in model.metrics} == {"best/val/CIDEr": 0.6, "CIDEr x100/best": 60.0}
    found = client().get_run(logged.run_id).data.metrics
    assert found == {"best/val/CIDEr": 0.6, "best/val/Bleu_4": 0.3, "CIDEr x100/best": 60.0}
    assert len(client().get_metric_history(logged.run_id, "best/val/CIDEr")) == 1


def test_no_artifact_is_a_pickle(logged):
    files = [file for file in (logged.store / "mlruns").rglob("*") if file.is_file()]
    assert {"MLmodel", "pyfunc_model.py", "model.safetensors", "config.json"} <= {file.name for file in files}
    assert {file.suffix for file in files} <= {"", ".py", ".json", ".safetensors", ".yaml", ".txt"}


def test_the_model_pins_what_it_needs(logged):
    requirements = (find_model(logged.uri).folder.parents[1] / "requirements.txt").read_text()
    assert "videoblip2==" in requirements
    assert "torch==" in requirements
    assert "+cpu" not in requirements


def test_the_model_captions_feature_files_through_mlflow(logged, monkeypatch):
    import mlflow

    from videoblip2 import predict

    seen = []

    class Captioner:
        model = SimpleNamespace(decoding=Decoding())

        def caption(self, items, prompt, decoding):
            seen.extend({name: array.shape for name, array in item.items()} for item in items)
            return [SimpleNamespace(text=f"caption {n}", score=-0.5) for n in range(len(items))]

    loaded = []
    monkeypatch.setattr(predict, "load_captioner", lambda folder: loaded.append(folder) or Captioner())
    np.save(logged.store / "v.npy", np.zeros((4, 768), np.float32))
    np.save(logged.store / "a.npy", np.zeros((3, 512), np.float32))
    model = mlflow.pyfunc.load_model(logged.uri)
    result = model.predict([{"video": "v.npy", "audio": "a.npy"}, {"video": "v.npy", "audio": None}])
    assert [Path(folder) for folder in loaded] == [find_model(logged.uri).folder]
    assert seen == [{"video": (4, 768), "audio": (3, 512)}, {"video": (4, 768)}]
    assert result.to_dict("list") == {"caption": ["caption 0", "caption 1"], "score": [-0.5, -0.5]}


def test_a_folder_is_its_own_model(tmp_path):
    folder = write_checkpoint(tmp_path / "best")
    assert (find_model(folder).folder, find_model(folder).version) == (folder, "best")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="best: no checkpoint"):
        find_model(folder)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "nowhere: no such folder, and no run with that id or name in"),
        ("models:/videoblip2@champion", "`vb2 promote RUN` and `vb2 demo` make them"),
        ("models:/videoblip2", "not the address of a model; give models:/NAME@ALIAS"),
        ("models:/videoblip2/9", "version=9"),
        ("models:/m-" + "0" * 32, "unknown to sqlite"),
        ("f" * 32, "no such folder, and no run with that id or name in sqlite"),
    ],
)
def test_an_unknown_model_is_one_line_with_a_remedy(store, model, message):
    with pytest.raises(InputError, match=message) as caught:
        find_model(model)
    assert "\n" not in str(caught.value)
    assert "vb2 " in str(caught.value)


def test_a_run_without_a_checkpoint_is_named(store):
    with open_run(RunSpec("ce", "name", "toy")) as tracker:
        pass
    with pytest.raises(InputError, match=r"run name \(.*, FINISHED\) logged no checkpoint"):
        find_model(tracker.run_id)


def test_lost_artifacts_are_named(logged):
    (find_model(logged.uri).folder.parents[1] / "MLmodel").unlink()
    with pytest.raises(InputError, match="its files are gone"):
        find_model(logged.uri)


def test_a_remote_store_is_downloaded_once(tmp_path, monkeypatch):
    from videoblip2.tracking.mlflow import models

    calls = []

    def download(path, dst_path):
        calls.append(path)
        Path(dst_path, "MLmodel").write_text("x")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    repository = SimpleNamespace(download_artifacts=download)
    monkeypatch.setattr(models, "get_artifact_repository", lambda uri: calls.append(uri) or repository)
    logged = SimpleNamespace(artifact_location="mlflow-artifacts:/1/models/m-1/artifacts", model_id="m-1")
    assert models._folder(logged) == models._folder(logged) == tmp_path / "videoblip2" / "m-1"
    assert calls == [logged.artifact_location, ""]
