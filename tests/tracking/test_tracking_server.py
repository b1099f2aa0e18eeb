"""The whole of tracking once against a real `mlflow server` on PostgreSQL, with artifacts through its proxy."""

import os
import shutil
import signal

import pytest
from servers import Wire, mlflow_server, postgres_program
from tiny_world import PAUSE, STEPS, make_world, tiny_config

from videoblip2.model.checkpoint import load_checkpoint
from videoblip2.tracking import RunSpec, find_model, open_run
from videoblip2.tracking.mlflow import store as stores
from videoblip2.tracking.mlflow.run_records import list_runs, store_findings
from videoblip2.training.stage import run_stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.skipif(postgres_program("initdb") is None, reason="no PostgreSQL: apt-get install postgresql"),
]


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    """The way to the server, whose artifacts are in `wire.artifacts`."""
    pytest.importorskip("psycopg2", reason="no psycopg2: pip install -e '.[postgres]'")
    folder = tmp_path_factory.mktemp("server")
    (folder / "artifacts").mkdir()
    with mlflow_server(folder / "artifacts", folder / "log") as port:
        wire = Wire(port)
        wire.artifacts = folder / "artifacts"
        wire.join()
        yield wire
        wire.cut()


@pytest.fixture
def uri(wire, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{wire.port}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return os.environ["MLFLOW_TRACKING_URI"]


def losses(run_id):
    return [(p.step, p.value) for p in stores.connect().get_metric_history(run_id, "train/loss")]


def test_a_stopped_training_resumes_elsewhere_and_survives_an_outage_at_its_end(wire, uri, tmp_path, tokenizers):
    world = make_world(tmp_path / "world", tokenizers)

    def at(place, action):
        def steps_with_action(steps, total, description):
            for step in steps:
                if step == place:
                    action()
                yield step

        return steps_with_action

    with pytest.raises(SystemExit) as end:
        run_stage("ce", tiny_config(world, tmp_path, "run.name=ce"), at(PAUSE, lambda: signal.raise_signal(15)))
    (run,) = list_runs("toy")
    assert (end.value.code, run.status) == (143, "KILLED")

    shutil.rmtree(tmp_path / "ce")  # as on another machine
    there = tiny_config(world, tmp_path / "elsewhere", f"resume={run.run_id}")
    with pytest.raises(ValueError, match=rf"trained, but not logged as a model.*resume={run.run_id}"):
        run_stage("ce", there, at(STEPS - 1, wire.cut))
    assert load_checkpoint(tmp_path / "elsewhere" / "ce" / "best").provenance.run_id == run.run_id

    wire.join()
    result = run_stage("ce", there)
    found = find_model(run.run_id)
    assert (result.run_id, result.model) == (run.run_id, f"models:/{found.version}")
    assert [row.status for row in list_runs("toy")] == ["FINISHED"]
    assert [step for step, _ in losses(run.run_id)] == list(range(1, STEPS + 1))
    files = {artifact.path for artifact in stores.connect().list_artifacts(run.run_id)}
    assert files >= {"config.yaml", "first_weights.json", "predictions.json", "val_predictions.jsonl", "figures"}
    assert found.folder.is_relative_to(tmp_path / "cache")
    assert load_checkpoint(found.folder).provenance.run_id == run.run_id
    assert len(list(wire.artifacts.rglob("model.safetensors"))) == 1  # the state of the stop is gone
    assert not list(tmp_path.glob("mlruns*")) + list(tmp_path.glob("mlflow.db*"))  # nothing beside the server


def test_points_of_an_outage_arrive_when_the_server_is_back(wire, uri, tmp_path, capsys):
    with open_run(RunSpec("ce", "outage", "faults", folder=tmp_path / "outage")) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, 1)
        tracker.flush()
        wire.cut()
        tracker.log_metrics({"train/loss": 2.0}, 2)
        tracker.log_table("samples", [{"video_id": "video0", "step": 2}])
        tracker.flush()
        assert [path.name for path in (tmp_path / "outage").iterdir()] == [f"unsent-{tracker.run_id}.jsonl"]
        wire.join()
        tracker.log_metrics({"train/loss": 3.0}, 3)
    assert losses(tracker.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [a.path for a in stores.connect().list_artifacts(tracker.run_id)] == ["samples.json"]
    assert list((tmp_path / "outage").iterdir()) == []
    lines = capsys.readouterr().err.splitlines()
    assert ["does not answer" in lines[0], "answers again" in lines[-1]] == [True, True]


def test_the_doctor_knows_the_server(wire, uri):
    assert {finding.name: finding.status for finding in store_findings()} == {
        "store": "ok",
        "store: schema": "ok",
        "store: unclosed runs": "ok",
    }
    wire.cut()
    try:
        (finding,) = store_findings()
    finally:
        wire.join()
    assert (finding.status, finding.remedy.startswith("check that it is running")) == ("fail", True)
