"""A whole study on a tiny network: a worker killed in the middle, another process that resumes it, and the results."""

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock
from optuna.trial import TrialState, create_trial
from tiny_study import write_study, write_world
from tracking_store import place_store

from videoblip2.cli import main
from videoblip2.cli.train import _study_record
from videoblip2.config import InputError, load_config
from videoblip2.errors import no_progress
from videoblip2.features.manifest import FeatureManifest
from videoblip2.provenance import FeatureOrigin, Provenance
from videoblip2.tracking import RunSpec, Tracker, open_run
from videoblip2.tracking.mlflow import store
from videoblip2.training import loop
from videoblip2.training.stage import run_stage
from videoblip2.tune import lead
from videoblip2.tune.lead import join, tune
from videoblip2.tune.plan import load_plan
from videoblip2.tune.study import open_storage, open_study
from videoblip2.tune.trials import train_trial
from videoblip2.tune.worker import WorkerContext, give_back, run_trial


def lead_and_die(path, said):
    """Lead the study until the seventh step, the third of the second trial, and be killed there."""
    advance, steps = loop._advance, []

    def advance_or_die(*arguments):
        steps.append(1)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        advance(*arguments)

    loop._advance = advance_or_die
    tune(path, [], say=lambda line: said.write_text(line))


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizers, patch):
    """Three trials of four steps; the process dies in the second one's third step, and this one resumes the study."""
    root = tmp_path_factory.mktemp("study")
    place_store(root, patch)
    path = write_study(write_world(root, tokenizers), tracking=True)
    for slow in ("matplotlib.pyplot", "videoblip2.tracking.mlflow.models", "torch._dynamo"):
        importlib.import_module(slow)  # once, not in each process
    killed = multiprocessing.get_context("fork").Process(target=lead_and_die, args=(str(path), root / "said"))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    steps, advance = [], loop._advance
    with pytest.MonkeyPatch.context() as counting:
        counting.setattr(loop, "_advance", lambda *arguments: steps.append(1) or advance(*arguments))
        lines = []
        outcome = tune(str(path), [], say=lines.append)
    return SimpleNamespace(
        root=root, path=path, outcome=outcome, lines=lines, steps=len(steps), said=(root / "said").read_text()
    )


def test_the_killed_trial_went_on_from_its_checkpoint(finished):
    assert "trial-000 (the default): CIDEr" in finished.said
    assert finished.steps == 2 + 4  # the rest of the second trial, and the third
    assert any("trial-001: its worker" in line and "resumes from its checkpoint" in line for line in finished.lines)
    assert finished.outcome.states == {"complete": 3}
    assert [row["attempts"] for row in finished.outcome.rows] == [1, 2, 1]


def test_it_ended_as_it_would_have_without_the_break(finished):
    row = finished.outcome.rows[1]
    out = finished.root / "unbroken"
    config = load_plan(finished.path).config_of(
        {"optim.lr": row["optim.lr"]}, f"run.out={out}", "run.tracking=false", "run.name=x"
    )
    assert run_stage("ce", config).metrics["CIDEr"] == row["CIDEr"]
    files = [folder / "val_predictions.jsonl" for folder in (out / "x", finished.root / "runs" / "study" / "trial-001")]
    assert files[0].read_text() == files[1].read_text()


def test_trials_are_child_runs_of_one_parent(finished):
    client = store.connect()
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    (parent,) = [run for run in runs if run.data.tags["stage"] == "tune"]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert parent.info.run_id == finished.outcome.run_id
    assert sorted(children) == ["trial-000", "trial-001", "trial-003"]  # number 2 was the second attempt at number 1
    for run in children.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.info.status, run.data.tags["optuna.state"]) == ("FINISHED", "COMPLETE")
        assert [point.step for point in client.get_metric_history(run.info.run_id, "val/CIDEr")] == [2, 4]
    assert float(children["trial-003"].data.params["optim.lr"]) == finished.outcome.rows[2]["optim.lr"]
    files = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert files == {"best.yaml", "trials.json", "history.png", "importance.png", "parallel.png"}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/val/CIDEr"] == finished.outcome.best.value
    assert parent.data.tags["verdict"] == finished.outcome.verdict.text()


