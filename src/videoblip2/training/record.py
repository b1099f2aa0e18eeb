"""What a stage logs to its run beside its curves: at the start what it is, at the end its results."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from videoblip2.captions.intervals import Interval, interval, resampled_means
from videoblip2.captions.metrics import PRIMARY, label_of, shown, shown_interval, summary_metrics
from videoblip2.captions.predictions import FILES, Kind, Row, write_rows
from videoblip2.config import flatten, to_yaml
from videoblip2.evaluate import Evaluation
from videoblip2.features.store import FeatureStore, digest
from videoblip2.files import write_text
from videoblip2.modality import modality_label
from videoblip2.model.build import reports_as_json
from videoblip2.model.qformer.weight_report import WeightReport
from videoblip2.tracking import local_model
from videoblip2.tracking.mlflow.run_records import ROW_TAGS, curve, run_link
from videoblip2.tracking.source import ENVIRONMENT_FILE, command_line, environment, lineage_tags, source_diff
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.figures import METRICS, draw_categories, draw_curves
from videoblip2.training.workspace import Workspace

DIGITS = 12


def log_inputs(work: Workspace, folder: Path, tracker: Tracker, said: Sequence[str] = ()) -> dict[str, str]:
    """Log configuration, tags, lineage, data, source and environment; return the digest of each split's data.

    Args:
        folder: the run's, for the files that are logged.
        said: what the run's name says of its configuration.
    """
    config, annotations = work.config, Path(work.config.data.annotations)
    tracker.log_config(flatten(config))
    tags = {"seed": str(config.seed), "modalities": modality_label(config.model.modalities), "task": config.data.task}
    tags["command"] = command_line()
    if work.parent:
        tags |= {"warm_start": work.parent, **lineage_tags(local_model(work.parent))}
    tracker.set_tags({**tags, **({"differs": " ".join(said)} if said else {})})
    digests = {}
    for context, file, video_ids in work.inputs:
        both = data_digest(annotations / file, work.store, video_ids)
        digests[context if context not in digests else f"{context}_qa"] = both
        tracker.log_data(f"{annotations.name}/{file}", both, context)
    _log_text(folder / ENVIRONMENT_FILE, environment(), tracker)
    _log_text(folder / "source.diff", source_diff(), tracker)
    return digests


def data_digest(file: Path, store: FeatureStore, video_ids: Iterable[str]) -> str:
    """12 hex digits (sha256) over an annotation file and the features of its videos."""
    annotations = hashlib.sha256(file.read_bytes()).hexdigest()[:DIGITS]
    features = digest(store, video_ids)
    return hashlib.sha256(f"{annotations}{features}".encode()).hexdigest()[:DIGITS]


def log_weights(folder: Path, lines: Mapping[str, str], reports: Mapping[str, WeightReport], tracker: Tracker) -> None:
    """Log what became of every tensor as `first_weights.json` (also beside the checkpoint), and a tag for each part."""
    _log_text(folder / "first_weights.json", json.dumps(reports_as_json(lines, reports), indent=1) + "\n", tracker)
    tracker.set_tags({f"weights.{part.replace(' ', '_')}": line for part, line in lines.items()})


def log_results(name: str, checkpoint: Path, result: Evaluation, step: int, work: Workspace, tracker: Tracker) -> str:
    """Log scores under `best/`, captions, figures, a summary, the checkpoint as a model; return its MODEL name."""
    folder, config = checkpoint.parent, work.config
    scores = {f"val/{key}": value for key, value in result.corpus.items()}
    tracker.log_best({**scores, **interval_scores("val", result), "step": float(step)})
    files = {kind: folder / name.format(split="val") for kind, name in FILES.items()}
    log_predictions(files, "val", result, config.train.probe_videos, tracker)
    _log_text(folder / "config.yaml", to_yaml(config), tracker)
    log_figures(name, folder / "figures", result, tracker)
    tracker.note(summary(result, step, work))
    return tracker.log_checkpoint(checkpoint, name, scores)


def log_predictions(
    files: Mapping[Kind, Path], split: str, result: Evaluation, probe: int, tracker: Tracker
) -> list[Path]:
    """Log all rows as JSON lines, and the first `probe` of each kind as a table that every run has.

    Args:
        files: where the rows of each kind go; a kind that has none is not written, and its older file is removed.
    """
    for table, lines in result.tables().items():
        tracker.log_table(table, lines[:probe])
    rows: dict[Kind, Sequence[Row]] = {"captions": result.caption_rows, "answers": result.answer_rows}
    written = [(kind, path) for kind, path in files.items() if rows[kind]]
    for path in set(files.values()) - {path for _, path in written}:
        path.unlink(missing_ok=True)
    for kind, path in written:
        write_rows(path, rows[kind])
        tracker.log_file(path)
        tracker.set_tags({f"{ROW_TAGS[kind]}{split}": path.name})
    return [path for _, path in written]


def log_figures(name: str, folder: Path, result: Evaluation, tracker: Tracker) -> None:
    """Log learning curves and the mean score of each category as images; an untracked run has no curves to draw."""
    if tracker.run_id is None:
        return
    tracker.flush()
    curves = {metric: curve(tracker.run_id, metric) for metric in METRICS}
    scores = {row.video_id: row.scores[PRIMARY] for row in result.caption_rows}
    categories = {row.video_id: row.category or 0 for row in result.caption_rows}
    for path in (
        draw_curves(folder / "learning_curves.png", {name: curves}, name),
        draw_categories(folder / "categories.png", scores, categories, f"{name}\n{label_of(PRIMARY)} by category"),
    ):
        if path is not None:
            tracker.log_file(path, "figures")


def interval_scores(split: str, result: Evaluation) -> dict[str, float]:
    """The ends of the primary metric's interval, as metrics; none where no captions were judged."""
    if not result.caption_rows:
        return {}
    sure = primary_interval(result)
    return {f"{split}/{PRIMARY}_ci_low": sure.low, f"{split}/{PRIMARY}_ci_high": sure.high}


