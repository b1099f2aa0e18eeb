"""A worker: totals among several processes, failures, pruning, and what is put back."""

import multiprocessing
import warnings
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState, create_trial
from tiny_study import peak_at, tiny_plan

from videoblip2.config import InputError
from videoblip2.errors import no_progress
from videoblip2.tracking import Stopped, Tracker
from videoblip2.tune.lead import begin, conclude
from videoblip2.tune.study import counted, name_of, open_storage, open_study
from videoblip2.tune.trials import TrialScore
from videoblip2.tune.worker import WorkerContext, give_back, run_trial, take, work


@pytest.fixture
def make(tmp_path):
    """(overrides, changes) → a context at a study in a journal file, and the lines it says."""

    def context(*overrides, **changes):
        plan = tiny_plan(tmp_path, *overrides, **changes)
        study = open_study(plan, open_storage(str(tmp_path / "study.journal")))
        begin(study, plan, Tracker())
        lines = []
        return SimpleNamespace(context=WorkerContext(study, plan, no_progress, lines.append), study=study, lines=lines)

    return context


def states(study):
    return [trial.state.name for trial in study.get_trials()]


def test_the_default_comes_first_and_the_total_is_kept(make):
    made = make("n_trials=3")
    assert work(made.context, wait=True, runner=peak_at(-1.5)) == 3
    first = made.study.get_trials()[0]
    assert (first.params, first.user_attrs["default"], first.value) == ({"optim.lr": 0.01}, True, pytest.approx(0.5))
    assert made.lines[0].startswith("trial-000 (the default): CIDEr 50.0, the best so far")
    assert work(made.context, wait=True, runner=peak_at(-1.5)) == 0
    more = make("n_trials=5")
    assert work(more.context, wait=True, runner=peak_at(-1.5)) == 2
    assert states(more.study) == ["COMPLETE"] * 5


def help_in(folder, pipe):
    """A worker of another process: says that it is ready, waits for the word, says how many trials it made."""
    plan = tiny_plan(folder, "n_trials=10", "pruner.name=none")
    study = open_study(plan, open_storage(str(folder / "study.journal")), worker=True)
    pipe.send("ready")
    pipe.recv()
    context = WorkerContext(study, plan, no_progress, lambda line: None)
    pipe.send(work(context, wait=False, runner=peak_at(-1.5)))


def test_workers_on_one_storage_make_the_total_together(make, tmp_path):
    made = make("n_trials=10", "pruner.name=none")
    context = multiprocessing.get_context("fork")
    pipe, far_end = context.Pipe()
    other = context.Process(target=help_in, args=(tmp_path, far_end))
    other.start()
    assert pipe.recv() == "ready"
    pipe.send("go")
    here = work(made.context, wait=True, runner=peak_at(-1.5))
    assert here + pipe.recv() == 10
    other.join()
    assert [trial.state for trial in counted(made.study.get_trials())] == [TrialState.COMPLETE] * 10


def test_of_two_that_draw_the_last_one_the_later_is_dropped(make, monkeypatch):
    made = make("n_trials=2")
    assert take(made.study, made.context.plan).number == 0
    ask = made.study.ask

    def beaten_to_it(*arguments):
        ask(*arguments)
        return ask(*arguments)

    monkeypatch.setattr(made.study, "ask", beaten_to_it)
    assert take(made.study, made.context.plan) is None
    assert [trial.number for trial in counted(made.study.get_trials())] == [0, 1]


def test_a_failure_is_said_and_does_not_stop_the_study(make):
    made = make("n_trials=5")

    def fails_at_times(trial, watcher, progress):
        if trial.number == 1:
            raise FloatingPointError("step 3: the loss is nan on videos v1; lower optim.lr")
        if trial.number == 2:
            raise ZeroDivisionError("division by zero")
        if trial.number == 3:
            return TrialScore(float("nan"), [], "m")
        return peak_at(-1.5)(trial, watcher, progress)

    assert work(made.context, wait=True, runner=fails_at_times) == 5
    assert states(made.study) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert "trial-001: failed: step 3: the loss is nan on videos v1; lower optim.lr   optim.lr=" in made.lines[1]
    assert "failed: ZeroDivisionError: division by zero" in made.lines[2]
    assert "failed: validation score is nan" in made.lines[3]
    assert made.study.get_trials()[1].user_attrs["reason"].startswith("step 3: the loss is nan")


