"""The loop that both stages run: step, log, validate, keep the best, save the state."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from videoblip2.captions.metrics import shown
from videoblip2.data.batches import Batch, Prefetcher
from videoblip2.progress import Progress, Steps, no_progress
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.interruptions import signals_wait
from videoblip2.training.meters import SystemMeter
from videoblip2.training.microbatch import StepFunction
from videoblip2.training.monitors import BandMonitor, warn
from videoblip2.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
from videoblip2.training.state import StateFile, TrainState
from videoblip2.training.validation import Validation, Validator
from videoblip2.training.workspace import Workspace


class Observer(Protocol):
    """Watches a training from outside, such as the study whose trial it is.

    The training's run becomes a child of `parent_run_id`; `run_id` is its own from an earlier attempt, if any.
    """

    @property
    def parent_run_id(self) -> str | None: ...

    @property
    def run_id(self) -> str | None: ...

    def opened(self, tracker: Tracker) -> None:
        """The training's run is open."""

    def validated(self, step: int, score: float) -> None:
        """A validation is done, and its checkpoint kept where it is the best. Raises Stopped to end the training."""


@dataclass
class Training:
    """What `train` runs.

    Args:
        keep: called with a validation whenever its score is the best so far.
        validate_first: also validate the network as it starts, so that the result is never worse than that.
        state_file: where the training state is saved: each `train.save_every` steps, at the end, and at a step's end on
            Ctrl-C and SIGTERM. A second Ctrl-C abandons the step, and leaves the state as it was saved last.
        resume: continue from that state; on a CPU the weights become the same, bit for bit, as without the break.
        bands: warns when a monitor leaves its band.
        observer: is told of each validation, and may end the training by raising.
    """

    work: Workspace
    take_step: StepFunction
    keep: Callable[[Validation], object]
    tracker: Tracker
    progress: Progress = no_progress
    description: str = "train"
    validate_first: bool = False
    state_file: StateFile | None = None
    resume: bool = False
    bands: BandMonitor | None = None
    observer: Observer | None = None
    samples: Sequence[Mapping[str, object]] = field(default=(), init=False)  # of the newest step that showed some
    in_step: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.state = TrainState(bands=self.bands)
        self.meter = SystemMeter(self.work.device)

    @property
    def total(self) -> int:
        return self.work.config.train.steps

    @cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        return self.work.model.trainable()

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.trainable, self.work.config.optim)

    @cached_property
    def validator(self) -> Validator:
        return Validator(self.work)

    @cached_property
    def batches(self) -> Prefetcher:
        # A step on the CPU keeps its cores busy: a thread beside it costs more than it hides (benchmarks/features.py).
        return Prefetcher(self.work.batches, self.total, depth=0 if self.work.device.type == "cpu" else 2)

    def due(self, every: int) -> bool:
        """Whether something that happens every `every` steps happens now."""
        return self.state.step % every == 0 or self.state.step == self.total


def train(training: Training) -> Validation:
    """Run `train.steps` steps; return the best validation.

    Raises FloatingPointError naming the batch when loss or gradient is not finite; what was kept stays kept, and the
    weights are those before the step.
    """
    if training.state_file is not None and training.resume:
        training.state_file.restore(training.trainable, training.optimizer, training.state)
    steps = Steps(range(training.state.step, training.total))
    try:
        _validate_if_due(training)
        for step in training.progress(steps, len(steps), training.description):
            _advance(training, step, steps)
    except (KeyboardInterrupt, SystemExit):
        if not training.in_step:
            with signals_wait():
                _save(training)
        raise
    finally:
        training.batches.close()
    return training.state.best


def _advance(training: Training, step: int, steps: Steps) -> None:
    """One step, with the log line, the validation and the save that are due after it."""
    with signals_wait():
        training.in_step = True
        _step(training, step)
        _log_if_due(training, steps)
        training.in_step = False
    _validate_if_due(training)
    if training.due(training.work.config.train.save_every):
        _save(training)


def _step(training: Training, step: int) -> None:
    """One batch through the network, and its metrics into the running means."""
    state = training.state
    with state.means.waiting():
        batch = training.batches(step).to(training.work.device)
    rate = set_learning_rate(training.optimizer, step, training.total, training.work.config.optim)
    state.means.add({**_update(training, batch, step), "lr": rate}, len(batch.video_ids))
    state.step = step + 1


def _update(training: Training, batch: Batch, step: int) -> dict[str, float]:
    """All micro-batches of a step: gradients add up, and the optimizer moves after the last one of each update."""
    values: dict[str, float] = {}
    for part in training.take_step(batch, step):
        _stop_unless_finite("loss", float(part.loss.detach()), part.video_ids, step)
        part.loss.backward()
        for name, value in part.metrics.items():
            values[name] = values.get(name, 0.0) + float(value)
        training.samples = part.rows or training.samples
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


def _log_if_due(training: Training, steps: Steps) -> None:
    """The interval's means, the machine's load, and warnings where a monitor left its band."""
    state, bands = training.state, training.state.bands
    if not training.due(training.work.config.train.log_every):
        return
    means = state.means.flush()
    best = "".join(f"  val {name} {shown(name, value)}" for name, value in state.best.metrics.items())
    steps.note = f"loss {means['train/loss']:.3f}{best}"
    if bands is not None:
        for line in bands.look({name.removeprefix("train/"): value for name, value in means.items()}, state.step):
            warn(line)
            training.tracker.set_tags({f"warning.{state.step}.{line.split()[2]}": line})
        means["train/outside_bands"] = float(len(bands.outside))
    training.tracker.log_metrics({**means, **training.meter.read()}, state.step)


def _validate_if_due(training: Training) -> None:
    """Validate the network where that is due and not done; keep it where it is the best so far."""
    state, step = training.state, training.state.step
    due = training.due(training.work.config.train.validate_every) if step else training.validate_first
    if not due or state.validated >= step:
        return
    began = time.perf_counter()
    judged = training.validator.judge(step)
    points = {f"val/{name}": value for name, value in judged.metrics.items()}
    training.tracker.log_metrics({**points, "time/validation_seconds": time.perf_counter() - began}, step)
    if training.samples:
        training.tracker.log_table("samples", [{**row, "step": step} for row in training.samples])
    if judged.score > state.best.score:
        training.keep(judged)
        state.best = judged
    state.validated = step
    if training.observer is not None:
        training.observer.validated(step, judged.score)
    state.means.restart_clock()


def _save(training: Training) -> None:
    """The state as it is at this step's end, after everything logged before has been sent."""
    if training.state_file is not None:
        training.tracker.flush()
        training.state_file.save(training.trainable, training.optimizer, training.state)
        training.state.means.restart_clock()
