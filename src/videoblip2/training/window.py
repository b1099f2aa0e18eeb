"""Means over the steps between two log lines."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Window:
    """Means of metrics, and speed, over the steps since the last flush."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time since the last step out of the speed."""
        self._since, self._timed, self._waited = time.perf_counter(), 0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what a step waits for before it can compute, its batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def add(self, metrics: Mapping[str, float]) -> None:
        """One step's metrics."""
        self.steps += 1
        self._timed += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def flush(self, batch_size: int) -> dict[str, float]:
        """`train/…` means and `time/…`: speed, and how long a step waited for its batch; starts a new window."""
        means = {f"train/{name}": total / self.steps for name, total in self.sums.items()}
        seconds = time.perf_counter() - self._since
        if self._timed:
            means["time/step_seconds"] = seconds / self._timed
            means["time/data_seconds"] = self._waited / self._timed
            means["time/videos_per_second"] = batch_size * self._timed / seconds
        self.sums, self.steps = {}, 0
        self.restart_clock()
        return means
