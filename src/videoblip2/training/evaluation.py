"""Evaluate a model on a split as one tracked run."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from videoblip2.captions.metrics import PRIMARY
from videoblip2.config import InputError, flatten
from videoblip2.data.batches import CachedFeatures
from videoblip2.errors import Progress, no_progress
from videoblip2.evaluate import Evaluation, SoundEffect, evaluate, explained, other_sounds, sound_effects
from videoblip2.predict import OpenModel, open_model
from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.source import command_line, lineage_tags
from videoblip2.training.distributed import find_together, join, sharing_errors
from videoblip2.training.record import data_digest, headline, log_predictions, split_scores
from videoblip2.training.tasks import ANSWERS, evaluate_tasks, inputs_of, read_split, say_all, tasks_of


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one model on one split; its rows are in the file `predictions`."""

    run_id: str | None
    evaluation: Evaluation
    predictions: Path
    effects: Sequence[SoundEffect] = ()
    answers: Path | None = None  # answers of task `mixed`, whose captions are in `predictions`


@sharing_errors()
def evaluate_model(
    model: str,
    split: str,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    progress: Progress = no_progress,
    metrics: Sequence[str] | None = None,
    extras: Collection[str] = (),
) -> EvaluationResult:
    """Caption every video of a split, or answer its questions, or both (`data.task`); score, write predictions.

    Data paths come from the checkpoint.

    Args:
        model: MODEL; its run, if any, is named in the tags.
        overrides: `key=value` on the checkpoint's configuration.
        metrics: names in METRICS; None = the default ones.
        extras: `explain`, how much each word of the captions depends on the sound and on the picture; `ablate`, the
            change of CIDEr with the sound withheld, silenced, or swapped between videos.
    """
    world = join()
    opened = open_model(model, overrides, found=find_together(model))
    config, provenance, store = opened.config, opened.captioner.provenance, opened.store
    if ANSWERS in tasks_of(config) and opened.captioner.never_asked:
        raise InputError(f"{model}: was never trained on questions; leave out data.task={config.data.task}")
    if extras and config.data.task == "qa":
        raise InputError(f"{model}: answers questions, and --{' and --'.join(extras)} is for captions; leave it out")
    if "ablate" in extras and "audio" not in config.model.modality_names:
        raise InputError(f"{model}: reads no sound, so --ablate has nothing to remove; leave it out")
    name, tasks, entries = provenance.name or opened.version, tasks_of(config), read_split(config, split, store)
    spec = RunSpec("evaluate", f"{split}-{name}", config.run.experiment, enabled=config.run.tracking and world.leads)
    with open_run(spec) as tracker:
        tags = {"model": model, "split": split, "trained_by": str(provenance.run_id), "command": command_line()}
        tracker.set_tags({**tags, **lineage_tags(opened.folder)})
        tracker.log_config(flatten(config))
        source, shown_by = CachedFeatures(store), progress if world.leads else no_progress
        say = partial(say_all, source=source, decode=config.decode, world=world, progress=shown_by)
        texts = {task.kind: say(task, opened.captioner, entries[task.kind]) for task in tasks}
        if not world.leads:  # only the leader scores and returns the result
            return EvaluationResult(None, Evaluation(), Path())
        result = evaluate_tasks(config, entries, texts, metrics)
        if "explain" in extras:
            result = explained(result, opened.captioner, source.features, config.decode.batch_size)
        effects = _ablate(opened, source, result, progress) if "ablate" in extras else []
        for effect in effects:
            if effect.group == "all":
                tracker.log_metrics({f"ablate/{split}_{effect.sound}": effect.difference.difference}, step=0)
        for _, _, file, videos in inputs_of(config, {split: entries}):
            tracker.log_data(f"{file.parent.name}/{file.name}", data_digest(file, store, videos), split)
        tracker.log_metrics(split_scores(split, result), step=0)
        tracker.note(f"**{split}**: {headline(result)}")
        path = out or Path(config.run.out) / f"evaluate-{split}-{name}.jsonl"
        others = {task.kind: path.with_name(f"{path.stem}_{task.kind}{path.suffix}") for task in tasks[1:]}
        files = {tasks[0].kind: path, **others}
        predictions, *answers = log_predictions(files, split, result, config.train.probe_videos, tracker)
        return EvaluationResult(tracker.run_id, result, predictions, effects, *answers)


def _ablate(opened: OpenModel, source: CachedFeatures, own: Evaluation, progress: Progress) -> list[SoundEffect]:
    notes = opened.store.manifest.videos if opened.store.manifest else {}
    candidates = [video for video in opened.store.ids if video in notes and notes[video].audio == "silent"]
    silent = next((video for video in candidates if len(source.features(video)["audio"])), None)
    others, decode = {}, opened.config.decode
    for name, other in other_sounds(source.features, own.videos, silent).items():
        stream = opened.captioner.in_batches([(video, video, None) for video in own.captions], other, decode)
        texts = {key: caption.text for key, caption in progress(stream, len(own.captions), f"sound {name}")}
        others[name] = evaluate(texts, own.references, [PRIMARY])
    return sound_effects(own, others)
