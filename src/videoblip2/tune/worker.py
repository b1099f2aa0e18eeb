"""A worker: runs trials until `n_trials` have run on all workers, reports failures, and rescues trials.

A trial whose worker stopped or died is queued again with its values and name, and resumes in its run. On another
machine, a worker counts as dead if its heartbeat has not changed for STALE_SECONDS (Optuna's own needs a database).
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from videoblip2.config import InputError
from videoblip2.errors import Progress, one_line
from videoblip2.tracking import Stopped, Tracker
from videoblip2.tracking.source import ProcessRecord
from videoblip2.tracking.tracker import Terminated
from videoblip2.tune.plan import Plan
from videoblip2.tune.report import Say, line_of
from videoblip2.tune.study import attributes, counted, finished, name_of
from videoblip2.tune.trials import Runner, TrialScore, Watcher, decoder, train_trial

BROKEN = 3
POLL_SECONDS = 2.0
BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
ATTEMPTS = 4
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class WorkerContext:
    """The context of a worker. start: starts the processes of a trial by number; None = this process trains alone."""

    study: optuna.Study
    plan: Plan
    progress: Progress
    say: Say
    start: Callable[[int], None] | None = None


def work(context: WorkerContext, wait: bool, runner: Runner | None = None) -> int:
    """Run trials until there are `n_trials`; return the number that this worker ran.

    Args:
        wait: stay until the other workers' trials end, and take over those of dead workers.
    """
    study, monitor, made, broken = context.study, LivenessMonitor(), 0, 0
    while True:
        for line in rescue(study, monitor):
            context.say(line)
        trial = take(study, context.plan)
        if trial is None:
            if not wait or not study.get_trials(deepcopy=False, states=UNFINISHED):
                return made
            time.sleep(POLL_SECONDS)
            continue
        if context.start:
            reason = run_group(context, trial, context.start)
        else:
            training = partial(train_trial, context.plan)
            runner = runner or (decoder(context.plan) if context.plan.tuning.stage == "decode" else training)
            reason = run_trial(context, trial, runner)
        made, broken = made + 1, broken + 1 if reason else 0
        if broken >= BROKEN and not finished(study.get_trials(deepcopy=False)):
            fault = f"study {study.study_name!r}: {broken} trials in a row failed and none is complete"
            raise InputError(f"{fault}; the last error: {reason}; fix it, then run the same command again")


def take(study: optuna.Study, plan: Plan) -> optuna.Trial | None:
    """The next trial: a queued one, or a new one while there are fewer than `n_trials`; else None."""
    trials, total = study.get_trials(deepcopy=False), plan.tuning.n_trials
    if len(counted(trials)) >= total and all(trial.state != TrialState.WAITING for trial in trials):
        return None
    trial = study.ask(plan.distributions)
    about = attributes(trial)
    earlier = [other for other in counted(study.get_trials(deepcopy=False)) if other.number < trial.number]
    if not about.attempts and not about.default and len(earlier) >= total:
        trial.set_user_attr("surplus", True)
        study.tell(trial, state=TrialState.FAIL)
        return None
    return trial


def run_trial(context: WorkerContext, trial: optuna.Trial, runner: Runner) -> str | None:
    """Run one trial, and report the outcome to the study and the user. Return the reason if it failed."""
    study, score, reason = context.study, None, None
    with beating(trial):
        reported, reports = set(_frozen(study, trial).intermediate_values), not context.plan.tuning.seconds
        watcher = Watcher(trial, study.user_attrs.get("run_id"), reported, reports)
        try:
            score = runner(trial, watcher, context.progress)
            if not math.isfinite(score.value):
                raise FloatingPointError(f"validation score is {score.value}")
        except Stopped:
            pass
        except (KeyboardInterrupt, SystemExit):
            give_back(study, _frozen(study, trial), "interrupted")
            context.say(f"{name_of(trial)}: interrupted; the same command resumes it from its checkpoint")
            raise
        except Exception as error:
            reason = one_line(error)
    _tell(context, trial, watcher.tracker, score, reason)
    return reason


def run_group(context: WorkerContext, trial: optuna.Trial, start: Callable[[int], None]) -> str | None:
    """Run one trial in its own processes, the first of which reports the outcome. Return the reason if it failed."""
    study, why = context.study, "its processes ended without a message"
    try:
        start(trial.number)
    except (KeyboardInterrupt, Terminated):
        give_back(study, _frozen(study, trial), "interrupted")  # unless the first process did
        raise
    except SystemExit as end:
        why = end.code.removeprefix("error: ") if isinstance(end.code, str) else f"exit code {end.code}"
    if not _frozen(study, trial).state.is_finished():
        _tell(context, trial, Tracker(), None, why)
    return attributes(_frozen(study, trial)).reason


def _tell(
    context: WorkerContext, trial: optuna.Trial, tracker: Tracker, score: TrialScore | None, reason: str | None
) -> None:
    """Store and print the outcome: failed, complete or pruned, unless another worker ended the trial already."""
    study, state = context.study, TrialState.FAIL if reason else TrialState.COMPLETE if score else TrialState.PRUNED
    about = {"reason": reason} if reason else {"scores": score.scores, "model": score.model} if score else {}
    try:
        for key, value in about.items():
            trial.set_user_attr(key, value)
        aims = [score.value, score.seconds][: len(study.directions)] if score and not reason else None
        study.tell(trial, aims, state=state)
    except (UpdateFinishedTrialError, ValueError):
        context.say(f"trial {trial.number}: abandoned, because another worker took it over")
        return
    tracker.set_tags({"optuna.state": state.name} | ({"optuna.reason": reason} if reason else {}))
    context.say(line_of(context.plan, study, _frozen(study, trial), reason))


def _frozen(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[trial.number]


@contextmanager
def beating(trial: optuna.Trial, seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Send heartbeats while the block runs."""
    stop = threading.Event()
    trial.set_user_attr("worker", ProcessRecord.current().fields())

    def beat() -> None:
        count = 0
        while not stop.wait(seconds):
            count += 1
            with suppress(Exception):  # the storage is down, or the trial was taken over: its next report will fail
                trial.set_user_attr("beat", f"{os.getpid()}-{count}")

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass
class LivenessMonitor:
    """Remembers how long each running trial's heartbeat has been unchanged."""

    stale_seconds: float = STALE_SECONDS
    seen: dict[int, tuple[object, float]] = field(default_factory=dict)

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's worker is gone."""
        worker = _worker(trial)
        if worker and worker.is_local():
            return not worker.is_running()
        sign, now = (worker, trial.user_attrs.get("beat")), time.monotonic()
        before, since = self.seen.get(trial.number, (None, now))
        self.seen[trial.number] = sign, since if before == sign else now
        return before == sign and now - since > self.stale_seconds


