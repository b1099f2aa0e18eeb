"""Adaptive batching: while one batch is captioned, the requests that arrive meanwhile become the next one.

1. No waiting window: an idle model takes a single request at once, a busy one finds a batch when it is done.
2. A batch shares model, decoding options and length group, so that little of it is padding. The oldest request decides.
3. What fails inside a batch is halved until the bad item fails alone; the others get their captions.
4. A second lane, for shadow captions, moves only while the first one is empty.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from videoblip2.config import GREEDY, Decoding, InputError
from videoblip2.modality import Features

from . import observe
from .following import Served

if TYPE_CHECKING:
    from videoblip2.predict import Caption

SHORT = 32  # rows; lengths up to here count as one group
PACE = 0.1  # share of the newest batch in the running mean of seconds a caption


class Full(Exception):
    """No room in the queue; `retry_after` seconds is when to come back."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; come back in {retry_after} s")
        self.retry_after = retry_after


class NotFinite(ValueError):
    """The network answered an item with NaN."""


@dataclass(frozen=True)
class Done:
    """A caption, and where the time went."""

    caption: "Caption"
    queue_seconds: float
    model_seconds: float
    batch: int


@dataclass(eq=False)
class Job:
    """One item on its way to a caption by the model that was current when it came.

    listener: called on the event loop with the caption so far, after each token.
    """

    item: Features
    served: Served
    decoding: Decoding = GREEDY
    prompt: str | None = None
    seed: int | None = None
    listener: Callable[[str], None] | None = None
    arrived: float = field(default_factory=time.perf_counter)
    future: "asyncio.Future[Done]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def group(self) -> tuple[object, ...]:
        """What has to be equal within a batch."""
        return self.served, self.decoding, length_group(self.item)


def length_group(item: Features) -> int:
    """Powers of two from SHORT on: at most half of a batch's rows are padding."""
    return math.ceil(math.log2(max(SHORT, *(len(array) for array in item.values()))))


class Batcher:
    """The queue in front of the model: `submit` on the event loop, captions on its own thread."""

    def __init__(self, max_batch: int = 32, max_waiting: int = 256) -> None:
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.waiting: list[Job] = []
        self.background: list[Job] = []
        self.batch: list[Job] = []
        self._pace = 0.05
        self._busy_since: float | None = None
        self._wake = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, "captions")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; call it on the event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Cancel everything that waits; the result of the current batch is dropped."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for job in (*self.batch, *self.waiting, *self.background):
            job.future.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, jobs: Sequence[Job], background: bool = False) -> None:
        """Queue jobs, all or none; their futures get a Done or the exception of that item. Raises Full."""
        lane = self.background if background else self.waiting
        if len(lane) + len(jobs) > self.max_waiting:
            raise Full(self.retry_after())
        lane.extend(jobs)
        observe.queued(len(self.waiting))
        self._wake.set()

    def retry_after(self) -> int:
        """Seconds until the queue of now should have been captioned, 1 to 60."""
        return min(60, max(1, math.ceil(len(self.waiting) * self._pace)))

    def busy_seconds(self) -> float:
        """How long the model has been working on the current batch; a large number means that it hangs."""
        return 0.0 if self._busy_since is None else time.perf_counter() - self._busy_since

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self.batch = batch = self._take()
            if not batch:
                observe.queued(0)
                self._wake.clear()
                continue
            observe.queued(len(self.waiting))
            observe.batched(len(batch))
            self._busy_since = started = time.perf_counter()
            results = await loop.run_in_executor(self._pool, caption_jobs, batch, loop)
            seconds = time.perf_counter() - started
            self._busy_since = None
            self._pace += PACE * (seconds / len(batch) - self._pace)
            for job, result in zip(batch, results, strict=True):
                _settle(job, result, started, seconds, len(batch))

    def _take(self) -> list[Job]:
        """The oldest job and those that can go with it; shadow captions only where there is nothing else."""
        for lane in (self.waiting, self.background):
            lane[:] = [job for job in lane if not job.future.done()]  # abandoned requests are not captioned
            if lane:
                room = max(1, self.max_batch // lane[0].decoding.num_beams)
                first = lane[0].group
                batch = [job for job in lane if job.group == first][:room]
                taken = set(map(id, batch))
                lane[:] = [job for job in lane if id(job) not in taken]
                return batch
        return []


def _settle(job: Job, result: "Caption | Exception", started: float, seconds: float, batch: int) -> None:
    if job.future.done():
        return
    if isinstance(result, Exception):
        job.future.set_exception(result)
    else:
        job.future.set_result(Done(result, started - job.arrived, seconds, batch))


def caption_jobs(jobs: Sequence[Job], loop: asyncio.AbstractEventLoop) -> list["Caption | Exception"]:
    """Caption jobs of one group; a failing batch is halved until what fails is one item."""
    try:
        return [_finite(caption) for caption in _caption(jobs, loop)]
    except Exception as error:  # a network can raise anything, out of memory included
        if len(jobs) == 1:
            if not isinstance(error, InputError):
                observe.log.error("the model failed on an item", exc_info=error)
            return [error]
    middle = len(jobs) // 2
    return caption_jobs(jobs[:middle], loop) + caption_jobs(jobs[middle:], loop)


def _caption(jobs: Sequence[Job], loop: asyncio.AbstractEventLoop) -> list["Caption"]:
    decoding = jobs[0].decoding
    return jobs[0].served.captioner.caption(
        [job.item for job in jobs],
        [job.prompt for job in jobs],
        decoding,
        seeds=[job.seed or 0 for job in jobs] if decoding.sampled else None,
        watch=_watch(jobs, loop),
    )


def _watch(jobs: Sequence[Job], loop: asyncio.AbstractEventLoop) -> Callable[[list[str]], None] | None:
    """Pass captions in the making to those who listen."""
    listening = [(place, job.listener) for place, job in enumerate(jobs) if job.listener]
    if not listening:
        return None

    def tell(texts: list[str]) -> None:
        for place, listener in listening:
            loop.call_soon_threadsafe(listener, texts[place])

    return tell


def _finite(caption: "Caption") -> "Caption | Exception":
    if math.isfinite(caption.score):
        return caption
    return NotFinite(
        "the network answers these features with NaN; their numbers are far outside those it was taught on"
    )
