"""Loads an encoder, from a folder in the standard form or by hub name, as a frozen transformers model."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from videoblip2.errors import InputError, first_line
from videoblip2.progress import quiet_transformers

DTYPES = ("float32", "bfloat16", "float16")


def name_of(name: str | Path) -> str:
    """A folder's full path, so that it is found from any working directory; a hub name unchanged."""
    return str(Path(name).resolve()) if Path(name).is_dir() else str(name)


def load_model(kind: Any, name: str | Path, device: str, revision: str | None) -> tuple[Any, str | None]:
    """The model and its commit. Refuses missing weights: random ones would give plausible vectors without meaning."""
    if not Path(name).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):  # the hub's OWNER/MODEL
        raise InputError(f"{name}: no such folder, and not a hub name (OWNER/MODEL); give the encoder's folder")
    model, info = load(kind, name, revision=revision, output_loading_info=True, dtype=torch.float32)
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise InputError(
            f"{name}: holds no weights for {missing[0]} ({len(missing)} in all); give a folder of {kind.__name__}"
        )
    commit = None if Path(name).is_dir() else getattr(model.config, "_commit_hash", None) or revision
    try:
        return model.to(device).eval().requires_grad_(False), commit
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={device}: cannot be used ({first_line(error)}); give cpu, or cuda if torch sees a GPU"
        ) from error


def cast(model: Any, dtype: str) -> Any:
    """The model in "float32", "bfloat16" or "float16". Raises `InputError` for another type."""
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: not one of {', '.join(DTYPES)}; give one of these")
    return model.to(getattr(torch, dtype))


def load(kind: Any, name: str | Path, revision: str | None = None, **options: Any) -> Any:
    """`kind.from_pretrained`. Any failure becomes an `InputError` with its remedy."""
    if revision:
        options["revision"] = revision
    try:
        with quiet_transformers():
            return kind.from_pretrained(str(name), **options)
    except Exception as error:  # a file of another model can fail in any of its readers
        raise InputError(
            f"{name}: no {kind.__name__} could be loaded from it ({first_line(error)}); give a folder with its "
            "config, weights and preprocessor_config.json, or a hub name if you are online"
        ) from error


def fingerprint(model: nn.Module, preprocessor: Any) -> str:
    """16 hex digits that change with any weight and with any preprocessing setting."""
    settings = {key: value for key, value in preprocessor.to_dict().items() if not isinstance(value, np.ndarray)}
    state = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        scalar = not tensor.dim()
        state.update(name.encode())
        state.update(
            str(tensor.item()).encode() if scalar else tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
        )
    return state.hexdigest()[:16]