def test_three_failures_and_nothing_else_stop_it(make):
    made = make("n_trials=9")

    def fails(trial, watcher, progress):
        raise InputError("data.features=x: no such folder")

    with pytest.raises(InputError, match=r"3 trials in a row failed .*the last error: data\.features=x"):
        work(made.context, wait=True, runner=fails)
    assert len(made.lines) == 3


def test_the_median_prunes_but_never_the_default(make):
    made = make("n_trials=4", "pruner.startup_trials=0")
    good = {"params": {"optim.lr": 0.1}, "distributions": made.context.plan.distributions}
    made.study.add_trial(create_trial(value=9.0, intermediate_values={2: 9.0}, **good))
    values = {0: -5.0, 2: -6.0, 3: 10.0}
    work(made.context, wait=True, runner=lambda trial, watcher, p: graded(trial, watcher, values[trial.number]))
    assert states(made.study) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert made.lines[1].startswith("trial-002: pruned at step 2 ")
    late = make("n_trials=5", "pruner.startup_trials=0")
    work(late.context, wait=True, runner=lambda trial, watcher, p: graded(trial, watcher, -9.0, last_step=2))
    assert states(late.study)[4] == "COMPLETE"  # at the last step pruning saves nothing


def graded(trial, watcher, value, last_step=None):
    watcher.last_step = last_step
    watcher.validated(2, value)
    return TrialScore(value, [value], "m")


def test_of_two_aims_the_fastest_trial_within_the_margin_is_best_and_the_front_is_drawn(make, tmp_path):
    made = make("seconds=true", "margin=0.05", "n_trials=4")
    scores = iter([(0.5, 0.2), (0.9, 0.9), (0.87, 0.3), (0.86, 0.4)])

    def two_aims(trial, watcher, progress):
        watcher.validated(2, 0.1)  # Optuna takes no values of steps here
        value, seconds = next(scores)
        return TrialScore(value, [value - 0.1, value + 0.1], "m", seconds)

    assert work(made.context, wait=True, runner=two_aims) == 4
    assert "CIDEr 90.0, 0.9 s per caption, the best so far" in made.lines[1]
    assert "CIDEr 87.0, 0.3 s per caption, the best so far" in made.lines[2]
    made.context.plan.folder.mkdir(parents=True)
    outcome = conclude(made.study, made.context.plan, Tracker())
    assert (outcome.best.number, outcome.best.values) == (2, [0.87, 0.3])
    assert [row["seconds"] for row in outcome.rows] == [0.2, 0.9, 0.3, 0.4]
    assert "0.3 s per caption, the fastest within 5.0 of the highest score" in outcome.best_file.read_text()
    assert (made.context.plan.folder / "pareto.png").stat().st_size > 5000
    with pytest.raises(InputError, match="seconds: absent; study 'study' started with True"):
        make()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(143)])
def test_an_interrupted_trial_is_put_back_with_its_values(make, error):
    made = make()

    def interrupted(trial, watcher, progress):
        watcher.validated(2, 0.1)
        raise error

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        work(made.context, wait=True, runner=interrupted)
    assert states(made.study) == ["FAIL", "WAITING"]
    again = make()
    seen = []

    def goes_on(trial, watcher, progress):
        seen.append((trial.number, trial.params["optim.lr"], name_of(trial), set(watcher.reported)))
        with warnings.catch_warnings(action="error"):
            watcher.validated(2, 0.1)  # reported by the attempt before
        return TrialScore(0.2, [0.2], "m")

    work(again.context, wait=True, runner=goes_on)
    assert seen[0] == (1, 0.01, "trial-000", {2})
    assert [trial.number for trial in counted(again.study.get_trials())] == [1, 2, 3]
    assert states(again.study) == ["FAIL", *["COMPLETE"] * 3]


def test_a_worker_that_was_taken_for_dead_stops_and_leaves_the_trial_to_the_other(make):
    made = make()
    trial = take(made.study, made.context.plan)

    def taken(trial, watcher, progress):
        give_back(made.study, made.study.get_trials()[0], "died")
        with pytest.raises(Stopped):
            watcher.validated(2, 0.5)
        raise Stopped

    assert run_trial(made.context, trial, taken) is None
    assert "another worker took it over" in made.lines[0]
    assert states(made.study) == ["FAIL", "WAITING"]
    other = take(made.study, made.context.plan)

    def taken_at_the_end(trial, watcher, progress):
        give_back(made.study, made.study.get_trials()[1], "died")
        return TrialScore(0.5, [0.5], "m")

    run_trial(made.context, other, taken_at_the_end)
    assert states(made.study) == ["FAIL", "FAIL", "WAITING"]
