"""The loop that both stages run: step, log, validate, keep the best, save the state."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videoblip2.captions.metrics import shown
from videoblip2.data.batches import Batch, ahead
from videoblip2.errors import Progress, Steps, no_progress, warn
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.distributed import Lost
from videoblip2.training.interruptions import memory_for, signals_wait
from videoblip2.training.meters import RunningMeans, SystemMeter, add_up
from videoblip2.training.rollout import NOT_FINITE, BandMonitor
from videoblip2.training.sharding import clip
from videoblip2.training.state import StateFile, TrainState, capture
from videoblip2.training.update import StepFunction, build_optimizer, set_learning_rate
from videoblip2.training.workspace import Validation, Workspace

LESS_MEMORY = (
    "set train.checkpointing=true or raise train.accumulate (the same result, slower), or lower train.batch_size; "
    "on a GPU, set precision=bf16; `vb2 plan` says what fits"
)


class Observer:
    """Observes training from outside, as a study does with its trials. This class does nothing.

    The training run becomes a child of `parent_run_id`; `run_id` is that of an earlier attempt, if any.
    """

    parent_run_id: str | None = None

    @property
    def run_id(self) -> str | None:
        return None

    def opened(self, tracker: Tracker) -> None:
        """Called when the training run is open."""

    def validated(self, step: int, score: float) -> None:
        """Called after a validation, with its checkpoint kept if it is the best. Raises Stopped to end training."""


@dataclass
class Training:
    """Arguments and state of `train`.

    Args:
        keep: called with a validation whenever its score is the best so far.
        validate_first: also validate the initial network, so that the result is never worse than that.
        state_file: where the training state is saved: every `train.save_every` steps, at the end, and after the current
            step on Ctrl-C or SIGTERM. A second Ctrl-C abandons the step and leaves the state as last saved.
        resume: resume from that state; on a CPU the weights equal those of an uninterrupted run, bit for bit.
        bands: warns when a monitor leaves its band.
        observer: called at each validation; may raise to end training.
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
    observer: Observer = field(default_factory=Observer)
    samples: Sequence[Mapping[str, object]] = field(default=(), init=False)  # of the last step that had any
    in_step: bool = field(default=False, init=False)
    unseen: list[tuple[str, Tensor, int, Sequence[str]]] = field(default_factory=list, init=False)  # see `note`

    def __post_init__(self) -> None:
        config, on_cpu = self.work.config, self.work.device.type == "cpu"
        self.at_once = on_cpu  # wait for a GPU only when something is due
        self.broken = torch.zeros((), device=self.work.device)  # 1 after a loss or gradient that is not finite
        self.total = config.train.steps
        self.trainable = self.work.model.trainable()
        self.optimizer = build_optimizer(self.trainable, config.optim)
        self.state, self.means = TrainState(), RunningMeans()
        self.meter = SystemMeter(self.work.device)

    def due(self, every: int) -> bool:
        """Whether this step is a multiple of `every`."""
        return self.state.step % every == 0 or self.state.step == self.total

    def note(self, what: str, value: Tensor, step: int, video_ids: Sequence[str]) -> None:
        """Record a number that must be finite; after one that is not, the optimizer makes no more updates."""
        self.unseen.append((what, value.detach().double(), step, video_ids))
        self.broken = torch.maximum(self.broken, (~value.detach().isfinite()).float())

    def check(self) -> None:
        """Raise FloatingPointError for the first non-finite number noted since the last check."""
        unseen, self.unseen = self.unseen, []
        values = torch.stack([value for _, value, _, _ in unseen]).tolist() if unseen else []
        for (what, _, step, ids), value in zip(unseen, values, strict=True):
            if not math.isfinite(value):
                videos = ids if what == "loss" else self.work.world.rows([ids])[0]
                fault = f"the {what} is {value} on videos {', '.join(videos)}"
                raise FloatingPointError(f"step {step}: {fault}; {NOT_FINITE}")

    def exchange(self, signals: list[int], look: bool) -> bool:
        """Whether any process got a signal, which stops all. `look`: also `check`, and sum metrics over processes."""
        if look:
            self.check()
        for shares, arrived in self.work.world.gather([self.means.fetch() if look else {}, signals]):
            add_up(self.means.sums, shares)
            signals += arrived if not signals else ()
        return bool(signals)


def train(training: Training) -> Validation:
    """Run `train.steps` steps; return the best validation.

    Raises FloatingPointError naming the batch if loss or gradient is not finite; saved checkpoints remain, and the
    weights are those before the step.
    """
    if training.state_file is not None and training.resume:
        training.state = training.state_file.restore(training.trainable, training.optimizer)
        training.means.sums, training.means.steps = training.state.means
        if training.bands is not None:
            training.bands.start, training.bands.outside = training.state.bands[0], set(training.state.bands[1])
    steps = Steps(range(training.state.step, training.total))
    # A step on the CPU keeps its cores busy: another thread costs more than it saves (benchmarks/features.py).
    batches = ahead(training.work.batches, steps, 0 if training.work.device.type == "cpu" else 2)
    try:
        _validate_if_due(training)
        for step in training.progress(steps, len(steps), training.description):
            _advance(training, step, batches, steps)
    except (KeyboardInterrupt, SystemExit) as stop:
        if not training.in_step and not (training.work.config.train.shard and isinstance(stop, Lost)):
            with signals_wait():
                _save(training)
        raise
    finally:
        batches.close()
    return training.state.best


