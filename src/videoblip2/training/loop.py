"""The loop that both stages run: step, log, validate, keep the best."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.data.dataset import Batch
from videoblip2.tracking.tracker import Tracker
from videoblip2.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
from videoblip2.training.progress import Progress, Steps, no_progress
from videoblip2.training.workspace import Workspace

#: (batch, step) → loss with gradient, metrics.
StepFunction = Callable[[Batch, int], tuple[Tensor, dict[str, float | Tensor]]]


@dataclass
class Best:
    """The best validation so far."""

    cider: float = -math.inf
    step: int = 0
    captions: dict[str, str] = field(default_factory=dict)


def train(
    work: Workspace,
    take_step: StepFunction,
    keep: Callable[[Best], object],
    tracker: Tracker,
    progress: Progress = no_progress,
    description: str = "train",
    validate_first: bool = False,
) -> Best:
    """Run `train.steps` steps; whenever validation CIDEr rises, call `keep`.

    Args:
        validate_first: also judge the network as it starts, so that the result is never worse than that.

    Raises FloatingPointError naming the batch when the loss is not finite; what was kept stays kept.
    """
    total, config = work.config.train.steps, work.config
    optimizer = build_optimizer(work.model.trainable(), config.optim)
    validator, best, window = Validator(work), Best(), Window()
    if validate_first:
        best = _validate(work, validator, best, 0, keep, tracker)
    steps = Steps(range(total))
    for step in progress(steps, total, description):
        batch = work.batches(step).to(work.device)
        rate = set_learning_rate(optimizer, step, total, config.optim)
        metrics = _update(work, take_step, optimizer, batch, step)
        window.add({**metrics, "lr": rate})
        if (step + 1) % config.train.log_every == 0 or step + 1 == total:
            means = window.flush(len(batch.video_ids))
            steps.note = f"loss {means['train/loss']:.3f}  val CIDEr {100 * max(best.cider, 0):.1f}"
            tracker.log_metrics(means, step + 1)
        if (step + 1) % config.train.validate_every == 0 or step + 1 == total:
            best = _validate(work, validator, best, step + 1, keep, tracker)
            window.restart_clock()
    return best


def _update(
    work: Workspace, take_step: StepFunction, optimizer: torch.optim.Optimizer, batch: Batch, step: int
) -> dict[str, float]:
    with work.autocast():
        loss, metrics = take_step(batch, step)
    values = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"step {step}: the loss is {values['loss']} on videos {', '.join(batch.video_ids[:8])}…; "
            "lower optim.lr, use precision=fp32, or check these features with `vb2 features check`"
        )
    loss.backward()
    values["grad_norm"] = clip_gradients(work.model.trainable().values(), work.config.optim.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return values


def _validate(
    work: Workspace, validator: "Validator", best: Best, step: int, keep: Callable[[Best], object], tracker: Tracker
) -> Best:
    captions = validator.captions()
    cider = validator.cider(captions)
    tracker.log_metrics({"val/CIDEr": cider}, step)
    if cider <= best.cider:
        return best
    better = Best(cider, step, captions)
    keep(better)
    return better


class Validator:
    """Greedy captions of the validation videos, and their CIDEr as pycocoevalcap computes it on that split."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self.references = {video.video_id: video.captions for video in work.val_videos}
        self._scorer = CiderD(self.references, DocumentFrequencies.from_references(self.references))

    def captions(self) -> dict[str, str]:
        work = self._work
        work.model.eval()
        with work.autocast():
            stream = work.captioner.caption_videos(list(self.references), work.features, work.config.decode)
            return {video_id: caption.text for video_id, caption in stream}

    def cider(self, captions: dict[str, str]) -> float:
        return float(self._scorer.score(list(captions), list(captions.values())).mean())


class Window:
    """Means of metrics, and speed, over the steps since the last flush."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        self._since, self._timed = time.perf_counter(), 0

    def add(self, metrics: dict[str, float]) -> None:
        self._steps += 1
        self._timed += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def flush(self, batch_size: int) -> dict[str, float]:
        """`train/…` means and `time/…` speed; starts a new window."""
        means = {f"train/{name}": total / self._steps for name, total in self._sums.items()}
        seconds = time.perf_counter() - self._since
        if self._timed:
            means["time/step_seconds"] = seconds / self._timed
            means["time/videos_per_second"] = batch_size * self._timed / seconds
        self._sums, self._steps = {}, 0
        self.restart_clock()
        return means


def checkpoint_folder(work: Workspace, name: str) -> Path:
    """Where the best checkpoint of a run goes."""
    return Path(work.config.run.out) / name / "best"
