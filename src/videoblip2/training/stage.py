"""Run a stage as one tracked run: open the run, train, keep the best checkpoint, log the results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread

from videoblip2.captions.metrics import default_metrics
from videoblip2.captions.rewards import find_reward
from videoblip2.config import Config, InputError, flatten
from videoblip2.data.prepare import described
from videoblip2.errors import Progress, no_progress
from videoblip2.files import write_text
from videoblip2.model.build import describe_first_weights
from videoblip2.model.checkpoint import Checkpoint, full_state, save_checkpoint
from videoblip2.model.load_weights import WeightReport
from videoblip2.provenance import Provenance
from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.source import ENVIRONMENT_FILE, environment, revision_tags
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.ce import ce_step
from videoblip2.training.distributed import find_together, join, sharing_errors
from videoblip2.training.interruptions import only_one_in, stop_well
from videoblip2.training.loop import Observer, Training, train
from videoblip2.training.record import data_digest, log_inputs, log_results, log_weights
from videoblip2.training.resume import find_saved, resumed_config, run_name, what_differs
from videoblip2.training.rollout import BandMonitor, build_reward, check_reward, reward_references
from videoblip2.training.scst import scst_step
from videoblip2.training.state import FOLDER, Identity, StageResult, StateFile, TrainState, read_saved
from videoblip2.training.tasks import CAPTIONS, evaluate_tasks, inputs_of, tasks_of
from videoblip2.training.workspace import Validation, Workspace, check_texts, inherit_model, open_workspace, start_copy

ShowWeights = Callable[[Mapping[str, str], Mapping[str, WeightReport]], None]


@dataclass(frozen=True)
class Stage:
    """A stage that is ready to run.

    kind: `ce` or `scst`. differences: parts of the run's name that describe the configuration. weights: for each
    part of the network, a line on its first weights. saved: the state to resume from.
    """

    kind: str
    name: str
    work: Workspace
    differences: Sequence[str]
    weights: Mapping[str, str]
    saved: TrainState | None = None

    @property
    def folder(self) -> Path:
        """The run's folder, OUT/NAME."""
        return Path(self.work.config.run.out) / self.name

    @property
    def checkpoint(self) -> Path:
        """Where the best checkpoint goes."""
        return self.folder / "best"


@sharing_errors()
def run_stage(
    stage: str,
    config: Config,
    progress: Progress = no_progress,
    show_weights: ShowWeights | None = None,
    usual: Config | None = None,
    observer: Observer | None = None,
) -> StageResult:
    """Train stage `ce` or `scst` as one run. Raises InputError before the run opens if the input is wrong.

    With `train.resume` the run of the saved state is resumed, in MLflow too.

    Args:
        show_weights: called before training with `Stage.weights` and the reports of loaded Q-Formers, by modality.
        usual: the experiment file before overrides; the run's name shows the differences.
        observer: see `training.loop`.
    """
    world, observer = join(), observer or Observer()
    ready = open_stage(stage, config, usual, progress if world.leads else no_progress)
    run, folder = ready.work.config.run, ready.folder
    earlier = (ready.saved.identity.run_id if ready.saved else None) or observer.run_id
    spec = RunSpec(stage, ready.name, run.experiment, run.tracking, earlier, folder, observer.parent_run_id)
    if not world.leads:
        with open_run(replace(spec, enabled=False)) as tracker:
            return _run(ready, tracker, no_progress, Observer())
    if show_weights:
        show_weights(ready.weights, ready.work.reports)
    with only_one_in(folder), open_run(spec) as tracker, stop_well(tracker, folder):
        observer.opened(tracker)
        return _run(ready, tracker, progress, observer)


def open_stage(kind: str, config: Config, usual: Config | None = None, progress: Progress = no_progress) -> Stage:
    """Read everything that a stage needs, and find its saved state if it resumes."""
    if kind == "scst":
        if CAPTIONS not in tasks_of(config):
            fault = f"data.task={config.data.task}: self-critical training rewards captions"
            raise InputError(f"{fault}; leave it out, or use `vb2 ce`")
        for reward in config.scst.reward.weights:
            find_reward(reward)
    differences, world = what_differs(kind, config, usual) if usual else [], join()
    run = config.run.model_copy(update=world.first(lambda: resumed_config(config).run.model_dump()))
    config, source = config.model_copy(update={"run": run}), config.train.start_from
    parent = find_together(source) if source else None
    config = inherit_model(config, parent)
    name = config.run.name or run_name(kind, config, differences)
    folder = Path(config.run.out) / name
    saved = find_saved(kind, folder, config) if world.leads else None
    if world.first(lambda: saved is not None):
        saved = saved or read_saved(folder / FOLDER)
    work = open_workspace(config, progress, parent)
    work.captions_only = kind == "scst"
    if world.leads:
        check_texts(work, taught=kind == "ce" or config.scst.cross_entropy_weight > 0)
    if kind == "scst":
        check_reward(work)
    weights = describe_first_weights(work.model, work.reports, config.model.language_model, config.train.start_from)
    return Stage(kind, name, work, differences, weights, saved)


