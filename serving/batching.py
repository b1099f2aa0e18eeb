"""The queues in front of the model and of its encoders; each network runs on one thread, batch after batch.

There is no waiting window: an idle network starts on a single item; what arrives meanwhile becomes the next batch.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from videoblip2.captioner import Caption, Captioner
from videoblip2.config import Decoding
from videoblip2.modality import ExplainedWord, Features

from . import observe
from .messages import Ask, Refusal

if TYPE_CHECKING:
    from videoblip2.captioner import PreparedVideo

Item = Features | BaseException  # the exception says why there are no features
SHORT = 32  # rows; lengths up to here count as one group
PACE = 0.1  # weight of the newest batch in the running mean of seconds per caption
BATCH_FRAMES = 64
EXPLAINED = 8  # captions explained at once: their logits take tokens × vocabulary numbers
HUNG_SECONDS = 300  # a batch that takes longer than any request may wait
NOT_FINITE = "the network returns NaN for these features; their values are far outside its training range"


@dataclass(eq=False)
class Job:
    """One item, captioned by the model that was current when it arrived, and the time of each phase."""

    item: Features
    captioner: Captioner
    ask: Ask = field(default_factory=Ask)
    listener: Callable[[str], None] | None = None  # called on the event loop with the caption so far
    arrived: float = field(default_factory=time.perf_counter)
    queue_seconds: float = 0.0
    model_seconds: float = 0.0
    batch: int = 0  # captions made at once
    words: tuple[ExplainedWord, ...] | None = None  # if requested
    future: "asyncio.Future[Caption]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    decoding: Decoding = field(init=False)

    def __post_init__(self) -> None:
        self.decoding = self.ask.options.decoding(self.captioner.model.decoding)

    @property
    def group(self) -> tuple[object, ...]:
        """What must be equal within a batch."""
        return self.captioner, self.decoding, self.ask.options.explain, length_group(self.item)


@dataclass(eq=False)
class Clip:
    """A decoded clip, to be encoded for the model that will caption it."""

    prepared: "PreparedVideo"
    captioner: Captioner
    future: "asyncio.Future[Features]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def frames(self) -> int:
        return len(self.prepared.pixels)


def length_group(item: Features) -> int:
    """The next power of two, at least SHORT: at most half of a batch's rows are padding."""
    return math.ceil(math.log2(max(SHORT, *(len(array) for array in item.values()))))


Waiting = Sequence[Job | Clip]


