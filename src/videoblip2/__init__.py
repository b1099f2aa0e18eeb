"""VideoBLIP2: video and audio captioning on BLIP-2 Q-Formers and Flan-T5."""

from typing import Any

__all__ = ["VideoBlip2", "load"]


def __getattr__(name: str) -> Any:
    if name == "VideoBlip2":
        from videoblip2.model.network import VideoBlip2

        return VideoBlip2
    if name == "load":
        from videoblip2.predict import load

        return load
    if name == "__version__":
        from videoblip2.config import VERSION

        return VERSION
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
