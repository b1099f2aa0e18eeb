"""`vb2 serve`: options to environment, and the process that takes over."""

import os
import socket
import sys

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from videoblip2.cli import app
from videoblip2.config import InputError


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What would be executed."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VB2_SHADOW", "models:/videoblip2@challenger")
    monkeypatch.delenv("VB2_PIN", raising=False)
    return calls


def test_options_become_settings_and_what_is_left_out_stays(started):
    result = CliRunner().invoke(app, ["serve", "--pin", "3", "--port", "3100"])
    assert result.exit_code == 0 and "http://127.0.0.1:3100 (page)" in result.stdout
    ((program, command, environment),) = started
    assert program == command[0] == sys.executable
    service = "serving.service:VideoBlip2Service"
    assert command[1:] == ["-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", "3100"]
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert environment["VB2_PIN"] == "3"
    assert environment["VB2_SHADOW"] == "models:/videoblip2@challenger"
    assert environment["PATH"] == os.environ["PATH"]


def test_each_port_has_a_bentoml_home_of_its_own(started, monkeypatch, tmp_path):
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    for port in ("3100", "3101"):
        assert CliRunner().invoke(app, ["serve", "--port", port]).exit_code == 0
    homes = [environment["BENTOML_HOME"] for *_, environment in started]
    assert homes == [str(tmp_path / "home" / "vb2-serve" / port) for port in ("3100", "3101")]


def test_an_address_where_nobody_can_listen_is_named(started):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "--port", port])
    assert isinstance(result.exception, InputError) and started == []
    assert str(result.exception).startswith(f"127.0.0.1:{port}: cannot listen there (Address already in use)")
    result = CliRunner().invoke(app, ["serve", "--host", "203.0.113.1"])  # of nobody: for documents
    assert "203.0.113.1:3000: cannot listen there" in str(result.exception)


def test_a_version_is_a_number_from_one(started):
    assert CliRunner().invoke(app, ["serve", "--pin", "0"]).exit_code == 2
    assert started == []
