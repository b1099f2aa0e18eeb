"""What the page asks for, by the road of the API: the same decoders, the same queue, the same limits, no HTTP."""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from anyio import to_thread
from fastapi import UploadFile

from videoblip2.modality import Features

from . import observe
from .answers import Answer, ItemProblem, Refusal
from .engine import Ask, Engine
from .following import Served
from .uploads import MediaIntake

KEPT = 32  # clips whose features are at hand for the next question
SHADOW_SECONDS = 20  # a challenger has only the time that the champion leaves
UNEXPECTED = "an unexpected error; the server's log says more"


@dataclass(frozen=True)
class Strip:
    """Where the model looked and listened: weights [F] and [A] that sum to 1, None without such a branch."""

    video: np.ndarray | None
    audio: np.ndarray | None
    seconds: float | None
    window_seconds: float | None


@dataclass
class Watched:
    """A clip that was captioned, or asked about."""

    answer: Answer
    item: Features
    served: Served
    prompt: str | None
    references: Sequence[str] = ()
    challenger_version: str = ""
    expected: "asyncio.Future[str | None] | None" = field(default=None, repr=False)


class Desk:
    """Made on the event loop, for engine and intake of the service; `references`: video id → captions by people."""

    def __init__(self, engine: Engine, intake: MediaIntake, references: Mapping[str, Sequence[str]]) -> None:
        self._engine, self._intake, self._references = engine, intake, references
        self._items: OrderedDict[tuple[Path, str], Features] = OrderedDict()

    async def watch(self, path: Path, question: str | None) -> tuple[Watched, Strip]:
        """Caption a clip, or answer a question about it; where the model looked for that.

        One request of metrics and log. Raises Refusal with the reason why not, whatever went wrong.
        """
        request_id, status = uuid.uuid4().hex, 200
        name = "/page/caption" if question is None else "/page/ask"
        with observe.request(request_id, "POST", name, True, lambda: status):
            try:
                watched = await self._answer(path, question, request_id)
                return watched, await self._strip(watched)
            except Refusal as refusal:
                status = refusal.status
                observe.failed(refusal.kind)
                raise
            except Exception as error:
                status = 500
                observe.failed("internal")
                observe.log.exception("unexpected")
                raise Refusal(500, UNEXPECTED) from error

    async def challenger(self, watched: Watched) -> str | None:
        """The challenger's caption of the same clip; None where it has nothing to say, or not in time."""
        if watched.expected is None:
            return None
        try:
            return await asyncio.wait_for(watched.expected, SHADOW_SECONDS)
        except TimeoutError:
            return None

    async def _answer(self, path: Path, question: str | None, request_id: str) -> Watched:
        prompt = None if question is None else f"question: {question} answer:"
        asking = Ask(prompt=prompt, request_id=request_id)
        async with self._engine.deadline():
            served = self._engine.served()
            item = await self._item(path, served)
            asking.features_seconds = time.perf_counter() - asking.began
            expected, version = self._expect(request_id)
            (result,) = await self._engine.answer([item], served, asking)
        if isinstance(result, ItemProblem):
            raise Refusal(result.status, result.error)
        return Watched(result, item, served, prompt, self._references.get(path.stem, ()), version, expected)

    async def _strip(self, watched: Watched) -> Strip:
        captioner, item = watched.served.captioner, watched.item
        weights = await to_thread.run_sync(captioner.attention, item, watched.prompt)
        return Strip(weights.get("video"), weights.get("audio"), *captioner.timeline(item))

    def _expect(self, request_id: str) -> "tuple[asyncio.Future[str | None] | None, str]":
        shadow = self._engine.shadow
        if shadow is None or shadow.follower.current is None:
            return None, ""
        return shadow.expect(request_id), shadow.follower.current.version

    async def _item(self, path: Path, served: Served) -> Features:
        """The features of an upload, kept for the next question; encoders of another model make them anew."""
        key = path, served.captioner.encoders_name
        if key not in self._items:
            self._items[key] = await self._features(path, served)
        self._items.move_to_end(key)
        while len(self._items) > KEPT:
            self._items.popitem(last=False)
        return self._items[key]

    async def _features(self, path: Path, served: Served) -> Features:
        try:
            file = path.open("rb")
        except OSError as error:
            raise Refusal(400, "the clip is no longer here; drop it again") from error
        with file:
            return await self._intake.features(UploadFile(file, filename=path.name), served)
