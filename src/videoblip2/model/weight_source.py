"""Find a Q-Former (and the text side of a BERT) among the tensors of a file, and infer its sizes.

LAVIS, transformers and BERT name the same tensors differently; all are mapped to `InstructBlipQFormerModel`:

    LAVIS   Qformer.bert.encoder.layer.0.attention.self.query.weight    Qformer.bert.embeddings.LayerNorm.weight
    BLIP-2  qformer.encoder.layer.0.attention.attention.query.weight    qformer.layernorm.weight
    ours    encoder.layer.0.attention.attention.query.weight            embeddings.layernorm.weight
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from videoblip2.config import InputError
from videoblip2.model.tensor_files import read_tensors, sniff, weights_file

_PART = re.compile(r"((?:.*?\.)??)((?:encoder\.layer\.\d+|embeddings|layernorm)\..+)")
_TEXT = re.compile(r"^embeddings\.(word|position)_embeddings\.weight$|^encoder\.layer\.\d+\.(intermediate|output)\.")
_RULES = (
    (re.compile(r"attention\.self\."), "attention.attention."),
    (re.compile(r"^(embeddings\.LayerNorm|layernorm)\."), "embeddings.layernorm."),
    (re.compile(r"\.gamma$"), ".weight"),
    (re.compile(r"\.beta$"), ".bias"),
)
_UNUSED = (
    (r"^(encoder\..*attention|embeddings\.layernorm)\.", "shared with the queries: the checkpoint's is kept"),
    (_TEXT, "the checkpoint has its own text branch"),
    (r"position_ids$", "a buffer that the model builds itself"),
    (r"(^|\.)cls\.", "the language-modeling head of stage 1"),
    (r"(^|\.)(t5_proj|llm_proj|opt_proj|language_projection)\.", "a projection to another language model"),
    (r"(^|\.)(ln_vision|post_layernorm)\.", "the norm of another encoder's features"),
    (r"(^|\.)(visual_encoder|vision_model)\.", "the image encoder"),
    (r"(^|\.)(t5_model|llm_model|opt_model|language_model)\.", "the language model"),
    (r"(^|\.)(vision_proj|text_proj|vision_projection|text_projection|itm_head)\.", "a head of stage 1"),
)
_LOOKS = (
    (r"lora_[AB]\b", "LoRA adapters"),
    (r"(^|\.)encoder\.block\.0\.layer\.", "a T5 language model"),
    (r"audio_model\.audio_encoder\.", "a CLAP model"),
    (r"(^|\.)text_model\.encoder\.layers\.", "a CLIP model"),
    (r"(^|\.)text_encoder\.encoder\.layer\.", "a first-generation BLIP or ALBEF model"),
    (r"(^|\.)embeddings\.word_embeddings\.weight$", "a BERT-like text encoder (it belongs in bert=, not here)"),
    (r"(^|\.)blocks\.0\.attn\.", "a vision transformer"),
    (r"(^|\.)model\.layers\.0\.", "a decoder-only language model"),
)

#: Tensors of a Q-Former outside its layers, by their names in `QFormerSource.names`.
QUERIES = "query_tokens"
WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
_FEED_FORWARD = "encoder.layer.0.intermediate_query.dense.weight"  # of the queries: no BERT has it

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class QFormerSource:
    """The Q-Former, or the text side of a BERT, among the `tensors` of a file.

    names: name in InstructBlipQFormerModel → name in the file; `query_tokens` [1,Q,D] are a Q-Former's own.
    """

    file: str
    layout: str
    tensors: Tensors
    names: dict[str, str]

    @property
    def has_text(self) -> bool:
        """Whether the file has the text feed-forward (stage 2 checkpoints do not)."""
        return "encoder.layer.0.intermediate.dense.weight" in self.names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor by its name in InstructBlipQFormerModel."""
        return tuple(self.tensors[self.names[name]].shape)


