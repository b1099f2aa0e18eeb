"""The loop that both stages run: step, log, validate, keep the best, save the state."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from videoblip2.data.dataset import Batch
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.monitors import Watch, warn
from videoblip2.training.observer import Observer
from videoblip2.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
from videoblip2.training.parts import StepFunction as StepFunction
from videoblip2.training.prefetch import Prefetcher
from videoblip2.training.progress import Progress, Steps, no_progress
from videoblip2.training.signals import signals_wait
from videoblip2.training.state import Course, StateFile
from videoblip2.training.system import SystemMeter
from videoblip2.training.validation import Best as Best
from videoblip2.training.validation import Validator
from videoblip2.training.workspace import Workspace

Rows = Sequence[Mapping[str, object]]


@dataclass
class Training:
    """One training in the making: what every part of the loop needs."""

    work: Workspace
    take_step: StepFunction
    keep: Callable[[Best], object]
    tracker: Tracker
    validate_first: bool = False
    state: StateFile | None = None
    course: Course = field(default_factory=Course)
    whole: bool = True  # no step is half done
    observer: Observer | None = None

    def __post_init__(self) -> None:
        self.total = self.work.config.train.steps
        self.trainable = self.work.model.trainable()
        self.optimizer = build_optimizer(self.trainable, self.work.config.optim)
        self.validator = Validator(self.work)
        self.meter = SystemMeter(self.work.device)
        # A step on the CPU keeps its cores busy: a thread beside it costs more than it hides (benchmarks/features.py).
        ahead = 0 if self.work.device.type == "cpu" else 2
        self.batches = Prefetcher(self.work.batches, self.total, ahead)
        self.rows: Rows = ()

    def due(self, every: int) -> bool:
        """Whether something that happens `every` so many steps happens now."""
        return self.course.step % every == 0 or self.course.step == self.total


def train(
    work: Workspace,
    take_step: StepFunction,
    keep: Callable[[Best], object],
    tracker: Tracker,
    progress: Progress = no_progress,
    description: str = "train",
    validate_first: bool = False,
    state: StateFile | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    observer: Observer | None = None,
) -> Best:
    """Run `train.steps` steps; whenever validation (CIDEr, accuracy or their sum) rises, call `keep`.

    Args:
        validate_first: also judge the network as it starts, so that the result is never worse than that.
        state: where the training state is saved: each `train.save_every` steps, at the end, and at a step's end on
            Ctrl-C and SIGTERM. A second Ctrl-C leaves the step, and the state as it was saved last.
        resume: go on from that state; on a CPU the weights become the same, bit for bit, as without the break.
        watch: warns when a monitor leaves its band.
        observer: is told of each validation, and may end the training by raising.

    Raises FloatingPointError naming the batch when loss or gradient is not finite; what was kept stays kept, and the
    weights are those before the step.
    """
    training = Training(work, take_step, keep, tracker, validate_first, state, Course(watch=watch), observer=observer)
    if state is not None and resume:
        state.restore(training.trainable, training.optimizer, training.course)
    steps = Steps(range(training.course.step, training.total))
    try:
        _validate_if_due(training)
        for step in progress(steps, len(steps), description):
            with signals_wait():
                training.whole = False
                _advance(training, step, steps)
                training.whole = True
            _validate_if_due(training)
            if training.due(work.config.train.save_every):
                _save(training)
    except (KeyboardInterrupt, SystemExit):
        if training.whole:
            with signals_wait():
                _save(training)
        raise
    finally:
        training.batches.close()
    return training.course.best


def _advance(training: Training, step: int, steps: Steps) -> None:
    """One step, and a log line where one is due."""
    work, course = training.work, training.course
    config = work.config
    with course.window.waiting():
        batch = training.batches(step).to(work.device)
    rate = set_learning_rate(training.optimizer, step, training.total, config.optim)
    metrics = _update(training, batch, step)
    course.window.add({**metrics, "lr": rate})
    course.step = step + 1
    if training.due(config.train.log_every):
        means = course.window.flush(len(batch.video_ids))
        best = "".join(f"  val {name} {100 * value:.1f}" for name, value in course.best.metrics.items())
        steps.note = f"loss {means['train/loss']:.3f}{best}"
        _log(training, means)


def _update(training: Training, batch: Batch, step: int) -> dict[str, float]:
    """All parts of a step: gradients add up, and the optimizer moves after the last part of each update."""
    values: dict[str, float] = {}
    for part in training.take_step(batch, step):
        _stop_unless_finite("loss", float(part.loss.detach()), part.video_ids, step)
        part.loss.backward()
        for name, value in part.metrics.items():
            values[name] = values.get(name, 0.0) + float(value)
        training.rows = part.rows or training.rows
        if part.last:
            norm = clip_gradients(training.trainable.values(), training.work.config.optim.max_grad_norm)
            _stop_unless_finite("gradient norm", norm, batch.video_ids, step)
            values["grad_norm"] = norm
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)
    return values


def _stop_unless_finite(what: str, value: float, video_ids: Iterable[str], step: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"step {step}: the {what} is {value} on videos {', '.join(video_ids)}; "
            "lower optim.lr, use precision=fp32, or check these features with `vb2 features check`"
        )


def _log(training: Training, means: dict[str, float]) -> None:
    """An interval's means, and warnings where a monitor left its band."""
    watch, step = training.course.watch, training.course.step
    if watch is not None:
        monitors = {name.removeprefix("train/"): value for name, value in means.items()}
        for line in watch.look(monitors, step):
            warn(line)
            training.tracker.set_tags({f"warning.{step}.{line.split()[2]}": line})
        means["train/outside_bands"] = float(len(watch.outside))
    training.tracker.log_metrics({**means, **training.meter.read()}, step)


def _validate_if_due(training: Training) -> None:
    """Judge the network where that is due and not done; keep it where it is the best so far."""
    course, step = training.course, training.course.step
    due = training.due(training.work.config.train.validate_every) if step else training.validate_first
    if not due or course.validated >= step:
        return
    began = time.perf_counter()
    judged = training.validator.judge(step)
    points = {f"val/{name}": value for name, value in judged.metrics.items()}
    training.tracker.log_metrics({**points, "time/validation_seconds": time.perf_counter() - began}, step)
    if training.rows:
        training.tracker.log_table("samples", [{**row, "step": step} for row in training.rows])
    if judged.score > course.best.score:
        training.keep(judged)
        course.best = judged
    course.validated = step
    if training.observer is not None:
        training.observer.validated(step, judged.score)
    course.window.restart_clock()


def _save(training: Training) -> None:
    """The state as it is at this step's end, after everything logged so far has left."""
    if training.state is not None:
        training.tracker.flush()
        training.state.save(training.trainable, training.optimizer, training.course)
        training.course.window.restart_clock()


def checkpoint_folder(work: Workspace, name: str) -> Path:
    """Where the best checkpoint of a run goes."""
    return Path(work.config.run.out) / name / "best"
