"""Evaluation of a model on a split as one tracked run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoblip2.config import Config, InputError, flatten, parse_config
from videoblip2.data.annotations import VideoAnnotation, read_annotations
from videoblip2.evaluate import ALL_METRICS, Evaluation, evaluate
from videoblip2.features.store import FeatureStore
from videoblip2.model.checkpoint import load_checkpoint
from videoblip2.predict import Captioner, pick_device
from videoblip2.tracking import find_model, open_run
from videoblip2.tracking.lineage import command_line, lineage_tags
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.progress import Progress, no_progress
from videoblip2.training.record import cider_interval, data_digest, log_captions
from videoblip2.training.workspace import with_features

SPLITS = ("val", "test")


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one model on one split; `metrics` in pycocoevalcap's scale."""

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
    metrics: Sequence[str] = ALL_METRICS,
) -> EvaluationResult:
    """Caption every video of a split, score the captions, write predictions; data paths are the checkpoint's own.

    Args:
        model: MODEL; its run, where it has one, is named in the tags.
        overrides: `key=value` on the configuration that the checkpoint carries.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: not one of {', '.join(SPLITS)}")
    found = find_model(model)
    checkpoint = load_checkpoint(found.folder)
    config = parse_config(checkpoint.config, overrides, source=f"{model}'s config.yaml")
    network = checkpoint.model.to(pick_device(config.device)).eval()
    captioner = Captioner(network, checkpoint.tokenizers, checkpoint.provenance, model, found.version)
    name = str(checkpoint.provenance.get("name", found.version))
    with open_run("evaluate", f"{split}-{name}", config.run.experiment, enabled=config.run.tracking) as tracker:
        tracker.set_tags({"model": model, "split": split, "trained_by": str(checkpoint.provenance.get("run_id"))})
        tracker.set_tags({"command": command_line(), **lineage_tags(found.folder)})
        tracker.log_config(flatten(config))
        videos, data = _split(config, split)
        tracker.log_data(f"{Path(config.data.annotations).name}/{split}.json", data, split)
        result = _evaluate(captioner, config, videos, progress, f"caption {split}", metrics)
        _log_scores(result, split, tracker)
        path = out or Path(config.run.out) / f"evaluate-{split}-{name}.jsonl"
        categories = {video.video_id: video.category for video in videos}
        log_captions(path, split, result, config.train.probe_videos, categories, tracker)
        return EvaluationResult(tracker.run_id, result.corpus, result.unavailable, path, len(result.captions), result)


def _split(config: Config, split: str) -> tuple[list[VideoAnnotation], str]:
    """The videos of a split, all of which have features, and the digest of that data."""
    store, file = FeatureStore(Path(config.data.features)), Path(config.data.annotations) / f"{split}.json"
    videos = with_features(read_annotations(file), store, file.name)
    return videos, data_digest(file, store, videos)


def _evaluate(
    captioner: Captioner,
    config: Config,
    videos: Sequence[VideoAnnotation],
    progress: Progress,
    description: str,
    metrics: Sequence[str],
) -> Evaluation:
    references = {video.video_id: video.captions for video in videos}
    stream: Any = captioner.caption_videos(list(references), FeatureStore(Path(config.data.features)), config.decode)
    captions = {video_id: caption.text for video_id, caption in progress(stream, len(references), description)}
    return evaluate(captions, references, metrics)


def _log_scores(result: Evaluation, split: str, tracker: Tracker) -> None:
    """The split's scores, CIDEr with its interval, and a line at the head of the run's page."""
    scores = {f"{split}/{key}": value for key, value in result.corpus.items()}
    text = ", ".join(f"{name} {100 * result.corpus[name]:.1f}" for name in ALL_METRICS if name in result.corpus)
    if "CIDEr" in result.corpus:
        sure = cider_interval(result)
        scores |= {f"{split}/CIDEr_ci_low": sure.low, f"{split}/CIDEr_ci_high": sure.high}
        text += f"; CIDEr's 95 % interval over videos is [{100 * sure.low:.1f}, {100 * sure.high:.1f}]"
    tracker.log_metrics(scores, step=0)
    tracker.note(f"**{split}**, {len(result.captions)} videos: {text}")
