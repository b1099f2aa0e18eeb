"""One stage as one tracked run: open the run, train, keep the best checkpoint, log what a reader of the run wants."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from videoblip2.captions.metrics import default_metrics
from videoblip2.config import Config, InputError
from videoblip2.evaluate import NOTHING, Evaluation, evaluate, with_answers
from videoblip2.files import write_json
from videoblip2.model.build import describe_first_weights
from videoblip2.model.checkpoint import Checkpoint, save_checkpoint
from videoblip2.model.model_card import write_card
from videoblip2.model.qformer.weight_report import WeightReport
from videoblip2.provenance import FeatureOrigin, Provenance
from videoblip2.tracking import open_run
from videoblip2.tracking.source import ENVIRONMENT_FILE, write_environment
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.ce import ce_step
from videoblip2.training.faults import only_one_in, stop_well
from videoblip2.training.loop import Best, StepFunction, checkpoint_folder, train
from videoblip2.training.monitors import Watch
from videoblip2.training.naming import run_name, what_differs
from videoblip2.training.observer import Observer
from videoblip2.training.origin import origin
from videoblip2.training.progress import Progress, no_progress
from videoblip2.training.record import log_inputs, log_results, log_weights
from videoblip2.training.resume import find_saved, plain, resumed_config
from videoblip2.training.rewards import build_reward, check_reward, reward_references
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
    usual: Config | None = None,
    observer: Observer | None = None,
) -> StageResult:
    """Train stage `ce` or `scst` as one run. Raises InputError before the run opens where the input is wrong.

    With `train.resume` the run of the saved state goes on, in MLflow, too.

    Args:
        show_weights: is given, before training starts, a line a part of the network on its first weights, and the
            report of each Q-Former that was loaded, by modality.
        usual: the experiment file before the user's changes, which the run's name then says.
        observer: see `training.observer`.
    """
    _check_task(stage, config)
    if stage == "scst":
        check_reward(config)
    said = what_differs(stage, config, usual) if usual else []
    config = inherit_model(resumed_config(config, stage))
    name, run = config.run.name or run_name(stage, config, said), config.run
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
        log_weights(folder, weights, work.reports, tracker)
        digests = log_inputs(work, folder, tracker, said)
        return _run(stage, name, work, tracker, digests, progress, saved is not None, observer)


def _check_task(stage: str, config: Config) -> None:
    if stage == "scst" and config.data.task != "caption":
        raise InputError(
            f"data.task={config.data.task}: self-critical training rewards captions; leave it out, or use `vb2 ce`"
        )


def _run(
    stage: str,
    name: str,
    work: Workspace,
    tracker: Tracker,
    digests: dict[str, str],
    progress: Progress,
    resume: bool = False,
    observer: Observer | None = None,
) -> StageResult:
    folder = checkpoint_folder(work, name)
    provenance = _provenance(stage, name, work, tracker, digests)
    keep = partial(_keep, folder, work, provenance)
    state = _open_state(stage, name, work, tracker, resume)
    watch = Watch(work.config.scst.watch, reward_references(work)) if stage == "scst" else None
    take_step = _step_function(stage, work)
    best = train(work, take_step, keep, tracker, progress, stage, stage == "scst", state, resume, watch, observer)
    result = _judge(work, best)
    metrics = {name: value for name, value in result.corpus.items()}
    _keep_metrics(folder, {**metrics, "step": float(best.step)})
    model = log_results(name, folder, result, best.step, work, tracker)
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


def _keep(folder: Path, work: Workspace, provenance: Provenance, best: Best) -> None:
    checkpoint = Checkpoint(
        work.model,
        work.tokenizers,
        config=work.config.model_dump(mode="json"),
        metrics={**{f"val/{name}": value for name, value in best.metrics.items()}, "step": float(best.step)},
        provenance=provenance.model_copy(update={"step": best.step}),
    )
    extras = {ENVIRONMENT_FILE: write_environment}
    if work.train_videos:
        extras["document_frequencies"] = work.document_frequencies.save
    save_checkpoint(folder, checkpoint, extras)


def _keep_metrics(folder: Path, metrics: dict[str, float]) -> None:
    write_json(folder / "metrics.json", metrics)
    write_card(folder)


def _judge(work: Workspace, best: Best) -> Evaluation:
    references = {video.video_id: video.captions for video in work.val_videos}
    result = evaluate(best.captions, references, default_metrics(fast=True)) if references else NOTHING
    if work.val_questions:
        result = with_answers(result, best.answers, work.val_questions, work.train_questions)
    return result


def _provenance(stage: str, name: str, work: Workspace, tracker: Tracker, digests: dict[str, str]) -> Provenance:
    return origin(work.parent).model_copy(
        update={
            "stage": stage,
            "name": name,
            "run_id": tracker.run_id,
            "data": digests,
            "features": FeatureOrigin.of_manifest(work.store.manifest),
        }
    )
