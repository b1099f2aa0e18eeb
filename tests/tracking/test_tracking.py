"""Runs, the store's first start, listing and closing; checkpoints as models are in test_tracking_models.py."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from tracking_store import first_run, place_store, write_checkpoint
from typer.testing import CliRunner

from videoblip2.config import InputError
from videoblip2.tracking import RunSpec, find_model, open_run
from videoblip2.tracking.mlflow import store as stores
from videoblip2.tracking.mlflow.run_records import close_dead_runs, list_runs, runs_page, store_findings
from videoblip2.tracking.source import ProcessRecord

PROCESSES = 2


@pytest.fixture
def store(tmp_path, monkeypatch):
    return place_store(tmp_path, monkeypatch)


def client():
    return stores.connect()


def run_of(tracker):
    return client().get_run(tracker.run_id)


# --- runs


def test_the_package_imports_without_mlflow():
    code = "import sys, videoblip2.tracking, videoblip2.registry; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_disabled_run_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_run(RunSpec("ce", "name", "toy", enabled=False)) as tracker:
        assert tracker.run_id is None
        assert tracker.log_checkpoint(Path("there"), "ce", {}) == "there"
    assert list(tmp_path.iterdir()) == []


def test_a_run_gets_its_name_experiment_and_tags(store):
    with open_run(RunSpec("ce", "ce-lr1e-4", "toy")) as tracker:
        pass
    run = run_of(tracker)
    assert run.info.run_name == "ce-lr1e-4"
    assert client().get_experiment(run.info.experiment_id).name == "toy"
    assert run.data.tags["stage"] == "ce"
    assert run.data.tags["pid"] == str(os.getpid())
    assert run.info.status == "FINISHED"


def test_the_git_commit_and_its_state_are_tags(monkeypatch):
    from videoblip2.tracking import source as revision

    answers = {"ls-files": "__init__.py", "status": " M x.py", "rev-parse": "abc123"}
    monkeypatch.setattr(revision, "_git", lambda command, *rest: answers[command])
    commit = {"git.commit": "abc123", "mlflow.source.git.commit": "abc123"}
    assert revision.revision_tags() == {**commit, "git.dirty": "true"}
    answers["status"] = ""
    assert revision.revision_tags()["git.dirty"] == "false"
    answers["ls-files"] = ""
    assert revision.revision_tags() == {}


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FAILED")]
)
def test_an_error_ends_the_run_with_its_points_sent(store, error, status):
    with pytest.raises(error), open_run(RunSpec("ce", "name", "toy")) as tracker:
        tracker.log_metrics({"train/loss": 2.0}, step=3)
        raise error
    assert run_of(tracker).info.status == status
    assert run_of(tracker).data.metrics["train/loss"] == 2.0


def test_sigterm_ends_the_run_killed_with_its_points_sent(store):
    with pytest.raises(SystemExit) as end, open_run(RunSpec("ce", "name", "toy")) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, step=7)
        signal.raise_signal(signal.SIGTERM)
    assert (end.value.code, run_of(tracker).info.status) == (143, "KILLED")
    assert run_of(tracker).data.metrics["train/loss"] == 1.0


def test_under_mlflow_run_the_given_run_is_used_and_only_that(store, monkeypatch):
    given = client().create_run(client().create_experiment("given"), run_name="given")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    with open_run(RunSpec("ce", "other", "toy")) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, step=1)
    assert tracker.run_id == given.info.run_id
    assert [(row.run_id, row.name, row.experiment) for row in list_runs()] == [(given.info.run_id, "given", "given")]


def test_a_model_that_no_run_is_named_after_is_refused_without_mlflow(store, monkeypatch):
    with open_run(RunSpec("ce", "a-name", "toy")) as tracker:
        run_id = str(tracker.run_id)
    for word in (run_id, run_id[:6], "a-name"):
        with pytest.raises(InputError, match="logged no checkpoint"):
            find_model(word)
    monkeypatch.setattr("videoblip2.tracking.mlflow.store.connect", lambda: pytest.fail("imports MLflow"))
    with pytest.raises(
        InputError, match=r"^nope: no such folder, and no run with that id or name in sqlite.*runs list"
    ):
        find_model("nope")


def test_a_parameter_in_another_spelling_stays_and_another_value_becomes_a_tag(store, monkeypatch):
    given = client().create_run(client().create_experiment("given"))
    logged = {"optim.lr": "1e-4", "flag": "True", "empty": "''", "data.workers": "2"}
    for key, value in logged.items():
        client().log_param(given.info.run_id, key, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    with open_run(RunSpec("ce", "other", "toy")) as tracker:
        tracker.log_config({"optim.lr": 0.0001, "flag": True, "empty": "", "data.workers": 3, "model.lora.r": 16})
    run = run_of(tracker)
    assert run.data.params == {**logged, "model.lora.r": "16"}
    assert {k: v for k, v in run.data.tags.items() if k.startswith("config.")} == {"config.data.workers": "3"}


def test_the_ui_shows_cider_as_the_command_line_does_and_first_and_what_kind_a_run_is(store):
    with open_run(RunSpec("scst", "name", "toy")) as tracker:
        tracker.log_metrics({"val/CIDEr": 2.71734, "val/CIDEr_ci_low": 2.6, "train/loss": 1.0, "val/accuracy": 0.5}, 1)
        tracker.log_best({"val/CIDEr": 2.71734})
    run = run_of(tracker)
    shown = {"CIDEr x100/val": 271.73, "CIDEr x100/best": 271.73, "accuracy x100/val": 50.0}
    assert {key: value for key, value in run.data.metrics.items() if "x100" in key} == shown
    assert sorted({key.rpartition("/")[0] for key in run.data.metrics})[0] == "CIDEr x100"
    assert run.data.tags["mlflow.source.name"] == "vb2 scst"
    address = runs_page(tracker.run_id)
    key = re.fullmatch(rf"/#/experiments/{run.info.experiment_id}/runs\?viewStateShareKey=(\w+)&workflow.*", address)[1]
    tags = client().get_experiment(run.info.experiment_id).tags
    columns = json.loads(json.loads(tags[f"mlflow.sharedViewState.{key}"])["state"])["selectedColumns"]
    assert columns == ["attributes.`Source`", "metrics.`CIDEr x100/best`", "metrics.`CIDEr x100/test`"]
    captions = json.loads(json.loads(tags["mlflow.sharedViewState.captions"])["state"])["searchFilter"]
    assert client().search_runs([run.info.experiment_id], captions) == []
    client().set_tag(tracker.run_id, "predictions.val", "val_predictions.jsonl")
    assert len(client().search_runs([run.info.experiment_id], captions)) == 1


def test_points_leave_in_one_batch(store, monkeypatch):
    with open_run(RunSpec("ce", "name", "toy")) as tracker:
        sent = Mock(side_effect=tracker._client.log_batch)
        monkeypatch.setattr(tracker._client, "log_batch", sent)
        for step in range(100):
            tracker.log_metrics({"train/loss": 1.0 / (step + 1), "train/lr": 0.1}, step)
        assert not sent.called
        for _ in range(2):
            tracker.flush()
            assert [len(call.args[1]) for call in sent.call_args_list] == [200]
    history = client().get_metric_history(tracker.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 1.0 / (step + 1)) for step in range(100)]


def test_a_full_buffer_is_sent(store):
    with open_run(RunSpec("ce", "name", "toy")) as tracker:
        for step in range(600):
            tracker.log_metrics({"train/loss": 1.0}, step)
        assert len(client().get_metric_history(tracker.run_id, "train/loss")) == 500


def test_the_table_has_video_id_first_and_200_rows(store):
    rows = [{"caption": f"c{n}", "video_id": f"video{n}"} for n in range(250)]
    with open_run(RunSpec("ce", "name", "toy")) as tracker:
        tracker.log_table("predictions", [{**rows[0], "cider": 1.5}, *rows[1:]])
    table = json.loads((store / client().download_artifacts(tracker.run_id, "predictions.json")).read_text())
    assert table["columns"] == ["video_id", "caption", "cider"]
    assert table["data"][:2] == [["video0", "c0", 1.5], ["video1", "c1", None]]
    assert len(table["data"]) == 200
    assert json.loads(run_of(tracker).data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "predictions.json", "type": "table"}
    ]


def test_data_files_and_notes_are_on_the_run(store):
    (store / "report.txt").write_text("hello")
    with open_run(RunSpec("ce", "name", "toy")) as tracker:
        tracker.log_data("toy-train", "ab" * 32, "train")
        tracker.log_file(store / "report.txt", "reports")
        tracker.note("**note**")
    run = run_of(tracker)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("toy-train", ("ab" * 32)[:36])
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "train")]
    assert [file.path for file in client().list_artifacts(tracker.run_id, "reports")] == ["reports/report.txt"]
    assert run.data.tags["mlflow.note.content"] == "**note**"


# --- the store


@pytest.mark.slow
def test_processes_that_meet_a_fresh_store_at_once_all_get_their_run(tmp_path, monkeypatch):
    processes = multiprocessing.get_context("forkserver")  # they share one import of MLflow
    processes.set_forkserver_preload(["mlflow", "mlflow.store.tracking.sqlalchemy_store", "tracking_store"])
    started = [processes.Process(target=first_run, args=(str(tmp_path),)) for _ in range(PROCESSES)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * PROCESSES
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [(row.experiment, row.status) for row in list_runs()] == [("toy", "FINISHED")] * PROCESSES
    assert stores._journal_mode(tmp_path / "mlflow.db") == "wal"
    assert (tmp_path / "mlruns").is_dir() is False  # nothing was logged as a file


@pytest.fixture
def network(monkeypatch):
    """Every file is on NFS."""
    places = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint="/", fstype="nfs4")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: places)


def journal(findings):
    return next(finding for finding in findings if finding.name == "store: write-ahead logging")


def test_on_a_network_file_system_the_journal_mode_stays_and_the_doctor_says_why(store, tmp_path, network):
    stores._journal_mode(tmp_path / "mlflow.db", "=delete")
    with open_run(RunSpec("ce", "name", "toy")):
        pass
    assert stores._journal_mode(tmp_path / "mlflow.db") == "delete"
    found = journal(store_findings())
    assert (found.status, "nfs4 is a network file system" in found.found) == ("note", True)
    stores._journal_mode(tmp_path / "mlflow.db", "=wal")
    found = journal(store_findings())
    assert (found.status, "journal_mode=DELETE" in found.remedy) == ("warn", True)
    assert stores._journal_mode(tmp_path / "mlflow.db") == "wal"


@pytest.mark.parametrize("name", ["new place", "sub/folder"])
def test_a_folder_that_was_moved_finds_its_files_and_keeps_new_ones(tmp_path, monkeypatch, name):
    (tmp_path / "old place").mkdir()
    place_store(tmp_path / "old place", monkeypatch)
    with open_run(RunSpec("ce", "name", "toy")) as tracker:
        tracker.log_table("predictions", [{"video_id": "video0"}])
        model = tracker.log_checkpoint(write_checkpoint(tmp_path / "old place" / "best"), "ce", {})
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "old place").rename(tmp_path / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / name / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    assert find_model(model).folder.is_relative_to(tmp_path / name)
    assert json.loads(Path(client().download_artifacts(tracker.run_id, "predictions.json")).read_text())["data"]
    with open_run(RunSpec("ce", "later", "toy")) as later:
        later.log_table("predictions", [{"video_id": "video0"}])
    assert client().get_experiment_by_name("toy").artifact_location == (tmp_path / name / "mlruns" / "toy").as_uri()
    assert not (tmp_path / "old place").exists()


def test_addresses_stay_where_the_old_place_exists_or_a_run_is_being_written(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    place_store(tmp_path / "old", monkeypatch)
    with open_run(RunSpec("ce", "name", "toy")) as tracker:
        tracker.log_table("predictions", [{"video_id": "video0"}])
    address = client().get_run(tracker.run_id).info.artifact_uri
    monkeypatch.chdir(tmp_path)

    def seen_from(name):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / name / 'mlflow.db'}")
        return client().get_run(tracker.run_id).info.artifact_uri

    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    assert seen_from("copy") == address
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "copy").rename(tmp_path / "mounted")
    client_there = sqlite3.connect(tmp_path / "mounted" / "mlflow.db")
    with client_there:
        client_there.execute("UPDATE runs SET status = 'RUNNING'")
    assert seen_from("mounted") == address
    with client_there:
        client_there.execute("UPDATE tags SET value = '1000' WHERE key = 'heartbeat'")
    client_there.close()
    stores._follow_move.cache_clear()
    assert seen_from("mounted") != address


@pytest.fixture
def server(monkeypatch):
    """An address that answers every request with `answer`."""

    class Handler(BaseHTTPRequestHandler):
        answer = (401, "You are not authenticated")

        def do_GET(self):
            self.send_response(self.answer[0])
            self.end_headers()
            self.wfile.write(self.answer[1].encode())

        do_POST = do_GET

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:s3cret@127.0.0.1:{server.server_port}")
        yield Handler
        server.shutdown()


@pytest.mark.parametrize("answer", [(401, "You are not authenticated"), (403, "Permission denied")])
def test_a_server_that_wants_another_login_names_the_variables(server, answer):
    server.answer = answer
    refusal = rf"http://ann:\*\*\*@127.*refuses \({answer[0]}: {answer[1]}\)"
    message = f"{refusal}.*MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    with pytest.raises(InputError, match=message), open_run(RunSpec("ce", "name", "toy")):
        pass
    (finding,) = store_findings()
    assert finding.status == "fail" and "s3cret" not in str(finding)


def test_the_default_store_is_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert stores.tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert stores.tracking_uri() == f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert stores.tracking_uri() == "http://127.0.0.1:5000"


def test_reading_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"mlflow\.db: no MLflow store there; .*`vb2 demo`"):
        find_model("models:/videoblip2@champion")
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_experiment_is_named(store):
    client().delete_experiment(client().create_experiment("toy"))
    with pytest.raises(InputError, match="experiment 'toy' was deleted"), open_run(RunSpec("ce", "name", "toy")):
        pass


# --- listing and closing


def dead_process():
    """The record of a process of this machine that has ended."""
    process = subprocess.Popen(["sleep", "60"])
    record = ProcessRecord.current(process.pid)
    process.kill()
    process.wait()
    return record.fields()


def left_running(tags, parent=None):
    experiment = client().get_experiment_by_name("left")
    experiment_id = experiment.experiment_id if experiment else client().create_experiment("left")
    tags = {**tags, **({"mlflow.parentRunId": parent} if parent else {})}
    return client().create_run(experiment_id, tags={key: str(value) for key, value in tags.items()}).info.run_id


def test_gc_closes_the_runs_of_dead_processes_and_no_others(store):
    now = int(time.time())
    dead, alive = dead_process(), ProcessRecord.current().fields()
    closed = [
        left_running({**dead, "heartbeat": now}),
        left_running({"host": "far", "pid": 1, "heartbeat": now - 25 * 3600}),
        left_running({**dead, "pid_namespace": "", "heartbeat": now - 25 * 3600}),
        left_running({"mlflow.source.type": "PROJECT"}),  # `mlflow run` opened it, and could make no environment
    ]
    silent_parent = left_running({"host": "far", "pid": 1, "heartbeat": now - 25 * 3600})
    kept = [
        left_running({**alive, "heartbeat": now}),
        left_running({"host": "far", "pid": dead["pid"], "heartbeat": now - 3600}),
        left_running({**dead, "pid_namespace": "pid:[1] of a container", "heartbeat": now}),
        left_running({"host": dead["host"], "pid": dead["pid"], "heartbeat": now}),  # written by an older version
        left_running({}),  # of another program
        silent_parent,
        left_running({"host": "far", "pid": 2, "heartbeat": now}, silent_parent),
    ]
    assert {row.run_id for row in close_dead_runs(hours=24)} == set(closed)
    status = {row.run_id: row.status for row in list_runs()}
    assert status == dict.fromkeys(closed, "KILLED") | dict.fromkeys(kept, "RUNNING")


def test_gc_leaves_a_run_whose_environment_is_being_made(store, monkeypatch):
    making = left_running({"mlflow.source.type": "PROJECT"})
    busy = SimpleNamespace(info={"cmdline": ["/usr/bin/python", "/opt/bin/mlflow", "run", ".", "-e", "ce"]})
    monkeypatch.setattr("psutil.process_iter", lambda fields: [SimpleNamespace(info={"cmdline": None}), busy])
    assert close_dead_runs() == []
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    assert [run.run_id for run in close_dead_runs()] == [making]
    with pytest.MonkeyPatch.context() as patch:  # closed too early, by a container: the run is taken up all the same
        patch.setenv("MLFLOW_RUN_ID", making)
        with open_run(RunSpec("ce", "name", "toy")):
            assert client().get_run(making).info.status == "RUNNING"


def test_the_commands_print_runs_and_what_was_closed(store):
    from videoblip2.cli.runs import app

    with open_run(RunSpec("ce", "ce-1", "toy")) as tracker:
        tracker.log_best({"val/CIDEr": 0.613})
    listed = CliRunner().invoke(app, ["list", "--json"])
    assert "61.3" in listed.stdout
    (run,) = json.loads(listed.stdout.splitlines()[-1])["runs"]
    assert (run["run_id"], run["stage"], run["metrics"]) == (tracker.run_id, "ce", {"best/val/CIDEr": 0.613})
    dead = left_running(dead_process())
    closed = CliRunner().invoke(app, ["gc", "--json"])
    assert json.loads(closed.stdout.splitlines()[-1]) == {"closed": [dead]}
    only = CliRunner().invoke(app, ["list", "--experiment", "toy", "--json"])
    assert len(json.loads(only.stdout.splitlines()[-1])["runs"]) == 1
    with open_run(RunSpec("evaluate", "val-ce-1", "toy")) as tracker:
        tracker.log_metrics({"val/CIDEr": 0.587}, step=0)
    listed = CliRunner().invoke(app, ["list", "--limit", "1", "--json"]).stdout
    assert "58.7" in listed and json.loads(listed.splitlines()[-1])["runs"][0]["metrics"] == {"val/CIDEr": 0.587}
    with pytest.raises(InputError, match=r"experiment 'nope': not in sqlite.*; it has .*toy"):
        list_runs("nope")
