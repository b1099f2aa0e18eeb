"""Features as clients send them: .npy and safetensors bytes to arrays, without trusting a byte.

A .npy header may claim any shape; numpy would allocate it before it reads. Here the claim is held against the bytes
that are there. Nothing is unpickled.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from videoblip2.config import InputError

Features = tuple[np.ndarray, np.ndarray]

HEADERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
NO_AUDIO = 0


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
    """The bytes of a safetensors file → items; one that is no use is an InputError in its place.

    One item has the tensors `video` and, with sound, `audio`. Many have `NAME.video` and `NAME.audio`; they come in the
    order of their names. Raises InputError naming `name` where it cannot be said what the items are.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{name}: not a safetensors file of float16, float32 or float64 tensors") from error
    for key in tensors:
        if not (key in ("video", "audio") or key.endswith((".video", ".audio"))):
            raise InputError(f"{name}: tensor {key!r}; name them video and audio, or NAME.video and NAME.audio")
    if not tensors:
        raise InputError(f"{name}: holds no tensor; name them video and audio, or NAME.video and NAME.audio")
    stems = sorted({key.rpartition(".")[0] for key in tensors}, key=lambda stem: (len(stem), stem))
    return [_item(tensors, stem, name) for stem in stems]


def _item(tensors: dict[str, np.ndarray], stem: str, name: str) -> Features | InputError:
    prefix = f"{stem}." if stem else ""
    video, audio = tensors.get(f"{prefix}video"), tensors.get(f"{prefix}audio")
    if video is None:
        return InputError(f"{name}: has {prefix}audio and no {prefix}video; send both, or the video alone")
    for key, tensor in ((f"{prefix}video", video), (f"{prefix}audio", audio)):
        if tensor is not None and (tensor.dtype.kind != "f" or tensor.ndim != 2):
            return InputError(f"{name}: {key} is {tensor.dtype} {list(tensor.shape)}; send floats [rows, width]")
    return pair(_float32(video), None if audio is None else _float32(audio))


def pair(video: np.ndarray, audio: np.ndarray | None) -> Features:
    """[F,768] and perhaps [A,512]; without audio the second is [0,0], which `fit` gives the model's width."""
    return video, np.zeros((NO_AUDIO, 0), "float32") if audio is None else audio


def fit(items: Sequence[Features], audio_width: int) -> list[Features]:
    """Give items without audio the width that the model reads."""
    return [
        (video, audio if audio.shape[1] or len(audio) else np.zeros((NO_AUDIO, audio_width), "float32"))
        for video, audio in items
    ]


def _float32(array: np.ndarray) -> np.ndarray:
    """Numbers too large for float32 become infinite, which the model's check refuses."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)
