"""`vb2 tune`: the process that leads a study, the study's MLflow run, and its results."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial

from videoblip2.captions.metrics import PRIMARY, label_of, shown
from videoblip2.config import InputError, parse_config
from videoblip2.errors import Progress, masked, no_progress, refused
from videoblip2.files import write_json, write_text
from videoblip2.tracking import RunSpec, Tracker, open_run
from videoblip2.training import distributed
from videoblip2.tune import report
from videoblip2.tune import study as studies
from videoblip2.tune.plan import Plan, load_plan
from videoblip2.tune.report import Say, TrialRow, Verdict
from videoblip2.tune.study import counted, default_of, name_of
from videoblip2.tune.trials import train_part, train_trial
from videoblip2.tune.worker import POLL_SECONDS, WorkerContext, run_trial, work

LEADER_SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """The result of a study. metric: the maximized score. states: number of trials by final state."""

    study: str
    run_id: str | None
    metric: str
    states: dict[str, int]
    best: FrozenTrial | None
    best_file: Path | None
    verdict: Verdict | None
    plots: Sequence[Path]
    commands: Sequence[str]
    rows: list[TrialRow]


def tune(
    path: str, overrides: Sequence[str], progress: Progress = no_progress, say: Say = print, nproc: int = 1
) -> Outcome:
    """Start a study, or resume it up to `n_trials`, and conclude it. Raises InputError for what the user must fix.

    Args:
        nproc: number of processes per trial.
    """
    plan, start = load_plan(path, overrides), _starter(path, overrides, nproc)
    place, run, name = studies.address(plan), plan.base.run, plan.tuning.study
    plan.folder.mkdir(parents=True, exist_ok=True)
    remedy = "add --worker to help, or wait for it"
    busy = refused(f"study {name!r}: another `vb2 tune` already leads it", remedy, Timeout)
    with busy, FileLock(plan.folder / "lead.lock", timeout=0), studies.storage_errors(place):
        study = studies.open_study(plan, studies.open_storage(place))
        earlier = study.user_attrs.get("run_id")
        with open_run(RunSpec("tune", name, run.experiment, run.tracking, earlier)) as tracker:
            begin(study, plan, tracker)
            made = len(counted(study.get_trials(deepcopy=False)))
            say(f"study {name}: {made} of {plan.tuning.n_trials} trials in {masked(place)}")
            work(WorkerContext(study, plan, progress, say, start), wait=True)
            return conclude(study, plan, tracker)


def _starter(path: str, overrides: Sequence[str], nproc: int) -> Callable[[int], None] | None:
    """A function that starts the processes of a trial; None if this process trains alone."""
    words = ["tune", path, *overrides, "--trial"]
    return (lambda number: distributed.launch([*words, str(number)], nproc)) if nproc > 1 else None


def take_part(path: str, overrides: Sequence[str], number: int, progress: Progress, say: Say) -> None:
    """Run as one of the processes of a trial; the first one reports to the study."""
    plan = load_plan(path, overrides)
    study = studies.open_study(plan, studies.open_storage(studies.address(plan)), worker=True)
    trial = study.get_trials(deepcopy=False)[number]
    if distributed.join().leads:
        whole = optuna.Trial(study, trial._trial_id)
        run_trial(WorkerContext(study, plan, progress, say), whole, partial(train_trial, plan))
    else:
        train_part(plan, trial)


def join(
    path: str, overrides: Sequence[str], progress: Progress = no_progress, say: Say = print, nproc: int = 1
) -> int:
    """Help with a study that another process leads; return the number of trials that this process ran."""
    plan, start = load_plan(path, overrides), _starter(path, overrides, nproc)
    place = studies.address(plan)
    with studies.storage_errors(place):
        study = studies.open_study(plan, studies.open_storage(place), worker=True)
        give_up = monotonic() + LEADER_SECONDS
        while "run_id" not in study.user_attrs:
            if monotonic() > give_up:
                fault = f"study {plan.tuning.study!r}: no process leads it in {place}"
                raise InputError(f"{fault}; start `vb2 tune` once without --worker")
            sleep(POLL_SECONDS)
        return work(WorkerContext(study, plan, progress, say, start), wait=False)


def begin(study: optuna.Study, plan: Plan, tracker: Tracker) -> None:
    """Queue the default as the first trial, and describe the study on its run."""
    if default_of(study.get_trials(deepcopy=False)) is None:
        study.enqueue_trial(plan.defaults, {"default": True})
    study.set_user_attr("run_id", tracker.run_id)
    tuning = plan.tuning
    settings = {f"tune.search.{key}": values.text() for key, values in tuning.search.items()}
    settings |= {"tune.stage": tuning.stage, "tune.n_trials": str(tuning.n_trials)}
    settings |= {"tune.sampler": tuning.sampler.name, "tune.pruner": tuning.pruner.name or "the stage's default"}
    tracker.log_config(settings)
    tracker.set_tags({"optuna.study": study.study_name, "optuna.storage": studies.address(plan)})


def conclude(study: optuna.Study, plan: Plan, tracker: Tracker) -> Outcome:
    """Write best.yaml, verdict, plots and table beside the trials, and log them on the study's run."""
    trials, metric, margin = counted(study.get_trials(deepcopy=False)), plan.metric, plan.margin
    states = {state.name.lower(): number for state, number in Counter(trial.state for trial in trials).items()}
    best, verdict, commands = studies.best_of(trials, margin), report.judge(trials, metric, margin), list[str]()
    rows, plots = report.rows_of(plan, study), report.write_plots(plan, study)
    table, best_file = plan.folder / "trials.json", plan.folder / "best.yaml"
    write_json(table, rows)
    if best is not None:
        commands = commands_of(plan, best, default_of(trials))
        scored = f"{name_of(best)}, validation {label_of(metric)} {report.shown_score(best)}"
        chosen = report.shown(best.params)
        against = verdict.text() if verdict else "not compared: the default trial is not complete"
        if margin is not None:
            scored += f", the fastest within {shown(PRIMARY, margin)} of the highest score"
        head = [f"Best of study {study.study_name}: {scored}.", f"Against the default: {against}.", f"Chosen: {chosen}"]
        write_best(best_file, plan, best, [*head, "", *(f"  {command}" for command in commands)])
        tracker.log_best({f"val/{metric.replace(' + ', '_plus_')}": float(best.values[0])})
        tracker.set_tags({"optuna.best_trial": name_of(best), "optuna.best_params": chosen, "verdict": against})
        counts = ", ".join(f"{number} {name}" for name, number in states.items())
        tracker.note(f"**{study.study_name}**: {counts}. Best: {scored}.\n\n`{chosen}`\n\n{against}")
    for file in (table, *plots, *([best_file] if best else [])):
        tracker.log_file(file)
    found = best, best_file if best else None, verdict, plots, commands, rows
    return Outcome(study.study_name, tracker.run_id, metric, states, *found)