def test_a_pruned_trial_is_a_killed_child_run_with_its_points(finished, monkeypatch):
    """The worst learning rate of all, in a study whose default is done; and `mlflow run` started the process."""
    path = write_study(finished.root, name="pruning", tracking=True, search={"optim.lr": {"low": 1e-9, "high": 0.01}})
    plan = load_plan(path, ["pruner.startup_trials=0", "train.validate_every=1"])
    study = open_study(plan, open_storage(str(finished.root / "pruning.journal")))
    first = create_trial(
        value=9.0, params={"optim.lr": 0.01}, distributions=plan.distributions, intermediate_values={1: 9.0}
    )
    study.add_trial(first)
    study.enqueue_trial({"optim.lr": 1e-9})
    with open_run(RunSpec("tune", "pruning", "elsewhere")) as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
        study.set_user_attr("run_id", parent.run_id)
        context, trial = WorkerContext(study, plan, no_progress, print), study.ask(plan.distributions)
        run_trial(context, trial, partial(train_trial, plan))
    trial, client = study.get_trials()[1], store.connect()
    assert (trial.state, trial.last_step) == (TrialState.PRUNED, 1)
    run = client.get_run(trial.user_attrs["run_id"])
    assert (run.info.status, run.data.tags["optuna.state"]) == ("KILLED", "PRUNED")
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.info.experiment_id == client.get_run(parent.run_id).info.experiment_id
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/CIDEr")] == [1]
    assert client.get_run(parent.run_id).info.status == "FINISHED"


def test_best_yaml_is_the_best_trials_experiment(finished):
    outcome = finished.outcome
    assert outcome.best.value == max(row["CIDEr"] for row in outcome.rows)
    assert all(path.stat().st_size > 5000 for path in outcome.plots)
    config = load_config(outcome.best_file)
    base = load_config(finished.root / "base.yaml")
    assert config == base.model_copy(update={"optim": config.optim})
    assert config.optim.lr == outcome.best.params["optim.lr"]
    assert f"vb2 ce {outcome.best_file}" in outcome.best_file.read_text()
    result = run_stage(
        "ce", load_config(outcome.best_file, ["run.tracking=false", f"run.out={finished.root / 'again'}"])
    )
    assert result.metrics["CIDEr"] == outcome.best.value


