"""A Q-Former from another project's checkpoint, with a report on every tensor.

BERT gives only what text alone passes through: word and position embeddings and the text feed-forward. Self-attention
and the embedding LayerNorm are shared by queries and text (BLIP-2, Li et al. 2023, section 3.1), so they stay BLIP-2's,
and a text branch of the checkpoint's own goes before BERT's. All is planned from names and shapes before any weight is
read, so a file that does not fit leaves nothing behind.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Literal, get_args

import torch
from pydantic import BaseModel, Field
from torch import nn
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

from videoblip2.config import InputError
from videoblip2.errors import validated
from videoblip2.model.branch import FeatureAdapter
from videoblip2.model.tensor_files import read_tensors
from videoblip2.model.weight_source import (
    QUERIES,
    WORDS,
    QFormerSource,
    Source,
    Tensors,
    find_qformer,
    find_text,
    group_of,
    is_text_name,
    read_sizes,
    why_unused,
)

CrossAttention = Literal["reinit", "adapt"]
Status = Literal["loaded", "text", "fresh", "unused"]

ADAPTER = "feature adapter"  # why such a tensor is fresh
_STD = 0.02  # of every fresh weight, as in BERT and BLIP-2
_NUM_QUERIES = 32  # of BLIP-2, when neither the file nor the caller says
_READS_FEATURES = ("crossattention.attention.key.weight", "crossattention.attention.value.weight")
_PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class TensorRecord:
    """One tensor: what happened to it, from which file and name, and why."""

    name: str  # in the model; for an unused tensor, its name in the file
    status: Status  # "loaded" from the checkpoint, "text" from the second file, "fresh", or "unused"
    shape: tuple[int, ...]
    source: str = ""  # its name in the file, "" when fresh
    file: str = ""  # "checkpoint" or "text", "" when fresh
    dtype: str = ""  # in the file, such as "float16"; the model always holds float32
    reason: str = ""  # why it is fresh or unused
    note: str = ""  # what else was done to it, such as "30522 rows, 1 fresh"

    @property
    def converted(self) -> bool:
        """Whether the file held it in another precision than the float32 it now has."""
        return self.status in ("loaded", "text") and self.dtype != "float32"


@dataclass(frozen=True)
class WeightReport:
    """The whole of one load. `records` follow the model's own order, the unused tensors last."""

    file: str
    layout: str
    sizes: dict[str, int]
    records: tuple[TensorRecord, ...]
    text_file: str | None = None
    text_name: str = "BERT"

    def count(self, status: Status) -> int:
        """How many tensors have this status."""
        return sum(record.status == status for record in self.records)

    def summary(self) -> str:
        """One line, such as `243 loaded, 12 re-initialised (width), 74 from BERT`."""
        parts = [f"{self.count('loaded')} loaded"]
        fresh = Counter(record.reason for record in self.records if record.status == "fresh")
        for reason, count in fresh.items():
            parts.append(f"{count} {'re-initialised' if reason == 'width' else 'freshly initialised'} ({reason})")
        if self.count("text"):
            parts.append(f"{self.count('text')} from {self.text_name}")
        noted = Counter(record.note for record in self.records if record.note)
        parts += [f"{note} in {count}" for note, count in noted.items()]
        converted = Counter(record.dtype for record in self.records if record.converted)
        parts += [f"{count} converted from {dtype} to float32" for dtype, count in sorted(converted.items())]
        return ", ".join(parts)

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """One row a tensor group: (group, tensors, parameters, what happened, from which name or why), as text."""
        groups: dict[tuple[str, str, str], list[int]] = {}
        for record in self.records:
            outcome = f"from {self.text_name}" if record.status == "text" else record.status
            if record.status == "fresh":
                outcome = "re-initialised" if record.reason == "width" else "freshly initialised"
            key = (group_of(record.name), outcome, _origin(record))
            groups.setdefault(key, []).append(prod(record.shape))
        return [
            (group, str(len(sizes)), f"{sum(sizes):,}", outcome, origin)
            for (group, outcome, origin), sizes in groups.items()
        ]

    def to_json(self) -> dict[str, object]:
        """The report as one JSON-ready dictionary, every tensor listed."""
        return {
            "file": self.file,
            "text_file": self.text_file,
            "layout": self.layout,
            "sizes": dict(self.sizes),
            "counts": {status: self.count(status) for status in get_args(Status)},
            "tensors": [asdict(record) for record in self.records],
        }


