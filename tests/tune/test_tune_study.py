"""A study in its storage: the same search or refused by name, totals, samplers of several processes."""

import json

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from tiny_study import tiny_plan

from videoblip2.config import InputError
from videoblip2.tune import study as studies
from videoblip2.tune.study import best_of, counted, identity, open_storage, open_study, pruner, sampler


@pytest.fixture
def storage():
    return optuna.storages.InMemoryStorage()


@pytest.mark.parametrize(
    ("overrides", "changes", "key", "value"),
    [
        ((), {"search": {"optim.lr": {"low": 0.001, "high": 0.1}}}, "search.optim.lr", "0.001..0.1 log"),
        ((), {"search": {"optim.lr": {"choices": [0.01, 0.1]}}}, "search.optim.lr", "0.001..0.1 log"),
        ((), {"search": {"train.label_smoothing": {"low": 0, "high": 0.1}}}, "search.train.label_smoothing", "absent"),
        (("train.steps=9",), {}, "train.steps", "4"),
        (("optim.lr=0.02",), {}, "optim.lr", "0.01"),
    ],
)
def test_another_search_or_experiment_is_refused_by_the_key(tmp_path, storage, overrides, changes, key, value):
    open_study(tiny_plan(tmp_path), storage)
    with pytest.raises(InputError, match=f": {key}: .* started with {value}, .*study=NAME"):
        open_study(tiny_plan(tmp_path, *overrides, **changes), storage)


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("optim.lr", {"low": 0.001, "high": 0.1, "log": True}, {"low": 1e-5, "high": 0.5, "log": True}),
        ("optim.weight_decay", {"low": 0.0, "high": 0.1}, {"low": 0, "high": 1.5}),
        ("train.steps", {"low": 2, "high": 8, "step": 2}, {"low": 1, "high": 40}),
        ("train.label_smoothing", {"low": 0.0, "high": 0.2, "step": 0.1}, {"low": 0.0, "high": 0.9, "step": 0.1}),
    ],
)
def test_a_study_resumes_on_a_range_with_other_bounds(tmp_path, key, before, after, sampler):
    """Also where the range is given as an override; and a worker with the old file does not take it back."""
    path, settings = str(tmp_path / "study.journal"), (f"sampler.name={sampler}", "sampler.startup_trials=2")
    begun = tiny_plan(tmp_path, *settings, search={key: before})
    first = open_study(begun, open_storage(path))
    for number in range(4):
        first.tell(first.ask(begun.distributions), number)
    wider = tiny_plan(tmp_path, *settings, f"search.{key}={json.dumps(after)}", search={key: before})
    again = open_study(wider, open_storage(path))
    for number in range(8):
        again.tell(again.ask(wider.distributions), number)
    assert len(again.get_trials()) == 12
    assert open_study(begun, open_storage(path), worker=True)._study_id == again._study_id
    assert again.user_attrs["identity"][f"search.{key}"] == wider.tuning.search[key].text()


def test_a_key_that_is_newer_than_the_study_counts_by_its_default(tmp_path, storage):
    study = open_study(tiny_plan(tmp_path), storage)
    old = {key: value for key, value in study.user_attrs["identity"].items() if key != "optim.final_lr"}
    study.set_user_attr("identity", old)
    open_study(tiny_plan(tmp_path), storage)
    study.set_user_attr("identity", old)
    with pytest.raises(InputError, match=r"optim\.final_lr: 0\.5; study 'study' started with 0\.1"):
        open_study(tiny_plan(tmp_path, "optim.final_lr=0.5"), storage)


def test_another_validation_set_is_refused(tmp_path, storage):
    plan = tiny_plan(tmp_path)
    open_study(plan, storage)
    (tmp_path / "val.json").write_text("[ ]")
    with pytest.raises(InputError, match=r"val\.json"):
        open_study(plan, storage)


@pytest.mark.parametrize(("task", "files"), [("qa", ["val_qa.json"]), ("mixed", ["val.json", "val_qa.json"])])
def test_a_study_of_questions_needs_and_remembers_their_validation_file(tmp_path, task, files):
    plan = tiny_plan(tmp_path, f"data.task={task}")
    (tmp_path / "val.json").unlink()
    with pytest.raises(InputError, match=f"no {files[0]} there"):
        identity(plan)
    for file in files:
        (tmp_path / file).write_text("[]")
    assert [key for key in identity(plan) if key.endswith(".json")] == files


def test_what_changes_no_score_is_free(tmp_path, storage):
    first = open_study(tiny_plan(tmp_path), storage)
    free = (
        "n_trials=9",
        "train.save_every=3",
        "run.experiment=other",
        "device=auto",
        "pruner.name=none",
        "sampler.seed=5",
    )
    assert open_study(tiny_plan(tmp_path, *free), storage)._study_id == first._study_id


def test_distributions_follow_the_fields(tmp_path):
    search = {
        "optim.lr": {"low": 0.001, "high": 0.1, "log": True},
        "optim.weight_decay": {"low": 0, "high": 1},
        "train.batch_size": {"low": 2, "high": 8, "step": 2},
        "scst.end_token": {"choices": [True, False]},
    }
    assert tiny_plan(tmp_path, search=search).distributions == {
        "optim.lr": FloatDistribution(0.001, 0.1, log=True),
        "optim.weight_decay": FloatDistribution(0.0, 1.0),
        "train.batch_size": IntDistribution(2, 8, step=2),
        "scst.end_token": CategoricalDistribution([True, False]),
    }


def drawn(plan, done, worker=False):
    study = optuna.create_study(sampler=sampler(plan, done, worker))
    return [study.ask(plan.distributions).params["optim.lr"] for _ in range(3)]


def test_a_study_that_goes_on_draws_other_points_and_so_does_each_worker(tmp_path, monkeypatch):
    plan = tiny_plan(tmp_path)
    first = drawn(plan, 0)
    assert first == drawn(plan, 0)
    assert first != drawn(plan, 3)
    assert first != drawn(plan, 0, worker=True)
    assert first != drawn(tiny_plan(tmp_path, "sampler.seed=1"), 0)
    one = drawn(plan, 0, worker=True)
    monkeypatch.setattr(studies.os, "getpid", lambda: 1)
    assert one != drawn(plan, 0, worker=True)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ((), "MedianPruner"),
        (("pruner.name=patient",), "PatientPruner"),
        (("pruner.name=wilcoxon",), "WilcoxonPruner"),
        (("pruner.name=halving",), "SuccessiveHalvingPruner"),
        (("pruner.name=hyperband",), "HyperbandPruner"),
        (("pruner.name=none",), "NopPruner"),
        (("stage=scst",), "PatientPruner"),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_each_stage_has_a_pruner_of_its_own(tmp_path, overrides, kind):
    assert type(pruner(tiny_plan(tmp_path, *overrides))).__name__ == kind


def test_attempts_at_a_trial_count_once_and_the_first_of_equals_is_best():
    study = optuna.create_study(direction="maximize")
    made = optuna.trial.create_trial
    study.add_trial(made(state=TrialState.FAIL))
    study.add_trial(made(value=0.5))
    study.add_trial(made(state=TrialState.FAIL, user_attrs={"surplus": True}))
    study.add_trial(made(value=0.5, user_attrs={"attempts": [0]}))
    study.add_trial(made(state=TrialState.PRUNED))
    trials = study.get_trials()
    assert [trial.number for trial in counted(trials)] == [1, 3, 4]
    assert best_of(trials).number == 1
    assert best_of([]) is None
