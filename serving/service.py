"""The caption service. `bentoml serve` at the repository root starts it.

The model is `models:/videoblip2@champion` of the MLflow store in the current folder, followed as it moves; in a Bento
that `vb2 package` built it is the model baked in. VB2_MODEL names another one; docs/serving.md lists all settings.
"""

import bentoml
from bentoml.exceptions import BentoMLException

from videoblip2.config import InputError
from videoblip2.data.annotations import read_annotations

from . import observe
from .api import API
from .decoders import Decoders
from .engine import Engine
from .following import open_servable
from .guard import Guard
from .messages import FormRoute
from .service_settings import Settings, read_settings
from .uploads import MediaIntake

FORMS = {route.path for route in API.routes if isinstance(route, FormRoute) and route.body_field}


@bentoml.service(
    name="videoblip2",
    workers=1,  # a second worker would be a second copy of the model on the same device
    traffic={"timeout": 300},  # VB2_MAX_REQUESTS limits concurrency: its 429 has Retry-After
    logging={"access": {"enabled": False}},  # serving.observe writes a line per request
    endpoints={"livez": "/livez", "readyz": "/readyz"},
)
@bentoml.asgi_app(API, path="/", name="api")
class VideoBlip2Service:
    """Videos or features in, captions by the champion out."""

    def __init__(self) -> None:
        settings = read_settings()
        observe.start(settings.log_level)
        self.engine = Engine(settings)
        self.decoders = Decoders(settings)
        API.state.engine, API.state.intake = self.engine, MediaIntake(self.decoders)
        API.state.references = references(settings)

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_model() -> None:
        """Refuse to start, in one line, if something is missing or wrong: a failing worker would restart forever."""
        try:
            settings = read_settings()
            references(settings)
            open_servable(settings.address)
        except InputError as error:
            raise BentoMLException(str(error)) from error

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Start loading the model in the background, while the event loop answers probes."""
        self.decoders.start()
        self.engine.start()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        await API.state.intake.encoding.stop()
        await self.engine.stop()
        self.decoders.stop()

    def __is_ready__(self) -> bool:
        return self.engine.follower.current is not None

    def __is_alive__(self) -> bool:
        return not self.engine.batcher.hangs()


def references(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Video id → human captions, for the page. Raises InputError for a malformed annotation file."""
    videos = read_annotations(settings.references) if settings.references else ()
    return {video.video_id: video.captions for video in videos}


VideoBlip2Service.add_asgi_middleware(Guard, endpoints=FORMS)  # type: ignore[attr-defined]
