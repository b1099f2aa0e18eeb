"""Open weight files of other projects: identify them without running code, and map their tensors without copying.

The format is read from the bytes, never from the name. Zip-based torch files and safetensors are memory-mapped, so
only the tensors in use are read from disk.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from videoblip2.config import InputError
from videoblip2.errors import refused

FileFormat = Literal["torch", "torch (before 1.6)", "safetensors", "sharded"]

# The first item in a torch file before 1.6: the pickled integer 0x1950a86a20f9469cfc6c.
_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
_SUFFIXES = (".safetensors", ".pth", ".bin", ".pt")
_INDEX_SUFFIX = ".index.json"
_FOLDER_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")  # {"model": {…}} and the like
_AGAIN = "download it again (`vb2 weights fetch` checks and resumes)"
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: run `git lfs pull` where it came from"),
    (b"<", "an HTML or XML page, such as an error or login page saved by a download: " + _AGAIN),
    (b"{", "a JSON text, not weights: give the .safetensors, .bin or .pth beside it"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x93NUMPY", "a NumPy array, not a checkpoint"),
    (b"\x89HDF", "an HDF5 file (TensorFlow or Keras): give the PyTorch weights"),
    (b"\x80", "a Python pickle that torch did not write; opening it could run code, so it is refused"),
)


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Every named tensor of a .pth, .bin, .safetensors, index file or Hugging Face folder, mapped where possible.

    Raises InputError, in one line, if it is missing, empty, truncated, of another format, or has more than tensors.
    """
    path = weights_file(path)
    file_format = sniff(path)
    if file_format == "sharded":
        return _read_sharded(path)
    loaded = _load(path, file_format)
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: contains a {type(loaded).__name__}, not named tensors; save model.state_dict()")
    loaded = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(repr(str(key)) for key in list(loaded)[:5]) or "nothing"
        raise InputError(f"{path}: contains no named tensors (found {keys}); save model.state_dict()")
    return tensors


def weights_file(path: Path | str) -> Path:
    """The file with the weights: `path` itself, the one in the folder `path`, or that of a hub name."""
    folder = Path(path) if Path(path).exists() else _hub_folder(str(path))
    if not folder.is_dir():
        return folder
    single = [entry for entry in sorted(folder.iterdir()) if entry.suffix in _SUFFIXES]
    for found in [*(folder / name for name in _FOLDER_NAMES), *(single if len(single) == 1 else [])]:
        if found.is_file():
            return found
    here = f"weights here: {', '.join(entry.name for entry in single) or 'none'}"
    raise InputError(f"{path}: a folder without model.safetensors or pytorch_model.bin ({here}); name a file")


def _hub_folder(name: str) -> Path:
    """The folder of the hub model `name`; when online, files missing from the cache are downloaded, shards too."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.endswith(_SUFFIXES):
        raise InputError(f"{name}: no such file or folder; `vb2 weights fetch` lists what can be downloaded")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    fault = f"{name}: no such file or folder, and not available from the hub"
    with refused(fault, "name a file or folder, or go online", HTTPError, OSError):
        for pattern in ("model*.safetensors*", "pytorch_model*.bin*"):
            folder = Path(snapshot_download(name, allow_patterns=["config.json", pattern]))
            if any(folder.glob(pattern)):
                break
    return folder


def sniff(path: Path) -> FileFormat:
    """The format of `path`, from its bytes. Raises InputError with a guess at the format if it is not a weight file."""
    with refused(f"{path}: cannot be read", "check it and its permissions", OSError), path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise InputError(f"{path}: an empty file; {_AGAIN}")
    if path.name.endswith(_INDEX_SUFFIX):
        return "sharded"
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head[:1] == b"\x80" and _LEGACY_MAGIC in head[:32]:
        return "torch (before 1.6)"
    if head[4:9] == b"\0\0\0\0{":  # the header's length in 8 bytes, then the header
        return "safetensors"
    for start, words in _FOREIGN:
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start):
            raise InputError(f"{path}: {words}")
    raise InputError(f"{path}: neither a torch file nor safetensors (it begins with {head[:8]!r}); {_AGAIN}")


def _sniff_zip(path: Path) -> FileFormat:
    if not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise InputError(f"{path}: a truncated torch file (its end is missing, {size:,} bytes); {_AGAIN}")
    with zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        raise InputError(f"{path}: a TorchScript program, not a state dict; save its state_dict() instead")
    if "data.pkl" not in names:
        raise InputError(f"{path}: a zip archive that torch did not write; unpack it first")
    return "torch"


def _load(path: Path, file_format: FileFormat) -> object:
    """The content of one file; a pickle of more than tensors is never opened."""
    fault = f"{path}: a {file_format.partition(' ')[0]} file that is damaged or truncated"
    try:
        with refused(fault, _AGAIN, SafetensorError, RuntimeError, OSError, EOFError, KeyError, ValueError):
            if file_format == "safetensors":
                return load_file(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=file_format == "torch")
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"contains Python objects besides tensors{f' ({named[1]})' if named else ''}"
        remedy = "opening them could run code, so it is refused: re-save only its tensors as .safetensors"
        raise InputError(f"{path}: {what}; {remedy}") from error


def _read_sharded(index: Path) -> dict[str, torch.Tensor]:
    fault = f"{index}: not an index of sharded weights, no weight_map"
    with refused(fault, _AGAIN, ValueError, KeyError, TypeError, AttributeError):
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): str(shard) for name, shard in weight_map.items()}
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(shards.values())):
        if Path(name).name != name or name.endswith(_INDEX_SUFFIX):
            raise InputError(f"{index}: names {name!r} as a shard; shards belong beside their index: {_AGAIN}")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: shard {name} is missing beside it; {_AGAIN}")
        tensors |= read_tensors(index.parent / name)
    if lost := [name for name in shards if name not in tensors]:
        raise InputError(f"{index}: {len(lost)} tensors are not in the shards it names (first: {lost[0]!r}); {_AGAIN}")
    return tensors
