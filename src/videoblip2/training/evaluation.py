"""Evaluation of a model on a split as one tracked run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoblip2.captions.metrics import PRIMARY, label_of, shown, shown_interval, summary_metrics
from videoblip2.config import InputError, flatten
from videoblip2.data.annotations import read_annotations
from videoblip2.data.cached_features import CachedFeatures
from videoblip2.data.questions import ANSWER_MAP, Question, read_answer_map, read_questions
from videoblip2.evaluate import NOTHING, Evaluation, evaluate, with_answers
from videoblip2.predict import OpenModel, open_model
from videoblip2.progress import Progress, no_progress
from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.source import command_line, lineage_tags
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.record import data_digest, interval_scores, log_captions, primary_interval

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
        result, annotations = NOTHING, Path(config.data.annotations)
        categories: dict[str, int] = {}
        if config.data.task != "qa":
            categories = {video.video_id: video.category for video in read_annotations(annotations / f"{split}.json")}
            result = _captions(opened, split, progress, metrics)
        if config.data.task != "caption":
            result = _answers(result, opened, split, progress)
        for file, videos in _inputs(result, split):
            tracker.log_data(f"{annotations.name}/{file}", data_digest(annotations / file, store, videos), split)
        _log_scores(result, split, tracker)
        path = out or Path(config.run.out) / f"evaluate-{split}-{name}.jsonl"
        log_captions(path, split, result, config.train.probe_videos, categories, tracker)
        judged = len({*result.captions, *(answered.question.video_id for answered in result.answers)})
        return EvaluationResult(tracker.run_id, result.corpus, result.unavailable, path, judged, result)


def _captions(opened: OpenModel, split: str, progress: Progress, metrics: Sequence[str] | None) -> Evaluation:
    references = {video.video_id: video.captions for video in opened.videos(f"{split}.json")}
    stream: Any = opened.captioner.caption_videos(list(references), opened.store, opened.config.decode)
    captions = {video_id: caption.text for video_id, caption in progress(stream, len(references), f"caption {split}")}
    return evaluate(captions, references, metrics)


def _answers(result: Evaluation, opened: OpenModel, split: str, progress: Progress) -> Evaluation:
    questions = opened.questions(f"{split}_qa.json")
    stream: Any = opened.captioner.answer_questions(questions, CachedFeatures(opened.store), opened.config.decode)
    answers = {asked: answer.text for asked, answer in progress(stream, len(questions), f"answer {split}")}
    taught, known = opened.annotations(opened.config.data.train_qa), opened.annotations(ANSWER_MAP)
    train: list[Question] = read_questions(taught) if taught.exists() else []
    answer_map = read_answer_map(known) if known.exists() else None
    return with_answers(result, answers, questions, train, answer_map)


def _inputs(result: Evaluation, split: str) -> list[tuple[str, list[str]]]:
    """(annotation file, ids of its videos) of everything that was judged."""
    asked = sorted({answered.question.video_id for answered in result.answers})
    files = [(f"{split}.json", list(result.captions)), (f"{split}_qa.json", asked)]
    return [(file, videos) for file, videos in files if videos]


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
    judged = f"{len(result.captions)} videos" if result.captions else f"{len(result.answers)} answers"
    tracker.note(f"**{split}**, {judged}: {text}")
