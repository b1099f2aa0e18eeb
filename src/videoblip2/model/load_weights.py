"""Load a Q-Former from another project's checkpoint, with a report on every tensor.

BERT supplies only the text path: word and position embeddings and the text feed-forward. Self-attention
and the embedding LayerNorm are shared by queries and text (BLIP-2, Li et al. 2023, section 3.1), so they stay BLIP-2's,
and a checkpoint's own text branch is preferred to BERT's. Everything is planned from names and shapes before any weight
is read, so an unsuitable file has no effect.
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
from videoblip2.imports import quiet_transformers
from videoblip2.model import weight_source
from videoblip2.model.branch import FeatureAdapter
from videoblip2.model.tensor_files import read_tensors
from videoblip2.model.weight_source import QUERIES, QFormerSource, group_of, is_text_name, precision

CrossAttention = Literal["reinit", "adapt"]
Status = Literal["loaded", "text", "fresh", "unused"]

_NUM_QUERIES = 32  # BLIP-2's, if neither the file nor the caller says
_READS_FEATURES = ("crossattention.attention.key.weight", "crossattention.attention.value.weight")
_PRECISIONS = ("float32", "float16", "bfloat16", "float64")


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
    note: str = ""  # other changes, such as "30522 rows and 1 fresh; float16 converted to float32"

    @property
    def filled(self) -> bool:
        """Whether its values come from a file."""
        return self.status in ("loaded", "text")

    @property
    def outcome(self) -> str:
        """The status in words."""
        fresh = "reinitialized" if self.reason == "width" else "freshly initialized"
        return fresh if self.status == "fresh" else self.status


@dataclass(frozen=True)
class WeightReport:
    """A report on one load. `records` follow the model's order, unused tensors last."""

    file: str
    layout: str
    sizes: dict[str, int]
    records: tuple[TensorRecord, ...]
    text_file: str | None = None
    text_name: str = "BERT"

    def count(self, status: Status) -> int:
        """Number of tensors with this status."""
        return sum(record.status == status for record in self.records)

    def summary(self) -> str:
        """One line, such as `243 loaded, 12 reinitialized (width), 74 from BERT`."""
        parts = [f"{self.count('loaded')} loaded"]
        fresh = Counter(f"{record.outcome} ({record.reason})" for record in self.records if record.status == "fresh")
        parts += [f"{count} {what}" for what, count in fresh.items()]
        if self.count("text"):
            parts.append(f"{self.count('text')} from {self.text_name}")
        noted = Counter(record.note for record in self.records if record.note)
        parts += [f"{note} in {count}" for note, count in noted.items()]
        return ", ".join(parts)

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """One row per tensor group: (group, tensors, parameters, outcome, source or reason), as text."""
        groups: dict[tuple[str, str, str], list[int]] = {}
        for record in self.records:
            outcome = f"from {self.text_name}" if record.status == "text" else record.outcome
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
    if record.filled:
        group = group_of(record.source)
        parts.insert(0, f"renamed from {group}" if group != group_of(record.name) else "")
    elif record.status == "unused" and record.file == "text":
        parts.insert(0, "of the text file")
    return "; ".join(filter(None, parts))


