"""A checkpoint is a self-contained, self-describing folder, which loads offline.

config.json  model.safetensors        the network (transformers' own format)
tokenizer files, qformer_tokenizer/   the language model's pieces, BERT's word pieces
config.yaml                           the training configuration
document_frequencies/…                CIDEr-D's, of the training set
metrics.json  provenance.json         scores; where it came from: features' encoders, data digests, commit, parent
README.md                             the model card (Mitchell et al. 2019), made from the others by model_card.md.j2
"""

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers.initialization import no_init_weights

from videoblip2.config import InputError
from videoblip2.errors import refused
from videoblip2.files import write_json, write_text
from videoblip2.imports import LightMeta, quiet_transformers
from videoblip2.modality import MODALITIES, modality_names
from videoblip2.model.configuration import VideoBlip2Config
from videoblip2.model.language_model import LANGUAGE_MODELS
from videoblip2.model.network import VideoBlip2
from videoblip2.model.tensor_files import read_tensors
from videoblip2.model.tokenizers import QFORMER_FOLDER, Tokenizers, load_tokenizers
from videoblip2.overrides import read_yaml
from videoblip2.provenance import Provenance


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder."""

    model: VideoBlip2
    tokenizers: Tokenizers
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, extras: Mapping[str, Callable[[Path], object]] | None = None
) -> Path:
    """Write the folder atomically: an older one stays until the new one is complete.

    Args:
        extras: file name → a function that writes the file to a path, such as `DocumentFrequencies.save`.
    """
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    fresh.mkdir(parents=True)
    try:
        _write(fresh, checkpoint, extras or {})
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)  # between the two renames neither exists
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _write(folder: Path, checkpoint: Checkpoint, extras: Mapping[str, Callable[[Path], object]]) -> None:
    with quiet_transformers():
        checkpoint.model.save_pretrained(folder, state_dict=full_state(checkpoint.model))
    checkpoint.tokenizers.save(folder)
    for name, write in extras.items():
        write(folder / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(checkpoint.config, sort_keys=False), encoding="utf-8")
    write_json(folder / "metrics.json", checkpoint.metrics)
    checkpoint.provenance.write(folder)
    write_card(folder)
    for file in folder.glob("*.safetensors"):  # created private; the umask should decide
        file.chmod((folder / "config.yaml").stat().st_mode)


def full_state(model: VideoBlip2) -> dict[str, Any]:
    """Weights as stored: whole, in float32; if they are sharded, all processes must call this."""
    states: dict[str, Any] = model.state_dict()
    for name, weight in states.items():
        weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        states[name] = weight.cpu().float() if weight.dtype == torch.bfloat16 else weight
    return states


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Rebuild network and tokenizers from a folder; the network is in eval mode, on the CPU.

    Raises InputError naming the folder and its missing file.
    """
    folder = Path(folder)
    provenance = Provenance.read(folder)
    for name in ("config.yaml", "metrics.json"):
        if not (folder / name).is_file():
            raise InputError(f"checkpoint {folder}: no {name}; train or copy it again")
    with refused(f"checkpoint {folder}: metrics.json is damaged", "train or copy it again", ValueError):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    tokenizers = load_tokenizers(folder, folder / QFORMER_FOLDER, ("checkpoint", "checkpoint"))
    try:
        with quiet_transformers():
            network = _load_network(folder)
    except Exception as error:
        reason = f"its network does not load ({' '.join(str(error).split())[:300]})"
        raise InputError(f"checkpoint {folder}: {reason}; train or copy it again") from error
    return Checkpoint(network, tokenizers, read_yaml(folder / "config.yaml"), metrics, provenance)


_FILES = ("model.safetensors", "model.safetensors.index.json")


def _load_network(folder: Path) -> VideoBlip2:
    """The network in eval mode on the CPU, with a frozen language model; never opens a pickle."""
    config = VideoBlip2Config.from_pretrained(folder, local_files_only=True)
    with LightMeta(), torch.device("meta"), no_init_weights():
        model = VideoBlip2(config)
    files = [folder / name for name in _FILES if (folder / name).is_file()]
    if not files:
        raise InputError(f"no {_FILES[0]}")
    unexpected = model.load_state_dict(read_tensors(files[0]), strict=False, assign=True).unexpected_keys
    model.tie_weights()  # shared parameters are stored once
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if wrong := missing + unexpected:
        what = f"{len(wrong)} tensors do not fit its config.json, first {wrong[0]}"
        raise InputError(f"{what}; the folder mixes two models")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        # Some language models compute tensors that they do not store; transformers does it.
        model = VideoBlip2.from_pretrained(folder, local_files_only=True)
    return cast(VideoBlip2, model.eval())


def write_card(folder: Path) -> Path:
    """Write README.md from the folder's config.json, config.yaml, metrics.json, provenance.json and tensor sizes."""
    from huggingface_hub import get_local_safetensors_metadata
    from jinja2 import Environment, FileSystemLoader

    from videoblip2.captions.metrics import label_of, shown

    network = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    kind = network["text_config"].get("model_type", "t5")
    parts: Counter[str] = Counter()
    for file in get_local_safetensors_metadata(folder).files_metadata.values():  # reads only headers
        for name, tensor in file.tensors.items():
            parts[_part(name)] += tensor.parameter_count
    scores = {name.removeprefix("val/"): value for name, value in metrics.items() if name != "step"}
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True).get_template("model_card.md.j2")
    text = template.render(
        config=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {},
        kind=LANGUAGE_MODELS[kind].label if kind in LANGUAGE_MODELS else kind,
        network=network,
        parts=parts,
        provenance=Provenance.read(folder),
        scores={label_of(name): shown(name, value) for name, value in scores.items()},
        widths={n: network.get(f"{n}_dim", MODALITIES[n].width) for n in modality_names(network["modalities"])},
    )
    write_text(folder / "README.md", text)
    return folder / "README.md"


def _part(name: str) -> str:
    if name.startswith("proj_"):
        return "projections to the language model"
    for modality, entry in MODALITIES.items():
        if name.startswith((f"{modality}_branch.", f"{modality}_upscaler.")):
            return f"{modality} Q-Former and upscaler" if entry.upscaled else f"{modality} Q-Former"
    return "LoRA" if "lora_" in name else "language model"
