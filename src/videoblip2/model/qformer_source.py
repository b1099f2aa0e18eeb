"""Finding a Q-Former (and the text side of a BERT) among the tensors of a file, and reading its sizes off them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from videoblip2.config import InputError
from videoblip2.model.weight_names import (
    bert_root,
    canonical_name,
    is_text_name,
    layout_of,
    looks_like,
    parent_of,
    qformer_roots,
    query_name,
)

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """A tensor as a file holds it, with its name there."""

    name: str
    tensor: torch.Tensor


@dataclass(frozen=True)
class QFormerSource:
    """The Q-Former of one file: `tensors` by their name in InstructBlipQFormerModel, `query_tokens` [1,Q,D] beside."""

    root: str
    layout: str
    tensors: dict[str, Source]
    query_tokens: Source | None

    @property
    def has_text(self) -> bool:
        """Whether the text feed-forward is there (stage 2 checkpoints have none)."""
        return "encoder.layer.0.intermediate.dense.weight" in self.tensors


@dataclass(frozen=True)
class QFormerSizes:
    """The sizes of a Q-Former, named as in InstructBlipQFormerConfig."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    encoder_hidden_size: int
    cross_attention_frequency: int
    vocab_size: int = 30522
    max_position_embeddings: int = 512


def find_qformer(tensors: Tensors, file: str, prefix: str | None = None) -> QFormerSource:
    """The Q-Former under `prefix` (None: the only one). InputError says what a file without one looks like."""
    roots = qformer_roots(tensors)
    if not roots:
        raise InputError(
            f"{file}: no Q-Former in it (it looks like {looks_like(tensors)}); "
            "give a BLIP-2 or InstructBLIP checkpoint, such as `vb2 weights fetch blip2-flant5xl`"
        )
    if prefix is None and len(roots) > 1:
        raise InputError(
            f"{file}: holds {len(roots)} Q-Formers; choose one with prefix= ({', '.join(map(repr, roots))})"
        )
    root = roots[0] if prefix is None else prefix.rstrip(".") + "." * bool(prefix)
    if root not in roots:
        raise InputError(f"{file}: no Q-Former under prefix {root!r}; it has {', '.join(map(repr, roots))}")
    found = _below(tensors, root, file)
    query = query_name(root)
    query_tokens = Source(query, tensors[query]) if query in tensors else None
    has_text = any(map(is_text_name, found))
    return QFormerSource(root, layout_of(root, set(tensors), has_text), found, query_tokens)


def _below(tensors: Tensors, root: str, file: str) -> dict[str, Source]:
    """Canonical name -> source for all under `root`; transformers' BLIP-2 keeps the word embeddings one level up."""
    found: dict[str, Source] = {}
    beside = parent_of(root) + "embeddings."
    for name, tensor in tensors.items():
        inner = name.removeprefix(root) if name.startswith(root) else name.removeprefix(parent_of(root))
        if not (name.startswith(root) or (name.startswith(beside) and is_text_name(inner))):
            continue
        target = canonical_name(inner)
        if target in found:
            raise InputError(f"{file}: {found[target].name!r} and {name!r} are the same tensor; remove one of them")
        found[target] = Source(name, tensor)
    return found


def read_sizes(source: QFormerSource, file: str) -> QFormerSizes:
    """Sizes off the tensors; InputError where layers are missing or cross-attention has no regular period."""
    layers = _layers(source, "intermediate_query.dense.weight")
    crossing = _layers(source, "crossattention.attention.key.weight")
    if layers != list(range(len(layers))):
        raise InputError(f"{file}: Q-Former layers {layers} are not consecutive; the file is incomplete")
    if not crossing:
        raise InputError(f"{file}: its Q-Former has no cross-attention, so it cannot see features; give a BLIP-2 file")
    periods = range(1, len(layers) + 1)
    frequency = next((period for period in periods if crossing == list(range(0, len(layers), period))), None)
    if frequency is None:
        raise InputError(f"{file}: cross-attention in layers {crossing} of {len(layers)} is no regular period")
    ffn, width = _shape(source, "encoder.layer.0.intermediate_query.dense.weight", file)
    _, encoder_width = _shape(source, "encoder.layer.0.crossattention.attention.key.weight", file)
    return QFormerSizes(len(layers), width, ffn, encoder_width, frequency)


def _layers(source: QFormerSource, ending: str) -> list[int]:
    names = (name.split(".") for name in source.tensors if name.endswith(ending))
    return sorted(int(parts[2]) for parts in names if parts[:2] == ["encoder", "layer"] and parts[2].isdecimal())


def _shape(source: QFormerSource, name: str, file: str) -> tuple[int, int]:
    shape = source.tensors[name].tensor.shape
    if len(shape) != 2:
        raise InputError(f"{file}: {source.tensors[name].name} has shape {list(shape)}, expected a matrix")
    return int(shape[0]), int(shape[1])


def find_text(tensors: Tensors, file: str) -> tuple[str, dict[str, Source]]:
    """(what the file is, its tensors by canonical name), for a BERT or for a Q-Former with a text branch."""
    if len(qformer_roots(tensors)) == 1:
        source = find_qformer(tensors, file)
        if source.has_text:
            return source.layout, source.tensors
    root = bert_root(tensors)
    if root is None:
        raise InputError(f"{file}: no BERT in it (it looks like {looks_like(tensors)}); give bert-base-uncased")
    return "BERT", _below(tensors, root, file)
