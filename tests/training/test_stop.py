"""Trainings stopped by real signals, and resumed: one run, the same points, the same weights."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from tiny_world import PAUSE, STEPS, make_world, tiny_config
from tracking_store import place_store

from videoblip2.config import InputError
from videoblip2.tracking.mlflow import store as stores
from videoblip2.tracking.mlflow.run_records import close_dead_runs, list_runs
from videoblip2.tracking.source import ProcessRecord
from videoblip2.tracking.tracker import Terminated
from videoblip2.training.stage import run_stage
from videoblip2.training.state import read_saved

SAVED = PAUSE // 2 * 2  # the last step with a regular save before the pause


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizers):
    return make_world(tmp_path_factory.mktemp("world"), tokenizers)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """An uninterrupted training: its points and its weights."""
    with pytest.MonkeyPatch.context() as patch:
        folder = place_store(tmp_path_factory.mktemp("whole"), patch)
        result = run_stage("ce", tiny_config(world, folder, "run.name=whole"))
        return points(result.run_id), load_file(result.checkpoint / "model.safetensors")


@pytest.fixture
def store(tmp_path, monkeypatch):
    return place_store(tmp_path, monkeypatch)


def points(run_id):
    """(metric, step, value) of every point in the store, but for times."""
    client = stores.connect()
    keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith(("time/", "sys/", "system/"))]
    return sorted((key, p.step, p.value) for key in keys for p in client.get_metric_history(run_id, key))


def signalled(number):
    """A Progress that sends this process a signal before step PAUSE."""

    def progress(steps, total, description):
        for step in steps:
            if step == PAUSE:
                os.kill(os.getpid(), number)
            yield step

    return progress


def stop(world, store, number):
    """Train up to the pause and get a signal there; return the exit code and the run."""
    arguments = ("ce", tiny_config(world, store, "run.name=stopped"), signalled(number))
    if number == signal.SIGKILL:  # in a process of its own
        process = multiprocessing.get_context("fork").Process(target=run_stage, args=arguments)
        process.start()
        process.join(120)
        code = process.exitcode
    else:
        with pytest.raises((KeyboardInterrupt, Terminated)) as caught:
            run_stage(*arguments)
        code = getattr(caught.value, "code", None)
    (run,) = list_runs()
    return code, run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_training_resumes_in_its_run_as_if_it_had_not_stopped(number, world, store, whole):
    code, run = stop(world, store, number)
    saved = read_saved(store / "stopped" / "state")
    if number == signal.SIGKILL:
        assert (code, run.status, saved.step) == (-number, "RUNNING", SAVED)
        assert [(row.run_id, row.status) for row in close_dead_runs()] == [(run.run_id, "KILLED")]
    else:
        assert (code, run.status, saved.step) == ({signal.SIGTERM: 143}.get(number), "KILLED", PAUSE)
        assert max(step for key, step, _ in points(run.run_id) if key == "train/loss") == PAUSE
    result = run_stage("ce", tiny_config(world, store, f"resume={run.run_id}"))
    assert (result.run_id, result.name) == (run.run_id, "stopped")
    assert [(row.run_id, row.status) for row in list_runs()] == [(run.run_id, "FINISHED")]
    expected_points, expected_weights = whole
    assert points(run.run_id) == expected_points
    assert len([p for p in expected_points if p[0] == "train/loss"]) == STEPS
    found = load_file(result.checkpoint / "model.safetensors")
    assert all((found[name] == tensor).all() for name, tensor in expected_weights.items())


def test_under_mlflow_run_the_earlier_run_resumes_and_the_empty_one_is_deleted(world, store, whole, monkeypatch):
    _, run = stop(world, store, signal.SIGTERM)
    client = stores.connect()
    empty = client.create_run(client.create_experiment("of-mlflow-run")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", empty)
    assert run_stage("ce", tiny_config(world, store, f"resume={run.run_id}")).run_id == run.run_id
    assert points(run.run_id) == whole[0]
    gone = client.get_run(empty)
    assert (gone.info.lifecycle_stage, gone.info.status) == (
        "deleted",
        "FINISHED",
    )  # else `mlflow run` would fail on it
    assert gone.data.tags["continues"] == run.run_id


def test_a_run_that_is_still_running_is_left_alone(world, store):
    client = stores.connect()
    busy = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        tags = ProcessRecord.current(busy.pid).fields()
        run_id = client.create_run(client.create_experiment("toy"), tags=tags).info.run_id
        with pytest.raises(InputError, match=f"still running as process {busy.pid}; stop it first"):
            run_stage("ce", tiny_config(world, store, f"resume={run_id}"))
        client.set_tag(run_id, "host", "far")
        with pytest.raises(InputError, match=r"running on far, last heard of \d+ s ago"):
            run_stage("ce", tiny_config(world, store, f"resume={run_id}"))
        client.set_tag(run_id, "host", tags["host"])
        client.set_tag(run_id, "pid_started", "another process of the same number, ended")
        with pytest.raises(InputError, match="no training state in"):
            run_stage("ce", tiny_config(world, store, f"resume={run_id}"))
    finally:
        busy.communicate(b"\n")


def test_what_cannot_resume_is_named(world, store):
    with pytest.raises(InputError, match=r"no run with that id or name in sqlite.*`vb2 runs list`"):
        run_stage("ce", tiny_config(world, store, f"resume={'0' * 32}"))
    _, run = stop(world, store, signal.SIGTERM)
    with pytest.raises(InputError, match="a run of `vb2 ce`, not of `vb2 scst`"):
        run_stage("scst", tiny_config(world, store, f"resume={run.run_id}"))
    with pytest.raises(InputError, match=r"to resume it, add seed=0 optim.lr=0.05;"):
        run_stage("ce", tiny_config(world, store, f"resume={run.run_id}", "optim.lr=0.1", "seed=1"))
    shutil.move(store / "stopped", store / "elsewhere")
    with pytest.raises(InputError, match=r"no training state in .*stopped .*copy that folder to .*moved.stopped"):
        run_stage("ce", tiny_config(world, store / "moved", f"resume={run.run_id}"))
    (store / "moved").mkdir()
    shutil.move(store / "elsewhere", store / "moved" / "stopped")
    assert run_stage("ce", tiny_config(world, store / "moved", f"resume={run.run_id}")).run_id == run.run_id
    with pytest.raises(InputError, match="is finished"):
        run_stage("ce", tiny_config(world, store / "moved", f"resume={run.run_id}"))


def test_a_state_in_the_store_is_enough(world, store, whole):
    """Logged by hand here, as a stopped run does it where the store is a server."""
    _, run = stop(world, store, signal.SIGTERM)
    client = stores.connect()
    for part in ("best", "state"):
        client.log_artifacts(run.run_id, str(store / "stopped" / part), f"resume/{part}")
    shutil.rmtree(store / "stopped")
    client.set_tag(run.run_id, "state.logged", "true")
    result = run_stage("ce", tiny_config(world, store / "other", f"resume={run.run_id}"))
    assert points(run.run_id) == whole[0]
    assert result.checkpoint == store / "other" / "stopped" / "best"
    assert "resume" not in [artifact.path for artifact in client.list_artifacts(run.run_id)]
    assert "state.logged" not in client.get_run(run.run_id).data.tags
