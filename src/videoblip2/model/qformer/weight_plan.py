"""Which tensor of a Q-Former comes from where, decided from names and shapes alone, before any weight is read."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from videoblip2.config import InputError
from videoblip2.model.qformer.weight_report import TensorRecord, WeightReport
from videoblip2.model.qformer.weight_source import (
    QFormerSizes,
    QFormerSource,
    Source,
    Tensors,
    find_qformer,
    find_text,
    is_text_name,
    read_sizes,
    why_unused,
)

if TYPE_CHECKING:
    from transformers import InstructBlipQFormerModel

CrossAttention = Literal["reinit", "adapt"]

WORDS = "embeddings.word_embeddings.weight"
QUERIES = "query_tokens"
_POSITIONS = "embeddings.position_embeddings.weight"
_NUM_QUERIES = 32  # of BLIP-2, when neither the file nor the caller says
_NO_TEXT = "no text branch in the file: give bert="
_PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class QFormerOptions:
    """What the caller asks of the file; the fields are `load_qformer`'s arguments."""

    feature_dim: int = 768
    cross_attention: CrossAttention = "reinit"
    num_attention_heads: int = 12
    num_queries: int | None = None
    vocab_size: int | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        if self.cross_attention not in ("reinit", "adapt"):
            raise InputError(f"cross_attention={self.cross_attention!r}: must be 'reinit' or 'adapt'")
        for name in ("feature_dim", "num_attention_heads", "num_queries", "vocab_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: must be at least 1")


@dataclass(frozen=True)
class QFormerPlan:
    """`model` is on the meta device (no memory); `sources` by name in the model, absent where the tensor is fresh."""

    model: "InstructBlipQFormerModel"
    query_shape: tuple[int, int, int]
    sources: dict[str, Source]
    report: WeightReport


@dataclass(frozen=True)
class _Files:
    """The checkpoint and, if any, the file for the text side."""

    file: str
    own: QFormerSource
    text_file: str | None
    text: dict[str, Source]


def plan_qformer(
    tensors: Tensors,
    file: str,
    options: QFormerOptions,
    text_tensors: Tensors | None = None,
    text_file: str | None = None,
) -> QFormerPlan:
    """Place every tensor of the model; InputError where the file (or the two files together) cannot fill it."""
    own = find_qformer(tensors, file, options.prefix)
    text_name, text = find_text(text_tensors, str(text_file)) if text_tensors is not None else ("BERT", {})
    files = _Files(file, own, text_file, text)
    sizes = read_sizes(own, file)
    wanted = _wanted_sizes(sizes, files, options)
    model = empty_qformer(wanted, options.num_attention_heads)
    query_shape = (1, _num_queries(files, options), sizes.hidden_size)
    shapes = {QUERIES: query_shape} | {name: tuple(value.shape) for name, value in model.state_dict().items()}
    width_differs = sizes.encoder_hidden_size != wanted.encoder_hidden_size
    records = [_place(name, shape, files, width_differs) for name, shape in shapes.items()]
    if wanted.encoder_hidden_size != options.feature_dim:
        records += _adapter_records(options.feature_dim, wanted.encoder_hidden_size)
    sources = {record.name: _source_of(record, files) for record in records if record.status in ("loaded", "text")}
    records += _unused(tensors, records, files) + _unused_text(text_tensors or {}, records, files)
    all_sizes = asdict(wanted) | {"num_attention_heads": options.num_attention_heads, "num_queries": query_shape[1]}
    report = WeightReport(file, own.layout, all_sizes, tuple(records), text_file, text_name)
    return QFormerPlan(model, query_shape, sources, report)


def empty_qformer(sizes: QFormerSizes, num_attention_heads: int) -> "InstructBlipQFormerModel":
    """A Q-Former of these sizes on the meta device: names and shapes, no memory."""
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

    if sizes.hidden_size % num_attention_heads:
        raise InputError(
            f"num_attention_heads={num_attention_heads}: the Q-Former is {sizes.hidden_size} wide, no multiple"
        )
    config = InstructBlipQFormerConfig(num_attention_heads=num_attention_heads, **asdict(sizes))
    with torch.device("meta"):
        return InstructBlipQFormerModel(config)


def _wanted_sizes(sizes: QFormerSizes, files: _Files, options: QFormerOptions) -> QFormerSizes:
    """The file's sizes, with the cross-attention width and the vocabulary that the model shall have."""
    keep_width = options.cross_attention == "adapt"
    return replace(
        sizes,
        encoder_hidden_size=sizes.encoder_hidden_size if keep_width else options.feature_dim,
        vocab_size=options.vocab_size or _rows(WORDS, files, sizes.vocab_size),
        max_position_embeddings=_rows(_POSITIONS, files, sizes.max_position_embeddings),
    )


def _rows(name: str, files: _Files, default: int) -> int:
    source = files.own.tensors.get(name) or files.text.get(name)
    return int(source.tensor.shape[0]) if source is not None else default