def _run(stage: Stage, tracker: Tracker, progress: Progress, observer: Observer) -> StageResult:
    work, leads, scst = stage.work, stage.work.world.leads, stage.kind == "scst"
    identity = Identity(stage=stage.kind, name=stage.name, run_id=tracker.run_id, config=flatten(work.config))
    file, start = StateFile(stage.folder / FOLDER, identity), start_copy(work) if scst else None
    step = partial(scst_step, work, build_reward(work, start), start=start) if scst else partial(ce_step, work)
    bands = BandMonitor(work.config.scst.watch, reward_references(work)) if scst and leads else None
    resume = stage.saved is not None
    training = Training(work, step, id, tracker, progress, stage.kind, scst, file, resume, bands, observer)
    if not leads:  # one process keeps the best
        if work.config.train.shard:
            training.keep = lambda _: full_state(work.model)
        best = train(training)
        return StageResult(stage.kind, stage.name, None, "", stage.checkpoint, best.step, dict(best.metrics))
    log_weights(stage.folder, stage.weights, work.reports, tracker)
    log_inputs(work, stage.folder, tracker, stage.differences)
    if not resume:
        file.clear()  # an earlier run's state
    with data_logged(work, tracker) as digests:
        training.keep = partial(_keep, stage, _provenance(stage, tracker.run_id), digests)
        best = train(training)
        result = evaluate_tasks(work.config, work.val, best.texts, default_metrics(fast=True))
        model = log_results(stage.checkpoint, result, best.step, work, digests.result(), tracker)
    ended = StageResult(stage.kind, stage.name, tracker.run_id, model, stage.checkpoint, best.step, dict(result.corpus))
    file.finish(ended)
    tracker.drop_state()
    return ended


@contextmanager
def data_logged(work: Workspace, tracker: Tracker) -> Iterator[Future[dict[str, str]]]:
    """Digests by split, computed in a thread that reads all features; logged when the block ends, if complete."""
    digests, inputs = Future[dict[str, str]](), inputs_of(work.config, {"train": work.train, "val": work.val})

    def make() -> None:
        try:
            digests.set_result({name: data_digest(file, work.store, ids) for name, _, file, ids in inputs})
        except Exception as error:
            digests.set_exception(error)

    Thread(target=make, daemon=True, name="digests").start()
    try:
        yield digests
    finally:
        if digests.done() and not digests.exception():
            for name, split, file, _ in inputs:
                tracker.log_data(f"{file.parent.name}/{file.name}", digests.result()[name], split)


def _keep(stage: Stage, provenance: Provenance, digests: Future[dict[str, str]], best: Validation) -> None:
    """Save the network as the best checkpoint. Raises InputError if the thread found unusable features."""
    work, data = stage.work, digests.result() if digests.done() else {}
    checkpoint = Checkpoint(
        work.model,
        work.tokenizers,
        config=work.config.model_dump(mode="json"),
        metrics={**{f"val/{name}": value for name, value in best.metrics.items()}, "step": float(best.step)},
        provenance=provenance.model_copy(update={"step": best.step, "data": data}),
    )
    extras: dict[str, Callable[[Path], None]] = {ENVIRONMENT_FILE: partial(write_text, text=environment())}
    if work.train_videos:
        extras["document_frequencies"] = work.document_frequencies.save
    save_checkpoint(stage.checkpoint, checkpoint, extras)


def _provenance(stage: Stage, run_id: str | None) -> Provenance:
    """The checkpoint's origin. `train.start_from` may be an alias or a folder, which can change, so the parent is also
    named by its run and its version (`NAME/3`, `m-…` or a folder's name)."""
    found = stage.work.parent
    inherited = Provenance.read(found.folder, optional=True) if found else None
    kinds = {task.kind for task in tasks_of(stage.work.config)}
    return Provenance(
        stage=stage.kind,
        name=stage.name,
        run_id=run_id,
        revision=revision_tags(),
        parent=stage.work.config.train.start_from,
        parent_run_id=inherited and inherited.run_id,
        parent_version=found.version if found else None,
        features=stage.work.store.origin,
        descriptions=described(Path(stage.work.config.data.annotations)),
        kinds=() if inherited and not inherited.kinds else sorted({*kinds, *(inherited.kinds if inherited else ())}),
    )