def find_qformer(tensors: Tensors, file: str, prefix: str | None = None) -> QFormerSource:
    """The Q-Former under `prefix` (None: the only one). For a file without one, InputError says what it looks like."""
    parts = _parts(tensors, file)
    roots = qformer_roots(parts)
    if not roots:
        remedy = "give a BLIP-2 or InstructBLIP checkpoint, such as `vb2 weights fetch blip2-flant5xl`"
        raise InputError(f"{file}: no Q-Former in it (it looks like {looks_like(tensors)}); {remedy}")
    there = ", ".join(map(repr, roots))
    if prefix is None and len(roots) > 1:
        raise InputError(f"{file}: contains {len(roots)} Q-Formers; choose one with prefix= ({there})")
    root = roots[0] if prefix is None else prefix.rstrip(".") + "." * bool(prefix)
    if root not in roots:
        raise InputError(f"{file}: no Q-Former under prefix {root!r}; it has {there}")
    parent, beside = _parent(root), parts.get(_parent(root), {})
    names = {name: beside[name] for name in (WORDS, POSITIONS) if name in beside} | parts[root]  # transformers' BLIP-2
    own = root.removesuffix("bert.").rstrip(".").removeprefix(parent)  # video_Qformer → video_query_tokens
    queries = parent + (re.sub("[Qq]former", QUERIES, own) or QUERIES)
    if queries in tensors:
        names[QUERIES] = queries
    return QFormerSource(file, _layout(root, tensors, any(map(is_text_name, names))), tensors, names)


def _parts(tensors: Tensors, file: str) -> dict[str, dict[str, str]]:
    """Prefix → name in the model → name in the file, of all tensors named as in a BERT."""
    parts: dict[str, dict[str, str]] = {}
    for name in tensors:
        if match := _PART.fullmatch(name):
            inner, part = match[2], parts.setdefault(match[1], {})
            for pattern, replacement in _RULES:
                inner = pattern.sub(replacement, inner)
            if (other := part.setdefault(inner, name)) != name:
                raise InputError(f"{file}: {other!r} and {name!r} are the same tensor; remove one of them")
    return parts


