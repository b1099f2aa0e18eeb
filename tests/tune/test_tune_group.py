"""Trials that several processes train together: a result that does not depend on them, and ends that concern one trial.

In the quick test the processes are forked from this one; in the slow one `vb2` starts them.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from forked import processes
from optuna.trial import TrialState, create_trial
from tiny_study import tiny_plan, write_study, write_world
from typer.testing import CliRunner

from videoblip2.cli import app, main
from videoblip2.errors import no_progress
from videoblip2.tracking import Tracker
from videoblip2.tracking.tracker import Terminated
from videoblip2.training import distributed, stage
from videoblip2.training.stage import run_stage
from videoblip2.training.state import read_saved
from videoblip2.tune import report, trials
from videoblip2.tune.lead import begin, tune
from videoblip2.tune.plan import load_plan
from videoblip2.tune.study import open_storage, open_study
from videoblip2.tune.worker import WorkerContext, run_group, run_trial, take

EXACT = {"train": {"dropout": False}}


@pytest.fixture
def root(tmp_path, tokenizers):
    return write_world(tmp_path, tokenizers)


def spoiled(ends):
    """A training step in which `ends[trial, rank]` acts on the loss of step 1."""
    step = stage.ce_step

    def acting(work, batch, at):
        for part in step(work, batch, at):
            act = ends.get((work.config.run.name, work.world.rank)) if at == 1 else None
            yield act(part) if act else part

    return acting


def nan(part):
    return replace(part, loss=part.loss * float("nan"))


def killed(part):
    os.kill(os.getpid(), signal.SIGKILL)


def forked(words, count):
    """Instead of the launcher."""

    def target(world):
        sys.argv = ["vb2", *words]
        main()

    codes = processes(count, target)
    if -signal.SIGKILL in codes:
        raise SystemExit(f"error: process {codes.index(-9)} of {count} was killed by SIGKILL")
    raise SystemExit(max(codes))


def test_each_trial_has_processes_of_its_own_and_what_ends_one_ends_that_trial_alone(root, monkeypatch):
    path, words = str(write_study(root, config=EXACT, n_trials=6)), ["pruner.startup_trials=0"]
    plan = load_plan(path, words)
    alone = run_stage("ce", plan.config_of(plan.defaults, f"run.out={root}", "run.name=alone"))
    study = open_study(plan, open_storage(str(root / "runs" / "study" / "study.journal")))
    good = {"params": {"optim.lr": 0.1}, "distributions": plan.distributions, "intermediate_values": {2: 9.0}}
    study.add_trial(create_trial(value=9.0, **good))
    ends = {("trial-002", 1): nan, ("trial-003", 1): killed, ("trial-004", 0): killed}
    monkeypatch.setattr(stage, "ce_step", spoiled(ends))
    monkeypatch.setattr(distributed, "launch", forked)
    monkeypatch.setattr(report, "write_plots", lambda *arguments: [])
    tune(path, words, say=lambda line: None, nproc=2)
    _, whole, *broken, pruned = study.get_trials()
    assert whole.value == pytest.approx(alone.metrics["CIDEr"], rel=1e-5) and len(whole.intermediate_values) == 2
    assert [(trial.state.name, trial.user_attrs["reason"].partition(" on videos")[0]) for trial in broken] == [
        ("FAIL", "step 1: the loss is nan"),
        ("FAIL", "another of its processes was killed"),
        ("FAIL", "process 0 of 2 was killed by SIGKILL"),
    ]
    assert (pruned.state, pruned.last_step) == (TrialState.PRUNED, 2)
    files = [out / "val_predictions.jsonl" for out in (root / "alone", root / "runs" / "study" / "trial-001")]
    assert files[0].read_text() == files[1].read_text()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated(143)])
def test_a_signal_gives_the_trial_back_and_ends_the_study(tmp_path, stop):
    plan = tiny_plan(tmp_path)
    study = open_study(plan, open_storage(str(tmp_path / "study.journal")))
    begin(study, plan, Tracker())

    def start(number):
        raise stop

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_group(WorkerContext(study, plan, no_progress, print), take(study, plan), start)
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL", "WAITING"]


def test_the_launcher_gives_signals_back_to_the_study(monkeypatch):
    """torch's own leaves handlers behind that raise an error."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.launcher import api

    def signalled(*arguments):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SignalException("", signal.SIGTERM)

    monkeypatch.setattr(api, "elastic_launch", lambda *arguments: signalled)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as stop:
        distributed.launch(["ce"], 2)
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("size", "options", "line"),
    [("2", (), "started by torchrun; start it alone: --nproc N"), ("1", ("--nproc", "2"), "a decoding trial is one")],
)
def test_what_cannot_be_shared_is_refused(tmp_path, monkeypatch, size, options, line):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setattr(
        "videoblip2.tune.plan.load_plan", lambda *words: SimpleNamespace(tuning=SimpleNamespace(stage="decode"))
    )
    result = CliRunner().invoke(app, ["tune", str(write_study(tmp_path)), *options])
    assert line in str(result.exception)


@pytest.mark.parametrize("why", ["", "loss is nan", None])
def test_a_process_that_a_signal_stopped_interrupts_the_trial_and_any_other_end_fails_it(tmp_path, monkeypatch, why):
    def lost(*_):
        raise distributed.Lost(why)

    plan = tiny_plan(tmp_path)
    study = open_study(plan, open_storage(str(tmp_path / "study.journal")))
    begin(study, plan, Tracker())
    monkeypatch.setattr(trials, "train_part", lost)
    with pytest.raises(SystemExit) if why == "" else nullcontext():
        run_trial(WorkerContext(study, plan, no_progress, print), take(study, plan), partial(trials.train_trial, plan))
    queued = any(trial.state == TrialState.WAITING for trial in study.trials)
    assert study.trials[0].state == TrialState.FAIL and queued == (why == "")


@pytest.mark.slow
def test_a_signal_to_the_study_ends_all_and_the_same_command_resumes(root, capfd):
    path = write_study(root, config={"train": {"dropout": False, "steps": 100, "save_every": 2}}, n_trials=1)
    command = [sys.executable, "-m", "videoblip2", "tune", str(path), "--nproc", "2"]
    state = root / "runs" / "study" / "trial-000" / "state" / "state.safetensors"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not state.exists():
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
    process.send_signal(signal.SIGTERM)
    lines, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "trial-000: interrupted; the same command resumes it" in lines
    assert read_saved(state.parent).step < 100
    again = CliRunner().invoke(app, command[3:])
    assert again.exit_code == 0 and "trial-000 (the default): CIDEr" in capfd.readouterr().out, again.output
    assert json.loads((root / "runs" / "study" / "trials.json").read_text())[0]["attempts"] == 2
