"""One stage as one tracked run: open the run, train, keep the best checkpoint, log what a reader of the run wants."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from videoblip2.config import Config, InputError, flatten, to_yaml
from videoblip2.evaluate import FAST_METRICS, NOTHING, Evaluation, evaluate, with_answers, write_predictions
from videoblip2.features.store import FeatureStore, digest
from videoblip2.model.checkpoint import Checkpoint, save_checkpoint
from videoblip2.model.first_weights import describe_first_weights, reports_as_json
from videoblip2.model.model_card import write_card
from videoblip2.model.weight_report import WeightReport
from videoblip2.tracking import open_run
from videoblip2.tracking.environment import FILE as ENVIRONMENT
from videoblip2.tracking.environment import write_environment
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.ce import ce_step
from videoblip2.training.faults import only_one_in, stop_well
from videoblip2.training.loop import Best, StepFunction, checkpoint_folder, train
from videoblip2.training.monitors import Watch
from videoblip2.training.observer import Observer
from videoblip2.training.origin import origin
from videoblip2.training.progress import Progress, no_progress
from videoblip2.training.resume import find_saved, plain, resumed_config
from videoblip2.training.rewards import build_reward, reward_references
from videoblip2.training.scst import scst_step
from videoblip2.training.state import FOLDER, StateFile
from videoblip2.training.workspace import Workspace, inherit_model, open_workspace, start_copy

ShowWeights = Callable[[Mapping[str, str], Mapping[str, WeightReport]], None]


@dataclass(frozen=True)
class StageResult:
    """A finished stage. `model` is a MODEL: the MLflow model, or the folder without tracking."""

    stage: str
    name: str
    run_id: str | None
    model: str
    checkpoint: Path
    best_step: int
    metrics: dict[str, float]


def run_stage(
    stage: str,
    config: Config,
    progress: Progress = no_progress,
    show_weights: ShowWeights | None = None,
    observer: Observer | None = None,
) -> StageResult:
    """Train stage `ce` or `scst` as one run. Raises InputError before the run opens where the input is wrong.

    With `train.resume` the run of the saved state goes on, in MLflow, too.

    Args:
        show_weights: is given, before training starts, a line a part of the network on its first weights, and the
            report of each Q-Former that was loaded, by modality.
        observer: see `training.observer`.
    """
    _check_task(stage, config)
    config = inherit_model(resumed_config(config, stage))
    name, run = config.run.name or run_name(stage, config), config.run
    folder = Path(run.out) / name
    saved = find_saved(stage, folder, config)
    work = open_workspace(config)
    weights = describe_first_weights(work.model, work.reports, config.model.language_model, work.parent)
    if show_weights is not None:
        show_weights(weights, work.reports)
    earlier, parent = saved["run_id"] if saved else None, observer.parent_run_id if observer else None
    if observer is not None:
        earlier = earlier or observer.run_id
    opened = open_run(stage, name, run.experiment, run.tracking, earlier, folder, parent)
    with only_one_in(folder), opened as tracker, stop_well(tracker, folder):
        if observer is not None:
            observer.opened(tracker)
        _log_weights(folder, weights, work.reports, tracker)
        return _run(stage, name, work, tracker, progress, saved is not None, observer)


def _check_task(stage: str, config: Config) -> None:
    if stage == "scst" and config.data.task != "caption":
        raise InputError(
            f"data.task={config.data.task}: self-critical training rewards captions; leave it out, or use `vb2 ce`"
        )


def run_name(stage: str, config: Config) -> str:
    """Says what differs: `ce-lr0.0001-seed0`, `scst-greedy-lr1e-05-seed0`, `ce-video-…` for one modality."""
    parts = [stage]
    if config.model.modalities != "both":
        parts.append(config.model.modalities)
    if config.data.task != "caption":
        parts.append(config.data.task)
    if stage == "scst":
        parts.append(config.scst.baseline)
    return "-".join([*parts, f"lr{config.optim.lr:g}", f"seed{config.seed}"])


def _run(
    stage: str,
    name: str,
    work: Workspace,
    tracker: Tracker,
    progress: Progress,
    resume: bool = False,
    observer: Observer | None = None,
) -> StageResult:
    folder = checkpoint_folder(work, name)
    digests = _log_inputs(stage, work, tracker)
    provenance = _provenance(stage, name, work, tracker, digests)
    keep = partial(_keep, folder, work, provenance)
    state = _open_state(stage, name, work, tracker, resume)
    watch = Watch(work.config.scst.watch, reward_references(work)) if stage == "scst" else None
    take_step = _step_function(stage, work)
    best = train(work, take_step, keep, tracker, progress, stage, stage == "scst", state, resume, watch, observer)
    result = _judge(work, best)
    metrics = {name: value for name, value in result.corpus.items()}
    _keep_metrics(folder, {**metrics, "step": float(best.step)})
    model = _log_results(name, folder, result, metrics, work, tracker)
    state.finish(run_id=tracker.run_id, model=model, steps=work.config.train.steps)
    tracker.drop_state()
    return StageResult(stage, name, tracker.run_id, model, folder, best.step, metrics)


def _step_function(stage: str, work: Workspace) -> StepFunction:
    if stage == "ce":
        return partial(ce_step, work)
    return partial(scst_step, work, build_reward(work), start=start_copy(work))


def _open_state(stage: str, name: str, work: Workspace, tracker: Tracker, resume: bool) -> StateFile:
    """The state file of this run; what an earlier run left there is forgotten unless it goes on."""
    identity = {"stage": stage, "name": name, "run_id": tracker.run_id, "config": plain(work.config)}
    state = StateFile(Path(work.config.run.out) / name / FOLDER, identity)
    if not resume:
        state.clear()
    return state


def _keep(folder: Path, work: Workspace, provenance: dict[str, Any], best: Best) -> None:
    checkpoint = Checkpoint(
        work.model,
        work.tokenizers,
        config=work.config.model_dump(mode="json"),
        metrics={**{f"val/{name}": value for name, value in best.metrics.items()}, "step": float(best.step)},
        provenance={**provenance, "step": best.step},
    )
    extras = {ENVIRONMENT: write_environment}
    if work.train_videos:
        extras["document_frequencies"] = work.document_frequencies.save
    save_checkpoint(folder, checkpoint, extras)


def _keep_metrics(folder: Path, metrics: dict[str, float]) -> None:
    draft = folder / ".metrics.json.tmp"
    draft.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, folder / "metrics.json")
    write_card(folder)


def _judge(work: Workspace, best: Best) -> Evaluation:
    references = {video.video_id: video.captions for video in work.val_videos}
    result = evaluate(best.captions, references, FAST_METRICS) if references else NOTHING
    if work.val_questions:
        result = with_answers(result, best.answers, work.val_questions, work.train_questions)
    return result


def _log_inputs(stage: str, work: Workspace, tracker: Tracker) -> dict[str, str]:
    """Configuration, tags and data digests."""
    config = work.config
    tracker.log_config(flatten(config))
    digests = {}
    for context, file, ids in work.inputs:
        both = data_digest(Path(config.data.annotations) / file, work.store, ids)
        digests[context if context not in digests else f"{context}_qa"] = both
        tracker.log_data(f"{Path(config.data.annotations).name}/{file}", both, context)
    tags = {"seed": str(config.seed), "modalities": config.model.modalities, "task": config.data.task}
    tracker.set_tags({**tags, **({"warm_start": work.parent} if work.parent else {})})
    return digests


def data_digest(annotations: Path, store: FeatureStore, video_ids: Iterable[str]) -> str:
    """12 hex digits (sha256) over an annotation file and the features of its videos."""
    texts = hashlib.sha256(annotations.read_bytes()).hexdigest()[:12]
    features = digest(store, video_ids)
    return hashlib.sha256(f"{texts}{features}".encode()).hexdigest()[:12]


def _log_weights(folder: Path, lines: Mapping[str, str], reports: Mapping[str, WeightReport], tracker: Tracker) -> None:
    """What became of every tensor as `first_weights.json` beside the checkpoint and in the run, and a tag a part."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "first_weights.json"
    file.write_text(json.dumps(reports_as_json(lines, reports), indent=1) + "\n", encoding="utf-8")
    tracker.log_file(file)
    tracker.set_tags({f"weights.{part.replace(' ', '_')}": line for part, line in lines.items()})