def qformer_roots(parts: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The prefix of every Q-Former among a file's parts: `Qformer.bert.`, `model.qformer.`, or `""` for a bare one."""
    return sorted(root for root, names in parts.items() if _FEED_FORWARD in names)


def _parent(root: str) -> str:
    """The part before the Q-Former itself: `model.qformer.` → `model.`, `Qformer.bert.` → `""`."""
    head = root.removesuffix("bert.").rstrip(".")
    return head[: head.rfind(".") + 1]


def _layout(root: str, names: Iterable[str], has_text: bool) -> str:
    """The program that wrote the Q-Former under `root`."""
    if f"{root}encoder.layer.0.attention.self.query.weight" in names:
        if any(name.startswith(f"{root.removesuffix('bert.')}cls.") for name in names):
            return "LAVIS BLIP-2 stage 1"
        return "LAVIS InstructBLIP" if has_text else "LAVIS BLIP-2 stage 2"
    if f"{root}layernorm.weight" in names:
        return "transformers BLIP-2"
    return "transformers InstructBLIP" if root else "bare InstructBlipQFormerModel"


def read_sizes(source: QFormerSource, text: QFormerSource | None = None) -> dict[str, int]:
    """Infer sizes from the tensors, by their names in InstructBlipQFormerConfig.

    Raises InputError if layers are missing or cross-attention has no regular period.

    Args:
        text: fallback for word and position embeddings; without any, their numbers are left out.
    """
    layers = _layers(source, "intermediate_query.dense.weight")
    crossing = _layers(source, "crossattention.attention.key.weight")
    periods = range(1, len(layers) + 1)
    frequency = next((period for period in periods if crossing == list(range(0, len(layers), period))), 0)
    problem = ""
    if layers != list(range(len(layers))):
        problem = f"Q-Former layers {layers} are not consecutive; the file is incomplete"
    elif not crossing:
        problem = "its Q-Former has no cross-attention, so it cannot see features; give a BLIP-2 file"
    elif not frequency:
        problem = f"cross-attention in layers {crossing} of {len(layers)} is not a regular period"
    if problem:
        raise InputError(f"{source.file}: {problem}")
    shapes = {name: given.shape(name) for given in (text, source) if given for name in given.names}
    feed_forward = shapes[_FEED_FORWARD]
    embeddings = {"vocab_size": WORDS, "max_position_embeddings": POSITIONS}
    return {
        "num_hidden_layers": len(layers),
        "hidden_size": feed_forward[-1],
        "intermediate_size": feed_forward[0],
        "encoder_hidden_size": shapes["encoder.layer.0.crossattention.attention.key.weight"][-1],
        "cross_attention_frequency": frequency,
        **{size: shapes[name][0] for size, name in embeddings.items() if name in shapes},
    }


def _layers(source: QFormerSource, ending: str) -> list[int]:
    names = (name.split(".") for name in source.names if name.endswith(ending))
    return sorted(int(parts[2]) for parts in names if parts[:2] == ["encoder", "layer"] and parts[2].isdecimal())


def find_text(tensors: Tensors, file: str) -> QFormerSource:
    """The text side of a BERT, or of a Q-Former with a text branch."""
    parts = _parts(tensors, file)
    if len(qformer_roots(parts)) == 1 and (source := find_qformer(tensors, file)).has_text:
        return source
    for root, names in parts.items():
        if WORDS in names and (root == "" or root.split(".")[-2] == "bert"):
            return QFormerSource(file, "BERT", tensors, names)
    raise InputError(f"{file}: no BERT in it (it looks like {looks_like(tensors)}); give bert-base-uncased")


def is_text_name(name: str) -> bool:
    """Whether only text uses this tensor: the embeddings of words and positions, the text feed-forward."""
    return _TEXT.match(name) is not None


def why_unused(name: str) -> str:
    """Why the Q-Former does not use a tensor, by its name in the model or in the file."""
    return next((why for pattern, why in _UNUSED if re.search(pattern, name)), "no such tensor in the Q-Former")


def looks_like(names: Iterable[str]) -> str:
    """A guess, in words, at a file with these tensor names."""
    names = list(names)
    for pattern, words in _LOOKS:
        if any(re.search(pattern, name) for name in names):
            return words
    return "tensors named " + ", ".join(repr(name) for name in names[:3]) + (", …" if len(names) > 3 else "")


def precision(tensor: torch.Tensor) -> str:
    """A tensor's type, such as `float16`."""
    return str(tensor.dtype).removeprefix("torch.")


def group_of(name: str) -> str:
    """The group of a tensor: its module, over all layers (`encoder.layer.*.output.dense`)."""
    return re.sub(r"\.(weight|bias|gamma|beta)$", "", re.sub(r"(?<![^.])\d+(?![^.])", "*", name))


@dataclass(frozen=True)
class QFormerFound:
    """One Q-Former in the file; `sizes` are inferred from its tensors, `problem` says why it cannot be loaded."""

    prefix: str
    layout: str
    text_branch: bool
    query_tokens: tuple[int, ...] | None
    sizes: dict[str, int]
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """Description of a weight file; `groups` are (group, tensors, parameters)."""

    file: str
    format: str
    looks_like: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    qformers: tuple[QFormerFound, ...]
    groups: tuple[tuple[str, int, int], ...]


def inspect_weights(path: Path | str) -> Inspection:
    """Describe a file or folder of weights without loading it. Raises InputError if it cannot be opened."""
    file = weights_file(path)
    tensors = read_tensors(file)
    found = tuple(_found(tensors, str(file), root) for root in qformer_roots(_parts(tensors, str(file))))
    groups: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(group_of(name), []).append(tensor.numel())
    return Inspection(
        file=str(file),
        format=sniff(file),
        looks_like=", ".join(one.layout for one in found) or looks_like(tensors),
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        dtypes=dict(Counter(map(precision, tensors.values()))),
        qformers=found,
        groups=tuple((group, len(sizes), sum(sizes)) for group, sizes in groups.items()),
    )


def _found(tensors: Tensors, file: str, root: str) -> QFormerFound:
    source = find_qformer(tensors, file, root)
    shape = source.shape(QUERIES) if QUERIES in source.names else None
    try:
        sizes, problem = read_sizes(source), ""
    except InputError as error:
        sizes, problem = {}, str(error)
    return QFormerFound(root, source.layout, source.has_text, shape, sizes, problem)