def rescue(study: optuna.Study, monitor: LivenessMonitor) -> list[str]:
    """Queue the trials of dead workers again; return one line for each."""
    lines = []
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in filter(monitor.is_dead, running):
        worker = _worker(trial)
        reason = f"its worker (process {worker.pid if worker else 'unknown'}) died"
        again = len(attributes(trial).attempts) + 1 < ATTEMPTS
        if give_back(study, trial, reason, again):
            fate = "queued again, resumes from its checkpoint" if again else f"given up after {ATTEMPTS} attempts"
            lines.append(f"{name_of(trial)}: {reason}: {fate}")
    return lines


def give_back(study: optuna.Study, trial: FrozenTrial, reason: str, again: bool = True) -> bool:
    """End a running trial as failed and queue another attempt. False if another process did so first."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError):
        return False
    study.set_user_attr(f"reason.{trial.number}", reason)  # a finished trial accepts no attributes
    if again:
        kept = {key: value for key, value in trial.user_attrs.items() if key not in ("worker", "beat")}
        about = {**kept, "attempts": [*attributes(trial).attempts, trial.number]}
        values, params = trial.intermediate_values, {"params": trial.params, "distributions": trial.distributions}
        study.add_trial(create_trial(state=TrialState.WAITING, intermediate_values=values, user_attrs=about, **params))
    return True


def _worker(trial: FrozenTrial) -> ProcessRecord | None:
    return ProcessRecord.read(trial.user_attrs.get("worker") or {})
