"""Build the network for training: language model, the Q-Formers' first weights, tokenizers, and an account of them."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import InstructBlipQFormerConfig

from videoblip2.config import InputError, ModelConfig, QFormerConfig
from videoblip2.modality import MODALITIES
from videoblip2.model.configuration import VideoBlip2Config
from videoblip2.model.language_model import has_own_head, load_language_model
from videoblip2.model.network import VideoBlip2, branch_around
from videoblip2.model.qformer.weight_report import WeightReport
from videoblip2.model.tokenizers import Tokenizers, load_tokenizers

#: A Q-Former, its query tokens [1,Q,D], and the report of what was loaded, if anything was.
First = tuple[Any, nn.Parameter, WeightReport | None]


def build_model(config: ModelConfig, prompt: str) -> tuple[VideoBlip2, Tokenizers, dict[str, WeightReport]]:
    """The network with its first weights, its tokenizers, and what was loaded where (a report a Q-Former)."""
    tokenizers = load_tokenizers(config.language_model, config.qformer.bert)
    language_model = load_language_model(config.language_model)
    qformers = {name: _first_qformer(config, name, len(tokenizers.bert)) for name in config.modality_names}
    network = VideoBlip2Config(
        text_config=language_model.config,
        **{f"{name}_qformer_config": qformer.config for name, (qformer, _, _) in qformers.items()},
        num_queries=config.qformer.num_queries,
        **{f"{name}_dim": config.width(name) for name in MODALITIES},
        upscaled_dim=config.video_dim,
        modalities=config.modalities,
        temporal_embedding=config.temporal_embedding,
        max_positions=config.max_positions,
        separate_lm_head=has_own_head(language_model),
        finetune=config.finetune,
        lora_r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        lora_target_modules=list(config.lora.target_modules),
        prompt=prompt,
    )
    branches = {n: branch_around(network, n, qformer, queries) for n, (qformer, queries, _) in qformers.items()}
    model = VideoBlip2(network, language_model, branches)
    return model, tokenizers, {name: report for name, (_, _, report) in qformers.items() if report is not None}


def _first_qformer(config: ModelConfig, modality: str, vocab_size: int) -> First:
    """(Q-Former, query tokens [1,Q,D], report); an upscaled modality reaches it in the width of the frame features."""
    width = config.video_dim if MODALITIES[modality].upscaled else config.width(modality)
    if config.qformer.weights is None:
        return (*_fresh_qformer(config.qformer, width, vocab_size), None)
    qformer, queries, report = _loaded_qformer(config, config.qformer.weights, width)
    if qformer.config.vocab_size < vocab_size:
        raise InputError(
            f"model.qformer.weights={config.qformer.weights}: knows {qformer.config.vocab_size} word pieces, but "
            f"model.qformer.bert={config.qformer.bert} has {vocab_size}; give the word pieces it was trained with"
        )
    _set_dropout(qformer, config.qformer.dropout)
    return qformer, queries, report


def _loaded_qformer(config: ModelConfig, weights: str, width: int) -> First:
    from videoblip2.model.qformer.load_weights import load_qformer

    bert = config.qformer.bert if config.qformer.bert_weights else None
    return load_qformer(
        weights,
        feature_dim=width,
        cross_attention=config.qformer.cross_attention,
        num_attention_heads=config.qformer.num_attention_heads,
        bert=bert,
        num_queries=config.qformer.num_queries,
    )


def _set_dropout(qformer: Any, dropout: float) -> None:
    """A loaded Q-Former comes with the library's dropout: give it the configuration's, on every live module too."""
    qformer.config.hidden_dropout_prob = qformer.config.attention_probs_dropout_prob = dropout
    for module in qformer.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout


def _fresh_qformer(config: QFormerConfig, reads: int, vocab_size: int) -> tuple[Any, nn.Parameter]:
    import torch
    from transformers import InstructBlipQFormerModel

    qformer = InstructBlipQFormerModel(
        InstructBlipQFormerConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            cross_attention_frequency=config.cross_attention_frequency,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            encoder_hidden_size=reads,
        )
    )
    return qformer, nn.Parameter(torch.empty(1, config.num_queries, config.hidden_size).normal_(std=0.02))


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


def reports_as_json(lines: Mapping[str, str], reports: Mapping[str, WeightReport]) -> dict[str, object]:
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
