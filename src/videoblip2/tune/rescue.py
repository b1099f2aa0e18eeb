"""Which running trials still have a worker, and what happens to those that have none.

Optuna's heartbeat and its retry callback need a database, and the default storage is a journal file. Here, in every
storage:

1. On the same machine a trial is dead when its process has ended; a process that sleeps is alive.
2. On another machine a worker increments a counter in its trial's attributes. The trial is dead when the counter has
   not changed for STALE_SECONDS of the observer's own clock, so no two clocks are compared.
3. A dead trial is queued again with its values and its name, so that the next attempt resumes from its checkpoint, in
   its run. A worker that was wrongly taken for dead notices at its next report, and leaves the trial alone.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from videoblip2.tracking.liveness import ProcessRecord
from videoblip2.tune.study import attributes, name_of

BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
ATTEMPTS = 4


@contextmanager
def beating(trial: optuna.Trial, seconds: float = BEAT_SECONDS) -> Iterator[threading.Event]:
    """Signal that the worker lives while the block runs; the event is set once another worker took the trial over."""
    stop, lost = threading.Event(), threading.Event()
    trial.set_user_attr("worker", ProcessRecord.current().fields())
    thread = threading.Thread(target=_beat, args=(trial, seconds, stop, lost), daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        stop.set()
        thread.join()


def _beat(trial: optuna.Trial, seconds: float, stop: threading.Event, lost: threading.Event) -> None:
    count = 0
    while not stop.wait(seconds):
        count += 1
        try:
            trial.set_user_attr("beat", f"{os.getpid()}-{count}")
        except UpdateFinishedTrialError:
            lost.set()
            return
        except Exception:
            continue  # the storage is briefly unavailable: the next beat, or the trial itself, will tell


@dataclass
class LivenessMonitor:
    """Remembers since when each running trial's counter has not changed."""

    stale_seconds: float = STALE_SECONDS
    seen: dict[int, tuple[object, float]] = field(default_factory=dict)

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's worker is gone."""
        worker = _worker(trial)
        if worker and worker.is_local():
            return not worker.is_running()
        sign = (worker, trial.user_attrs.get("beat"))
        if trial.number not in self.seen or self.seen[trial.number][0] != sign:
            self.seen[trial.number] = (sign, time.monotonic())
        return time.monotonic() - self.seen[trial.number][1] > self.stale_seconds


def rescue(study: optuna.Study, monitor: LivenessMonitor) -> list[str]:
    """Queue again the trials of dead workers; one line for each."""
    lines = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not monitor.is_dead(trial):
            continue
        worker = _worker(trial)
        reason = f"its worker (process {worker.pid if worker else 'unknown'}) died"
        again = len(attributes(trial).attempts) + 1 < ATTEMPTS
        if give_back(study, trial, reason, again):
            fate = "queued again, resumes from its checkpoint" if again else f"given up after {ATTEMPTS} attempts"
            lines.append(f"{name_of(trial)}: {reason}: {fate}")
    return lines


def give_back(study: optuna.Study, trial: FrozenTrial, reason: str, again: bool = True) -> bool:
    """End a running trial as failed and queue another attempt. False where another process did so first."""
    with suppress(UpdateFinishedTrialError, ValueError):
        study.tell(trial.number, state=TrialState.FAIL)
        study.set_user_attr(f"reason.{trial.number}", reason)  # a finished trial accepts no attributes
        if again:
            study.add_trial(_attempt(trial))
        return True
    return False


def _attempt(trial: FrozenTrial) -> FrozenTrial:
    kept = {key: value for key, value in trial.user_attrs.items() if key not in ("worker", "beat")}
    attempts = [*attributes(trial).attempts, trial.number]
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        user_attrs={**kept, "name": name_of(trial), "attempts": attempts},
    )


def _worker(trial: FrozenTrial) -> ProcessRecord | None:
    return ProcessRecord.read(trial.user_attrs.get("worker") or {})
