"""Run one trial, of training or of decoding, as a child of the study's run.

A decoding trial reports the CIDEr-D of each video by its index, in the same shuffled order in all trials, so that the
Wilcoxon pruner can compare it with the best trial.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.captions.metrics import PRIMARY
from videoblip2.captions.predictions import rows_of_run, video_scores
from videoblip2.config import DecodeConfig, InputError, flatten
from videoblip2.data.annotations import read_annotations, require_features
from videoblip2.data.batches import CachedFeatures
from videoblip2.errors import Progress, no_progress
from videoblip2.predict import OpenModel, open_model
from videoblip2.tracking import RunSpec, Stopped, Tracker, open_run
from videoblip2.training.distributed import Lost, World
from videoblip2.training.loop import Observer
from videoblip2.training.stage import run_stage
from videoblip2.training.state import FOLDER, read_finished
from videoblip2.training.tasks import read_split, say_all
from videoblip2.tune.plan import Plan
from videoblip2.tune.study import attributes, name_of

#: Settings of the study that override those of the tuned model's checkpoint.
OF_STUDY = ("data.annotations", "data.features", "device", "decode.compile")
TIMED = 100  # validation entries that are timed, if speed is an objective


@dataclass(frozen=True)
class TrialScore:
    """A finished trial. value: validation score of its chosen checkpoint; scores: by video, in the order of ids;
    seconds: per caption or answer, if that is an objective."""

    value: float
    scores: list[float]
    model: str
    seconds: float = 0.0


@dataclass
class Watcher(Observer):
    """Reports a trial's validations to the study and stops it if it is pruned."""

    trial: optuna.Trial
    parent_run_id: str | None = None
    reported: set[int] = field(default_factory=set)  # steps reported by an earlier attempt
    reports: bool = True  # Optuna accepts no intermediate values with two objectives
    last_step: int | None = None  # the final step, when pruning would save nothing
    tracker: Tracker = field(default_factory=Tracker)

    @property
    def run_id(self) -> str | None:
        """The run of an earlier attempt."""
        return attributes(self.trial).run_id

    def opened(self, tracker: Tracker) -> None:
        """Record the run for a later attempt, and tag it."""
        self.tracker = tracker
        if tracker.run_id is not None:
            self.trial.set_user_attr("run_id", tracker.run_id)
        tracker.set_tags({"optuna.study": self.trial.study.study_name, "optuna.trial": str(self.trial.number)})

    def validated(self, step: int, score: float) -> None:
        """Report the score, and stop if the trial is pruned."""
        self.report(step, score)
        self.stop_if_pruned(step)

    def report(self, step: int, value: float) -> None:
        """Report a value at a step to the study, once. Raises Stopped if another worker took the trial over."""
        try:
            if not self.reports:
                self.trial.set_user_attr("step", step)
            elif step not in self.reported:
                self.trial.report(value, step)
        except UpdateFinishedTrialError as error:
            raise Stopped("another worker has taken the trial over") from error

    def stop_if_pruned(self, step: int) -> None:
        """Raise Stopped if the trial is pruned; never for the default, to which the best is compared."""
        kept = step == self.last_step or not self.reports or attributes(self.trial).default
        if kept or not self.trial.should_prune():
            return
        self.tracker.set_tags({"optuna.pruned_at": str(step)})
        raise Stopped(f"pruned at step {step}")


#: (trial, watcher, progress) → its score. Raises Stopped if the watcher does.
Runner = Callable[[optuna.Trial, Watcher, Progress], TrialScore]


def train_trial(plan: Plan, trial: optuna.Trial, watcher: Watcher, progress: Progress) -> TrialScore:
    """Train with a trial's values, and score the kept checkpoint. Raises Lost if a signal stopped another process."""
    watcher.last_step = plan.config_of(trial.params).train.steps
    try:
        model = train_part(plan, trial, watcher, progress)
    except Lost as lost:
        if lost.why == "":  # a signal stopped another process, so all stop
            raise
        raise InputError(lost.why or "another of its processes was killed") from lost
    folder = plan.folder / name_of(trial)
    opened = open_model(str(folder / "best")) if plan.tuning.seconds else None
    return TrialScore(*_score(folder), model, _seconds(plan, opened, opened.config.decode) if opened else 0.0)


