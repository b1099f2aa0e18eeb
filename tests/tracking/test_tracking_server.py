"""The whole of tracking once against a real `mlflow server` on PostgreSQL, with artifacts through its proxy."""

import multiprocessing
import os
import shutil
import signal

import pytest
from servers import Wire, mlflow_server, postgres, postgres_program
from tiny_world import STEPS, make_world, tiny_config, train_to_the_end, train_until_stopped

from videoblip2.model.checkpoint import load_checkpoint
from videoblip2.tracking import RunSpec, find_model, open_run
from videoblip2.tracking.mlflow import store as stores
from videoblip2.tracking.mlflow.health import store_findings
from videoblip2.tracking.mlflow.run_records import list_runs
from videoblip2.training.stage import run_stage

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(postgres_program("initdb") is None, reason="no PostgreSQL: apt-get install postgresql"),
]


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    """The way to the server, whose artifacts are in `wire.artifacts`."""
    pytest.importorskip("psycopg2", reason="no psycopg2: pip install -e '.[postgres]'")
    folder = tmp_path_factory.mktemp("server")
    (folder / "artifacts").mkdir()
    with postgres() as database, mlflow_server(database, folder / "artifacts", folder / "log") as port:
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


def test_two_trainings_at_once_one_of_them_stopped_and_gone_on_with_elsewhere(wire, uri, tmp_path, tokenizers):
    world = make_world(tmp_path / "world", tokenizers)
    (tmp_path / "out").mkdir()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_world", "torch._dynamo", "mlflow", "mlflow.store.tracking.sqlalchemy_store"])
    receiver, sender = context.Pipe(duplex=False)
    places = (uri, str(world), str(tmp_path / "out"))
    stopped = context.Process(target=train_until_stopped, args=(*places, "stopped", sender))
    whole = context.Process(target=train_to_the_end, args=(*places, "whole"))
    stopped.start()
    whole.start()
    assert receiver.poll(300)
    os.kill(stopped.pid, signal.SIGTERM)
    stopped.join(120)
    whole.join(300)
    assert (stopped.exitcode, whole.exitcode) == (143, 0)
    runs = {run.name: run for run in list_runs("toy")}
    assert {name: run.status for name, run in runs.items()} == {"stopped": "KILLED", "whole": "FINISHED"}

    shutil.rmtree(tmp_path / "out" / "stopped")  # as on another machine
    result = run_stage("ce", tiny_config(world, tmp_path / "elsewhere", f"resume={runs['stopped'].run_id}"))
    assert result.run_id == runs["stopped"].run_id
    assert {run.status for run in list_runs("toy")} == {"FINISHED"}
    assert losses(result.run_id) == losses(runs["whole"].run_id)
    assert len(losses(result.run_id)) == STEPS

    client = stores.connect()
    for run in runs.values():
        files = {artifact.path for artifact in client.list_artifacts(run.run_id)}
        assert files >= {"config.yaml", "first_weights.json", "predictions.json", "val_predictions.jsonl", "figures"}
        found = find_model(run.run_id)
        assert found.folder.is_relative_to(tmp_path / "cache")
        assert load_checkpoint(found.folder).provenance.run_id == run.run_id
    assert len(list(wire.artifacts.rglob("model.safetensors"))) == 2
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


def test_a_server_that_stays_away_costs_nothing_but_the_wait(wire, uri, tmp_path, tokenizers, capsys):
    """It goes before the end of a training: the checkpoint is there, the error says how to log it, and that works."""
    world = make_world(tmp_path / "world", tokenizers)

    def cut_before_the_end(steps, total, description):
        for step in steps:
            if step == STEPS - 1:
                wire.cut()
            yield step

    with pytest.raises(ValueError, match=r"trained, but not logged as a model.*resume=") as caught:
        run_stage("ce", tiny_config(world, tmp_path, "run.name=away"), cut_before_the_end)
    run_id = str(caught.value).rpartition("resume=")[2].split()[0]
    assert load_checkpoint(tmp_path / "away" / "best").provenance.run_id == run_id
    wire.join()
    result = run_stage("ce", tiny_config(world, tmp_path, f"resume={run_id}"))
    assert (result.run_id, result.model) == (run_id, f"models:/{find_model(run_id).version}")
    assert [step for step, _ in losses(run_id)] == list(range(1, STEPS + 1))


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
    assert (finding.status, finding.remedy.startswith("see that it is running")) == ("fail", True)
