"""Train one configuration with several seeds: one run each, under a parent run with the mean and its interval."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from videoblip2.captions.intervals import Interval, seed_interval
from videoblip2.captions.metrics import label_of, shown, shown_interval, summary_metrics
from videoblip2.captions.predictions import NAMES, rows_of_run
from videoblip2.config import Config, InputError, flatten
from videoblip2.errors import Progress, no_progress
from videoblip2.modality import modality_label
from videoblip2.tracking import RunSpec, Tracker, open_run
from videoblip2.tracking.mlflow import store
from videoblip2.tracking.mlflow.run_records import PARENT, SEEDS, curve, run_link
from videoblip2.tracking.tracker import markdown_table, sigterm_raises
from videoblip2.training.distributed import join, sharing_errors
from videoblip2.training.loop import Observer
from videoblip2.training.record import METRICS, Curve, draw_curves
from videoblip2.training.resume import group_name, run_name, what_differs
from videoblip2.training.stage import ShowWeights, run_stage
from videoblip2.training.state import FOLDER, StageResult, read_finished
from videoblip2.training.tasks import Task, tasks_of
from videoblip2.training.workspace import inherit_model


@dataclass(frozen=True)
class SeedsResult:
    """The results of finished seeds.

    metrics: each score's mean over the seeds with Student's interval, in pycocoevalcap's scale.
    """

    stage: str
    name: str
    run_id: str | None
    numbers: tuple[int, ...]
    seeds: tuple[StageResult, ...]
    metrics: dict[str, Interval]

    def table(self, shown_run: Callable[[StageResult], str]) -> tuple[str, list[str], list[list[str]]]:
        """Title, columns and rows: each seed, then the mean. shown_run: returns the text for a seed's run."""
        names = summary_metrics(self.metrics)
        rows = [
            [str(seed), *(shown(name, run.metrics[name]) for name in names), str(run.best_step), shown_run(run)]
            for seed, run in zip(self.numbers, self.seeds, strict=True)
        ]
        means = [shown_interval(name, self.metrics[name]) for name in names]
        title = f"{len(self.seeds)} seeds on val, ×100; the mean with its 95 % interval over seeds"
        columns = ["seed", *map(label_of, names), "best step", "run"]
        return title, columns, [*rows, ["mean", *means, "", self.run_id or "not tracked"]]


@dataclass
class SeedGroup(Observer):
    """The parent run of a configuration's seeds, which join it once their runs are open.

    It opens with the first seed, so invalid input creates no run.
    """

    spec: RunSpec
    runs: ExitStack
    tracker: Tracker = field(default_factory=Tracker)

    def opened(self, tracker: Tracker) -> None:
        self.join(tracker.run_id)

    def join(self, child: str | None) -> None:
        """Put a run under its earlier parent or a new one. An untracked run has no parent."""
        if child is None:
            return
        client = store.connect()
        if self.parent_run_id is None:
            self.open(client.get_run(child).data.tags.get(PARENT))
            client.update_run(self.parent_run_id, name=self.spec.name)
        client.set_tag(child, PARENT, self.parent_run_id)

    def open(self, earlier: str | None = None) -> None:
        """Open the parent run, or reopen the earlier one."""
        self.tracker = self.runs.enter_context(open_run(replace(self.spec, resume_run_id=earlier)))
        self.parent_run_id = self.tracker.run_id


@contextmanager
def seed_group(stage: str, name: str, experiment: str) -> Iterator[SeedGroup]:
    """Open a group, and end its run with the block. The run of `mlflow run`, if any, is the parent."""
    with ExitStack() as runs:
        group = SeedGroup(RunSpec(stage, name, experiment), runs)
        if "MLFLOW_RUN_ID" in os.environ:
            group.open()
        yield group


@sharing_errors()
def run_seeds(
    stage: str,
    config: Config,
    count: int,
    progress: Progress = no_progress,
    show_weights: ShowWeights | None = None,
    usual: Config | None = None,
) -> SeedsResult:
    """Train `count` seeds, starting at `seed`, one after the other. Raises InputError before a run opens.

    With `train.resume=auto`, finished seeds are kept, and the parent run is resumed.
    """
    configs, name = seed_configs(stage, config, count, usual)
    leads = join().leads
    with sigterm_raises(), seed_group(stage, name, config.run.experiment) as group:
        results = [_one(stage, each, group, progress, show_weights) for each in configs]
        shared = [name for name in results[0].metrics if all(name in each.metrics for each in results)]
        metrics = {name: seed_interval([each.metrics[name] for each in results]) for name in shared}
        numbers = tuple(each.seed for each in configs)
        result = SeedsResult(stage, name, group.tracker.run_id, numbers, tuple(results), metrics)
        if leads:
            _log(group.tracker, config, result)
    return result