def train_part(
    plan: Plan, trial: Trial | FrozenTrial, observer: Observer | None = None, progress: Progress = no_progress
) -> str:
    """Run this process's part of a trial's training; return its MODEL. Later attempts resume from the saved state; the
    first ignores it, since it may be another study's."""
    folder, again = plan.folder / name_of(trial), bool(attributes(trial).attempts)
    ended = read_finished(folder / FOLDER) if again else None
    if ended is not None:  # its worker died after training, before reporting
        return ended.model
    overrides = f"run.out={plan.folder}", f"run.name={folder.name}", f"train.resume={'auto' if again else 'null'}"
    return run_stage(plan.tuning.stage, plan.config_of(trial.params, *overrides), progress, observer=observer).model


def _score(folder: Path) -> tuple[float, list[float]]:
    """The chosen checkpoint's score, which training maximizes, and each video's share of it, whose mean it is."""
    scores = video_scores(rows_of_run(folder, "captions"), rows_of_run(folder, "answers"))
    if not scores:
        raise InputError(f"{folder}: no predictions; the validation set is empty")
    return sum(scores.values()) / len(scores), [round(scores[video_id], 5) for video_id in sorted(scores)]


def _seconds(plan: Plan, opened: OpenModel, decode: DecodeConfig) -> float:
    """Seconds per caption or answer, in batches of the first validation entries, after one batch of warm-up."""
    task = plan.tasks[0]
    entries = read_split(opened.config, "val", opened.store)[task.kind][:TIMED]
    for part in (entries[: decode.batch_size], entries):
        start = time.perf_counter()
        say_all(task, opened.captioner, part, opened.store, decode, World())
    return (time.perf_counter() - start) / len(entries)


def decoder(plan: Plan) -> Runner:
    """A function that runs decoding trials, with model and data loaded once per process."""
    settings, model = flatten(plan.base), str(plan.tuning.tuned_model)
    opened = open_model(model, [f"{key}={settings[key]}" for key in OF_STUDY])
    videos = require_features(read_annotations(opened.annotations("val.json")), opened.store, "val.json")
    references = {video.video_id: video.captions for video in videos}
    order = sorted(references)
    random.Random(0).shuffle(order)
    scorer = CiderD(references, DocumentFrequencies.from_references(references))
    captioner, features = opened.captioner, CachedFeatures(opened.store).features

    def decode(trial: optuna.Trial, watcher: Watcher, progress: Progress) -> TrialScore:
        """Caption video by video in its own run, report each score, and let the pruner decide after each batch."""
        config, rows = plan.config_of(trial.params), list[dict[str, object]]()
        run, parent, scores = config.run, watcher.parent_run_id, dict[str, float]()
        spec = RunSpec("decode", name_of(trial), run.experiment, run.tracking, watcher.run_id, parent_run_id=parent)
        with open_run(spec) as tracker:
            watcher.opened(tracker)
            tracker.set_tags({"model": model})
            tracker.log_config({key: value for key, value in flatten(config).items() if key.startswith("decode.")})
            stream = captioner.in_batches([(video, video, None) for video in order], features, config.decode)
            for number, (video, caption) in enumerate(progress(stream, len(order), tracker.run_id or "decode")):
                scores[video] = float(scorer.score([video], [caption.text])[0])
                rows.append({"video_id": video, "caption": caption.text, PRIMARY: round(scores[video], 4)})
                watcher.report(number, scores[video])
                if (number + 1) % config.decode.batch_size == 0 and number + 1 < len(order):
                    watcher.stop_if_pruned(number)
            cider = sum(scores.values()) / len(scores)
            tracker.log_best({f"val/{PRIMARY}": cider})
            tracker.log_table("predictions", sorted(rows, key=lambda row: str(row["video_id"])))
        seconds = _seconds(plan, opened, config.decode) if plan.tuning.seconds else 0.0
        return TrialScore(cider, [round(scores[video], 5) for video in sorted(scores)], model, seconds)

    return decode
