"""How one Q-Former is named by LAVIS, by transformers and by BERT, and the one name we give each tensor.

The name given is that of `transformers.InstructBlipQFormerModel`. Strings in, strings out: no tensor is touched here.

    LAVIS   Qformer.bert.encoder.layer.0.attention.self.query.weight    Qformer.bert.embeddings.LayerNorm.weight
    BLIP-2  qformer.encoder.layer.0.attention.attention.query.weight    qformer.layernorm.weight
    ours    encoder.layer.0.attention.attention.query.weight            embeddings.layernorm.weight
"""

import re
from collections.abc import Iterable

_ROOT = re.compile(r"^((?:.*\.)?)encoder\.layer\.0\.intermediate_query\.dense\.weight$")
_BERT_ROOT = re.compile(r"^((?:.*\.)?)embeddings\.word_embeddings\.weight$")
_TEXT = re.compile(r"^embeddings\.(word|position)_embeddings\.weight$|^encoder\.layer\.\d+\.(intermediate|output)\.")
_RULES = (
    (re.compile(r"attention\.self\."), "attention.attention."),
    (re.compile(r"^(embeddings\.LayerNorm|layernorm)\."), "embeddings.layernorm."),
    (re.compile(r"\.gamma$"), ".weight"),
    (re.compile(r"\.beta$"), ".bias"),
)
_UNUSED = (
    (r"position_ids$", "a buffer that the model builds itself"),
    (r"(^|\.)cls\.", "the language-modelling head of stage 1"),
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


def qformer_roots(names: Iterable[str]) -> list[str]:
    """The prefix of every Q-Former among `names`: `Qformer.bert.`, `model.qformer.`, or `""` for a bare one."""
    return sorted(match[1] for match in map(_ROOT.match, names) if match)


def bert_root(names: Iterable[str]) -> str | None:
    """The prefix of a BERT among `names` (`bert.` or `""`); None where there is none."""
    roots = (match[1] for match in map(_BERT_ROOT.match, names) if match)
    return next((root for root in roots if root == "" or root.split(".")[-2] == "bert"), None)


def canonical_name(name: str) -> str:
    """The `InstructBlipQFormerModel` name of a tensor named `name` below the root of a Q-Former or a BERT."""
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def parent_of(root: str) -> str:
    """What stands before the Q-Former itself: `model.qformer.` -> `model.`, `Qformer.bert.` -> `""`."""
    head = root.removesuffix("bert.").rstrip(".")
    return head[: head.rfind(".") + 1]


def query_name(root: str) -> str:
    """Where the query tokens of the Q-Former under `root` lie: `video_Qformer.bert.` -> `video_query_tokens`."""
    own = root.removesuffix("bert.").rstrip(".").removeprefix(parent_of(root))
    return parent_of(root) + (re.sub("[Qq]former", "query_tokens", own) or "query_tokens")


def is_text_name(name: str) -> bool:
    """Whether only text passes through this tensor: the embeddings of words and positions, the text feed-forward."""
    return _TEXT.match(name) is not None


def layout_of(root: str, names: set[str], has_text: bool) -> str:
    """Which program wrote the Q-Former under `root`, in words."""
    if f"{root}encoder.layer.0.attention.self.query.weight" in names:
        head = parent_of(root) + root.removeprefix(parent_of(root)).split(".")[0] + ".cls."
        if any(name.startswith(head) for name in names):
            return "LAVIS BLIP-2 stage 1"
        return "LAVIS InstructBLIP" if has_text else "LAVIS BLIP-2 stage 2"
    if f"{root}layernorm.weight" in names:
        return "transformers BLIP-2"
    return "transformers InstructBLIP" if root else "bare InstructBlipQFormerModel"


def why_unused(name: str) -> str:
    """One phrase on why the Q-Former leaves a tensor of this name aside."""
    return next((why for pattern, why in _UNUSED if re.search(pattern, name)), "no such tensor in the Q-Former")


def looks_like(names: Iterable[str]) -> str:
    """What a file with these tensor names seems to be, in words."""
    names = list(names)
    for pattern, words in _LOOKS:
        if any(re.search(pattern, name) for name in names):
            return words
    return "tensors named " + ", ".join(repr(name) for name in names[:3]) + (", …" if len(names) > 3 else "")
