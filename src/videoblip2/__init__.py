"""VideoBLIP2: video and audio captioning on BLIP-2 Q-Formers and Flan-T5."""

from importlib import import_module
from typing import Any

__all__ = ["VideoBlip2", "load"]
__version__ = "0.1.0"  # pyproject.toml reads it here
_MODULES = {"VideoBlip2": "videoblip2.model.network", "load": "videoblip2.predict"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
