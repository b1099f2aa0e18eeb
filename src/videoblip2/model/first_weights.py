"""What a network starts its training from, in lines that a person reads before it starts."""

from collections.abc import Mapping
from typing import Any

from videoblip2.model.network import VideoBlip2
from videoblip2.model.weight_report import WeightReport


def describe_first_weights(
    model: VideoBlip2, reports: Mapping[str, WeightReport], language_model: str, start_from: str | None = None
) -> dict[str, str]:
    """Part of the network → one line: each Q-Former, the language model, LoRA.

    Args:
        reports: modality → what `load_qformer` did; a modality without one has fresh weights.
        language_model: where T5 came from.
        start_from: the checkpoint that gave every weight, where one did.
    """
    if start_from is not None:
        lines = {"network": f"every weight from checkpoint {start_from}"}
    else:
        lines = {f"{name} Q-Former": _qformer(name, reports.get(name)) for name in model.config.modality_names}
        lines["language model"] = f"{language_model}, {_state(model)}, {_head(model)}"
    return {**lines, "training": _training(model)}


def reports_as_json(lines: Mapping[str, str], reports: Mapping[str, WeightReport]) -> dict[str, Any]:
    """The lines, and for each loaded Q-Former every tensor of it."""
    return {"summary": dict(lines), "qformers": {name: report.to_json() for name, report in reports.items()}}


def _qformer(name: str, report: WeightReport | None) -> str:
    if report is None:
        return "freshly initialised (model.qformer.weights is not set)"
    title = f"{name} Q-Former"
    return f"{report.summary(title).removeprefix(f'{title}: ')}; from {report.file}"


def _state(model: VideoBlip2) -> str:
    return "frozen" if model.config.finetune == "lora" else "all of it trains (model.finetune=full)"


def _head(model: VideoBlip2) -> str:
    return f"lm_head {'apart from' if model.config.separate_lm_head else 'tied to'} shared"


def _training(model: VideoBlip2) -> str:
    moved = model.trainable()
    lora = sum(parameter.numel() for name, parameter in moved.items() if "lora_" in name)
    total = sum(parameter.numel() for parameter in moved.values())
    everything = sum(parameter.numel() for parameter in model.parameters())
    return f"{total:,} of {everything:,} parameters, {lora:,} of them LoRA"
