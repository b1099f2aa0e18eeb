"""The service without HTTP: followers, batcher and shadow together; items in, answers, attention and refusals out."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from anyio import to_thread

from videoblip2.captioner import Caption, Captioner
from videoblip2.config import InputError
from videoblip2.files import json_text
from videoblip2.jobs.forms import Row
from videoblip2.jobs.segments import cut, merged
from videoblip2.modality import MODALITIES, Features

from . import observe
from .batching import Batcher, Item, Job
from .following import Follower
from .messages import Answer, Ask, Attention, Comparison, ModelState, Moment, Refusal, Segments, refusal_of
from .service_settings import Settings, baked_model

START_SECONDS = 5  # Retry-After while the model is being loaded


class Engine:
    """Create and start it on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.follower = Follower(settings.address, settings.device)
        self.batcher = Batcher(settings.max_batch, settings.max_waiting)
        self.shadow: Shadow | None = None
        self._attending = asyncio.Lock()
        self._followers = [self.follower]
        self._stopped = threading.Event()
        if settings.shadow:
            self.shadow = Shadow(Follower(settings.shadow, settings.device), self.batcher, settings.shadow_log)
            self._followers.append(self.shadow.follower)

    def start(self) -> None:
        threading.Thread(target=self._follow, name="model-follower", daemon=True).start()

    async def stop(self) -> None:
        """Drop the queue and stop following the model, without waiting for a load in progress."""
        self._stopped.set()
        await self.batcher.stop()

    def _follow(self) -> None:
        """Runs on its own thread: only one may use MLflow's client."""
        while not self._stopped.is_set():
            for follower in self._followers:
                if follower.look() and follower is self.follower:
                    observe.serving(self.served().version)
            self._stopped.wait(self.settings.poll_seconds)

    def served(self) -> Captioner:
        """The current model, which a request keeps to its end. Raises Refusal while none is loaded."""
        if self.follower.current is None:
            why = "it does not load; see the server's log" if self.follower.trouble else "it is being loaded"
            raise Refusal(503, f"no model in service yet: {why}", START_SECONDS)
        return self.follower.current

    def state(self) -> ModelState:
        captioner, since = self.served(), self.follower.since
        return ModelState(
            model="baked into this Bento" if self.settings.address == baked_model() else self.settings.address,
            model_version=captioner.version,
            since=datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds"),
            waiting=len(self.batcher.waiting),
            trouble=self.follower.trouble,
            warning=captioner.provenance.warning,
            answers=not captioner.never_asked,
            shadow=self.shadow.comparison if self.shadow else None,
            max_upload_mb=self.settings.max_upload_mb,
        )

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Bound the time that a request takes; Refusal 504 beyond it."""
        limit = self.settings.timeout_seconds
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError as error:
            raise Refusal(504, f"no answer within {limit:g} s", self.batcher.retry_after()) from error

    async def answer(self, items: Sequence[Item], captioner: Captioner, ask: Ask) -> list[Answer | Refusal]:
        """Caption items as one submission; an item that is refused or fails becomes a Refusal."""
        checked = [self.job(item, captioner, ask) for item in items]
        jobs = [job for job in checked if isinstance(job, Job)]
        self.batcher.submit(jobs)
        try:
            results = await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
        finally:
            for job in jobs:
                job.future.cancel()  # abandoned requests are not captioned
        if self.shadow:
            self.shadow.offer(jobs, results)
        answers = iter([answer_of(job, result) for job, result in zip(jobs, results, strict=True)])
        return [job if isinstance(job, Refusal) else next(answers) for job in checked]

    async def segments(self, item: Features, captioner: Captioner, ask: Ask, every: float | str) -> Segments:
        """Caption one video in segments of `every` seconds, or "scenes", as one submission of bounded size."""
        captioner.check(item)
        patches = captioner.media_encoders.clip.rows if ask.clip else 1
        length, window = captioner.timeline(item, len(item["video"]) // patches if ask.clip else None)
        if ask.clip:  # every frame, at the rate of the encoders
            fps = captioner.media_encoders.settings.fps
        elif length:
            fps = len(item["video"]) / length
        else:
            raise Refusal(400, f"segments={every}: the length of this video is unknown; send the media file")
        each = None if isinstance(every, str) else every  # None: at changes of the picture
        parts = await to_thread.run_sync(cut, item, fps, window, each, None, patches)
        if len(parts) > (most := self.settings.max_waiting):
            raise Refusal(413, f"segments={every}: makes {len(parts)} segments, more than {most}; ask for longer ones")
        rows = []
        for part, said in zip(parts, await self.answer([part.item for part in parts], captioner, ask), strict=True):
            if isinstance(said, Refusal):
                raise said
            rows.append(Row("", "", said.caption, said.score, None, part.start, part.end, words=said.words))
        answer = {"segments": merged(rows), "model_version": captioner.version, "clip": ask.clip}
        seconds = round(time.perf_counter() - ask.began, 4)
        return Segments.model_validate({**answer, "seconds": seconds}, from_attributes=True)

    async def attention(self, item: Features, captioner: Captioner, ask: Ask) -> Attention:
        """Attention over time for one item. Raises InputError for features that the model cannot take."""
        async with self._attending:  # one at a time: captions come first
            return await to_thread.run_sync(attention_over_time, captioner, item, ask.prompt)

    def job(self, item: Item, captioner: Captioner, ask: Ask) -> Job | Refusal:
        """Check one item against the model that will caption it."""
        try:
            if isinstance(item, BaseException):
                raise item
            return Job(captioner.cut(item), captioner, ask)
        except Exception as error:
            return refusal_of(error)


def answer_of(job: Job, result: Caption | BaseException) -> Answer | Refusal:
    """A caption with its timings, also sent to the metrics; a failure becomes a Refusal."""
    if isinstance(result, BaseException):
        return refusal_of(result)
    observe.metrics().captions.labels(job.captioner.version).inc()
    observe.timed("queue", job.queue_seconds, ago=job.model_seconds)
    observe.timed("generate", job.model_seconds)
    timings = {"features": job.ask.features_seconds, "queue": job.queue_seconds, "model": job.model_seconds}
    return Answer(
        caption=result.text,
        score=round(result.score, 6),
        model_version=job.captioner.version,
        seconds=round(time.perf_counter() - job.ask.began, 4),
        timings={name: round(seconds, 4) for name, seconds in timings.items()},
        batch=job.batch,
        words=job.words,
        clip=job.ask.clip,
    )


def attention_over_time(captioner: Captioner, item: Features, prompt: str | None) -> Attention:
    """The attention of `captioner`'s Q-Formers over one item, on the clip's time axis."""
    weights = captioner.attention(item, prompt)
    seconds, window = captioner.timeline(item)
    modalities: dict[str, list[Moment] | None] = dict.fromkeys(MODALITIES)
    for name, row in weights.items():
        edges = moment_edges(len(row), seconds, window if name == "audio" else None).round(3).tolist()
        moments = zip(edges[:-1], edges[1:], row.tolist(), strict=True)
        modalities[name] = [Moment(start=start, end=end, weight=round(weight, 6)) for start, end, weight in moments]
    return Attention(model_version=captioner.version, seconds=seconds, modalities=modalities)


def moment_edges(count: int, seconds: float | None, window: float | None = None) -> np.ndarray:
    """[count + 1] times at which moments begin and end, the last with the clip; 0 to 1 if its length is unknown."""
    if count and seconds and window and (count - 1) * window < seconds <= (count + 1) * window:
        return np.append(np.arange(count) * window, seconds)
    return np.linspace(0, seconds or 1, count + 1)


class Shadow:
    """A challenger captions the champion's items in idle time; the captions are compared, never returned."""

    def __init__(self, follower: Follower, batcher: Batcher, path: Path | None = None) -> None:
        self.follower, self._batcher, self._path = follower, batcher, path
        self.comparison = Comparison(model=follower.model)
        self._tasks: set[asyncio.Task[str | None]] = set()

    def offer(self, jobs: Sequence[Job], answers: Sequence[Caption | BaseException]) -> list[asyncio.Task[str | None]]:
        """Caption the same items → one task per accepted job: its caption, or None if that failed."""
        challenger = self.follower.current
        tasks: list[asyncio.Task[str | None]] = []
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, BaseException):
                continue
            versions = job.captioner.version, challenger.version if challenger else ""
            if versions != (self.comparison.champion, self.comparison.challenger):
                self.comparison = Comparison(model=self.follower.model, champion=versions[0], challenger=versions[1])
            # Features for one model suit the other only if both have the same encoders.
            if challenger is None or challenger.encoders_name != job.captioner.encoders_name:
                self.comparison.dropped += 1
                continue
            options = job.ask.options.model_copy(update={"explain": False})
            try:
                shadow = Job(job.item, challenger, replace(job.ask, options=options))
                self._batcher.submit([shadow], background=True)
            except (Refusal, InputError):
                self.comparison.dropped += 1
                continue
            task = asyncio.create_task(self._compare(job, answer, shadow))
            self._tasks.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._tasks.discard)
            tasks.append(task)
        return tasks

    async def _compare(self, job: Job, answer: Caption, shadow: Job) -> str | None:
        try:
            caption = await shadow.future
        except Exception as error:
            self.comparison.failed += 1
            observe.log.warning("challenger %s failed: %s", shadow.captioner.version, error)
            return None
        row: dict[str, str | float] = {"request": job.ask.request_id}
        row["overlap"] = round(overlap(answer.text, caption.text), 4)
        for name, asked, said in ("champion", job, answer), ("challenger", shadow, caption):
            row |= {name: asked.captioner.version, f"{name}_caption": said.text, f"{name}_score": round(said.score, 4)}
            row[f"{name}_seconds"] = round(asked.model_seconds, 4)
        observe.log.info("shadow", extra={"fields": row})
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json_text(row) + "\n")
        total = self.comparison
        if (row["champion"], row["challenger"]) == (total.champion, total.challenger):
            total.compared += 1
            total.same += answer.text == caption.text
            for name in ("overlap", "champion_score", "challenger_score"):  # running means
                mean = getattr(total, name)
                setattr(total, name, mean + (float(row[name]) - mean) / total.compared)
        return caption.text


def overlap(one: str, other: str) -> float:
    """Jaccard index of the words of two captions."""
    words, others = set(one.split()), set(other.split())
    return len(words & others) / len(words | others) if words | others else 1.0
