"""The next batches, made while a step computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from videoblip2.data.dataset import Batch


class Prefetcher:
    """`batches(step)`, made by one thread up to `depth` steps ahead of the step that takes it; 0: made when asked for.

    A batch is a function of its step alone, so what has been made ahead is no state: a training that goes on simply
    begins at its step. One thread, so that `batches` need not be safe for several.
    """

    def __init__(self, batches: Callable[[int], Batch], total: int, depth: int = 2) -> None:
        self._batches, self._total, self._depth = batches, total, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of a step. Raises here what making it has raised."""
        if not self._depth:
            return self._batches(step)
        wanted = {step, *range(step, min(step + self._depth + 1, self._total))}
        for other in self._made.keys() - wanted:
            self._made.pop(other).cancel()
        for number in sorted(wanted - self._made.keys()):
            self._made[number] = self._thread.submit(self._batches, number)
        return self._made.pop(step).result()

    def close(self) -> None:
        """Forget what has been made ahead, and end the thread."""
        self._made.clear()
        self._thread.shutdown(cancel_futures=True)