def test_a_second_start_makes_nothing_new_and_says_it_as_json(finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vb2", "tune", str(finished.path), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    out = capsys.readouterr().out
    answer = json.loads(out.splitlines()[-1])
    assert answer["run_id"] == finished.outcome.run_id
    assert answer["trials"] == {"complete": 3}
    assert answer["best"]["params"] == finished.outcome.best.params
    assert answer["verdict"]["interval"] == [finished.outcome.verdict.low, finished.outcome.verdict.high]
    assert finished.outcome.verdict.text() in out


def test_one_process_leads_and_a_worker_needs_one(finished, monkeypatch):
    with (
        FileLock(finished.root / "runs" / "study" / "lead.lock"),
        pytest.raises(InputError, match="add --worker to help"),
    ):
        tune(str(finished.path), [])
    assert join(str(finished.path), []) == 0
    monkeypatch.setattr(lead, "LEADER_SECONDS", -1.0)
    with pytest.raises(InputError, match=r"no process leads it in .*study\.journal; start `vb2 tune` once"):
        join(str(finished.path), ["study=other"])


def test_a_trial_whose_worker_died_at_the_very_end_is_not_trained_again(finished):
    """A folder that has finished gives a later attempt its score; a new trial of the same name starts over."""
    plan = load_plan(finished.path, ["study=late", "n_trials=1", "run.tracking=false"])
    row, folder = finished.outcome.rows[0], finished.root / "runs" / "late"
    folder.mkdir()
    (folder / "trial-000").symlink_to(finished.root / "runs" / "study" / "trial-000")
    study = open_study(plan, open_storage(str(folder / "study.journal")))
    lead.begin(study, plan, Tracker())
    study.ask()
    assert give_back(study, study.get_trials()[0], "its worker died")
    steps = []
    with pytest.MonkeyPatch.context() as counting:
        counting.setattr(loop, "_advance", lambda *arguments: steps.append(1))
        outcome = tune(str(finished.path), ["study=late", "n_trials=1", "run.tracking=false"], say=lambda line: None)
    assert (steps, outcome.best.value) == ([], row["CIDEr"])
    assert outcome.best.user_attrs["model"] == row["model"]


def test_decoding_is_tuned_without_training(finished, monkeypatch):
    model = finished.root / "runs" / "study" / "trial-000" / "best"
    (finished.root / "test.json").write_text("not even JSON")
    monkeypatch.setattr(loop, "train", None)
    search = {"decode.num_beams": {"choices": [1, 2]}, "decode.length_penalty": {"low": 0.0, "high": 2.0}}
    changes = {"stage": "decode", "base": None, "tuned_model": str(model), "search": search}
    path = write_study(finished.root, name="decoding", config={"decode": {"batch_size": 1}}, **changes)
    outcome = tune(str(path), ["run.tracking=false", "seconds=true"], say=lambda line: None)
    assert outcome.states == {"complete": 3}
    assert _study_record(outcome)["best"]["CIDEr"] == outcome.best.values[0]
    assert all(row["seconds"] > 0 for row in outcome.rows)
    default = outcome.rows[0]
    assert (default["decode.num_beams"], default["decode.length_penalty"]) == (1, 1.0)
    assert default["CIDEr"] == pytest.approx(finished.outcome.rows[0]["CIDEr"], abs=1e-9)
    assert outcome.commands[0].startswith(f"vb2 evaluate {model} decode.")
    assert load_config(outcome.best_file).decode.num_beams == outcome.best.params["decode.num_beams"]
    assert yaml.safe_load(outcome.best_file.read_text())["run"].get("name") is None


def test_decoding_is_not_tuned_on_features_of_other_encoders(finished, tmp_path):
    best = tmp_path / "best"
    shutil.copytree(finished.root / "runs" / "study" / "trial-000" / "best", best)
    made = {"clip": {"fingerprint": "c1"}, "clap": {"fingerprint": "a"}, "videos": {}}
    provenance = Provenance.read(best).model_copy(update={"features": FeatureOrigin.model_validate(made)})
    provenance.write(best)
    shutil.copytree(finished.root / "features", tmp_path / "features")
    other = {**made, "clip": {"fingerprint": "c9"}}
    FeatureManifest.model_validate(other).write(tmp_path / "features")
    changes = {"stage": "decode", "base": None, "search": {"decode.num_beams": {"choices": [1, 2]}}}
    path = write_study(finished.root, name="encoders", tuned_model=str(best), **changes)
    overrides = ["run.tracking=false", f"data.features={tmp_path / 'features'}"]
    with pytest.raises(InputError, match=r"holds features of CLIP c9, .* was trained on those of c1"):
        tune(str(path), overrides, say=lambda line: None)


def test_self_critical_training_is_tuned_from_a_checkpoint(finished):
    """Judged before the first step too, so a trial never ends below its start."""
    start = finished.root / "runs" / "study" / "trial-000" / "best"
    search = {"scst.temperature": {"low": 0.5, "high": 1.0}, "scst.baseline": {"choices": ["greedy", "leave_one_out"]}}
    config = {"train": {"start_from": str(start), "steps": 2}, "scst": {"samples": 2}}
    path = write_study(finished.root, name="scst", stage="scst", config=config, search=search, n_trials=2)
    outcome = tune(str(path), ["run.tracking=false"], say=lambda line: None)
    assert outcome.states == {"complete": 2}
    study = open_study(
        load_plan(path, ["run.tracking=false"]), open_storage(str(finished.root / "runs/scst/study.journal"))
    )
    for trial in study.get_trials():
        assert list(trial.intermediate_values) == [0, 2]
        assert trial.value >= trial.intermediate_values[0] == pytest.approx(finished.outcome.rows[0]["CIDEr"])
    assert load_config(outcome.best_file).train.start_from == str(start)