def write_best(path: Path, plan: Plan, best: FrozenTrial, head: Sequence[str]) -> None:
    """Write the base with the best trial's values as an experiment file, below `head` as comments."""
    content = plan.content_of(best.params)
    if "name" in content.get("run", {}):  # else it would overwrite the run of the base
        content["run"] = {key: value for key, value in content["run"].items() if key != "name"}
    parse_config(content, source=path.name)
    # a text value may contain separators that end a YAML comment
    text = "\n".join(f"# {part}".rstrip() for line in head for part in line.splitlines() or [""])
    write_text(path, f"{text}\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}")


def commands_of(plan: Plan, best: FrozenTrial, default: FrozenTrial | None) -> list[str]:
    """The next commands: train with the best values; evaluate the best and the default model on the test split."""
    if plan.tuning.stage == "decode":
        values = [f"{key}={value}" for key, value in best.params.items()]
        return [shlex.join(["vb2", "evaluate", str(plan.tuning.tuned_model), *values, "--split", "test"])]
    models = [studies.attributes(trial).model for trial in (best, default) if trial is not None]
    tests = [["vb2", "evaluate", model, "--split", "test"] for model in dict.fromkeys(models) if model]
    return [shlex.join(words) for words in [["vb2", plan.tuning.stage, str(plan.folder / "best.yaml")], *tests]]