def _num_queries(files: _Files, options: QFormerOptions) -> int:
    queries = files.own.query_tokens
    if queries is None:
        return options.num_queries or _NUM_QUERIES
    width = files.own.tensors["encoder.layer.0.intermediate_query.dense.weight"].tensor.shape[1]
    shape = list(queries.tensor.shape)
    if len(shape) != 3 or shape[0] != 1 or shape[1] < 1 or shape[2] != width:
        raise InputError(f"{files.file}: {queries.name} has shape {shape}, expected [1, queries, {width}]")
    return options.num_queries or shape[1]


def _place(name: str, shape: tuple[int, ...], files: _Files, width_differs: bool) -> TensorRecord:
    """Where the tensor `name` of the model comes from."""
    own = files.own.query_tokens if name == QUERIES else files.own.tensors.get(name)
    if own is not None:
        if width_differs and name.endswith(
            ("crossattention.attention.key.weight", "crossattention.attention.value.weight")
        ):
            return TensorRecord(name, "fresh", shape, reason="width")
        return _from_file(name, shape, own, files.file, "checkpoint")
    if name == QUERIES:
        return TensorRecord(name, "fresh", shape, reason="no query tokens in the file")
    if not is_text_name(name):
        raise InputError(f"{files.file}: its Q-Former lacks {name}; the file is incomplete or of another architecture")
    if files.text_file is None:
        return TensorRecord(name, "fresh", shape, reason=_NO_TEXT)
    if name not in files.text:
        raise InputError(f"{files.text_file}: lacks {name} for the Q-Former's text side; give bert-base-uncased")
    return _from_file(name, shape, files.text[name], files.text_file, "text")


def _from_file(name: str, shape: tuple[int, ...], source: Source, file: str, which: str) -> TensorRecord:
    """The record of a tensor that a file gives; InputError where shape or precision does not fit."""
    tensor = source.tensor
    if tensor.dtype not in _PRECISIONS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{file}: {source.name} is {kind} (quantised?); give the float32 or float16 weights")
    found, note = tuple(tensor.shape), ""
    if name in (WORDS, QUERIES) and _without_rows(found, name) == _without_rows(shape, name):
        note = _rows_note(found[_row_axis(name)], shape[_row_axis(name)])
    elif found != shape:
        raise InputError(f"{file}: {source.name} has shape {list(found)}, the Q-Former needs {list(shape)} there")
    status: Literal["loaded", "text"] = "loaded" if which == "checkpoint" else "text"
    return TensorRecord(name, status, shape, source.name, which, str(tensor.dtype).removeprefix("torch."), note=note)


def _row_axis(name: str) -> int:
    return 1 if name == QUERIES else 0  # [1, Q, D] and [V, D]


def _without_rows(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    return shape[: _row_axis(name)] + shape[_row_axis(name) + 1 :]


def _rows_note(found: int, wanted: int) -> str:
    if found == wanted:
        return ""
    return f"first {wanted} of {found} rows" if wanted < found else f"{found} rows and {wanted - found} fresh"


def _adapter_records(feature_dim: int, width: int) -> list[TensorRecord]:
    shapes = {"layernorm.weight": (feature_dim,), "layernorm.bias": (feature_dim,)}
    shapes |= {"linear.weight": (width, feature_dim), "linear.bias": (width,)}  # type: ignore[dict-item]
    return [TensorRecord(f"adapter.{name}", "fresh", shape, reason="feature adapter") for name, shape in shapes.items()]


def _source_of(record: TensorRecord, files: _Files) -> Source:
    if record.file == "text":
        return files.text[record.name]
    source = files.own.query_tokens if record.name == QUERIES else files.own.tensors[record.name]
    assert source is not None
    return source


def _unused(tensors: Tensors, records: Iterable[TensorRecord], files: _Files) -> list[TensorRecord]:
    """The checkpoint's tensors that the model does not take."""
    used = {record.source for record in records if record.file == "checkpoint"}
    too_wide = {files.own.tensors[record.name].name for record in records if record.reason == "width"}
    left = []
    for name, tensor in tensors.items():
        if name not in used:
            reason = "its width is not that of the features" if name in too_wide else why_unused(name)
            left.append(_unused_record(name, tensor, "checkpoint", reason))
    return left


def _unused_text(tensors: Tensors, records: Iterable[TensorRecord], files: _Files) -> list[TensorRecord]:
    """The text file's tensors that the model does not take."""
    used = {record.source for record in records if record.file == "text"}
    canonical = {source.name: name for name, source in files.text.items()}
    return [
        _unused_record(name, tensor, "text", _why_text_unused(canonical.get(name, name)))
        for name, tensor in tensors.items()
        if name not in used
    ]


def _why_text_unused(name: str) -> str:
    if is_text_name(name):
        return "the checkpoint has its own text branch"
    if ".attention." in name or name.startswith("embeddings.layernorm."):
        return "shared with the queries: the checkpoint's is kept"
    return why_unused(name)


def _unused_record(name: str, tensor: torch.Tensor, file: str, reason: str) -> TensorRecord:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorRecord(name, "unused", tuple(tensor.shape), name, file, dtype, reason)
