"""The queue in front of CLIP and CLAP: decoded clips that wait there share the next forward pass.

1. No waiting window: idle encoders take a single clip at once, busy ones find a batch when they are done.
2. A batch shares the model in service, and holds at most `batch_frames`, or one longer clip. The oldest clip decides.
3. What fails inside a batch is halved until the bad clip fails alone.
4. A clip waits outside, holding its decoder, until there is room: this bounds the decoded frames in memory.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from videoblip2.modality import Features

from .following import Served

if TYPE_CHECKING:
    from videoblip2.predict import PreparedVideo

BATCH_FRAMES = 64


@dataclass(eq=False)
class Clip:
    """A decoded clip on its way to features by the encoders of the model that it came for."""

    prepared: "PreparedVideo"
    served: Served
    features: "asyncio.Future[Features]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def frames(self) -> int:
        return len(self.prepared.pixels)


class EncodingQueue:
    """Call it on the event loop; the encoders run on their own thread."""

    def __init__(self, batch_frames: int = BATCH_FRAMES) -> None:
        self.batch_frames = batch_frames
        self.waiting: list[Clip] = []
        self._inside = 0  # frames that wait or are being encoded
        self._door, self._left = asyncio.Lock(), asyncio.Event()
        self._batch: list[Clip] = []
        self._pool = ThreadPoolExecutor(1, "encoders")
        self._task: asyncio.Task[None] | None = None

    async def enter(self, clip: Clip) -> None:
        """Queue a clip once there is room for it; `clip.features` then gets its features or its exception."""
        async with self._door:  # in the order of coming: a long clip is never starved by short ones
            while (
                self._inside and self._inside + clip.frames > 2 * self.batch_frames
            ):  # the current batch, and the next
                self._left.clear()
                await self._left.wait()
            self._inside += clip.frames
        clip.features.add_done_callback(lambda _: self._leave(clip))
        self.waiting.append(clip)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Cancel everything that waits; the result of the current batch is dropped."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for clip in (*self._batch, *self.waiting):
            clip.features.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self, clip: Clip) -> None:
        self._inside -= clip.frames
        self._left.set()

    async def _run(self) -> None:
        """Encode until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._take():
            self._batch = batch
            results = await loop.run_in_executor(self._pool, encode_clips, batch)
            for clip, result in zip(batch, results, strict=True):
                _settle(clip, result)

    def _take(self) -> list[Clip]:
        """The oldest clip and the next ones that go with it; abandoned requests are not encoded."""
        self.waiting = [clip for clip in self.waiting if not clip.features.done()]
        batch: list[Clip] = []
        frames = 0
        for clip in self.waiting:
            if clip.served is not self.waiting[0].served or (batch and frames + clip.frames > self.batch_frames):
                break
            batch.append(clip)
            frames += clip.frames
        del self.waiting[: len(batch)]
        return batch


def _settle(clip: Clip, result: "Features | Exception") -> None:
    if clip.features.done():
        return
    if isinstance(result, Exception):
        clip.features.set_exception(result)
    else:
        clip.features.set_result(result)


def encode_clips(clips: Sequence[Clip]) -> list["Features | Exception"]:
    """Encode clips of one model together; a failing batch is halved until what fails is one clip."""
    try:
        return [*clips[0].served.captioner.encode_prepared([clip.prepared for clip in clips])]
    except Exception as error:  # a network can raise anything, out of memory included
        if len(clips) == 1:
            return [error]
    middle = len(clips) // 2
    return encode_clips(clips[:middle]) + encode_clips(clips[middle:])
