"""What a study reports: one line per trial as it ends, a table of trials, and plots."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from videoblip2.captions import metrics
from videoblip2.captions.metrics import PRIMARY, label_of, scale_of
from videoblip2.files import atomic, write_json
from videoblip2.tune.study import attributes, best_of, counted, finished, name_of, quiet

Say = Callable[[str], None]
TrialRow = dict[str, object]  # one trial in trials.json; its parameters are columns
PLOTS = ("history", "importance", "parallel")
SCORE = f"validation {label_of(PRIMARY)}"


def line_of(study: optuna.Study, trial: FrozenTrial, reason: str | None = None) -> str:
    """`trial-003: CIDEr 215.3, the best so far   optim.lr=0.0021 …`."""
    name = name_of(trial)
    if reason:
        return f"{name}: failed: {reason}   {shown(trial.params)}"
    if trial.state == TrialState.PRUNED:
        return f"{name}: pruned at step {trial.last_step}   {shown(trial.params)}"
    best = best_of(finished(study))
    rank = "the best so far" if best and best.number == trial.number else f"best is {shown_score(best)}"
    default = " (the default)" if attributes(trial).default else ""
    return f"{name}{default}: {label_of(PRIMARY)} {shown_score(trial)}, {rank}   {shown(trial.params)}"


def shown_score(trial: FrozenTrial | None) -> str:
    """The value of a trial as metrics are printed, such as "61.3"."""
    return metrics.shown(PRIMARY, _value(trial))


def shown(params: Mapping[str, Any]) -> str:
    """`optim.lr=0.00213 model.lora.r=8`."""
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()
    )


def rows_of(study: optuna.Study) -> list[TrialRow]:
    """One row per trial, with the score as it is stored; the value of a pruned trial is its last validation."""
    rows = []
    for trial in counted(study.get_trials(deepcopy=False)):
        about = attributes(trial)
        row: TrialRow = {"trial": name_of(trial), "state": trial.state.name, PRIMARY: trial.value}
        row |= {"step": trial.last_step, **trial.params, "run_id": about.run_id, "model": about.model}
        reason = about.reason or study.user_attrs.get(f"reason.{trial.number}")
        row |= {"attempts": len(about.attempts) + 1, "default": about.default, "reason": reason}
        rows.append(row)
    return rows


def write_rows(study: optuna.Study, folder: Path) -> Path:
    """All trials as `trials.json`."""
    path = folder / "trials.json"
    write_json(path, rows_of(study))
    return path


def write_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """History, importance and parallel coordinates as PNG; nothing where fewer than two trials are complete."""
    if len(finished(study)) < 2:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as plots

    with quiet():
        printed = _as_printed(study)
        axes = {
            "history": plots.plot_optimization_history(printed, target_name=SCORE),
            "importance": plots.plot_param_importances(printed, target_name=SCORE),
            "parallel": plots.plot_parallel_coordinate(printed, target_name=SCORE),
        }
        return [_save(axes[name], folder / f"{name}.png") for name in PLOTS]


def _as_printed(study: optuna.Study) -> optuna.Study:
    """A copy of the trials with scores as they are printed. Optuna's own `target` would do this, but then every plot
    is drawn for a minimisation."""
    copy = optuna.create_study(direction="maximize")
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.COMPLETE:
            value, params, spaces = scale_of(PRIMARY) * _value(trial), trial.params, trial.distributions
            copy.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=spaces))
        else:
            copy.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    return copy


def _save(axes: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure = axes.figure
    figure.set_size_inches(10, 5)
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _value(trial: FrozenTrial | None) -> float:
    return float(trial.value) if trial is not None and trial.value is not None else float("nan")
