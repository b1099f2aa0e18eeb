"""The model card (Mitchell et al. 2019): README.md of a checkpoint folder, made from the folder's other files.

Nothing in it is typed by hand: sizes are read off the tensors, scores, data and parents off the JSON beside them.
"""

import json
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import yaml

from videoblip2.captions.metrics import label_of, shown
from videoblip2.files import write_text
from videoblip2.modality import MODALITIES, modality_names
from videoblip2.model.language_model import LANGUAGE_MODELS
from videoblip2.provenance import Provenance

CARD = "README.md"
_LIMITS = """\
- It sees frame features and windows of sound, never pixels or waveforms, so it cannot read text on the screen or tell
  what is said.
- It captions in the language and manner of its training captions and repeats their biases; a caption can be fluent and
  wrong. Nothing here measures fairness between groups of people.
- Features must come from the encoders named above: others of the same width load, and give nonsense.
- Scores were measured on the splits named above only; self-critical training optimises CIDEr-D itself, so that metric
  flatters a model that had it."""


def write_card(folder: Path) -> Path:
    """Write README.md from the folder's config.json, config.yaml, metrics.json, provenance.json and tensor sizes."""
    network, metrics = (_json(folder / f"{name}.json") for name in ("config", "metrics"))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    text = model_card(network, config, metrics, Provenance.read(folder), tensor_sizes(folder))
    write_text(folder / CARD, text)
    return folder / CARD


def tensor_sizes(folder: Path) -> dict[str, int]:
    """Tensor name → number of elements, from the headers of the folder's safetensors: no weight is read."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            sizes |= {name: prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return sizes


def model_card(
    network: Mapping[str, Any],
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    provenance: Provenance,
    sizes: Mapping[str, int],
) -> str:
    """The card as Markdown.

    Args:
        network: config.json of the checkpoint. config: its training configuration. sizes: see `tensor_sizes`.
    """
    name = provenance.name or "videoblip2"
    sections = {
        "": _what(network),
        "Use": _use(network),
        "Sizes": _sizes(sizes),
        "Training": _training(config, provenance),
        "Scores": _scores(metrics, provenance),
        "Limits": _LIMITS,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items())
    return f"{_head(network)}\n# {name}\n\n{body}\n"


def _head(network: Mapping[str, Any]) -> str:
    adapted = () if network.get("finetune") == "full" else ("lora",)
    tags = "\n".join(f"- {tag}" for tag in ("video-captioning", "blip-2", "q-former", _kind(network).lower(), *adapted))
    return f"---\nlibrary_name: videoblip2\npipeline_tag: video-text-to-text\ntags:\n{tags}\n---\n"


def _what(network: Mapping[str, Any]) -> str:
    names = modality_names(network["modalities"])
    inputs = ", ".join(f"{name} features [rows, {_width(network, name)}]" for name in names)
    return (
        f"A VideoBLIP2 network that captions videos from their {' and '.join(names)}: Q-Formers with "
        f"{network['num_queries']} queries each, in front of {_language_model(network)}.\n\n"
        f"Input: {inputs}, at most {network['max_positions']} rows of each; prompt: “{network['prompt']}”. "
        "Output: a caption."
    )


def _width(network: Mapping[str, Any], modality: str) -> int:
    width: int = network.get(f"{modality}_dim", MODALITIES[modality].width)
    return width


def _language_model(network: Mapping[str, Any]) -> str:
    name = f"{_kind(network)} of width {network['text_config']['d_model']}"
    if network.get("finetune") == "full":
        return f"a {name}, all of which was trained"
    lora = f"r={network['lora_r']}, alpha={network['lora_alpha']:g}, on {' and '.join(network['lora_target_modules'])}"
    merged = "folded into its weights" if network.get("lora_merged") else "apart from its weights"
    return f"a frozen {name} with LoRA ({lora}, {merged})"


def _kind(network: Mapping[str, Any]) -> str:
    kind = network["text_config"].get("model_type", "t5")
    return LANGUAGE_MODELS[kind].label if kind in LANGUAGE_MODELS else str(kind)


def _use(network: Mapping[str, Any]) -> str:
    arrays = {name: f"[rows, {_width(network, name)}]" for name in modality_names(network["modalities"])}
    item = ", ".join(f'"{name}": {name}' for name in arrays)
    return (
        "The folder loads offline, with nothing but itself, and holds no pickle.\n\n"
        "    vb2 caption FOLDER video.mp4\n\n"
        "    from videoblip2.predict import load_captioner\n\n"
        '    captioner = load_captioner("FOLDER")\n'
        f"    captioner.caption([{{{item}}}])  # arrays {', '.join(arrays.values())}\n\n"
        '`AutoModel.from_pretrained("FOLDER")` gives the bare network once `videoblip2.model.network` is imported.'
    )


def _sizes(sizes: Mapping[str, int]) -> str:
    groups: Counter[str] = Counter()
    for name, size in sizes.items():
        groups[_part(name)] += size
    rows = [f"| {part} | {size:,} |" for part, size in groups.items()]
    return "\n".join(["| part | parameters |", "|---|---:|", *rows, f"| all | {sum(sizes.values()):,} |"])


def _part(name: str) -> str:
    if name.startswith("proj_"):
        return "projections to the language model"
    for modality, entry in MODALITIES.items():
        if name.startswith((f"{modality}_branch.", f"{modality}_upscaler.")):
            return f"{modality} Q-Former and upscaler" if entry.upscaled else f"{modality} Q-Former"
    return "LoRA" if "lora_" in name else "language model"


def _training(config: Mapping[str, Any], provenance: Provenance) -> str:
    stage = {"ce": "cross-entropy (`ce`)", "scst": "self-critical training on CIDEr-D (`scst`)"}
    step = "?" if provenance.step is None else provenance.step
    lines = [f"- stage: {stage.get(provenance.stage or '', 'not recorded')}, step {step}"]
    origin = {"run_id": provenance.run_id, "parent": provenance.parent, "merged_from": provenance.merged_from}
    lines += [f"- {key}: {value}" for key, value in origin.items() if value]
    for split, digest in provenance.data.items():
        lines.append(f"- {split} data (annotations and features): digest `{digest}`")
    for kind, encoder in provenance.features.encoders.items() if provenance.features else ():
        lines.append(f"- {kind.upper()}: {encoder.name}, fingerprint `{encoder.fingerprint or '?'}`")
    model, optim = config.get("model", {}), config.get("optim", {})
    if model:
        first = _first(model.get("qformer", {}))
        lines.append(f"- first weights: language model {model.get('language_model')}, Q-Formers {first}")
    if optim:
        lines.append(f"- learning rate {optim.get('lr'):g}, seed {config.get('seed')}; all else in config.yaml")
    return "\n".join(lines)


def _first(qformer: Mapping[str, Any]) -> str:
    return str(qformer.get("weights") or "fresh")


def _scores(metrics: Mapping[str, float], provenance: Provenance) -> str:
    scores = {name.removeprefix("val/"): value for name, value in metrics.items() if name != "step"}
    rows = [f"| {label_of(name)} | {shown(name, value)} |" for name, value in scores.items()]
    if not rows:
        return "None recorded."
    digest = provenance.data.get("val")
    split = f"validation split (digest `{digest}`)" if digest else "validation split"
    return "\n".join([f"On the {split}, ×100.", "", "| metric | score |", "|---|---:|", *rows])


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
