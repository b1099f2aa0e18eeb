"""LoRA folded into the weights it adapts: W + (alpha / r)·B·A (LoRA, Hu et al. 2021, section 4.1).

A merged network decodes without the extra matrices and needs no LoRA to load; it can no longer be trained as one that
has LoRA, so the unmerged checkpoint stays the one to start from.
"""

from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

from videoblip2.config import InputError
from videoblip2.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from videoblip2.model.network import VideoBlip2


def merge_lora(model: VideoBlip2) -> VideoBlip2:
    """Fold LoRA into `model`'s T5, in place, and say so in its configuration; returns `model`.

    `shared` and `lm_head` carry no LoRA and stay as they are, bit by bit. Merging twice changes nothing.
    """
    for name, layer in _lora_layers(model).items():
        layer.merge(safe_merge=True)  # refuses weights that are not finite, and never writes into a mapped file
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model.config.lora_merged = True
    if hasattr(model.language_model, "peft_config"):
        del model.language_model.peft_config
    return model


def merge_checkpoint(source: Path, out: Path) -> Path:
    """Write the checkpoint `source` with its LoRA merged to `out`; scores and provenance come along.

    Raises InputError where `source` is no checkpoint, is merged already, or is `out`.
    """
    if out.resolve() == source.resolve():
        raise InputError(f"{out}: is the checkpoint to merge; training can only go on from it: give another folder")
    loaded = load_checkpoint(source)
    if loaded.model.config.finetune == "full":
        raise InputError(f"checkpoint {source}: was trained without LoRA; use it as it is")
    if loaded.model.config.lora_merged:
        raise InputError(f"checkpoint {source}: its LoRA is merged already; use it as it is")
    provenance = {**loaded.provenance, "merged_from": source.name}
    merged = Checkpoint(merge_lora(loaded.model), loaded.tokenizers, loaded.config, loaded.metrics, provenance)
    frequencies = source / "document_frequencies"
    extras = {frequencies.name: partial(copyfile, frequencies)} if frequencies.exists() else {}
    return save_checkpoint(out, merged, extras)


def _lora_layers(model: VideoBlip2) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
