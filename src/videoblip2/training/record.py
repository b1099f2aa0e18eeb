"""What a stage logs to its run besides metrics: its inputs at the start, its results and figures at the end."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from videoblip2.captions.intervals import Interval, interval, resampled_means
from videoblip2.captions.metrics import PRIMARY, label_of, scale_of, shown, shown_interval, summary_metrics
from videoblip2.captions.predictions import NAMES, CaptionRow, Kind, Prediction, rows_of_run, write_rows
from videoblip2.config import InputError, flatten, to_yaml
from videoblip2.errors import counted
from videoblip2.evaluate import Evaluation, by_category
from videoblip2.features.store import FeatureStore, digest
from videoblip2.files import write_json, write_text
from videoblip2.modality import modality_label
from videoblip2.model.checkpoint import write_card
from videoblip2.model.load_weights import WeightReport
from videoblip2.provenance import Provenance
from videoblip2.tracking import FoundModel, source
from videoblip2.tracking.compare import Side, compare_sides
from videoblip2.tracking.mlflow import run_records
from videoblip2.tracking.mlflow.run_records import curve, run_link
from videoblip2.tracking.tracker import Tracker, markdown_table
from videoblip2.training.workspace import Workspace

Curve = Sequence[tuple[int, float]]  # points (step, value)
BLUE, RED, GREY = "#2563eb", "#dc2626", "#6b7280"
VALIDATION = f"val/{PRIMARY}"
#: Panels of learning curves: title → its metrics, and their scale factor.
PANELS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "training loss": (("train/loss",), 1.0),
    "reward in training ×100": (("train/reward", "train/greedy_reward"), 100.0),
    f"validation {label_of(PRIMARY, scale=True)}": ((VALIDATION,), scale_of(PRIMARY)),
}
METRICS = tuple(name for names, _ in PANELS.values() for name in names)


def log_inputs(work: Workspace, folder: Path, tracker: Tracker, differences: Sequence[str] = ()) -> None:
    """Log configuration, tags, lineage, source and environment.

    Args:
        folder: the run's, for the files that are logged.
        differences: parts of the run's name that describe its configuration.
    """
    config = work.config
    tracker.log_config(flatten(config))
    tags = {"seed": str(config.seed), "modalities": modality_label(config.model.modalities), "task": config.data.task}
    tags["command"] = source.command_line()
    if work.world.size > 1:
        tags["processes"] = str(work.world.size)
    if work.parent:
        tags |= {"warm_start": str(config.train.start_from), **source.lineage_tags(work.parent.folder)}
    if differences:
        tags["differs"] = " ".join(differences)
    tracker.set_tags(tags)
    log_text(folder / source.ENVIRONMENT_FILE, source.environment(), tracker)
    log_text(folder / "source.diff", source.source_diff(), tracker)


def data_digest(file: Path, store: FeatureStore, video_ids: Iterable[str]) -> str:
    """12 hex digits (sha256) over an annotation file and the features of its videos."""
    return source.short_digest(f"{source.short_digest(file.read_bytes())}{digest(store, video_ids)}")


def log_weights(folder: Path, lines: Mapping[str, str], reports: Mapping[str, WeightReport], tracker: Tracker) -> None:
    """Log the source of every tensor as `first_weights.json` (also beside the checkpoint), and a tag for each part."""
    written = {"summary": dict(lines), "qformers": {name: report.to_json() for name, report in reports.items()}}
    log_text(folder / "first_weights.json", json.dumps(written, indent=1) + "\n", tracker)
    tracker.set_tags({f"weights.{part.replace(' ', '_')}": line for part, line in lines.items()})


def log_text(path: Path, text: str, tracker: Tracker) -> None:
    """Write a text beside the checkpoint and log it; an empty text removes an older run's file."""
    if not text:
        path.unlink(missing_ok=True)
        return
    write_text(path, text)
    tracker.log_file(path)


