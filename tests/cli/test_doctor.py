"""`vb2 doctor`: every check with a machine in and out of order, and the store's own findings."""

import json
import sqlite3
import subprocess
from importlib import metadata
from types import SimpleNamespace

import pytest
from tracking_store import place_store
from typer.testing import CliRunner

from videoblip2.cli import app, doctor
from videoblip2.features import media
from videoblip2.tracking.mlflow import store as stores
from videoblip2.tracking.mlflow.run_records import Finding, store_findings


@pytest.fixture
def store(tmp_path, monkeypatch):
    return place_store(tmp_path, monkeypatch)


def by_name(findings):
    return {finding.name: finding for finding in findings}


def only(findings):
    (finding,) = findings
    return finding


def test_the_command_prints_remedies_and_one_json_object(monkeypatch):
    bad = Finding("disk (here)", "fail", "0.1 GB free in /", "make room")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [Finding("Java", "ok", "17")], lambda: [bad]))
    run = CliRunner().invoke(app, ["doctor", "--json"])
    *lines, last = run.stdout.splitlines()
    assert lines == [
        "ok    Java: 17",
        "fail  disk (here): 0.1 GB free in /",
        "      → make room",
        "faults: 1, warnings: 0",
    ]
    assert json.loads(last)["counts"] == {"ok": 1, "note": 0, "warn": 0, "fail": 1}
    assert json.loads(last)["findings"][1]["remedy"] == "make room"
    assert run.exit_code == 3
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [Finding("Java", "warn", "not found", "install it")],))
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_java_absent_broken_and_there(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert (only(doctor.java()).status, "apt-get install" in only(doctor.java()).remedy) == ("warn", True)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/java")
    answers = [SimpleNamespace(returncode=1, stderr="no memory", stdout="")]
    answers.append(SimpleNamespace(returncode=0, stderr='openjdk version "17"\nmore', stdout=""))
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: answers.pop(0))
    assert "no memory" in only(doctor.java()).found
    assert by_name(doctor.java())["Java"] == Finding("Java", "ok", 'openjdk version "17"')


def test_missing_decoders_are_named(monkeypatch):
    assert by_name(doctor.video())["video decoding (PyAV)"].status == "ok"
    monkeypatch.setattr(media, "DECODERS", ("h264", "no-such-codec"))
    finding = by_name(doctor.video())["video decoding (PyAV)"]
    assert (finding.status, "without no-such-codec" in finding.found) == ("warn", True)


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert only(doctor.gpu()).status == "note"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert (only(doctor.gpu()).status, "CUDA build" in only(doctor.gpu()).remedy) == ("warn", True)


def test_environment_managers(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_CONDA_HOME", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/bin/uv" if name == "uv" else None)
    found = by_name(doctor.managers())
    assert {name: finding.status for name, finding in found.items()} == {
        "environment manager uv": "ok",
        "environment manager conda": "note",
        "environment manager pyenv": "note",
    }
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "conda").touch()
    monkeypatch.setenv("MLFLOW_CONDA_HOME", str(tmp_path))
    assert by_name(doctor.managers())["environment manager conda"].found == str(tmp_path / "bin" / "conda")


@pytest.mark.parametrize(("gigabytes", "status"), [(0.5, "fail"), (5, "warn"), (500, "ok")])
def test_disk(monkeypatch, tmp_path, gigabytes, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=gigabytes * 1e9))
    assert doctor._free_space("disk", tmp_path).status == status


def test_versions_against_the_ranges_of_the_package(monkeypatch):
    assert only(doctor.versions()).status == "ok"
    asked = ["numpy>=99", "no-such-package>=1", "torch>=2.6", 'ray>=99; extra == "ray"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: asked)
    finding = only(doctor.versions())
    wanted = f"numpy {metadata.version('numpy')}, needs >=99; no-such-package is not installed"
    assert (finding.status, finding.found) == ("fail", wanted)


# --- the store


def test_a_store_in_order_and_its_unclosed_runs(store):
    assert {finding.status for finding in store_findings()} == {"ok"}
    process = subprocess.Popen(["true"])
    process.wait()
    client = stores.connect()
    tags = {"host": doctor.os.uname().nodename, "pid": str(process.pid)}
    client.create_run(client.create_experiment("toy"), run_name="left", tags=tags)
    finding = by_name(store_findings())["store: unclosed runs"]
    assert (finding.status, finding.found) == ("warn", "1 RUNNING without a process: left")
    assert "`vb2 runs gc`" in finding.remedy
    assert client.search_runs(["1"])[0].info.status == "RUNNING"  # looked at, not closed


def change(store, *statements):
    connection = sqlite3.connect(store / "mlflow.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    return connection


def test_a_store_without_write_ahead_logging(store):
    change(store, "PRAGMA journal_mode=DELETE").close()
    finding = by_name(store_findings())["store: write-ahead logging"]
    assert (finding.status, "PRAGMA journal_mode=WAL" in finding.remedy) == ("warn", True)


def test_another_schema(store):
    change(store, "UPDATE alembic_version SET version_num = '0584bdc529eb'").close()
    finding = by_name(store_findings())["store: schema"]
    assert (finding.status, "0584bdc529eb, but MLflow" in finding.found) == ("fail", True)
    assert "mlflow db upgrade sqlite" in finding.remedy


def test_a_store_that_is_locked_cut_off_spoiled_or_not_there(store, monkeypatch):
    monkeypatch.setattr("videoblip2.tracking.mlflow.store.BUSY_SECONDS", 0.1)
    holder = change(store, "BEGIN IMMEDIATE")
    assert ("locked" in only(store_findings()).found, "fuser" in only(store_findings()).remedy) == (True, True)
    holder.rollback()
    change(store, "CREATE TABLE _alembic_tmp_runs (x)").close()
    assert "was cut off (_alembic_tmp_runs)" in by_name(store_findings())["store"].found
    holder.close()
    for file in store.glob("mlflow.db*"):
        file.unlink()
    assert only(store_findings()).status == "note"
    assert not (store / "mlflow.db").exists()
    (store / "mlflow.db").write_bytes(b"no database, but long enough to look like one" * 100)
    assert (only(store_findings()).status, "move it away" in only(store_findings()).remedy) == ("fail", True)
