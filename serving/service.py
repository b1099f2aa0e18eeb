"""The caption service. `bentoml serve` at the repository root starts it.

The model is `models:/videoblip2@champion` of the MLflow store in the current folder, followed as it moves.
`service_settings` lists the environment variables (VB2_MODEL, VB2_PIN, VB2_SHADOW …); `vb2 serve` sets the usual ones.

api        HTTP                      engine   items in, answers out     batching  the queue in front of the model
uploads    files to items            arrays   features without trust    shadow    the challenger beside the champion
following  the model of the moment   answers  what is said              gate      a bounded number of requests
"""

import bentoml
from bentoml.exceptions import BentoMLException

from serving.api import create_app
from serving.engine import Engine
from serving.following import find
from serving.gate import Gate
from serving.service_settings import Settings, read_settings
from videoblip2.config import InputError

API = create_app()


@bentoml.service(
    name="videoblip2",
    workers=1,  # a second worker would be a second copy of the model on the same device
    traffic={"timeout": 300},
    endpoints={"livez": "/livez", "readyz": "/readyz"},
)
@bentoml.asgi_app(API, path="/", name="api")
class VideoBlip2Service:
    """Videos or features in, captions out, by the champion."""

    def __init__(self) -> None:
        self.engine = Engine(checked_settings())
        API.state.engine = self.engine

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_model() -> None:
        """Stop the start with one line if there is no model; a failing worker would be started again for ever."""
        try:
            find(checked_settings().address)
        except InputError as error:
            raise BentoMLException(str(error)) from error

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Begin to load the model beside the event loop, which answers probes meanwhile."""
        self.engine.start()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        await self.engine.stop()

    def __is_ready__(self) -> bool:
        return self.engine.ready()

    def __is_alive__(self) -> bool:
        return self.engine.alive()


def checked_settings() -> Settings:
    """Read the settings; a wrong one ends the start with one line."""
    try:
        return read_settings()
    except InputError as error:
        raise BentoMLException(str(error)) from error


def add_middleware() -> None:
    """Put the ASGI middleware in front of the service, the first one innermost."""
    VideoBlip2Service.add_asgi_middleware(Gate)  # type: ignore[attr-defined]


add_middleware()
