"""`vb2 tune`: the process that leads a study, the study's MLflow run, and its results."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState, create_trial

from videoblip2.config import InputError, parse_config
from videoblip2.files import write_text
from videoblip2.progress import Progress, no_progress
from videoblip2.tracking import RunSpec, Tracker, open_run
from videoblip2.tune.plan import Plan, load_plan
from videoblip2.tune.report import (
    Say,
    TrialRow,
    Verdict,
    judge,
    rows_of,
    score_name,
    shown,
    shown_score,
    write_plots,
    write_rows,
)
from videoblip2.tune.study import (
    address,
    attributes,
    best_of,
    counted,
    default_of,
    distributions,
    hidden,
    maximised,
    name_of,
    open_storage,
    open_study,
    storage_errors,
)
from videoblip2.tune.worker import POLL_SECONDS, WorkerContext, work

LEADER_SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    metric: what it maximises. states: number of trials by final state. best_file: None where no trial is complete.
    """

    study: str
    run_id: str | None
    metric: str
    states: dict[str, int]
    best: FrozenTrial | None
    best_file: Path | None
    verdict: Verdict | None
    plots: Sequence[Path] = ()
    commands: Sequence[str] = ()
    rows: list[TrialRow] = field(default_factory=list)


def tune(path: str, overrides: Sequence[str], progress: Progress = no_progress, say: Say = print) -> Outcome:
    """Start a study, or resume it up to `n_trials`, and conclude it. Raises InputError for what the user must fix."""
    plan = load_plan(path, overrides)
    place = address(plan)
    with _alone(plan), storage_errors(place):
        study = open_study(plan, open_storage(place))
        earlier, run = study.user_attrs.get("run_id"), plan.base.run
        with open_run(RunSpec("tune", plan.tuning.study, run.experiment, run.tracking, earlier)) as tracker:
            begin(study, plan, tracker)
            made, total = len(counted(study.get_trials(deepcopy=False))), plan.tuning.n_trials
            say(f"study {study.study_name}: {made} of {total} trials in {hidden(place)}")
            work(WorkerContext(study, plan, tracker.run_id, progress, say), wait=True)
            return conclude(study, plan, tracker)


def join(path: str, overrides: Sequence[str], progress: Progress = no_progress, say: Say = print) -> int:
    """Help with a study that another process leads; return the number of trials that this process ran."""
    plan = load_plan(path, overrides)
    place = address(plan)
    with storage_errors(place):
        study = open_study(plan, open_storage(place), worker=True)
        _await_leader(study, plan)
        return work(WorkerContext(study, plan, study.user_attrs["run_id"], progress, say), wait=False)


@contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.folder / "lead.lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(
            f"study {plan.tuning.study!r}: another `vb2 tune` already leads it; add --worker to help, or wait for it"
        ) from error


def _await_leader(study: optuna.Study, plan: Plan) -> None:
    give_up = monotonic() + LEADER_SECONDS
    while "run_id" not in study.user_attrs:
        if monotonic() > give_up:
            raise InputError(
                f"study {plan.tuning.study!r}: no process leads it in {hidden(address(plan))}; "
                "start `vb2 tune` once without --worker"
            )
        sleep(POLL_SECONDS)


def begin(study: optuna.Study, plan: Plan, tracker: Tracker) -> None:
    """Queue the default as the first trial, and describe the study on its run."""
    if default_of(study.get_trials(deepcopy=False)) is None:
        spaces = distributions(plan)
        first = create_trial(
            state=TrialState.WAITING, params=plan.defaults, distributions=spaces, user_attrs={"default": True}
        )
        study.add_trial(first)
    study.set_user_attr("run_id", tracker.run_id)
    settings = {f"tune.search.{key}": values.text() for key, values in plan.tuning.search.items()}
    settings |= {"tune.stage": plan.tuning.stage, "tune.n_trials": str(plan.tuning.n_trials)}
    settings |= {
        "tune.sampler": plan.tuning.sampler.name,
        "tune.pruner": plan.tuning.pruner.name or "the stage's default",
    }
    tracker.log_config(settings)
    tracker.set_tags({"optuna.study": study.study_name, "optuna.storage": hidden(address(plan))})


def conclude(study: optuna.Study, plan: Plan, tracker: Tracker) -> Outcome:
    """Write best.yaml, verdict, plots and table beside the trials, and log them on the study's run."""
    trials = counted(study.get_trials(deepcopy=False))
    states = {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState}
    states = {name: number for name, number in states.items() if number}
    best, verdict = best_of(trials), judge(trials, maximised(study))
    files = [write_rows(study, plan.folder), *(plots := write_plots(study, plan.folder))]
    best_file, commands = None, list[str]()
    if best is not None:
        commands = commands_of(plan, best, default_of(trials))
        best_file = write_best(study, plan, best, verdict, commands)
        files.append(best_file)
        tracker.log_best({f"val/{maximised(study).replace(' + ', '_plus_')}": float(best.value or 0.0)})
        tracker.set_tags({"optuna.best_trial": name_of(best), "optuna.best_params": shown(best.params)})
        tracker.set_tags({"verdict": verdict.text() if verdict else "not compared: the default trial is not complete"})
        tracker.note(_note(study, best, verdict, states))
    for file in files:
        tracker.log_file(file)
    run_id = tracker.run_id
    found = best, best_file, verdict, plots, commands, rows_of(study)
    return Outcome(study.study_name, run_id, maximised(study), states, *found)


def write_best(
    study: optuna.Study, plan: Plan, best: FrozenTrial, verdict: Verdict | None, commands: Sequence[str]
) -> Path:
    """`best.yaml`: the base with the best trial's values, an experiment file like any other."""
    content = plan.content_of(best.params)
    if "name" in content.get("run", {}):  # or it would overwrite the run of the base
        content["run"] = {key: value for key, value in content["run"].items() if key != "name"}
    parse_config(content, source="best.yaml")
    head = [
        f"Best of study {study.study_name}: {name_of(best)}, {score_name(study)} {shown_score(best)}.",
        f"Against the default: {verdict.text() if verdict else 'not compared, as the default trial is not complete'}.",
        f"Chosen: {shown(best.params)}",
        "",
        *(f"  {command}" for command in commands),
    ]
    text = "\n".join(f"# {line}".rstrip() for line in head)
    path = plan.folder / "best.yaml"
    write_text(path, f"{text}\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}")
    return path


def commands_of(plan: Plan, best: FrozenTrial, default: FrozenTrial | None) -> list[str]:
    """The next commands: train with the best values; evaluate the best and the default model on the test split."""
    if plan.tuning.stage == "decode":
        values = " ".join(f"{key}={value}" for key, value in best.params.items())
        return [f"vb2 evaluate {plan.tuning.tuned_model} {values} --split test"]
    models = [attributes(trial).model for trial in (best, default) if trial is not None]
    tests = [f"vb2 evaluate {model} --split test" for model in dict.fromkeys(models) if model]
    return [f"vb2 {plan.tuning.stage} {plan.folder / 'best.yaml'}", *tests]


def _note(study: optuna.Study, best: FrozenTrial, verdict: Verdict | None, states: dict[str, int]) -> str:
    ended = ", ".join(f"{number} {name}" for name, number in states.items())
    lines = [f"**{study.study_name}**: {ended}. Best: {name_of(best)}, {score_name(study)} {shown_score(best)}."]
    lines += [f"`{shown(best.params)}`", verdict.text() if verdict else ""]
    return "\n\n".join(lines)
