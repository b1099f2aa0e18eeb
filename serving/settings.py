"""The service's own settings, from VB2_* environment variables."""

import math
import os
from pathlib import Path
from typing import TypeVar

from videoblip2.config import InputError

Number = TypeVar("Number", int, float)


def number(name: str, default: Number) -> Number:
    """The positive number in environment variable `name`, of the type of `default`. Raises InputError for another."""
    text = os.environ.get(name, "")
    try:
        value = type(default)(text) if text else default
    except ValueError:
        value = type(default)(0)
    if not 0 < value < math.inf:
        raise InputError(f"{name}={text}: not a positive number; give one such as {default}")
    return value


def baked_model() -> str | None:
    """The checkpoint that `vb2 package` laid beside the service; None where the service runs from the repository."""
    folder = Path(__file__).resolve().parents[1] / "model"
    return str(folder) if (folder / "VERSION").is_file() else None