def log_results(
    checkpoint: Path, result: Evaluation, step: int, work: Workspace, digests: Mapping[str, str], tracker: Tracker
) -> str:
    """Write the checkpoint's scores, digests of its data, and its card; log scores under `best/`, captions, figures, a
    summary, and the checkpoint as a model; return its MODEL name."""
    folder, config, sentence = checkpoint.parent, work.config, gained(result, work.parent)
    write_json(checkpoint / "metrics.json", {**result.corpus, "step": float(step)})
    Provenance.read(checkpoint).model_copy(update={"gained": sentence, "data": dict(digests)}).write(checkpoint)
    write_card(checkpoint)
    tracker.log_best({**split_scores("val", result), "step": float(step)})
    files = {kind: folder / f"val_{name}.jsonl" for kind, name in NAMES.items()}
    log_predictions(files, "val", result, config.train.probe_videos, tracker)
    log_text(folder / "config.yaml", to_yaml(config), tracker)
    log_figures(folder, result, tracker)
    tracker.note(summary(result, step, work, sentence))
    return tracker.log_checkpoint(
        checkpoint, folder.name, {f"val/{key}": value for key, value in result.corpus.items()}
    )


def log_predictions(
    files: Mapping[Kind, Path], split: str, result: Evaluation, probe: int, tracker: Tracker
) -> list[Path]:
    """Log all rows as JSON lines, and the first `probe` of each kind as a table with the same rows in every run.

    Args:
        files: path for the rows of each kind; a kind without rows is not written, and its older file is removed.
    """
    for table, lines in result.tables().items():
        tracker.log_table(table if split == "val" else f"{split}_{table}", lines[:probe])
    written = {kind: path for kind, path in files.items() if kind in result.rows}
    for path in set(files.values()).difference(written.values()):
        path.unlink(missing_ok=True)
    for kind, path in written.items():
        write_rows(path, result.rows[kind])
        tracker.log_file(path)
        tracker.set_tags({f"{NAMES[kind]}.{split}": path.name})
    return list(written.values())


def split_scores(split: str, result: Evaluation) -> dict[str, float]:
    """Each score as `SPLIT/NAME`, and the bounds of the primary metric's interval."""
    scores = {f"{split}/{key}": value for key, value in result.corpus.items()}
    if PRIMARY in result.corpus:
        sure = primary_interval(result)
        scores |= {f"{split}/{PRIMARY}_ci_low": sure.low, f"{split}/{PRIMARY}_ci_high": sure.high}
    return scores


def primary_interval(result: Evaluation) -> Interval:
    """The primary metric with its 95 % interval over videos."""
    scores = np.array([[row.scores[PRIMARY]] for row in result.caption_rows])
    return interval(float(scores.mean()), resampled_means(scores)[:, 0])


def headline(result: Evaluation) -> str:
    """The scores for short lists, the primary one with its interval, and the numbers of videos and answers."""
    scores = {name: shown(name, result.corpus[name]) for name in summary_metrics(result.corpus)}
    if PRIMARY in scores:
        scores[PRIMARY] = shown_interval(PRIMARY, primary_interval(result))
    counts = {"video": len(result.caption_rows), "answer": len(result.answer_rows)}
    judged = " and ".join(counted(count, noun) for noun, count in counts.items() if count)
    return f"{', '.join(f'{label_of(name)} {text}' for name, text in scores.items())} on {judged}"


def gained(result: Evaluation, parent: FoundModel | None) -> str:
    """A sentence with the gain over the model that training started from, and its cost; empty if that model's captions
    of the same validation videos are unknown."""
    own = {row.key: row for row in result.caption_rows}
    if parent is None or not own:
        return ""
    rows: Mapping[str, Prediction] = {row.key: row for row in rows_of_run(parent.folder.parent, "captions")}
    run_id = None if rows else Provenance.read(parent.folder, optional=True).run_id
    try:
        if run_id and (logged := run_records.rows_of(run_records.find_run(run_id)).get(("captions", "val"))):
            rows = run_records.read_logged("captions", *logged)
        comparison = compare_sides("val", (Side("start", (), (rows,)), Side("now", (), (own,))), (), resamples=2000)
    except InputError:  # its store or its captions are gone, or are of other videos
        return ""
    return comparison.sentence(comparison.duels[0])


