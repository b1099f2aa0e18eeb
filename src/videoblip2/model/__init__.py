"""The network, weight loading, decoding, checkpoints. Names are loaded on first use: importing this is free."""

from importlib import import_module
from typing import Any

_HOMES = {
    "VideoBlip2": "network",
    "VideoBlip2Config": "configuration",
    "Tokenizers": "tokenizers",
    "build_model": "build",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "load_qformer": "load_weights",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
