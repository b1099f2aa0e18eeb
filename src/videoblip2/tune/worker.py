"""A worker: runs trials until all workers together have run `n_trials`, and reports every failure.

1. `n_trials` is a total. Where two workers draw the last one at once, the later one is dropped before it runs.
2. A trial that fails (NaN, a refused value) counts towards the total and does not stop the study; BROKEN failures in a
   row with no complete trial do, since the mistake is then in the study itself.
3. Ctrl-C and SIGTERM put the trial back: the next start resumes it from its checkpoint.
"""

import math
import time
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from videoblip2.config import InputError
from videoblip2.progress import Progress
from videoblip2.tracking import Stopped
from videoblip2.tune.plan import Plan
from videoblip2.tune.report import Say, line_of
from videoblip2.tune.rescue import LivenessMonitor, beating, give_back, rescue
from videoblip2.tune.study import UNFINISHED, attributes, counted, distributions, finished, name_of
from videoblip2.tune.trials import Runner, Score, Watcher, runner_of

BROKEN = 3
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class WorkerContext:
    """What a worker needs. parent_run_id: the study's run."""

    study: optuna.Study
    plan: Plan
    parent_run_id: str | None
    progress: Progress
    say: Say


def work(context: WorkerContext, wait: bool, runner: Runner | None = None) -> int:
    """Run trials until there are `n_trials`; return the number that this worker ran.

    Args:
        wait: stay until the other workers' trials end, and take over those whose worker dies.
    """
    monitor, made, broken = LivenessMonitor(), 0, 0
    spaces = distributions(context.plan)
    while True:
        for line in rescue(context.study, monitor):
            context.say(line)
        trial = take(context.study, context.plan.tuning.n_trials, spaces)
        if trial is None:
            if not wait or not context.study.get_trials(deepcopy=False, states=UNFINISHED):
                return made
            time.sleep(POLL_SECONDS)
            continue
        runner = runner or runner_of(context.plan)
        reason = run_trial(context, trial, runner)
        made, broken = made + 1, broken + 1 if reason else 0
        if broken >= BROKEN and not finished(context.study):
            raise InputError(
                f"study {context.plan.tuning.study!r}: {broken} trials in a row failed and none is complete; "
                f"the last error: {reason}; fix it, then run the same command again"
            )


def take(study: optuna.Study, total: int, spaces: dict[str, BaseDistribution]) -> optuna.Trial | None:
    """The next trial: a queued one, or a new one while there are fewer than `total`; else None."""
    trials = study.get_trials(deepcopy=False)
    waiting = any(trial.state == TrialState.WAITING for trial in trials)
    if not waiting and len(counted(trials)) >= total:
        return None
    trial = study.ask(spaces)
    about = attributes(trial)
    queued = bool(about.attempts) or about.default
    earlier = [other for other in counted(study.get_trials(deepcopy=False)) if other.number < trial.number]
    if not queued and len(earlier) >= total:
        trial.set_user_attr("surplus", True)
        study.tell(trial, state=TrialState.FAIL)
        return None
    return trial


def run_trial(context: WorkerContext, trial: optuna.Trial, runner: Runner) -> str | None:
    """Run one trial, and tell the study and the user how it ended. Return the reason if it failed."""
    reported, reason = set(_frozen(context.study, trial).intermediate_values), None
    with beating(trial) as lost:
        watcher = Watcher(trial, lost, context.parent_run_id, reported)
        try:
            score = _finite(runner(trial, watcher, context.progress))
        except Stopped:
            if not lost.is_set():
                context.study.tell(trial, state=TrialState.PRUNED)
        except (KeyboardInterrupt, SystemExit):
            give_back(context.study, _frozen(context.study, trial), "interrupted")
            context.say(f"{name_of(trial)}: interrupted; the same command resumes it from its checkpoint")
            raise
        except Exception as error:
            reason = _fail(context.study, trial, watcher, error)
        else:
            _complete(context.study, trial, watcher, score)
    if lost.is_set():
        context.say(f"trial {trial.number}: abandoned, as another worker has taken it over")
    else:
        context.say(line_of(context.study, _frozen(context.study, trial), reason))
    return reason


def _finite(score: Score) -> Score:
    if not math.isfinite(score.value):
        raise FloatingPointError(f"validation score is {score.value}")
    return score


def _complete(study: optuna.Study, trial: optuna.Trial, watcher: Watcher, score: Score) -> None:
    try:
        trial.set_user_attr("scores", score.scores)
        trial.set_user_attr("model", score.model)
        study.tell(trial, score.value)
    except (UpdateFinishedTrialError, ValueError):
        watcher.lost.set()
        return
    watcher.tracker.set_tags({"optuna.state": "COMPLETE"})


def _fail(study: optuna.Study, trial: optuna.Trial, watcher: Watcher, error: Exception) -> str:
    text = " ".join(str(error).split())
    reason = text if isinstance(error, InputError | FloatingPointError) else f"{type(error).__name__}: {text}"
    if not watcher.lost.is_set():
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
        watcher.tracker.set_tags({"optuna.state": "FAIL", "optuna.reason": reason})
    return reason


def _frozen(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[trial.number]
