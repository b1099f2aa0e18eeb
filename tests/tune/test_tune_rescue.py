"""Dead workers: recognised at once on this machine, by a beat that does not change elsewhere, and their trials kept."""

from queue import Queue

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from videoblip2.tracking.source import ProcessRecord
from videoblip2.tune import worker as workers
from videoblip2.tune.worker import ATTEMPTS, LivenessMonitor, beating, give_back, rescue

SPACES = {"x": FloatDistribution(0.0, 1.0)}


@pytest.fixture
def study():
    return optuna.create_study(direction="maximize")


@pytest.fixture
def clock(monkeypatch):
    times = [0.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: times[0])
    return times


@pytest.fixture(scope="module")
def dead():
    """A worker of this machine whose process is gone."""
    return {**ProcessRecord.current().fields(), "pid_started": "1.00"}


def running(study, worker, **attrs):
    trial = study.ask(SPACES)
    trial.set_user_attr("worker", worker)
    for key, value in attrs.items():
        trial.set_user_attr(key, value)
    return trial


def test_a_process_that_is_gone_from_here_is_dead_at_once(study, dead):
    trial = running(study, dead, run_id="r1")
    trial.report(0.3, 20)
    (line,) = rescue(study, LivenessMonitor())
    assert line == f"trial-000: its worker (process {dead['pid']}) died: queued again, resumes from its checkpoint"
    old, new = study.get_trials()
    assert (old.state, new.state) == (TrialState.FAIL, TrialState.WAITING)
    assert (new.params, new.intermediate_values) == (trial.params, {20: 0.3})
    assert new.user_attrs == {"run_id": "r1", "attempts": [0]}
    assert study.ask(SPACES).params == trial.params


def test_elsewhere_a_beat_that_stands_still_is_death_and_one_that_moves_is_not(study, clock):
    quiet, loud = (
        running(study, {**ProcessRecord.current().fields(), "host": place}) for place in ("there", "elsewhere")
    )
    monitor = LivenessMonitor(stale_seconds=60)
    assert rescue(study, monitor) == []
    for clock[0] in (30.0, 59.0):
        loud.set_user_attr("beat", str(clock[0]))
        assert rescue(study, monitor) == []
    clock[0] = 61.0
    assert len(rescue(study, monitor)) == 1
    assert study.get_trials()[quiet.number].state == TrialState.FAIL
    assert study.get_trials()[loud.number].state == TrialState.RUNNING


def test_on_this_machine_a_silent_process_lives(study, clock):
    running(study, ProcessRecord.current().fields())
    monitor = LivenessMonitor()
    rescue(study, monitor)
    clock[0] = 1e6
    assert rescue(study, monitor) == []


def test_a_trial_that_kills_every_worker_is_given_up(study, dead):
    for _ in range(ATTEMPTS):
        running(study, dead)
        (line,) = rescue(study, LivenessMonitor())
    assert line.startswith("trial-000: ")
    assert line.endswith(f"given up after {ATTEMPTS} attempts")
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL] * ATTEMPTS


def test_of_two_rescuers_one_queues_the_trial(study, dead):
    running(study, dead)
    (trial,) = study.get_trials()
    assert give_back(study, trial, "died")
    assert not give_back(study, trial, "died")
    assert len(study.get_trials()) == 2


def test_a_beat_goes_on_whatever_the_storage_says(study):
    trial = study.ask(SPACES)
    set_attr, beats = trial.set_user_attr, Queue()

    def away_at_times(key, value):
        if key == "beat":
            beats.put(value)
            if value.endswith("-1"):
                raise OSError("the storage is away")
        set_attr(key, value)

    trial.set_user_attr = away_at_times
    with beating(trial, seconds=0.01):
        assert study.get_trials()[0].user_attrs["worker"] == ProcessRecord.current().fields()
        assert [beats.get(timeout=10).split("-")[1] for _ in range(3)] == ["1", "2", "3"]
        give_back(study, study.get_trials()[0], "taken for dead")