def _advance(training: Training, step: int, batches: Iterator[Batch], steps: Steps) -> None:
    """One step, then the logging, validation and saving that are due."""
    with signals_wait() as arrived, memory_for(f"the training step {step}", LESS_MEMORY):
        training.in_step = training.work.world.size == 1
        _step(training, step, batches, arrived)
        _log_if_due(training, steps)
        training.in_step = False
    _validate_if_due(training)
    if training.due(training.work.config.train.save_every):
        _save(training)


def _step(training: Training, step: int, batches: Iterator[Batch], signals: list[int]) -> None:
    """Train on one batch, and add its metrics to the running means.

    Gradients are summed over micro-batches and processes; the optimizer steps after the last one of each update. A
    signal that any process has received by then stops all of them after this step.
    """
    config, world = training.work.config, training.work.world
    if world.size > 1:  # each process draws its own, with no state to resume
        torch.manual_seed((config.seed * 1_000_003 + step) * world.size + world.rank)
    began = time.perf_counter()
    batch = next(batches).to(training.work.device)
    training.means.waited += time.perf_counter() - began
    own: dict[str, float | Tensor] = {"lr": set_learning_rate(training.optimizer, step, training.total, config.optim)}
    stopping = False
    for part in training.take_step(batch, step):
        part.loss.backward()
        training.note("loss", part.loss, step, part.video_ids)
        training.means.share(part.metrics)
        training.samples = part.rows or training.samples
        if part.last:
            stopping = training.exchange(signals, look=training.at_once)
            world.add_gradients(training.trainable.values())
            own["grad_norm"] = norm = clip(training.trainable.values(), config.optim.max_grad_norm, world)
            training.note("gradient norm", norm, step, batch.video_ids)
            if training.at_once:
                training.check()
            training.in_step = True
            training.optimizer.found_inf = training.broken  # type: ignore[attr-defined]
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)
    training.means.add(own if world.leads else {}, config.train.batch_size)
    training.state.step = step + 1
    every = config.train.log_every, config.train.validate_every, config.train.save_every
    if not training.at_once and (stopping or any(map(training.due, every))):
        training.exchange(signals, look=True)


def _log_if_due(training: Training, steps: Steps) -> None:
    """Log the interval's means, the machine's load, and warnings if a monitor left its band."""
    state, bands = training.state, training.bands
    if not training.due(training.work.config.train.log_every):
        return
    means = training.means.flush()
    best = "".join(f"  val {name} {shown(name, value)}" for name, value in state.best.metrics.items())
    steps.note = f"loss {means['train/loss']:.3f}{best}"
    if bands is not None:
        left = bands.look({name.removeprefix("train/"): value for name, value in means.items()}, state.step)
        for name, line in left.items():
            warn(line)
            training.tracker.set_tags({f"warning.{state.step}.{name}": line})
        means["train/outside_bands"] = float(len(bands.outside))
        state.bands = bands.start, tuple(sorted(bands.outside))
    training.tracker.log_metrics({**means, **training.meter.read()}, state.step)


def _validate_if_due(training: Training) -> None:
    """Validate the network if due and not yet done; keep it if it is the best so far."""
    state, step = training.state, training.state.step
    due = training.due(training.work.config.train.validate_every) if step else training.validate_first
    if not due or state.validated >= step:
        return
    began = time.perf_counter()
    judged = training.work.judge(step)
    points = {f"val/{name}": value for name, value in judged.metrics.items()}
    training.tracker.log_metrics({**points, "time/validation_seconds": time.perf_counter() - began}, step)
    if training.samples:
        training.tracker.log_table("samples", [{**row, "step": step} for row in training.samples])
    if judged.score > state.best.score:
        training.keep(judged)
        state.best = judged
    state.validated = step
    training.observer.validated(step, judged.score)
    training.means.restart_clock()


def _save(training: Training) -> None:
    """Save the state after this step, once everything logged before has been sent."""
    if training.state_file is not None and training.work.world.leads:
        if training.work.world.size == 1:  # a signal may have arrived after the step checked
            training.check()
        training.tracker.flush()
        training.state.means = training.means.settled()
        training.state_file.save(training.trainable, training.optimizer, training.state)
        training.means.restart_clock()
    elif training.state_file is not None and training.work.config.train.shard:
        capture(training.trainable, training.optimizer)  # its shards of what the leader writes
