"""Reports of a study: a line per trial, a table, plots, and whether the best trial beats the default.

The best of k trials looks good partly because its score selected it, so `judge` widens the interval of best minus
default for k - 1 comparisons (Bonferroni), and `chosen_again` measures the gain on videos not used for the choice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from videoblip2.captions import metrics, paired_bootstrap
from videoblip2.captions.metrics import PRIMARY, label_of, scale_of, shown_interval
from videoblip2.files import atomic
from videoblip2.tune.plan import Plan
from videoblip2.tune.study import attributes, best_of, counted, default_of, finished, name_of, quiet

Say = Callable[[str], None]
TrialRow = dict[str, object]  # one trial in trials.json; its parameters are columns
ALPHA = 0.05
RESAMPLES = 2000


def line_of(plan: Plan, study: optuna.Study, trial: FrozenTrial, reason: str | None = None) -> str:
    """`trial-003: CIDEr 215.3, the best so far   optim.lr=0.0021 …`."""
    name = name_of(trial)
    if reason:
        return f"{name}: failed: {reason}   {shown(trial.params)}"
    if trial.state == TrialState.PRUNED:
        return f"{name}: pruned at step {trial.last_step}   {shown(trial.params)}"
    best = best_of(study.get_trials(deepcopy=False), plan.margin)
    rank = "the best so far" if best and best.number == trial.number else f"best is {shown_score(best)}"
    default = " (the default)" if attributes(trial).default else ""
    return f"{name}{default}: {label_of(plan.metric)} {shown_score(trial)}, {rank}   {shown(trial.params)}"


def shown_score(trial: FrozenTrial | None) -> str:
    """The printed value of a trial, such as "61.3", or with two objectives "61.3, 0.045 s per caption"."""
    if trial is None or not trial.values:
        return "nan"
    return metrics.shown(PRIMARY, trial.values[0]) + "".join(f", {aim:.3g} s per caption" for aim in trial.values[1:])


def shown(params: Mapping[str, Any]) -> str:
    """`optim.lr=0.00213 model.lora.r=8`."""
    texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in params.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items())


def rows_of(plan: Plan, study: optuna.Study) -> list[TrialRow]:
    """One row per trial, with the stored score; for a pruned trial, that of its last validation."""
    rows = list[TrialRow]()
    for trial in counted(study.get_trials(deepcopy=False)):
        about = attributes(trial)
        aims = dict(zip((plan.metric, "seconds"), trial.values or [None] * len(study.directions), strict=False))
        row = {"trial": name_of(trial), "state": trial.state.name, **aims}
        row |= {"step": trial.last_step, **trial.params, "run_id": about.run_id, "model": about.model}
        reason = about.reason or study.user_attrs.get(f"reason.{trial.number}")
        rows.append({**row, "attempts": len(about.attempts) + 1, "default": about.default, "reason": reason})
    return rows


def write_plots(plan: Plan, study: optuna.Study) -> list[Path]:
    """Plot history, importance, parallel coordinates and, for two objectives, the Pareto front; [] below two trials."""
    if len(finished(study.get_trials(deepcopy=False))) < 2:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    folder = plan.folder
    drawn = {
        folder / "history.png": plots.plot_optimization_history,
        folder / "importance.png": plots.plot_param_importances,
        folder / "parallel.png": plots.plot_parallel_coordinate,
    }
    with quiet():
        printed, score = _as_printed(study), f"validation {label_of(plan.metric)}"
        made = {path: plot(printed, target_name=score) for path, plot in drawn.items()}
        if plan.tuning.seconds:
            aims = {"targets": lambda trial: (scale_of(PRIMARY) * trial.values[0], trial.values[1])}
            names = [score, "seconds per caption"]
            made[folder / "pareto.png"] = plots.plot_pareto_front(study, target_names=names, **aims)
        for path, axes in made.items():
            figure = axes.figure
            figure.set_size_inches(10, 5)
            with atomic(path) as file:
                figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
            pyplot.close(figure)
    return list(made)


def _as_printed(study: optuna.Study) -> optuna.Study:
    """A copy with printed scores; with Optuna's own `target`, plots would assume minimization."""
    printed, trials = optuna.create_study(direction="maximize"), study.get_trials()
    for trial in finished(trials):
        trial.values = [scale_of(PRIMARY) * trial.values[0]]
    printed.add_trials(trials)
    return printed


@dataclass(frozen=True)
class Verdict:
    """Best minus default in pycocoevalcap's scale, its interval, and the gain on videos not used for the choice.

    Not covered: the variance between training seeds, as each trial is trained once.
    """

    best: str
    default: str
    difference: float
    low: float
    high: float
    chosen_among: int
    chosen_again: float
    metric: str = PRIMARY

    @property
    def better(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low > 0

    def text(self) -> str:
        """The verdict in one line, with printed scores."""
        if self.best == self.default:
            return f"no gain shown: the default is the best of {self.chosen_among} trials"
        gain = f"{shown_interval(self.metric, (self.difference, self.low, self.high))} {label_of(self.metric)} on val"
        head = f"better than the default by {gain}" if self.better else f"no gain shown: default + {gain}"
        gained = metrics.shown(self.metric, self.chosen_again, "+")
        again = f"chosen on resampled videos and evaluated on those left out: {gained}"
        return f"{head} (interval for the best of {self.chosen_among}); {again}"


def judge(trials: Sequence[FrozenTrial], metric: str = PRIMARY, margin: float | None = None) -> Verdict | None:
    """The verdict over complete trials; None if the default or its scores are missing."""
    complete = [trial for trial in trials if trial.values and attributes(trial).scores]
    default, best = default_of(complete), best_of(complete, margin)
    if default is None or best is None:
        return None
    scores = {trial.number: np.asarray(attributes(trial).scores, np.float64) for trial in complete}
    confidence, resamples = 1 - ALPHA / max(1, len(complete) - 1), max(10_000, 400 * len(complete))
    gain = paired_bootstrap(scores[best.number], scores[default.number], resamples, confidence=confidence)
    again = chosen_again(np.stack(list(scores.values())), list(scores).index(default.number))
    return Verdict(name_of(best), name_of(default), *gain[:3], len(complete), again, metric)


def chosen_again(scores: np.ndarray, default: int, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Mean gain over row `default` of the row chosen on resampled videos, on the videos left out: scores [K,N]."""
    count = scores.shape[1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)  # [R,N]
    left_out = drawn == 0
    chosen = (scores @ drawn.T).argmax(axis=0)  # [R]
    sums = ((scores[chosen] - scores[default]) * left_out).sum(axis=1)
    sizes = left_out.sum(axis=1)
    return float((sums[sizes > 0] / sizes[sizes > 0]).mean()) if sizes.any() else 0.0
