"""Shadow mode: a challenger captions what the champion has captioned; both are logged and compared, never returned.

Shadow captions go in the batcher's second lane, so they take only time that the champion leaves.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from .answers import Comparison
from .batching import Batcher, Done, Full, Job
from .following import Follower, Served

log = logging.getLogger("videoblip2.serving.shadow")


class Shadow:
    """Compares what a follower's model says with what was answered."""

    def __init__(self, follower: Follower, batcher: Batcher, path: Path | None = None) -> None:
        self.follower, self._batcher, self._path = follower, batcher, path
        self.comparison = Comparison(model=follower.model)
        self._tasks: set[asyncio.Task[str | None]] = set()

    def offer(
        self, jobs: Sequence[Job], answers: Sequence["Done | BaseException"], request_id: str
    ) -> list["asyncio.Task[str | None]"]:
        """Caption again what was captioned; never raises, never waits.

        Returns a task for each accepted job; its result is the caption, or None if the challenger failed.
        """
        challenger = self.follower.current
        tasks: list[asyncio.Task[str | None]] = []
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, BaseException):
                continue
            self._start_over_if_new(job.served, challenger)
            # Features made for one say the same to the other only if both have the same encoders.
            if challenger is None or challenger.captioner.encoders_name != job.served.captioner.encoders_name:
                self.comparison.dropped += 1
                continue
            shadow = Job(job.item, challenger, job.decoding, job.prompt, job.seed)
            try:
                self._batcher.submit([shadow], background=True)
            except Full:
                self.comparison.dropped += 1
                continue
            task = asyncio.create_task(self._compare(job, answer, shadow, request_id))
            self._tasks.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._tasks.discard)
            tasks.append(task)
        return tasks

    async def _compare(self, job: Job, answer: Done, shadow: Job, request_id: str) -> str | None:
        try:
            done = await shadow.future
        except Exception as error:
            self.comparison.failed += 1
            log.warning("challenger %s failed: %s", shadow.served.version, error)
            return None
        row = {
            "request": request_id,
            "champion": job.served.version,
            "challenger": shadow.served.version,
            "champion_caption": answer.caption.text,
            "challenger_caption": done.caption.text,
            "champion_score": round(answer.caption.score, 4),
            "challenger_score": round(done.caption.score, 4),
            "overlap": round(overlap(answer.caption.text, done.caption.text), 4),
            "champion_seconds": round(answer.model_seconds, 4),
            "challenger_seconds": round(done.model_seconds, 4),
        }
        log.info("shadow", extra={"fields": row})
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if (row["champion"], row["challenger"]) == (self.comparison.champion, self.comparison.challenger):
            self._count(row)
        return done.caption.text

    def _count(self, row: dict[str, object]) -> None:
        """Running means over what was compared."""
        total = self.comparison
        total.compared += 1
        total.same += row["champion_caption"] == row["challenger_caption"]
        for name in ("overlap", "champion_score", "challenger_score"):
            mean = getattr(total, name)
            setattr(total, name, mean + (float(str(row[name])) - mean) / total.compared)

    def _start_over_if_new(self, champion: Served, challenger: Served | None) -> None:
        versions = champion.version, challenger.version if challenger else ""
        if versions != (self.comparison.champion, self.comparison.challenger):
            self.comparison = Comparison(model=self.follower.model, champion=versions[0], challenger=versions[1])


def overlap(one: str, other: str) -> float:
    """Jaccard index of the words of two captions."""
    words, others = set(one.split()), set(other.split())
    return len(words & others) / len(words | others) if words | others else 1.0
