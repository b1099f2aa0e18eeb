"""Build the network for training: language model, the Q-Formers' first weights, tokenizers, and a report on them."""

from collections.abc import Mapping

import torch
from transformers import InstructBlipQFormerConfig, PreTrainedConfig

from videoblip2.config import InputError, ModelConfig, QFormerConfig
from videoblip2.errors import refused
from videoblip2.modality import MODALITIES
from videoblip2.model.branch import ModalityBranch, QFormer, fresh_qformer
from videoblip2.model.configuration import VideoBlip2Config
from videoblip2.model.decode import Sampling, sample
from videoblip2.model.decode.stepper import STEPPERS
from videoblip2.model.language_model import LanguageModel, has_own_head, load_language_model
from videoblip2.model.load_weights import QFormerOptions, WeightReport, read_qformer
from videoblip2.model.network import VideoBlip2
from videoblip2.model.tokenizers import Tokenizers, load_tokenizers

_SIZES = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "cross_attention_frequency"}


def build_model(config: ModelConfig, prompt: str) -> tuple[VideoBlip2, Tokenizers, dict[str, WeightReport]]:
    """The network with its first weights, its tokenizers, and a report on the loaded weights of each Q-Former."""
    tokenizers = load_tokenizers(config.language_model, config.qformer.bert)
    language_model = load_language_model(config.language_model)
    if language_model.config.model_type not in STEPPERS:
        _try(LanguageModel(language_model), config.language_model)
    qformers: dict[str, QFormer] = {}
    reports: dict[str, WeightReport] = {}
    for name, fresh in fresh_qformers(config, len(tokenizers.bert)).items():
        if config.qformer.weights is None:
            qformers[name] = fresh_qformer(fresh, config.qformer.num_queries)
        else:
            reads = fresh.encoder_hidden_size
            qformers[name], reports[name] = _loaded_qformer(config.qformer, reads, len(tokenizers.bert))
    sizes = {name: qformer.config for name, (qformer, _) in qformers.items()}
    network = network_config(config, prompt, language_model.config, sizes, has_own_head(language_model))
    branches = {name: ModalityBranch(network, name, found) for name, found in qformers.items()}
    return VideoBlip2(network, language_model, branches), tokenizers, reports


@torch.no_grad()
def _try(text: LanguageModel, source: str) -> None:
    """Raise InputError if a teacher-forced pass gives sampled captions other probabilities than decoding gave."""
    fault = f"model.language_model={source}: a {text.network.config.model_type} cannot be trained"
    with refused(fault, "give a folder or hub name of a T5 or a BART", Exception):  # any layer may fail
        mask = torch.tensor([[1, 1, 0]])
        states = text.encode(text.embed(torch.tensor([[1, 2, 3]])), mask)
        drawn = sample(text, states, mask, 2, Sampling(2, generator=torch.Generator()))
        log_probs = torch.log_softmax(text.decode(states, mask, drawn.ids, torch.arange(drawn.ids.numel())), dim=-1)
        gaps = log_probs.gather(1, drawn.ids.view(-1, 1)).view_as(drawn.ids) - drawn.log_probs
        if (gap := float((gaps * drawn.mask).abs().max())) > 1e-3:
            raise ValueError(f"training and decoding differ by {gap:.2g} nats at a token")


def network_config(
    config: ModelConfig,
    prompt: str,
    text: PreTrainedConfig,
    qformers: Mapping[str, InstructBlipQFormerConfig],
    separate_lm_head: bool,
) -> VideoBlip2Config:
    """The network's sizes, from the configurations of training, the language model and the Q-Formers."""
    return VideoBlip2Config(
        text_config=text,
        **{f"{name}_qformer_config": qformer for name, qformer in qformers.items()},
        num_queries=config.qformer.num_queries,
        **{f"{name}_dim": config.width(name) for name in MODALITIES},
        upscaled_dim=config.video_dim,
        modalities=config.modalities,
        temporal_embedding=config.temporal_embedding,
        max_positions=config.max_positions,
        separate_lm_head=separate_lm_head,
        finetune=config.finetune,
        **{f"lora_{name}": value for name, value in config.lora.model_dump(mode="json").items()},
        prompt=prompt,
    )


def fresh_qformers(config: ModelConfig, vocab_size: int) -> dict[str, InstructBlipQFormerConfig]:
    """Sizes of each modality's Q-Former; an upscaled modality arrives with the width of the frame features."""
    sizes = {
        **config.qformer.model_dump(include=_SIZES),
        "vocab_size": vocab_size,
        "hidden_dropout_prob": config.qformer.dropout,
        "attention_probs_dropout_prob": config.qformer.dropout,
    }
    widths = {
        name: config.video_dim if MODALITIES[name].upscaled else config.width(name) for name in config.modality_names
    }
    return {name: InstructBlipQFormerConfig(**sizes, encoder_hidden_size=width) for name, width in widths.items()}


def _loaded_qformer(config: QFormerConfig, reads: int, vocab_size: int) -> tuple[QFormer, WeightReport]:
    options, bert = QFormerOptions(feature_dim=reads, **config.model_dump()), config.bert
    qformer, queries, report = read_qformer(str(config.weights), options, bert if config.bert_weights else None)
    if qformer.config.vocab_size < vocab_size:
        fault = f"model.qformer.weights={config.weights}: has {qformer.config.vocab_size} word pieces"
        other = f"model.qformer.bert={config.bert} has {vocab_size}"
        raise InputError(f"{fault}, but {other}; give the word pieces it was trained with")
    return (qformer, queries), report


def describe_first_weights(
    model: VideoBlip2, reports: Mapping[str, WeightReport], language_model: str, start_from: str | None = None
) -> dict[str, str]:
    """Part of the network → one line: each Q-Former, the language model, LoRA.

    Args:
        reports: modality → the report of `load_qformer`; a modality without one has fresh weights.
        language_model: its source.
        start_from: the checkpoint of all weights, if any.
    """
    lines: dict[str, str] = {}
    if start_from is not None:
        lines["network"] = f"every weight from checkpoint {start_from}"
    else:
        for name in model.config.modality_names:
            fresh, report = "freshly initialized (model.qformer.weights is not set)", reports.get(name)
            lines[f"{name} Q-Former"] = f"{report.summary()}; from {report.file}" if report else fresh
        state = "frozen" if model.config.finetune == "lora" else "trained in full (model.finetune=full)"
        head = "separate from" if model.config.separate_lm_head else "tied to"
        lines["language model"] = f"{language_model}, {state}, lm_head {head} shared"
    trained = {name: parameter.numel() for name, parameter in model.trainable().items()}
    lora = sum(size for name, size in trained.items() if "lora_" in name)
    everything = sum(parameter.numel() for parameter in model.parameters())
    return {**lines, "training": f"{sum(trained.values()):,} of {everything:,} parameters, {lora:,} of them LoRA"}