def seed_configs(stage: str, config: Config, count: int, usual: Config | None) -> tuple[list[Config], str]:
    """The configuration of each seed, with its run name; and the parent's name."""
    if config.train.resume not in (None, "auto"):
        raise InputError(f"train.resume={config.train.resume}: with --seeds give train.resume=auto")
    differences = what_differs(stage, config, usual) if usual else []
    known, configs = inherit_model(config), []
    for seed in range(config.seed, config.seed + count):
        own = config.run.name and f"{config.run.name}-seed{seed}"
        name = own or run_name(stage, known.model_copy(update={"seed": seed}), differences)
        run = config.run.model_copy(update={"name": name})
        configs.append(config.model_copy(update={"seed": seed, "run": run}))
    return configs, group_name(str(configs[0].run.name), count)


def mean_curve(curves: Sequence[Curve]) -> list[tuple[int, float]]:
    """The mean at each step common to all curves."""
    tables = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    return [(step, sum(table[step] for table in tables) / len(tables)) for step in steps]


def _one(
    stage: str, config: Config, group: SeedGroup, progress: Progress, show_weights: ShowWeights | None
) -> StageResult:
    """Train one seed, or keep it if it is already finished."""
    folder = Path(config.run.out) / str(config.run.name)
    earlier = read_finished(folder / FOLDER) if config.train.resume else None
    if earlier is not None:
        group.join(earlier.run_id)
        return earlier
    return run_stage(stage, config, progress, show_weights, observer=group)


def _log(tracker: Tracker, config: Config, result: SeedsResult) -> None:
    """Log on the parent: mean scores with intervals, mean curves, a figure of all curves, a table of the seeds."""
    tasks, listed = tasks_of(config), ", ".join(map(str, result.numbers))
    best = {f"val/{name}": mean.value for name, mean in result.metrics.items()}
    for task in tasks:
        _, low, high = result.metrics[task.metric]
        best |= {f"val/{task.metric}_ci_low": low, f"val/{task.metric}_ci_high": high}
    curves = {
        f"seed {number}": {metric: curve(seed.run_id, metric) for metric in METRICS}
        for number, seed in zip(result.numbers, result.seeds, strict=True)
        if seed.run_id
    }
    tracker.log_config({**flatten(config), "seed": listed})
    tracker.log_best(best)
    for metric in METRICS:
        for step, value in mean_curve([found[metric] for found in curves.values()]):
            tracker.log_metrics({metric: value}, step)
    for task in tasks:
        tracker.log_table(*probe_table(result.seeds, task, config.train.probe_videos))
    picture = Path(config.run.out) / result.name / "figures" / "learning_curves.png"
    if draw_curves(picture, curves, f"{result.name}: every seed") is not None:
        tracker.log_file(picture, "figures")
    title, columns, rows = result.table(lambda seed: run_link(seed.run_id, seed.name) if seed.run_id else seed.name)
    tracker.note(f"{title}\n\n{markdown_table(columns, rows)}")
    tracker.set_tags({SEEDS: listed, "modalities": modality_label(config.model.modalities)})


def probe_table(results: Sequence[StageResult], task: Task, count: int) -> tuple[str, list[dict[str, object]]]:
    """A table's name and first rows: texts of the median seed, with the mean score over the seeds.

    The median is by the task's metric.
    """
    runs = [{row.key: row for row in rows_of_run(result.checkpoint.parent, task.kind)} for result in results]
    order = sorted(range(len(results)), key=lambda place: results[place].metrics[task.metric])
    middle = runs[order[len(order) // 2]]
    means = {key: sum(rows[key].scores[task.metric] for rows in runs) / len(runs) for key in middle}
    lines = [{**row.shown(), task.metric: round(means[key], 4)} for key, row in middle.items()]
    return NAMES[task.kind], lines[:count]
