"""Evaluation of a model on a split as one tracked run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoblip2.config import Config, InputError, parse_config
from videoblip2.data.annotations import read_annotations
from videoblip2.evaluate import ALL_METRICS, Evaluation, evaluate, write_predictions
from videoblip2.features.store import FeatureStore, digest
from videoblip2.model.checkpoint import load_checkpoint
from videoblip2.predict import Captioner, pick_device
from videoblip2.tracking import find_model, open_run
from videoblip2.training.progress import Progress, no_progress
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
    network.compiled_decoding = config.decode.compile
    captioner = Captioner(network, checkpoint.tokenizers, checkpoint.provenance, model, found.version)
    name = str(checkpoint.provenance.get("name", found.version))
    with open_run("evaluate", f"{split}-{name}", config.run.experiment, enabled=config.run.tracking) as tracker:
        tracker.set_tags({"model": model, "split": split, "trained_by": str(checkpoint.provenance.get("run_id"))})
        result, data = _evaluate(captioner, config, split, progress, metrics)
        tracker.log_data(f"{Path(config.data.annotations).name}/{split}.json", data, split)
        tracker.log_metrics({f"{split}/{key}": value for key, value in result.corpus.items()}, step=0)
        tracker.log_table("predictions", result.rows()[: config.train.probe_videos])
        path = out or Path(config.run.out) / f"evaluate-{split}-{name}.jsonl"
        write_predictions(path, result)
        tracker.log_file(path)
        return EvaluationResult(tracker.run_id, result.corpus, result.unavailable, path, len(result.captions), result)


def _evaluate(
    captioner: Captioner, config: Config, split: str, progress: Progress, metrics: Sequence[str]
) -> tuple[Evaluation, str]:
    store = FeatureStore(Path(config.data.features))
    videos = read_annotations(Path(config.data.annotations) / f"{split}.json")
    references = {video.video_id: video.captions for video in with_features(videos, store, f"{split}.json")}
    stream: Any = captioner.caption_videos(list(references), store, config.decode)
    captions = {video_id: caption.text for video_id, caption in progress(stream, len(references), f"caption {split}")}
    return evaluate(captions, references, metrics), digest(store, list(references))