def _origin(record: TensorRecord) -> str:
    parts = [record.reason, record.note]
    if record.status in ("loaded", "text"):
        group = group_of(record.source)
        parts.insert(0, f"renamed from {group}" if group != group_of(record.name) else "")
    elif record.status == "unused" and record.file == "text":
        parts.insert(0, "of the text file")
    if record.converted:
        parts.append(f"{record.dtype} to float32")
    return "; ".join(filter(None, parts))


class QFormerOptions(BaseModel):
    """What the caller asks of the file: `load_qformer`'s arguments."""

    feature_dim: int = Field(768, ge=1)
    cross_attention: CrossAttention = "reinit"
    num_attention_heads: int = Field(12, ge=1)
    num_queries: int | None = Field(None, ge=1)
    prefix: str | None = None


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
    given = (feature_dim, cross_attention, num_attention_heads, num_queries, prefix)
    options = validated(QFormerOptions, dict(zip(QFormerOptions.model_fields, given, strict=True)))
    text = (read_tensors(bert), str(bert)) if bert is not None else None
    model, sources, report = plan_qformer(read_tensors(path), str(path), options, text)
    filled = (record for record in report.records if record.status != "unused" and record.reason != ADAPTER)
    values = {record.name: _value(record, sources.get(record.name), report) for record in filled}
    query_tokens = nn.Parameter(values.pop(QUERIES))
    model.load_state_dict(values, assign=True)
    positions = torch.arange(model.config.max_position_embeddings)
    model.embeddings.position_ids = positions.expand((1, -1))  # a buffer outside the state dict, still on meta
    return model.eval(), query_tokens, report


def _value(record: TensorRecord, source: Source | None, report: WeightReport) -> torch.Tensor:
    """The float32 tensor of a record, copied into memory: the file may change or vanish afterwards."""
    if source is None:
        return _fresh(record)
    value = torch.empty(record.shape) if source.tensor.shape == record.shape else _fresh(record)
    kept = tuple(slice(0, min(*sizes)) for sizes in zip(record.shape, source.tensor.shape, strict=True))
    value[kept] = source.tensor[kept].to(torch.float32)
    if not value.sum().isfinite():  # a NaN or an infinity survives the sum: one pass, no copy
        file = report.text_file if record.file == "text" else report.file
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


def plan_qformer(
    tensors: Tensors, file: str, options: QFormerOptions, text_file: tuple[Tensors, str] | None = None
) -> tuple[InstructBlipQFormerModel, dict[str, Source], WeightReport]:
    """A model on the meta device (no memory), what fills each tensor that is not fresh, and the report.

    Raises InputError if the file, or it and the one for the text side, cannot fill the model.
    """
    own = find_qformer(tensors, file, options.prefix)
    text = find_text(*text_file) if text_file else None
    sizes = read_sizes(own, text)
    width, file_reads = sizes["hidden_size"], sizes["encoder_hidden_size"]
    if width % options.num_attention_heads:
        raise InputError(
            f"num_attention_heads={options.num_attention_heads}: does not divide the Q-Former's width, {width}"
        )
    reads = options.feature_dim if options.cross_attention == "reinit" else file_reads
    sizes |= {"encoder_hidden_size": reads, "num_attention_heads": options.num_attention_heads}
    with torch.device("meta"):  # names and shapes, no memory
        model = InstructBlipQFormerModel(InstructBlipQFormerConfig(**sizes))
        adapter = FeatureAdapter(options.feature_dim, reads) if reads != options.feature_dim else nn.Identity()
    queries = own.tensors[QUERIES].tensor.numel() // width if QUERIES in own.tensors else _NUM_QUERIES
    sizes["num_queries"] = options.num_queries or queries
    shapes = {QUERIES: (1, sizes["num_queries"], width)}
    shapes |= {name: tuple(value.shape) for name, value in model.state_dict().items()}
    records = [_place(name, shape, own, text, reads != file_reads) for name, shape in shapes.items()]
    given = {"loaded": own.tensors, "text": text.tensors if text else {}}
    sources = {record.name: given[record.status][record.name] for record in records if record.status in given}
    records += [
        TensorRecord(f"adapter.{name}", "fresh", tuple(tensor.shape), reason=ADAPTER)
        for name, tensor in adapter.state_dict().items()
    ]
    records += _unused(tensors, own, "checkpoint", records)
    if text_file and text:
        records += _unused(text_file[0], text, "text", records)
    report = WeightReport(file, own.layout, sizes, tuple(records), *((text.file, text.layout) if text else ()))
    return model, sources, report


