"""The service without HTTP: followers, batcher and shadow put together; items in, answers out."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from anyio import to_thread

from videoblip2.config import Decoding, InputError
from videoblip2.modality import Features

from . import observe
from .answers import Answer, Attention, ItemProblem, ModelState, Refusal, Timings
from .attention import attention_over_time
from .batching import Batcher, Done, Full, Job, NotFinite
from .following import Follower, Poller, Served
from .service_settings import Settings, baked_model
from .shadow import Shadow

BAKED = "baked into this Bento"
HUNG_SECONDS = 300  # a batch that takes longer than any request may wait
START_SECONDS = 5  # Retry-After while the model is being loaded


@dataclass
class Ask:
    """What to do with items: decoding, prompt, seed; and who asks."""

    decoding: Decoding = field(default_factory=Decoding)
    prompt: str | None = None
    seed: int | None = None
    request_id: str = ""
    began: float = field(default_factory=time.perf_counter)
    features_seconds: float = 0.0
    clip: str = ""


class Engine:
    """Made and started on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.follower = Follower(settings.address, settings.device, observe.serving)
        self.batcher = Batcher(settings.max_batch, settings.max_waiting)
        self.shadow: Shadow | None = None
        self._attending = asyncio.Lock()
        followers = [self.follower]
        if settings.shadow:
            self.shadow = Shadow(Follower(settings.shadow, settings.device), self.batcher, settings.shadow_log)
            followers.append(self.shadow.follower)
        self._poller = Poller(followers, settings.poll_seconds)

    def start(self) -> None:
        """Begin to load the model, and to caption."""
        self.batcher.start()
        self._poller.start()

    async def stop(self) -> None:
        self._poller.stop()
        await self.batcher.stop()

    def ready(self) -> bool:
        """Whether a warm model is in service."""
        return self.follower.current is not None

    def alive(self) -> bool:
        """False once a batch hangs in the model: only a restart helps then."""
        return self.batcher.busy_seconds() < HUNG_SECONDS

    def served(self) -> Served:
        """The model of this moment; a request keeps it to its end. Raises Refusal while none is loaded."""
        if self.follower.current is None:
            why = "it does not load, the server's log says why" if self.follower.trouble else "it is being loaded"
            raise Refusal(503, f"no model in service yet: {why}", START_SECONDS)
        return self.follower.current

    def state(self) -> ModelState:
        served = self.served()
        return ModelState(
            model=BAKED if self.settings.address == baked_model() else self.settings.address,
            model_version=served.version,
            since=datetime.fromtimestamp(served.since, UTC).isoformat(timespec="seconds"),
            waiting=len(self.batcher.waiting),
            trouble=self.follower.trouble,
            shadow=self.shadow.comparison if self.shadow else None,
            max_upload_mb=self.settings.max_upload_mb,
        )

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Bounds everything that a request waits for; Refusal 504 when it takes too long."""
        limit = self.settings.timeout_seconds
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError as error:
            raise Refusal(504, f"no answer within {limit:g} s", self.batcher.retry_after()) from error

    async def answer(
        self, items: Sequence["Features | Refusal"], served: Served, ask: Ask
    ) -> list["Answer | ItemProblem"]:
        """Caption items as one submission; one that is refused or fails gets an ItemProblem in its place."""
        jobs: list[Job | Refusal] = [self.job(item, served, ask) for item in items]
        sound = [job for job in jobs if isinstance(job, Job)]
        self.submit(sound)
        try:
            results = dict(zip(map(id, sound), await _all(sound), strict=True))
        finally:
            for job in sound:
                job.future.cancel()  # abandoned requests are not captioned
        self.compare(sound, list(results.values()), ask)
        return [_said(job, results.get(id(job)), ask) for job in jobs]

    def compare(
        self, jobs: Sequence[Job], results: Sequence["Done | BaseException"], ask: Ask
    ) -> "list[asyncio.Task[str | None]]":
        """Let the challenger, if there is one, caption what was answered; its captions, None where it has none."""
        return self.shadow.offer(jobs, results, ask.request_id) if self.shadow else []

    async def attention(self, item: "Features", served: Served, prompt: str | None) -> Attention:
        """Attention over time for one item. Raises Refusal 400 for features that the model cannot take."""
        try:
            served.captioner.check(item)
        except InputError as error:
            raise Refusal(400, str(error)) from error
        async with self._attending:  # one at a time: captions come first
            return await to_thread.run_sync(attention_over_time, served.captioner, item, prompt)

    def job(self, item: "Features | Refusal", served: Served, ask: Ask) -> "Job | Refusal":
        """Check one item against the model that will caption it."""
        if isinstance(item, Refusal):
            return item
        try:
            served.captioner.check(item)
        except InputError as error:
            return Refusal(400, str(error))
        return Job(served.captioner.cut(item), served, ask.decoding, ask.prompt, ask.seed)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs. Raises Refusal 429 where there is no room for all of them."""
        if len(jobs) > self.batcher.max_waiting:
            raise Refusal(413, f"{len(jobs)} items at once; send at most {self.batcher.max_waiting}")
        try:
            self.batcher.submit(jobs)
        except Full as error:
            raise Refusal(429, str(error), error.retry_after) from error


async def _all(jobs: Sequence[Job]) -> list["Done | BaseException"]:
    return await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)


def _said(job: "Job | Refusal", result: "Done | BaseException | None", ask: Ask) -> "Answer | ItemProblem":
    if isinstance(job, Refusal):
        return ItemProblem(error=job.reason, status=job.status)
    if isinstance(result, Done):
        return answer_of(job, result, ask)
    return problem_of(result)


def answer_of(job: Job, done: Done, ask: Ask) -> Answer:
    """Put a caption and its timings into words, and tell the metrics of it."""
    observe.captioned(job.served.version)
    observe.timed("queue", done.queue_seconds, ago=done.model_seconds)
    observe.timed("generate", done.model_seconds)
    return Answer(
        caption=done.caption.text,
        score=round(done.caption.score, 6),
        model_version=job.served.version,
        seconds=round(time.perf_counter() - ask.began, 4),
        timings=Timings(
            features=round(ask.features_seconds, 4),
            queue=round(done.queue_seconds, 4),
            model=round(done.model_seconds, 4),
        ),
        batch=done.batch,
        clip=ask.clip,
    )


def problem_of(error: BaseException | None) -> ItemProblem:
    """A user's mistake with its reason; anything else is our bug and reveals nothing internal."""
    if isinstance(error, InputError | NotFinite):
        return ItemProblem(error=str(error), status=400)
    return ItemProblem(error="the model failed on this item; the server's log has the details", status=500)
