"""Features as clients send them: .npy and safetensors bytes to arrays, without trusting a byte.

A .npy header may claim any shape; numpy would allocate it before it reads. Here the claim is held against the bytes
that are there. Nothing is unpickled.
"""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from videoblip2.config import InputError
from videoblip2.modality import MODALITIES, Features

HEADERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
NAMES = f"name them {' or '.join(MODALITIES)}, or with a video's name in front: NAME.video"


def npy_array(content: bytes, name: str) -> np.ndarray:
    """The bytes of a .npy file with floating-point numbers [rows, width] → float32. Raises InputError naming `name`."""
    file = io.BytesIO(content)
    try:
        shape, fortran_order, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as error:  # numpy parses the header as Python, which fails in many ways
        raise InputError(f"{name}: not a .npy file; send what numpy.save wrote") from error
    if not np.issubdtype(dtype, np.floating) or dtype.itemsize > 8 or len(shape) != 2:
        raise InputError(f"{name}: holds {dtype} of shape {list(shape)}; send floating-point numbers [rows, width]")
    present = len(content) - file.tell()
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != present:
        raise InputError(f"{name}: its header says {list(shape)} {dtype}, but {present} bytes follow; send it whole")
    flat = np.frombuffer(content, dtype, offset=file.tell())
    return _float32(flat.reshape(shape, order="F" if fortran_order else "C"))


def safetensors_items(content: bytes, name: str) -> list[Features | InputError]:
    """The bytes of a safetensors file → items; one that cannot be used is an InputError in its place.

    The tensors of one item are named after their modalities: `video`, `audio`. Those of many are `NAME.video` and
    `NAME.audio`; they come in the order of their names. Raises InputError naming `name` where it cannot be said what
    the items are.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{name}: not a safetensors file of float16, float32 or float64 tensors") from error
    for key in tensors:
        if key.rpartition(".")[2] not in MODALITIES:
            raise InputError(f"{name}: tensor {key!r}; {NAMES}")
    if not tensors:
        raise InputError(f"{name}: holds no tensor; {NAMES}")
    stems = sorted({key.rpartition(".")[0] for key in tensors}, key=lambda stem: (len(stem), stem))
    return [_item(tensors, stem, name) for stem in stems]


def _item(tensors: dict[str, np.ndarray], stem: str, name: str) -> Features | InputError:
    prefix = f"{stem}." if stem else ""
    found = {modality: tensors[prefix + modality] for modality in MODALITIES if prefix + modality in tensors}
    for modality, entry in MODALITIES.items():
        if entry.required and modality not in found:
            return InputError(f"{name}: has {prefix}{next(iter(found))} and no {prefix}{modality}; send both")
    for modality, tensor in found.items():
        if tensor.dtype.kind != "f" or tensor.ndim != 2:
            shape = f"{tensor.dtype} {list(tensor.shape)}"
            return InputError(f"{name}: {prefix}{modality} is {shape}; send floats [rows, width]")
    return {modality: _float32(tensor) for modality, tensor in found.items()}


def _float32(array: np.ndarray) -> np.ndarray:
    """Numbers too large for float32 become infinite, which the model's check refuses."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)