def _place(
    name: str, shape: tuple[int, ...], own: QFormerSource, text: QFormerSource | None, width_differs: bool
) -> TensorRecord:
    """Where the tensor `name` of the model comes from."""
    if name in own.tensors:
        if width_differs and name.endswith(_READS_FEATURES):
            return TensorRecord(name, "fresh", shape, reason="width")
        return _from_file(name, shape, own, "loaded")
    if name == QUERIES:
        return TensorRecord(name, "fresh", shape, reason="no query tokens in the file")
    if not is_text_name(name):
        raise InputError(f"{own.file}: its Q-Former lacks {name}; the file is incomplete or of another architecture")
    if text is None:
        return TensorRecord(name, "fresh", shape, reason="no text branch in the file: give bert=")
    if name not in text.tensors:
        raise InputError(f"{text.file}: lacks {name} for the Q-Former's text side; give bert-base-uncased")
    return _from_file(name, shape, text, "text")


def _from_file(
    name: str, shape: tuple[int, ...], given: QFormerSource, status: Literal["loaded", "text"]
) -> TensorRecord:
    """The record of a tensor that a file gives; InputError if shape or precision does not fit."""
    source, note = given.tensors[name], ""
    if source.tensor.dtype not in _PRECISIONS:
        what = f"{source.name} is {source.dtype} (quantised?)"
        raise InputError(f"{given.file}: {what}; give the float32 or float16 weights")
    found = tuple(source.tensor.shape)
    if found != shape and not (name == QUERIES and len(found) == 3 and found[::2] == shape[::2]):
        raise InputError(f"{given.file}: {source.name} has shape {list(found)}, the Q-Former needs {list(shape)} there")
    if found != shape:
        have, want = found[1], shape[1]
        note = f"first {want} of {have} rows" if want < have else f"{have} rows and {want - have} fresh"
    which = "text" if status == "text" else "checkpoint"
    return TensorRecord(name, status, shape, source.name, which, source.dtype, note=note)


def _unused(
    tensors: Tensors, given: QFormerSource, which: Literal["checkpoint", "text"], records: Iterable[TensorRecord]
) -> list[TensorRecord]:
    """The tensors of one of the files that the model does not take, each with the reason."""
    used = {record.source for record in records if record.file == which}
    too_wide = {record.name for record in records if record.reason == "width"}
    canonical = {source.name: name for name, source in given.tensors.items()}
    left = []
    for source in (Source(name, tensor) for name, tensor in tensors.items() if name not in used):
        ours = canonical.get(source.name, source.name)
        if which == "checkpoint":
            reason = "its width is not that of the features" if ours in too_wide else why_unused(source.name)
        elif is_text_name(ours):
            reason = "the checkpoint has its own text branch"
        elif ".attention." in ours or ours.startswith("embeddings.layernorm."):
            reason = "shared with the queries: the checkpoint's is kept"
        else:
            reason = why_unused(ours)
        shape = tuple(source.tensor.shape)
        left.append(TensorRecord(source.name, "unused", shape, source.name, which, source.dtype, reason))
    return left
