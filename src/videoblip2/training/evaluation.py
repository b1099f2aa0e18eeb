"""Evaluation of a model on a split as one tracked run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoblip2.captions.metrics import PRIMARY, label_of, shown, shown_interval, summary_metrics
from videoblip2.captions.predictions import Kind
from videoblip2.config import InputError, flatten
from videoblip2.data.batches import CachedFeatures
from videoblip2.evaluate import Evaluation
from videoblip2.predict import OpenModel, open_model
from videoblip2.progress import Progress, no_progress
from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.source import command_line, lineage_tags
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.record import data_digest, interval_scores, log_predictions, primary_interval
from videoblip2.training.tasks import Entries, Task, evaluate_tasks, read_split, tasks_of

SPLITS = ("val", "test")


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one model on one split; `metrics` in pycocoevalcap's scale. `videos`: captioned, or asked about."""

    run_id: str | None
    metrics: dict[str, float]
    unavailable: dict[str, str]
    predictions: Path
    videos: int
    evaluation: Evaluation
    answers: Path | None = None  # the answers of a mixture, whose captions are in `predictions`


def evaluate_model(
    model: str,
    split: str,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    progress: Progress = no_progress,
    metrics: Sequence[str] | None = None,
) -> EvaluationResult:
    """Caption every video of a split, or answer its questions, or both, as `data.task` says; score, write predictions.

    Data paths are the checkpoint's own.

    Args:
        model: MODEL; its run, where it has one, is named in the tags.
        overrides: `key=value` on the configuration that the checkpoint carries.
        metrics: names in METRICS; None = the default ones.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: not one of {', '.join(SPLITS)}")
    opened = open_model(model, overrides)
    config, provenance, store = opened.config, opened.captioner.provenance, opened.store
    name = provenance.name or opened.version
    with open_run(
        RunSpec("evaluate", f"{split}-{name}", config.run.experiment, enabled=config.run.tracking)
    ) as tracker:
        tracker.set_tags({"model": model, "split": split, "trained_by": str(provenance.run_id)})
        tracker.set_tags({"command": command_line(), **lineage_tags(opened.folder)})
        tracker.log_config(flatten(config))
        entries = read_split(config, split, store)
        tasks, source = tasks_of(config), CachedFeatures(store)
        said = {task.kind: _say(task, opened, source, entries[task.kind], progress) for task in tasks}
        result = evaluate_tasks(config, entries, said, metrics)
        annotations = Path(config.data.annotations)
        for task in tasks:
            file, videos = task.file(config.data, split), {entry.video_id for entry in entries[task.kind]}
            tracker.log_data(f"{annotations.name}/{file}", data_digest(annotations / file, store, videos), split)
        _log_scores(result, split, tracker)
        path = out or Path(config.run.out) / f"evaluate-{split}-{name}.jsonl"
        files = log_predictions(files_beside(path, tasks), split, result, config.train.probe_videos, tracker)
        metrics_of, reasons = dict(result.corpus), dict(result.unavailable)
        answers = files[1] if len(files) > 1 else None
        return EvaluationResult(tracker.run_id, metrics_of, reasons, files[0], len(result.videos), result, answers)


def files_beside(path: Path, tasks: Sequence[Task]) -> dict[Kind, Path]:
    """Where the rows of each task go: into `path`, and those of a second task into a file beside it."""
    others = [path.with_name(f"{path.stem}_{task.kind}{path.suffix}") for task in tasks[1:]]
    return {task.kind: file for task, file in zip(tasks, [path, *others], strict=True)}


def _say(task: Task, opened: OpenModel, source: CachedFeatures, entries: Entries, progress: Progress) -> dict[str, str]:
    """What the model says of each entry, by the entry's key."""
    stream: Any = task.say(opened.captioner, entries, source, opened.config.decode)
    return {key: caption.text for key, caption in progress(stream, len(entries), task.kind)}


def _log_scores(result: Evaluation, split: str, tracker: Tracker) -> None:
    """The split's scores, the primary one with its interval, and a line at the head of the run's page."""
    scores = {f"{split}/{key}": value for key, value in result.corpus.items()}
    names = summary_metrics(result.corpus)
    text = ", ".join(f"{label_of(name)} {shown(name, result.corpus[name])}" for name in names)
    if PRIMARY in result.corpus:
        scores |= interval_scores(split, result)
        text += f"; {label_of(PRIMARY)} with its 95 % interval over videos: "
        text += shown_interval(PRIMARY, primary_interval(result))
    tracker.log_metrics(scores, step=0)
    counts = {"videos": len(result.caption_rows), "answers": len(result.answer_rows)}
    judged = " and ".join(f"{count} {name}" for name, count in counts.items() if count)
    tracker.note(f"**{split}**, {judged}: {text}")