def summary(result: Evaluation, step: int, work: Workspace, sentence: str = "") -> str:
    """Markdown for the top of the run's page."""
    rows = {"command": f"`{source.command_line()}`"}
    if work.parent:
        made, scores = Provenance.read(work.parent.folder, optional=True), source.read_scores(work.parent.folder)
        known = run_link(made.run_id, str(made.name)) if made.run_id else f"`{work.config.train.start_from}`"
        rows["started from"] = known
        if PRIMARY in scores:
            rows["started from"] += f", {label_of(PRIMARY)} {shown(PRIMARY, scores[PRIMARY])}"
        if sentence:
            rows["gained"] = sentence
    if result.caption_rows:
        rows[label_of("mean_length")] = shown("mean_length", result.corpus["mean_length"])
    head = f"**val**: {headline(result)}, best at step {step} of {work.config.train.steps}"
    return f"{head}\n\n{markdown_table(['', ''], rows.items())}"


# --- figures, drawn once at the end of a run


def log_figures(run: Path, result: Evaluation, tracker: Tracker) -> None:
    """Log learning curves and the mean score of each category as images; an untracked run has no curves to draw."""
    if tracker.run_id is None:
        return
    tracker.flush()
    curves = {metric: curve(tracker.run_id, metric) for metric in METRICS}
    folder, name = run / "figures", run.name
    drawn = draw_curves(folder / "learning_curves.png", {name: curves}, name)
    title = f"{name}\n{label_of(PRIMARY)} by category"
    for path in filter(None, (drawn, draw_categories(folder / "categories.png", result.caption_rows, title))):
        tracker.log_file(path, "figures")


def draw_curves(path: Path, runs: Mapping[str, Mapping[str, Curve]], title: str) -> Path | None:
    """Plot the learning curves of one run, or of several in the same panels, as PNG; None if there are no points.

    Args:
        runs: label → metric (of METRICS) → its curve.
    """
    given = {metric for curves in runs.values() for metric, points in curves.items() if points}
    panels = {name: panel for name, panel in PANELS.items() if given.intersection(panel[0])}
    if not panels:
        return None
    figure, axes = new_figure(len(panels), title)
    for axis, (name, (metrics, factor)) in zip(axes, panels.items(), strict=True):
        for (run, curves), metric in product(runs.items(), metrics):
            if not curves.get(metric):
                continue
            words = [run] * (len(runs) > 1) + [metric.partition("/")[2].replace("_", " ")] * (len(metrics) > 1)
            steps, values = np.array(curves[metric]).T * [[1], [factor]]
            axis.plot(steps, values, linewidth=1.5, label=" ".join(words))
            if len(runs) == 1 and metric == VALIDATION:
                best = steps[values.argmax()], values.max()
                axis.plot(*best, "o", color=RED, markersize=5)
                text = f"best {best[1]:.1f}"
                axis.annotate(text, best, (-6, -2), textcoords="offset points", ha="right", va="top", fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step")
        axis.locator_params(axis="x", integer=True)
        if len(runs) * len(metrics) > 1:
            axis.legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def draw_categories(path: Path, rows: Sequence[CaptionRow], title: str) -> Path | None:
    """Plot the mean score of each category as bars, best first, as PNG; None if there is only one category."""
    if len({row.category for row in rows} - {None}) < 2:
        return None
    groups, factor = by_category(rows), scale_of(PRIMARY)
    means = {name: factor * float(np.mean([row.scores[PRIMARY] for row in own])) for name, own in groups.items()}
    whole, best_first = means.pop("all"), sorted(means, key=lambda name: -means[name])
    figure, (axis,) = new_figure(1, title, height=1.2 + 0.28 * len(means))
    names = [f"{name}  ({len(groups[name])})" for name in best_first]
    bars = axis.barh(names, [means[name] for name in best_first], color=BLUE)
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axis.axvline(whole, color=GREY, linestyle="--", linewidth=1, label=f"all videos {whole:.1f}")
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel(label_of(PRIMARY, scale=True))
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return save_figure(figure, path)


def new_figure(panels: int, title: str, height: float = 3.4) -> tuple[Any, Any]:
    """A figure and its panels, without pyplot's global state. The first import takes more than a second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels if panels > 1 else 7.0, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Any, path: Path) -> Path:
    """Write it as PNG, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