class QFormerOptions(BaseModel):
    """Options of `load_qformer`, and the dropout in training."""

    feature_dim: int = Field(768, ge=1)
    cross_attention: CrossAttention = "reinit"
    num_attention_heads: int = Field(12, ge=1)
    num_queries: int | None = Field(None, ge=1)
    prefix: str | None = None
    dropout: float = 0.1


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

    path: .pth, .bin, .safetensors, sharded index or folder. feature_dim: width of its features. If the
    file's cross-attention has another width W, "reinit" gives fresh key and value weights [D, feature_dim], and "adapt"
    keeps them and expects `FeatureAdapter(feature_dim, W)` in front (W is `qformer.config.encoder_hidden_size`).
    bert: a bert-base-uncased file or folder (or a stage 1 checkpoint) for the text side of a file that has none.
    num_queries: None takes the file's own; fewer keeps the first ones, more adds fresh ones.
    prefix: which Q-Former, for a file with several. Fresh weights are N(0, 0.02²) from torch's global generator.

    Raises InputError, in one line, for every unsuitable file or value; never loads half a model.
    """
    sizes = {"feature_dim": feature_dim, "num_attention_heads": num_attention_heads, "num_queries": num_queries}
    options = validated(QFormerOptions, {**sizes, "cross_attention": cross_attention, "prefix": prefix})
    return read_qformer(path, options, bert)


def read_qformer(
    path: Path | str, options: QFormerOptions, bert: Path | str | None = None
) -> tuple[InstructBlipQFormerModel, nn.Parameter, WeightReport]:
    """See `load_qformer`."""
    own = weight_source.find_qformer(read_tensors(path), str(path), options.prefix)
    text = weight_source.find_text(read_tensors(bert), str(bert)) if bert is not None else None
    config, report = plan_qformer(own, options, text)
    files = {"checkpoint": own, "text": text}
    values = {record.name: _read(record, files[record.file]) for record in report.records if record.filled}
    query_tokens = nn.Parameter(torch.empty(1, report.sizes["num_queries"], config.hidden_size).normal_(std=0.02))
    if (queries := values.pop(QUERIES, None)) is not None:
        kept = queries[:, : query_tokens.shape[1]]
        query_tokens.data[:, : kept.shape[1]] = kept
    with quiet_transformers():  # tensors not in `values` get BERT's initialization
        qformer = InstructBlipQFormerModel.from_pretrained(None, config=config, state_dict=values)
    return qformer, query_tokens, report


def _read(record: TensorRecord, given: QFormerSource | None) -> torch.Tensor:
    """A tensor in float32, copied into memory, since the file may change or vanish."""
    assert given is not None
    value = given.tensors[record.source].to(torch.float32, copy=True)
    if not value.sum().isfinite():  # a NaN or an infinity survives the sum: one pass, no copy
        what = f"{record.source} contains NaN or infinite values"
        raise InputError(f"{given.file}: {what}; the file is damaged, download it again")
    return value


def plan_qformer(
    own: QFormerSource, options: QFormerOptions, text: QFormerSource | None = None
) -> tuple[InstructBlipQFormerConfig, WeightReport]:
    """The Q-Former's configuration, and the report on the source of each tensor, from names and shapes alone.

    Raises InputError if the file, or both files, cannot fill the model.
    """
    sizes = weight_source.read_sizes(own, text)
    width, file_reads = sizes["hidden_size"], sizes["encoder_hidden_size"]
    if width % (heads := options.num_attention_heads):
        raise InputError(f"num_attention_heads={heads}: does not divide the Q-Former's width, {width}")
    reads = options.feature_dim if options.cross_attention == "reinit" else file_reads
    sizes |= {"encoder_hidden_size": reads, "num_attention_heads": heads}
    dropout = {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
    config = InstructBlipQFormerConfig(**sizes, **dropout)
    with torch.device("meta"):  # names and shapes, no memory
        model = InstructBlipQFormerModel(config)
        adapter = FeatureAdapter(options.feature_dim, reads) if reads != options.feature_dim else nn.Identity()
    queries = own.tensors[own.names[QUERIES]].numel() // width if QUERIES in own.names else _NUM_QUERIES
    sizes |= {name: getattr(config, name) for name in ("vocab_size", "max_position_embeddings")}
    sizes["num_queries"] = options.num_queries or queries
    shapes = {QUERIES: (1, sizes["num_queries"], width)}
    shapes |= {name: tuple(value.shape) for name, value in model.state_dict().items()}
    records = [_place(name, shape, own, text, reads != file_reads) for name, shape in shapes.items()]
    records += [
        TensorRecord(f"adapter.{name}", "fresh", tuple(tensor.shape), reason="feature adapter")
        for name, tensor in adapter.state_dict().items()
    ]
    records += _unused(own, "checkpoint", records)
    records += _unused(text, "text", records) if text else []
    report = WeightReport(own.file, own.layout, sizes, tuple(records), *((text.file, text.layout) if text else ()))
    return config, report


def _place(
    name: str, shape: tuple[int, ...], own: QFormerSource, text: QFormerSource | None, width_differs: bool
) -> TensorRecord:
    """Where the tensor `name` of the model comes from; InputError if that has another shape or precision."""
    given = own if name in own.names else text if text and is_text_name(name) else None
    if given is None or (width_differs and name.endswith(_READS_FEATURES)):
        return TensorRecord(name, "fresh", shape, reason="width" if given else _why_fresh(name, own))
    if name not in given.names:
        raise InputError(f"{given.file}: lacks {name} for the Q-Former's text side; give bert-base-uncased")
    source, found, notes = given.names[name], given.shape(name), []
    dtype = precision(given.tensors[source])
    if dtype not in _PRECISIONS:
        raise InputError(f"{given.file}: {source} is {dtype} (quantized?); give the float32 or float16 weights")
    if found != shape and not (name == QUERIES and len(found) == 3 and found[::2] == shape[::2]):
        raise InputError(f"{given.file}: {source} has shape {list(found)}, the Q-Former needs {list(shape)} there")
    if found != shape:
        have, want = found[1], shape[1]
        notes.append(f"first {want} of {have} rows" if want < have else f"{have} rows and {want - have} fresh")
    if dtype != "float32":
        notes.append(f"{dtype} converted to float32")
    place: tuple[Status, str] = ("loaded", "checkpoint") if given is own else ("text", "text")
    return TensorRecord(name, place[0], shape, source, place[1], dtype, note="; ".join(notes))


def _why_fresh(name: str, own: QFormerSource) -> str:
    if name == QUERIES:
        return "no query tokens in the file"
    if is_text_name(name):
        return "no text branch in the file: give bert="
    raise InputError(f"{own.file}: its Q-Former lacks {name}; the file is incomplete or has another architecture")


def _unused(
    given: QFormerSource, which: Literal["checkpoint", "text"], records: Iterable[TensorRecord]
) -> list[TensorRecord]:
    used = {record.source for record in records if record.file == which}
    too_wide = {record.name for record in records if record.reason == "width" and which == "checkpoint"}
    ours = {source: name for name, source in given.names.items()}
    left = []
    for source, tensor in given.tensors.items():
        if source not in used:
            name, width = ours.get(source, source), "its width is not that of the features"
            reason = width if name in too_wide else weight_source.why_unused(name)
            shape = tuple(tensor.shape)
            left.append(TensorRecord(source, "unused", shape, source, which, precision(tensor), reason))
    return left
