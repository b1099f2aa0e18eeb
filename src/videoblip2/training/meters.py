"""Meters: running means, speed, the load of the machine, and the memory of operations."""

import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30


class RunningMeans:
    """Means of metrics, and speed, over the steps since the last flush.

    Values stay on their device until they are fetched, with a single synchronization.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self._waiting: dict[str, float | Tensor] = {}
        self.steps = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time since the last step from the speed."""
        self._since, self._timed, self._videos = time.perf_counter(), 0, 0
        self.waited = 0.0  # seconds spent waiting for batches

    def add(self, metrics: Mapping[str, float | Tensor], videos: int = 0) -> None:
        """Add one step's metrics and its number of videos."""
        self.steps += 1
        self._timed += 1
        self._videos += videos
        self.share(metrics)

    def share(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Add this process's share of a step's metrics."""
        add_up(self._waiting, metrics)

    def settled(self) -> tuple[dict[str, float], int]:
        """All sums so far, and their number of steps."""
        add_up(self.sums, self.fetch())
        return self.sums, self.steps

    def fetch(self) -> dict[str, float]:
        """This process's sums since the last fetch."""
        waiting, self._waiting = self._waiting, {}
        tensors = {name: value for name, value in waiting.items() if isinstance(value, Tensor)}
        device = max((value.device for value in tensors.values()), key=str, default=None)  # cpu, cuda
        numbers = torch.stack([value.to(device) for value in tensors.values()]).tolist() if tensors else []
        return {name: float(value) for name, value in {**waiting, **dict(zip(tensors, numbers, strict=True))}.items()}

    def flush(self) -> dict[str, float]:
        """`train/…` means, and `time/…`: speed, and the wait per step for its batch. Resets the meter."""
        sums, steps = self.settled()
        means = {f"train/{name}": total / steps for name, total in sums.items()}
        seconds = time.perf_counter() - self._since
        if self._timed:
            means["time/step_seconds"] = seconds / self._timed
            means["time/data_seconds"] = self.waited / self._timed
            means["time/videos_per_second"] = self._videos / seconds
        self.sums, self.steps = {}, 0
        self.restart_clock()
        return means


def add_up(sums: dict[str, Any], metrics: Mapping[str, float | Tensor]) -> None:
    """Add metrics to sums of the same names, in float64."""
    for name, value in metrics.items():
        sums[name] = sums.get(name, 0.0) + (value.detach().double() if isinstance(value, Tensor) else value)


class SystemMeter:
    """Load of this process and its device since the last reading; a reading takes well under a millisecond.

    MLflow's own system metrics have another step axis, and are lost while the store is down; these are ordinary points.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
        self._process.cpu_percent()  # the first call only starts the clock

    def read(self) -> dict[str, float]:
        """`sys/memory_gib` and `sys/cpu_percent` (100 = one core); on a GPU, peak memory and, if known, utilization."""
        readings = {"sys/memory_gib": self._process.memory_info().rss / GIB}
        readings["sys/cpu_percent"] = self._process.cpu_percent()
        if self._device.type == "cuda":
            readings["sys/gpu_memory_gib"] = torch.cuda.max_memory_reserved(self._device) / GIB
            torch.cuda.reset_peak_memory_stats(self._device)
            with suppress(ImportError, RuntimeError):  # no NVIDIA library, or one that does not support this device
                readings["sys/gpu_percent"] = float(torch.cuda.utilization(self._device))
        return readings


class Allocations(TorchDispatchMode):
    """Counts within its block the bytes of live storages made by operations: `now` and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._known.setdefault(tensor.untyped_storage())
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            if (storage := tensor.untyped_storage()) not in self._known:
                self._known[storage] = None
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return made

    def _count(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    @contextmanager
    def phase(self, peaks: dict[str, int], name: str) -> Iterator[None]:
        """Record the peak of the block as `peaks[name]`; the highest of several."""
        self.peak = self.now
        yield
        peaks[name] = max(peaks.get(name, 0), self.peak)


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
