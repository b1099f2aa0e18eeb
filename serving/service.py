"""The caption service: one endpoint on the champion. `bentoml serve` at the repository root starts it.

The model is `models:/videoblip2@champion` of the MLflow store in the current folder; VB2_MODEL names another one.
In a Bento that `vb2 package` built it is the model baked in.
"""

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import bentoml
from bentoml.exceptions import BentoMLException
from pydantic import BaseModel
from starlette.responses import JSONResponse

from serving import observe
from serving.guard import Guard, GuardLimits, file_fields
from serving.media import Busy, Decoders, MediaLimits
from serving.settings import baked_model
from videoblip2.config import InputError

if TYPE_CHECKING:
    from videoblip2.predict import Captioner

CHAMPION = "models:/videoblip2@champion"

log = logging.getLogger("bentoml.service")


class Answer(BaseModel):
    """What the model says of one video."""

    caption: str
    score: float
    model_version: str
    seconds: float


@bentoml.service(
    name="videoblip2",
    workers=1,  # a second worker would be a second copy of the model on the same device
    threads=1,  # captions are made one after another, beside the event loop, which goes on answering probes
    traffic={"timeout": 300},  # how many at a time: the guard's VB2_MAX_REQUESTS, whose 429 says Retry-After
    logging={"access": {"enabled": False}},  # serving.observe writes a line a request
    endpoints={"livez": "/livez", "readyz": "/readyz"},  # named here, probes do not count as requests in the limit
)
class VideoBlip2Service:
    """Video files in, captions out."""

    def __init__(self) -> None:
        observe.start_logging()
        self.decoders = Decoders()
        self.decoders.start()
        self.captioner = load()
        observe.serving(self.captioner.version)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop_decoders(self) -> None:
        """End the decoding processes."""
        self.decoders.stop()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_model() -> None:
        """Stop the start with one line if there is no model or a setting is wrong; a failing worker would be started
        again for ever."""
        from videoblip2.predict import find_model

        try:
            GuardLimits.from_environment()
            MediaLimits.from_environment()
            find_model(model())
        except InputError as error:
            raise BentoMLException(str(error)) from error

    @bentoml.api  # type: ignore[untyped-decorator]
    def caption(self, video: Path) -> Answer:
        """Caption one uploaded video file, with or without sound; 400 and `{"error": reason}` if it cannot be read."""
        start = time.perf_counter()
        try:
            with self.decoders.decode(video, self.captioner.media_fps) as media, observe.phase("encode"):
                features = self.captioner.encode_media(media.frames, media.sound)
            with observe.phase("generate"):
                (caption,) = self.captioner.caption([features])
        except InputError as error:
            observe.failed("media")
            return refusal(str(error), 400)
        except Busy as busy:
            observe.failed("overloaded")
            return refusal(str(busy), 429)
        observe.captioned(self.captioner.version)
        seconds = time.perf_counter() - start
        return Answer(caption=caption.text, score=caption.score, model_version=self.captioner.version, seconds=seconds)


VideoBlip2Service.add_asgi_middleware(Guard, endpoints=file_fields(VideoBlip2Service))  # type: ignore[attr-defined]


def refusal(reason: str, status: int) -> Answer:
    """Return a finished response in the place of an Answer: BentoML sends it as it is and documents Answer."""
    return cast(Answer, JSONResponse({"error": reason}, status_code=status))


def model() -> str:
    """Return the MODEL to serve."""
    return os.environ.get("VB2_MODEL") or baked_model() or CHAMPION


def load() -> "Captioner":
    """Load the model on the GPU where there is one, else on the CPU."""
    from videoblip2.predict import load_captioner

    captioner = load_captioner(model())
    log.info("serving %s version %s", captioner.model_name, captioner.version)
    return captioner
