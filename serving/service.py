"""The caption service: one endpoint on the champion. `bentoml serve` at the repository root starts it.

The model is `models:/videoblip2@champion` of the MLflow store in the current folder; VB2_MODEL names another one.
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
    traffic={"timeout": 300, "max_concurrency": 32},
    endpoints={"livez": "/livez", "readyz": "/readyz"},  # named here, probes do not count as requests in the limit
)
class VideoBlip2Service:
    """Video files in, captions out."""

    def __init__(self) -> None:
        self.captioner = load()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_model() -> None:
        """Stop the start with one line if there is no model; a failing worker would be started again for ever."""
        from videoblip2.predict import find_model

        try:
            find_model(model())
        except InputError as error:
            raise BentoMLException(str(error)) from error

    @bentoml.api  # type: ignore[untyped-decorator]
    def caption(self, video: Path) -> Answer:
        """Caption one uploaded video file, with or without sound; 400 and `{"error": reason}` if it cannot be read."""
        start = time.perf_counter()
        try:
            caption = self.captioner.caption_media([video])[0]
        except InputError as error:
            return refusal(str(error).replace(str(video), "the uploaded file"))
        seconds = time.perf_counter() - start
        return Answer(caption=caption.text, score=caption.score, model_version=self.captioner.version, seconds=seconds)


def refusal(reason: str) -> Answer:
    """Return a finished response in the place of an Answer: BentoML sends it as it is and documents Answer."""
    return cast(Answer, JSONResponse({"error": reason}, status_code=400))


def model() -> str:
    """Return the MODEL to serve."""
    return os.environ.get("VB2_MODEL") or CHAMPION


def load() -> "Captioner":
    """Load the model on the GPU where there is one, else on the CPU."""
    from videoblip2.predict import load_captioner

    captioner = load_captioner(model())
    log.info("serving %s version %s", captioner.model_name, captioner.version)
    return captioner
