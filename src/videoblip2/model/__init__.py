"""The network, weight loading, decoding, checkpoints."""

from typing import Any

__all__ = ["load_qformer"]


def __getattr__(name: str) -> Any:
    """Import `load_qformer` on first use, so that importing this package is cheap."""
    if name != "load_qformer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from videoblip2.model.load_weights import load_qformer

    return load_qformer