def primary_interval(result: Evaluation) -> Interval:
    """The primary metric with its 95 % interval over videos."""
    scores = np.array([[row.scores[PRIMARY]] for row in result.caption_rows])
    return interval(float(scores.mean()), resampled_means(scores)[:, 0])


def summary(result: Evaluation, step: int, work: Workspace) -> str:
    """The markdown at the head of the run's page."""
    scores = []
    if result.caption_rows:
        value, interval_text = shown_interval(PRIMARY, primary_interval(result)).split(" ", 1)
        count = f"on {len(result.caption_rows)} validation videos"
        scores.append(f"**{label_of(PRIMARY)} {value}** {interval_text} {count}")
    if result.answer_rows:
        scores.append(
            f"**accuracy {shown('accuracy', result.corpus['accuracy'])}** of {len(result.answer_rows)} answers"
        )
    head = f"{', '.join(scores)}, best at step {step} of {work.config.train.steps}"
    rows = {"command": f"`{command_line()}`"}
    if work.parent:
        made = lineage_tags(local_model(work.parent))
        if {"lineage.parent_run", "lineage.parent_name"} <= made.keys():
            rows["started from"] = run_link(made["lineage.parent_run"], made["lineage.parent_name"])
            if "lineage.parent_cider" in made:
                rows["started from"] += f", {label_of(PRIMARY)} {shown(PRIMARY, float(made['lineage.parent_cider']))}"
        else:
            rows["started from"] = f"`{work.parent}`"
    if result.caption_rows:
        others = [name for name in summary_metrics(result.corpus) if name not in (PRIMARY, "accuracy")]
        rows["also"] = ", ".join(f"{label_of(name)} {shown(name, result.corpus[name])}" for name in others)
        rows[label_of("mean_length")] = shown("mean_length", result.corpus["mean_length"])
    return head + "\n\n| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _log_text(path: Path, text: str, tracker: Tracker) -> None:
    """Write a text beside the checkpoint and log it; an empty one leaves no file, also not an older run's."""
    if not text:
        path.unlink(missing_ok=True)
        return
    write_text(path, text)
    tracker.log_file(path)
