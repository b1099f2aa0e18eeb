"""A Q-Former from another project's checkpoint, with a report on every tensor.

1. Names and sizes come from the file alone; LAVIS and transformers name the same tensors differently (`weight_source`).
2. Self-attention and the embedding LayerNorm are shared by queries and text, so they always stay BLIP-2's. BERT gives
   only what text alone passes through: word and position embeddings and the text feed-forward (BLIP-2, Li et al. 2023,
   section 3.1: one BERT-base whose self-attention both branches share). A text branch in the checkpoint itself was
   trained together with the rest and takes precedence over BERT's.
3. Everything is planned from names and shapes before any weight is read, so a file that does not fit leaves nothing
   behind.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

from videoblip2.config import InputError
from videoblip2.model.tensor_files import read_tensors
from videoblip2.model.weight_report import TensorRecord, WeightReport
from videoblip2.model.weight_source import (
    QUERIES,
    WORDS,
    Source,
    Tensors,
    find_qformer,
    find_text,
    is_text_name,
    read_sizes,
    why_unused,
)

CrossAttention = Literal["reinit", "adapt"]

_STD = 0.02  # of every fresh weight, as in BERT and BLIP-2
_NUM_QUERIES = 32  # of BLIP-2, when neither the file nor the caller says
_READS_FEATURES = ("crossattention.attention.key.weight", "crossattention.attention.value.weight")
_PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class QFormerOptions:
    """What the caller asks of the file; the fields are `load_qformer`'s arguments."""

    feature_dim: int = 768
    cross_attention: CrossAttention = "reinit"
    num_attention_heads: int = 12
    num_queries: int | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        if self.cross_attention not in ("reinit", "adapt"):
            raise InputError(f"cross_attention={self.cross_attention!r}: must be 'reinit' or 'adapt'")
        for name in ("feature_dim", "num_attention_heads", "num_queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: must be at least 1")


@dataclass(frozen=True)
class QFormerPlan:
    """`model` is on the meta device (no memory); `sources` by name in the model, absent where the tensor is fresh."""

    model: InstructBlipQFormerModel
    sources: dict[str, Source]
    report: WeightReport


def load_qformer(
    path: Path | str,
    feature_dim: int = 768,
    cross_attention: CrossAttention = "reinit",
    num_attention_heads: int = 12,
    bert: Path | str | None = None,
    num_queries: int | None = None,
    prefix: str | None = None,
) -> tuple[InstructBlipQFormerModel, nn.Parameter, WeightReport]:
    """Load a Q-Former (in float32, eval mode) and its query tokens [1, Q, D] from a LAVIS or transformers checkpoint.

    path: .pth, .bin, .safetensors, sharded index or folder. feature_dim: width of the features it will see. Where the
    file's cross-attention has another width W, "reinit" gives fresh key and value weights [D, feature_dim], and "adapt"
    keeps them and expects `FeatureAdapter(feature_dim, W)` in front (W is `qformer.config.encoder_hidden_size`).
    bert: a bert-base-uncased file or folder (or a stage 1 checkpoint) for the text side of a file that has none.
    num_queries: None takes the file's own; fewer keeps the first ones, more adds fresh ones.
    prefix: which Q-Former, for a file with several. Fresh weights are N(0, 0.02²) from torch's global generator.

    Raises InputError, one line, for every file or value that does not fit; no model is ever half loaded.
    """
    options = QFormerOptions(feature_dim, cross_attention, num_attention_heads, num_queries, prefix)
    text_tensors = read_tensors(bert) if bert is not None else None
    text_file = str(bert) if bert is not None else None
    plan = plan_qformer(read_tensors(path), str(path), options, text_tensors, text_file)
    records = {record.name: record for record in plan.report.records if record.status != "unused"}
    query_tokens = nn.Parameter(_value(records[QUERIES], plan))
    model = plan.model
    model.load_state_dict({name: _value(records[name], plan) for name in model.state_dict()}, assign=True)
    positions = torch.arange(model.config.max_position_embeddings)
    model.embeddings.position_ids = positions.expand((1, -1))  # a buffer outside the state dict, still on meta
    return model.eval(), query_tokens, plan.report


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


@dataclass(frozen=True)
class _Files:
    """Tensors of the checkpoint and, if there is one, of the file for the text side, by their names in the model."""

    file: str
    own: dict[str, Source]
    text_file: str | None
    text: dict[str, Source]


