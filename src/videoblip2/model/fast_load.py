"""A network from its checkpoint's files in one pass: built without memory, then given the mapped tensors themselves.

`from_pretrained` gives the same network; this spends nothing on conversions that our own files never need. Every
tensor must fit by name and shape. No tensor is copied: pages come from the disk when they are first used, are private
to the process once written to, and outlive a file that is replaced.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from videoblip2.config import InputError
from videoblip2.model.checkpoint_files import read_tensors
from videoblip2.model.configuration import VideoBlip2Config
from videoblip2.model.network import VideoBlip2

_FILES = ("model.safetensors", "model.safetensors.index.json")


def load_network(folder: Path) -> VideoBlip2:
    """The network in eval mode, T5 frozen, on the CPU.

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
    network: VideoBlip2 = model.eval()
    return network


def _assign(model: VideoBlip2, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` where the parameters are; names that share a parameter go on sharing one."""
    places: dict[int, list[str]] = {}
    wanted = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in wanted.items():
        places.setdefault(id(parameter), []).append(name)
    given: dict[str, Tensor] = {}
    missing, strange = [], set(tensors) - set(wanted)
    for names in places.values():
        found = next((name for name in names if name in tensors), None)
        if found is None or tensors[found].shape != wanted[found].shape:
            missing.append(names[0])
            continue
        given |= dict.fromkeys(names, nn.Parameter(tensors[found], requires_grad=wanted[found].requires_grad))
    if wrong := [*missing, *sorted(strange)]:
        raise InputError(
            f"{len(wrong)} tensors do not fit its config.json, first {wrong[0]}; the folder mixes two models"
        )
    model.load_state_dict(given, strict=True, assign=True)