def _provenance(stage: str, name: str, work: Workspace, tracker: Tracker, digests: dict[str, str]) -> dict[str, Any]:
    manifest = work.store.manifest or {}
    return {
        "stage": stage,
        "name": name,
        "run_id": tracker.run_id,
        **origin(work.parent),
        "data": digests,
        "features": {key: manifest[key] for key in ("clip", "clap", "settings") if key in manifest} or None,
    }


def _log_results(
    name: str, folder: Path, result: Evaluation, metrics: dict[str, float], work: Workspace, tracker: Tracker
) -> str:
    """Best metrics, the probe table, the predictions, the configuration, the checkpoint as a model."""
    tracker.log_best({f"val/{key}": value for key, value in metrics.items()})
    for table, rows in (("predictions", result.rows()), ("answers", result.answer_rows())):
        if rows:
            tracker.log_table(table, rows[: work.config.train.probe_videos])
    write_predictions(folder.parent / "val_predictions.jsonl", result)
    tracker.log_file(folder.parent / "val_predictions.jsonl")
    (folder.parent / "config.yaml").write_text(to_yaml(work.config), encoding="utf-8")
    tracker.log_file(folder.parent / "config.yaml")
    return tracker.log_checkpoint(folder, name, {f"val/{key}": value for key, value in metrics.items()})
