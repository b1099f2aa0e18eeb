"""A Q-Former from another project's checkpoint, with an account of every tensor.

1. Names and sizes come from the file alone; LAVIS and transformers name the same tensors differently (`weight_source`).
2. Self-attention and the embedding LayerNorm are shared by queries and text, so they always stay BLIP-2's. BERT gives
   only what text alone passes through: word and position embeddings and the text feed-forward (BLIP-2, Li et al. 2023,
   section 3.1: one BERT-base whose self-attention both branches share). A text branch in the checkpoint itself was
   trained together with the rest and takes precedence over BERT's.
3. Everything is planned from names and shapes before any weight is read (`weight_plan`), so a file that does not fit
   leaves nothing behind.
"""

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import nn

from videoblip2.config import InputError
from videoblip2.model.qformer.weight_plan import (
    QUERIES,
    WORDS,
    CrossAttention,
    QFormerOptions,
    QFormerPlan,
    plan_qformer,
)
from videoblip2.model.qformer.weight_report import TensorRecord, WeightReport
from videoblip2.model.tensor_files import read_tensors

if TYPE_CHECKING:
    from transformers import InstructBlipQFormerModel

_STD = 0.02  # of every fresh weight, as in BERT and BLIP-2


class MoreOptions(TypedDict, total=False):
    """What few callers of `load_qformer` need."""

    num_queries: int | None
    vocab_size: int | None
    prefix: str | None


def load_qformer(
    path: Path | str,
    feature_dim: int = 768,
    cross_attention: CrossAttention = "reinit",
    num_attention_heads: int = 12,
    bert: Path | str | None = None,
    **more: Unpack[MoreOptions],
) -> tuple["InstructBlipQFormerModel", nn.Parameter, WeightReport]:
    """Load a Q-Former (in float32, eval mode) and its query tokens [1, Q, D] from a LAVIS or transformers checkpoint.

    path: .pth, .bin, .safetensors, sharded index or folder. feature_dim: width of the features it will see. Where the
    file's cross-attention has another width W, "reinit" gives fresh key and value weights [D, feature_dim], and "adapt"
    keeps them and expects `FeatureAdapter(feature_dim, W)` in front (W is `qformer.config.encoder_hidden_size`).
    bert: a bert-base-uncased file or folder (or a stage 1 checkpoint) for the text side of a file that has none.
    num_queries, vocab_size: left out or None takes the file's own; fewer keeps the first rows, more adds fresh ones.
    prefix: which Q-Former, for a file with several. Fresh weights are N(0, 0.02²) from torch's global generator.

    Raises InputError, one line, for every file or value that does not fit; no model is ever half loaded.
    """
    options = QFormerOptions(feature_dim, cross_attention, num_attention_heads, **more)
    text_tensors = read_tensors(bert) if bert is not None else None
    text_file = str(bert) if bert is not None else None
    plan = plan_qformer(read_tensors(path), str(path), options, text_tensors, text_file)
    model, query_tokens = _build(plan)
    return model, query_tokens, plan.report


def _build(plan: QFormerPlan) -> tuple["InstructBlipQFormerModel", nn.Parameter]:
    """Fill the planned model: each tensor is read, converted and copied once."""
    records = {record.name: record for record in plan.report.records if record.status != "unused"}
    query_tokens = nn.Parameter(_value(records[QUERIES], plan))
    model = plan.model
    model.load_state_dict({name: _value(records[name], plan) for name in model.state_dict()}, assign=True)
    positions = torch.arange(model.config.max_position_embeddings)
    model.embeddings.position_ids = positions.expand((1, -1))  # a buffer outside the state dict, still on meta
    return model.eval(), query_tokens


def _value(record: TensorRecord, plan: QFormerPlan) -> torch.Tensor:
    """The float32 tensor of a record, copied into memory: the file may change or vanish afterwards."""
    source = plan.sources.get(record.name)
    if source is None:
        return _fresh(record)
    value = torch.empty(record.shape) if source.tensor.shape == record.shape else _fresh(record)
    kept = tuple(slice(0, min(*sizes)) for sizes in zip(record.shape, source.tensor.shape, strict=True))
    value[kept] = source.tensor[kept].to(torch.float32)
    if not value.sum().isfinite():  # a NaN or an infinity survives the sum: one pass, no copy
        file = plan.report.text_file if record.file == "text" else plan.report.file
        raise InputError(f"{file}: {source.name} holds NaN or infinite values; the file is damaged, download it again")
    return value


def _fresh(record: TensorRecord) -> torch.Tensor:
    """BERT's own initialisation: biases 0, LayerNorm weights 1, the rest N(0, 0.02²), the padding word 0."""
    if record.name.endswith(".bias"):
        return torch.zeros(record.shape)
    if record.name.lower().endswith("layernorm.weight"):
        return torch.ones(record.shape)
    value = torch.empty(record.shape).normal_(std=_STD)
    if record.name == WORDS:
        value[0] = 0
    return value
