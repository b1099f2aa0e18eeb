"""`vb2 doctor`: every check with a machine in and out of order, and the store's own findings."""

import json
import sqlite3
from importlib import metadata
from types import SimpleNamespace

import pytest
from tracking_store import place_store
from typer.testing import CliRunner

from videoblip2.cli import app, setup
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


def test_the_command_prints_remedies_and_one_json_object(store, monkeypatch):
    checks = {"Java": (lambda: ("ok", "17"), "install it"), "disk": (lambda: ("fail", "0.1 GB free in /"), "make room")}
    monkeypatch.setattr(setup, "CHECKS", checks)
    found = [Finding("store", "ok", "here")]
    monkeypatch.setattr("videoblip2.tracking.mlflow.run_records.store_findings", lambda: found)
    run = CliRunner().invoke(app, ["doctor", "--json"])
    *lines, last = run.stdout.splitlines()
    assert lines == [
        "ok    Java: 17",
        "fail  disk: 0.1 GB free in /",
        "      → make room",
        "ok    store: here",
        "1 fault, 0 warnings",
    ]
    assert json.loads(last)["counts"] == {"ok": 2, "note": 0, "warn": 0, "fail": 1}
    assert json.loads(last)["findings"][1]["remedy"] == "make room"
    assert run.exit_code == 3
    monkeypatch.setattr(setup, "CHECKS", {"Java": (lambda: ("warn", "not found"), "install it")})
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_java_absent_broken_and_there(monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert setup.java() == ("warn", "not found") and "apt-get install" in setup.CHECKS["Java"][1]
    monkeypatch.setattr(setup.shutil, "which", lambda name: "/usr/bin/java")
    answers = [SimpleNamespace(returncode=1, stderr="no memory", stdout="")]
    answers.append(SimpleNamespace(returncode=0, stderr='openjdk version "17"\nmore', stdout=""))
    monkeypatch.setattr(setup.subprocess, "run", lambda *_, **__: answers.pop(0))
    assert setup.java() == ("warn", "does not start (no memory)")
    assert setup.java() == ("ok", 'openjdk version "17"')


def test_missing_decoders_are_named(monkeypatch):
    assert setup.decoders()[0] == "ok"
    monkeypatch.setattr(media, "DECODERS", ("h264", "no-such-codec"))
    status, found = setup.decoders()
    assert (status, "without no-such-codec" in found) == ("warn", True)


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert setup.gpu()[0] == "note"
    monkeypatch.setattr(setup.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert setup.gpu()[0] == "warn" and "CUDA build" in setup.CHECKS["GPU"][1]


def test_environment_managers(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_CONDA_HOME", raising=False)
    monkeypatch.setattr(setup.shutil, "which", lambda name: "/bin/uv" if name == "uv" else None)
    found = {name: setup.CHECKS[name][0]() for name in ("uv", "conda", "pyenv")}
    assert found == {"uv": ("ok", "/bin/uv"), "conda": ("note", "not found"), "pyenv": ("note", "not found")}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "conda").touch()
    monkeypatch.setenv("MLFLOW_CONDA_HOME", str(tmp_path))
    assert setup.program("conda") == ("ok", str(tmp_path / "bin" / "conda"))


@pytest.mark.parametrize(("gigabytes", "status"), [(0.5, "fail"), (5, "warn"), (500, "ok")])
def test_disk(store, monkeypatch, gigabytes, status):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda folder: SimpleNamespace(free=gigabytes * 1e9))
    assert setup.disk() == (status, f"{gigabytes:.1f} GB free in {store}")


def test_versions_against_the_ranges_of_the_package(monkeypatch):
    assert setup.versions()[0] == "ok"
    asked = ["numpy>=99", "no-such-package>=1", "torch>=2.6", 'ray>=99; extra == "ray"']
    monkeypatch.setattr(setup.metadata, "requires", lambda name: asked)
    wanted = f"numpy {metadata.version('numpy')}, needs >=99; no-such-package not installed, needs >=1"
    assert setup.versions() == ("fail", wanted)


# --- the store


def test_a_store_in_order_and_its_unclosed_runs(store):
    assert {finding.status for finding in store_findings()} == {"ok"}
    client = stores.connect()
    tags = {"mlflow.source.type": "PROJECT"}  # `mlflow run` could make no environment for it
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
    assert "was interrupted (_alembic_tmp_runs)" in by_name(store_findings())["store"].found
    holder.close()
    for file in store.glob("mlflow.db*"):
        file.unlink()
    assert only(store_findings()).status == "note"
    assert not (store / "mlflow.db").exists()
    (store / "mlflow.db").write_bytes(b"no database, but long enough to look like one" * 100)
    assert (only(store_findings()).status, "move it away" in only(store_findings()).remedy) == ("fail", True)
