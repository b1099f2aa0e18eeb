"""What the demo prints at its end."""

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from videoblip2.cli import app
from videoblip2.cli.demo import next_commands
from videoblip2.config import load_config


def printed(monkeypatch, out, store=""):
    """The words of each command of the block, and the block."""
    monkeypatch.setattr(
        "videoblip2.tracking.mlflow.run_records.find_run", lambda run: SimpleNamespace(experiment_id="7")
    )
    made = SimpleNamespace(
        out=Path(out),
        data=Path(out) / "data",
        videos=Path(out) / "toy" / "videos",
        stages={name: SimpleNamespace(run_id=digit * 32) for name, digit in (("ce", "a"), ("scst", "b"))},
        example_videos=lambda: ["video1"],
    )
    text = next_commands(made, store)
    return [shlex.split(line, comments=True) for line in text.splitlines()[1:]], text


@pytest.mark.parametrize("out", ["runs/demo", "/x/demo #2", "it's mine"])
def test_the_next_commands_are_ones_and_name_the_demos_own_files(monkeypatch, out):
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    commands, text = printed(monkeypatch, out)
    assert "http://127.0.0.1:5000/#/experiments/7/runs?viewStateShareKey=vb2&workflowType=machine_learning" in text
    assert commands[0] == ["vb2", "caption", "models:/videoblip2@champion", f"{out}/toy/videos/video1.mp4"]
    group = typer.main.get_command(app)
    for _, *words in (line for line in commands if line[0] == "vb2"):
        context = group.make_context("vb2", ["--help"], resilient_parsing=True)
        name, command, rest = group.resolve_command(context, words)
        while hasattr(command, "commands"):
            name, command, rest = command.resolve_command(context, rest)
        given = command.make_context(name, list(rest)).params
        if name == "scst":
            config = load_config(given["config"], given["overrides"])
            assert (config.data.annotations, config.run.out) == (f"{out}/data", f"{out}/runs")


def test_without_an_activated_environment_its_programs_are_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    commands, _ = printed(monkeypatch, "runs/demo")
    assert {Path(words[0]).parent for words in commands} == {Path(sys.executable).parent}


def test_a_store_of_ones_own_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///what-mlflow-itself-has-set.db")
    assert "$MLFLOW_TRACKING_URI" not in printed(monkeypatch, "runs/demo")[1]
    commands, text = printed(monkeypatch, "runs/demo", "postgresql://me:secret@host/runs")
    assert commands[-1][-2:] == ["--backend-store-uri", "$MLFLOW_TRACKING_URI"] and "secret" not in text
    assert "http://mlflow:5000/#/experiments/7/" in printed(monkeypatch, "runs/demo", "http://mlflow:5000")[1]