class Worker:
    """One thread that works on the batches that `take` removes from a queue, from `wake` until nothing waits."""

    def __init__(self, name: str, take: Callable[[], Waiting], work: Callable[[Any], Sequence[Any]]) -> None:
        self.busy_since: float | None = None
        self._batch: Waiting = ()
        self._take, self._work = take, work
        self._pool = ThreadPoolExecutor(1, name)
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def stop(self, waiting: Waiting) -> None:
        """Cancel everything in the queue, and drop the result of the current batch."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        for item in (*self._batch, *waiting):
            item.future.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            self._batch, self.busy_since = batch, time.perf_counter()
            results = await loop.run_in_executor(self._pool, halved, self._work, batch)
            for item, result in zip(batch, results, strict=True):
                if item.future.done():  # abandoned meanwhile
                    continue
                if isinstance(result, Exception):
                    item.future.set_exception(result)
                else:
                    item.future.set_result(result)
            self.busy_since = None


def halved(work: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]) -> list[Any]:
    """Do `work` on all items together; items that fail are halved until the bad one fails by itself."""
    try:
        return [*work(items)]
    except Exception as error:  # a network can raise anything, out of memory included
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return halved(work, items[:middle]) + halved(work, items[middle:])


class Batcher:
    """The queue in front of the model; call it on the event loop."""

    def __init__(self, max_batch: int = 32, max_waiting: int = 256) -> None:
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.waiting: list[Job] = []
        self.background: list[Job] = []
        self._pace = 0.05  # seconds per caption
        self._turn = 0  # number of the newest batch
        self._worker = Worker("captions", self._take, self._caption)

    async def stop(self) -> None:
        await self._worker.stop([*self.waiting, *self.background])

    def submit(self, jobs: Sequence[Job], background: bool = False) -> None:
        """Queue jobs, all or none. Raises Refusal: 429 if the queue is full, 413 if they can never fit."""
        if len(jobs) > self.max_waiting:
            raise Refusal(413, f"{len(jobs)} items at once; send at most {self.max_waiting}")
        lane = self.background if background else self.waiting
        if len(lane) + len(jobs) > self.max_waiting:
            seconds = self.retry_after()
            raise Refusal(429, f"the queue is full; try again in {seconds} s", seconds)
        for job in jobs:
            job.ask.turn = self._turn - 1
        lane.extend(jobs)
        observe.metrics().queue.set(len(self.waiting))
        self._worker.wake()

    def retry_after(self) -> int:
        """Estimated seconds until the current queue is captioned, 1 to 60."""
        return min(60, max(1, math.ceil(len(self.waiting) * self._pace)))

    def hangs(self) -> bool:
        """Whether the current batch has run for so long that only a restart helps."""
        since = self._worker.busy_since
        return since is not None and time.perf_counter() - since > HUNG_SECONDS

    def _take(self) -> list[Job]:
        """The oldest job of the request served least recently, and those in its group; shadow jobs come last."""
        batch: list[Job] = []
        for lane in (self.waiting, self.background):
            lane[:] = [job for job in lane if not job.future.done()]  # abandoned requests are not captioned
            if lane:
                lane.sort(key=lambda job: job.ask.turn)
                room = max(1, self.max_batch // lane[0].decoding.rows)
                batch = [job for job in lane if job.group == lane[0].group][:room]
                lane[:] = [job for job in lane if job not in batch]
                self._turn += 1
                for job in batch:
                    job.ask.turn = self._turn
                break
        observe.metrics().queue.set(len(self.waiting))
        return batch

    def _caption(self, jobs: Sequence[Job]) -> list[Caption | Exception]:
        """On the thread: caption jobs of one group."""
        observe.metrics().batch.observe(len(jobs))
        started, captioner, decoding = time.perf_counter(), jobs[0].captioner, jobs[0].decoding
        seeds = [job.ask.options.seed or 0 for job in jobs] if decoding.sampled or decoding.consensus else None

        def tell(texts: list[str]) -> None:
            for job, text in zip(jobs, texts, strict=True):
                if job.listener:
                    job.future.get_loop().call_soon_threadsafe(job.listener, text)

        items, prompts = [job.item for job in jobs], [job.ask.prompt for job in jobs]
        watch = tell if any(job.listener for job in jobs) else None
        captions = captioner.caption(items, prompts, decoding, seeds, watch)
        if jobs[0].ask.options.explain:
            for part in (slice(start, start + EXPLAINED) for start in range(0, len(jobs), EXPLAINED)):
                owed = captioner.explain(items[part], [caption.text for caption in captions[part]], prompts[part])
                for job, words in zip(jobs[part], owed, strict=True):
                    job.words = words
        seconds = time.perf_counter() - started
        self._pace += PACE * (seconds / len(jobs) - self._pace)
        for job in jobs:
            job.queue_seconds, job.model_seconds, job.batch = started - job.arrived, seconds, len(jobs)
        return [c if math.isfinite(c.score) else Refusal(400, NOT_FINITE) for c in captions]


class EncodingQueue:
    """The queue in front of CLIP and CLAP; call it on the event loop."""

    def __init__(self, batch_frames: int = BATCH_FRAMES) -> None:
        self.batch_frames = batch_frames
        self._waiting: list[Clip] = []
        self._frames = 0  # waiting or being encoded
        self._door, self._left = asyncio.Lock(), asyncio.Event()
        self._worker = Worker("encoders", self._take, self._encode)

    async def enter(self, clip: Clip) -> None:
        """Queue a clip once there is room for it; its future then gets its features or its exception."""
        async with self._door:  # first come, first served: short clips never starve a long one
            most = 2 * self.batch_frames  # the current batch, and the next
            while self._frames and self._frames + clip.frames > most:
                self._left.clear()
                await self._left.wait()
            self._frames += clip.frames
        clip.future.add_done_callback(lambda _: self._leave(clip))
        self._waiting.append(clip)
        self._worker.wake()

    async def stop(self) -> None:
        await self._worker.stop(self._waiting)

    def _leave(self, clip: Clip) -> None:
        self._frames -= clip.frames
        self._left.set()

    def _take(self) -> list[Clip]:
        """The oldest clip and the next ones for the same model; abandoned requests are not encoded."""
        self._waiting = [clip for clip in self._waiting if not clip.future.done()]
        batch: list[Clip] = []
        frames = 0
        for clip in self._waiting:
            if clip.captioner is not self._waiting[0].captioner or (batch and frames + clip.frames > self.batch_frames):
                break
            batch.append(clip)
            frames += clip.frames
        del self._waiting[: len(batch)]
        return batch

    def _encode(self, clips: Sequence[Clip]) -> list[Features]:
        return clips[0].captioner.media_encoders.encode([clip.prepared for clip in clips])
