"""A run whose process was killed and that is opened again: one MLflow run, each point and table row once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tracking_store import place_store

from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.mlflow import store

CHILD = """
import os, signal, sys
from videoblip2.tracking import RunSpec, open_run
with open_run(RunSpec("ce", "n", "toy")) as tracker:
    print(tracker.run_id, flush=True)
    for step in range(1, 4):
        tracker.log_metrics({"train/loss": float(step)}, step)
        tracker.log_table("samples", [{"video_id": "v", "step": step}])
    tracker.flush()
    tracker.log_metrics({"train/loss": 4.0}, 4)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def store_folder(tmp_path, monkeypatch):
    return place_store(tmp_path, monkeypatch)


def test_a_killed_run_is_opened_again_and_has_each_point_once(store_folder):
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=os.environ.copy())
    assert done.returncode == -signal.SIGKILL
    run_id = done.stdout.strip()
    client = store.connect()
    assert client.get_run(run_id).info.status == "RUNNING"
    with open_run(RunSpec("ce", "n", "toy", resume_run_id=run_id)) as tracker:
        assert tracker.run_id == run_id
        for step in range(2, 6):
            tracker.log_metrics({"train/loss": float(step), "val/CIDEr": 0.5}, step)
            tracker.log_table("samples", [{"video_id": "v", "step": step}])
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3, 4, 5]
    assert [point.step for point in client.get_metric_history(run_id, "val/CIDEr")] == [2, 3, 4, 5]
    path = client.download_artifacts(run_id, "samples.json", str(store_folder))
    assert [row[1] for row in json.loads(Path(path).read_text())["data"]] == [1, 2, 3, 4, 5]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["resumed_from"] == run_id


def test_a_run_that_is_gone_is_followed_by_a_new_one(store_folder):
    with open_run(RunSpec("ce", "n", "toy", resume_run_id="0" * 32)) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, 1)
    run = store.connect().get_run(tracker.run_id)
    assert run.info.run_id != "0" * 32
    assert run.data.tags["resumed_from"] == "0" * 32