def plan_qformer(
    tensors: Tensors,
    file: str,
    options: QFormerOptions,
    text_tensors: Tensors | None = None,
    text_file: str | None = None,
) -> QFormerPlan:
    """Place every tensor of the model; InputError if the file (or the two files together) cannot fill it."""
    found = find_qformer(tensors, file, options.prefix)
    text_name, text = find_text(text_tensors, str(text_file)) if text_tensors is not None else ("BERT", {})
    files = _Files(file, found.tensors, text_file, text)
    sizes = read_sizes(found, file, text)
    reads = options.feature_dim if options.cross_attention == "reinit" else sizes.encoder_hidden_size
    wanted = replace(sizes, encoder_hidden_size=reads)
    if sizes.hidden_size % options.num_attention_heads:
        raise InputError(
            f"num_attention_heads={options.num_attention_heads}: does not divide the Q-Former's width, "
            f"{sizes.hidden_size}"
        )
    all_sizes = asdict(wanted) | {"num_attention_heads": options.num_attention_heads}
    with torch.device("meta"):  # names and shapes, no memory
        model = InstructBlipQFormerModel(InstructBlipQFormerConfig(**all_sizes))
    queries = (1, _num_queries(files, options.num_queries), sizes.hidden_size)
    shapes = {QUERIES: queries} | {name: tuple(value.shape) for name, value in model.state_dict().items()}
    records = [_place(name, shape, files, reads != sizes.encoder_hidden_size) for name, shape in shapes.items()]
    given = {"loaded": files.own, "text": files.text}
    sources = {record.name: given[record.status][record.name] for record in records if record.status in given}
    if reads != options.feature_dim:
        adapter = {"layernorm.weight": (options.feature_dim,), "layernorm.bias": (options.feature_dim,)}
        adapter |= {"linear.weight": (reads, options.feature_dim), "linear.bias": (reads,)}  # type: ignore[dict-item]
        records += [TensorRecord(f"adapter.{n}", "fresh", s, reason="feature adapter") for n, s in adapter.items()]
    records += _unused(tensors, "checkpoint", records, files) + _unused(text_tensors or {}, "text", records, files)
    all_sizes["num_queries"] = queries[1]
    report = WeightReport(file, found.layout, all_sizes, tuple(records), text_file, text_name)
    return QFormerPlan(model, sources, report)


def _num_queries(files: _Files, wanted: int | None) -> int:
    if QUERIES not in files.own:
        return wanted or _NUM_QUERIES
    width = files.own["encoder.layer.0.intermediate_query.dense.weight"].tensor.shape[1]
    queries = files.own[QUERIES]
    shape = list(queries.tensor.shape)
    if len(shape) != 3 or shape[0] != 1 or shape[1] < 1 or shape[2] != width:
        raise InputError(f"{files.file}: {queries.name} has shape {shape}, expected [1, queries, {width}]")
    return wanted or shape[1]


def _place(name: str, shape: tuple[int, ...], files: _Files, width_differs: bool) -> TensorRecord:
    """Where the tensor `name` of the model comes from."""
    if name in files.own:
        if width_differs and name.endswith(_READS_FEATURES):
            return TensorRecord(name, "fresh", shape, reason="width")
        return _from_file(name, shape, files.own[name], files.file, "loaded")
    if name == QUERIES:
        return TensorRecord(name, "fresh", shape, reason="no query tokens in the file")
    if not is_text_name(name):
        raise InputError(f"{files.file}: its Q-Former lacks {name}; the file is incomplete or of another architecture")
    if files.text_file is None:
        return TensorRecord(name, "fresh", shape, reason="no text branch in the file: give bert=")
    if name not in files.text:
        raise InputError(f"{files.text_file}: lacks {name} for the Q-Former's text side; give bert-base-uncased")
    return _from_file(name, shape, files.text[name], files.text_file, "text")


def _from_file(
    name: str, shape: tuple[int, ...], source: Source, file: str, status: Literal["loaded", "text"]
) -> TensorRecord:
    """The record of a tensor that a file gives; InputError if shape or precision does not fit."""
    kind = _precision(source.tensor)
    if source.tensor.dtype not in _PRECISIONS:
        raise InputError(f"{file}: {source.name} is {kind} (quantised?); give the float32 or float16 weights")
    found, note = tuple(source.tensor.shape), ""
    if found != shape and name != QUERIES:
        raise InputError(f"{file}: {source.name} has shape {list(found)}, the Q-Former needs {list(shape)} there")
    if found != shape:
        have, want = found[1], shape[1]
        note = f"first {want} of {have} rows" if want < have else f"{have} rows and {want - have} fresh"
    return TensorRecord(name, status, shape, source.name, "text" if status == "text" else "checkpoint", kind, note=note)


def _unused(
    tensors: Tensors, which: Literal["checkpoint", "text"], records: Iterable[TensorRecord], files: _Files
) -> list[TensorRecord]:
    """The tensors of one of the files that the model does not take, each with the reason."""
    used = {record.source for record in records if record.file == which}
    too_wide = {record.name for record in records if record.reason == "width"}
    given = {"checkpoint": files.own, "text": files.text}[which]
    canonical = {source.name: name for name, source in given.items()}
    left = []
    for name, tensor in ((name, tensor) for name, tensor in tensors.items() if name not in used):
        ours = canonical.get(name, name)
        if which == "checkpoint":
            reason = "its width is not that of the features" if ours in too_wide else why_unused(name)
        elif is_text_name(ours):
            reason = "the checkpoint has its own text branch"
        elif ".attention." in ours or ours.startswith("embeddings.layernorm."):
            reason = "shared with the queries: the checkpoint's is kept"
        else:
            reason = why_unused(ours)
        left.append(TensorRecord(name, "unused", tuple(tensor.shape), name, which, _precision(tensor), reason))
    return left


def _precision(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
