"""A checkpoint is a folder that rebuilds itself with no network and explains itself.

config.json  model.safetensors        the network (transformers' own form)
tokenizer files, qformer_tokenizer/   the language model's pieces, BERT's word pieces
config.yaml                           the training configuration
document_frequencies/…                CIDEr-D's, of the training set
metrics.json  provenance.json         scores; where it came from: features' encoders, data digests, commit, parent
README.md                             the model card, made from the others
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from videoblip2.config import InputError
from videoblip2.files import write_json
from videoblip2.model.configuration import VideoBlip2Config
from videoblip2.model.model_card import write_card
from videoblip2.model.network import VideoBlip2
from videoblip2.model.tensor_files import read_tensors
from videoblip2.model.tokenizers import QFORMER_FOLDER, Tokenizers, load_tokenizers
from videoblip2.overrides import read_yaml
from videoblip2.progress import quiet_transformers
from videoblip2.provenance import Provenance


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds."""

    model: VideoBlip2
    tokenizers: Tokenizers
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, extras: Mapping[str, Callable[[Path], object]] | None = None
) -> Path:
    """Write the folder whole or not at all: an older one stays until the new one is complete.

    Args:
        extras: file name → a function that writes this file at a given path, such as `DocumentFrequencies.save`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(fresh, checkpoint, extras or {})
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _write(folder: Path, checkpoint: Checkpoint, extras: Mapping[str, Callable[[Path], object]]) -> None:
    with quiet_transformers():
        checkpoint.model.save_pretrained(folder)
    checkpoint.tokenizers.save(folder)
    for name, write in extras.items():
        write(folder / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(checkpoint.config, sort_keys=False), encoding="utf-8")
    write_json(folder / "metrics.json", checkpoint.metrics)
    checkpoint.provenance.write(folder)
    write_card(folder)
    _as_umask_says(folder)


def _as_umask_says(folder: Path) -> None:
    """Let the umask decide who may read the checkpoint; temporary files and safetensors are private otherwise."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _swap(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; only between the two renames is there neither."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Rebuild network and tokenizers from a folder; the network is in eval mode, on the CPU.

    Raises InputError naming the folder and what is missing in it.
    """
    folder = Path(folder)
    provenance = Provenance.read(folder)
    config, metrics = _read_yaml(folder, "config.yaml"), _read_json(folder, "metrics.json")
    tokenizers = load_tokenizers(folder, folder / QFORMER_FOLDER)
    return Checkpoint(_load_network(folder), tokenizers, config, metrics, provenance)


def _load_network(folder: Path) -> VideoBlip2:
    try:
        with quiet_transformers():
            return load_network(folder)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"checkpoint {folder}: its network does not load ({reason}); train or copy it again"
        ) from error


def _read_json(folder: Path, name: str) -> dict[str, float]:
    path = folder / name
    if not path.is_file():
        raise InputError(f"checkpoint {folder}: no {name}; give a folder that `vb2 ce` or `vb2 scst` wrote")
    try:
        content: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"checkpoint {folder}: {name} is damaged ({error}); train or copy it again") from error
    return content


def _read_yaml(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise InputError(f"checkpoint {folder}: no {name}; train or copy it again")
    return read_yaml(folder / name)


_FILES = ("model.safetensors", "model.safetensors.index.json")


def load_network(folder: Path) -> VideoBlip2:
    """The network in eval mode on the CPU, its language model frozen.

    Raises InputError where config.json or the safetensors are missing, damaged or do not fit each other; a pickle is
    never opened.
    """
    from transformers.initialization import no_init_weights

    config = VideoBlip2Config.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"), no_init_weights():
        model = VideoBlip2(config)
    model.tie_weights()  # what shares one parameter, before any is given a tensor
    files = [folder / name for name in _FILES if (folder / name).is_file()]
    if not files:
        raise InputError(f"no {_FILES[0]}")
    _assign(model, read_tensors(files[0]))
    for module in model.modules():
        if (ids := module._buffers.get("position_ids")) is not None:  # counted, not stored
            module.register_buffer("position_ids", torch.arange(ids.shape[-1]).expand(ids.shape), persistent=False)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        # A language model that computes tensors it does not store: transformers knows how.
        model = VideoBlip2.from_pretrained(folder, local_files_only=True)
    network: VideoBlip2 = model.eval()
    return network


def _assign(model: VideoBlip2, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` where parameters and stored buffers are; names that share one keep sharing it."""
    places: dict[int, list[str]] = {}
    wanted = model.state_dict(keep_vars=True)
    for name, parameter in wanted.items():
        places.setdefault(id(parameter), []).append(name)
    given: dict[str, Tensor] = {}
    missing, strange = [], set(tensors) - set(wanted)
    for names in places.values():
        found = next((name for name in names if name in tensors), None)
        if found is None or tensors[found].shape != wanted[found].shape:
            missing.append(names[0])
            continue
        tensor, old = tensors[found], wanted[found]
        is_parameter = isinstance(old, nn.Parameter)
        given |= dict.fromkeys(names, nn.Parameter(tensor, old.requires_grad) if is_parameter else tensor)
    if wrong := [*missing, *sorted(strange)]:
        raise InputError(
            f"{len(wrong)} tensors do not fit its config.json, first {wrong[0]}; the folder mixes two models"
        )
    model.load_state_dict(given, strict=True, assign=True)
