"""A second Q-Former, for tests only: the forward pass in plain torch on LAVIS-named tensors, and tiny checkpoints.

Written from the BLIP-2 paper (Li et al. 2023, section 3.1) and LAVIS' tensor names; it calls neither transformers nor
this project, so agreement of outputs shows that every tensor reached its place.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

State = dict[str, Tensor]
LAYERS, WIDTH, CROSS, FFN, HEADS, QUERIES, VOCAB, POSITIONS = 4, 32, 44, 48, 4, 5, 61, 17
ROOT = "Qformer.bert."


def reference_output(
    state: State, features: Tensor, feature_mask: Tensor, ids: Tensor | None = None, text_mask: Tensor | None = None
) -> Tensor:
    """features [B,F,C], feature_mask [B,F], ids [B,P], text_mask [B,P] (1 = real) -> hidden states [B, Q + P, D]."""
    queries = state["query_tokens"].expand(len(features), -1, -1)
    hidden, mask = queries, torch.ones(queries.shape[:2])
    if ids is not None:
        words = state[ROOT + "embeddings.word_embeddings.weight"][ids]
        places = state[ROOT + "embeddings.position_embeddings.weight"][: ids.shape[1]]
        hidden = torch.cat([queries, words + places], dim=1)
        mask = torch.cat([mask, text_mask.float()], dim=1)
    hidden = _norm(state, ROOT + "embeddings.LayerNorm", hidden)
    layers = 1 + max(int(name.split(".")[4]) for name in state if name.startswith(ROOT + "encoder.layer."))
    for number in range(layers):
        hidden = _layer(state, f"{ROOT}encoder.layer.{number}", hidden, mask, features, feature_mask)
    return hidden


def _layer(state: State, at: str, hidden: Tensor, mask: Tensor, features: Tensor, feature_mask: Tensor) -> Tensor:
    count = state["query_tokens"].shape[1]
    hidden = _attend(state, f"{at}.attention", hidden, hidden, mask)
    queries, text = hidden[:, :count], hidden[:, count:]
    if f"{at}.crossattention.self.key.weight" in state:
        queries = _attend(state, f"{at}.crossattention", queries, features, feature_mask)
    queries = _feed_forward(state, at, "_query", queries)
    return torch.cat([queries, _feed_forward(state, at, "", text)], dim=1) if text.shape[1] else queries


def _attend(state: State, at: str, hidden: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    def heads(part: str, x: Tensor) -> Tensor:
        return _linear(state, f"{at}.self.{part}", x).unflatten(-1, (HEADS, -1)).transpose(1, 2)

    query, key, value = heads("query", hidden), heads("key", seen), heads("value", seen)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
    context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return _norm(state, f"{at}.output.LayerNorm", _linear(state, f"{at}.output.dense", context) + hidden)


def _feed_forward(state: State, at: str, kind: str, x: Tensor) -> Tensor:
    inner = gelu(_linear(state, f"{at}.intermediate{kind}.dense", x))
    return _norm(state, f"{at}.output{kind}.LayerNorm", _linear(state, f"{at}.output{kind}.dense", inner) + x)


def _linear(state: State, at: str, x: Tensor) -> Tensor:
    return linear(x, state[f"{at}.weight"], state[f"{at}.bias"])


def _norm(state: State, at: str, x: Tensor) -> Tensor:
    return layer_norm(x, (x.shape[-1],), state[f"{at}.weight"], state[f"{at}.bias"], eps=1e-12)


def lavis_state(
    seed: int = 0, cross: int = CROSS, text: bool = True, vocab: int = VOCAB, layers: int = LAYERS
) -> State:
    """What LAVIS saves of a tiny Q-Former; every tensor random, LayerNorms too, so that no two can be confused."""
    draw = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, QUERIES, WIDTH)}
    shapes |= _norm_shapes(ROOT + "embeddings.LayerNorm")
    if text:
        shapes[ROOT + "embeddings.word_embeddings.weight"] = (vocab, WIDTH)
        shapes[ROOT + "embeddings.position_embeddings.weight"] = (POSITIONS, WIDTH)
    for number in range(layers):
        at = f"{ROOT}encoder.layer.{number}"
        shapes |= _attention_shapes(f"{at}.attention", WIDTH)
        if number % 2 == 0:
            shapes |= _attention_shapes(f"{at}.crossattention", cross)
        for kind in ("_query", "") if text else ("_query",):
            shapes |= _linear_shapes(f"{at}.intermediate{kind}.dense", FFN, WIDTH)
            shapes |= _linear_shapes(f"{at}.output{kind}.dense", WIDTH, FFN) | _norm_shapes(
                f"{at}.output{kind}.LayerNorm"
            )
    state = {name: torch.randn(shape, generator=draw) * 0.2 + 0.1 for name, shape in shapes.items()}
    return state | {ROOT + "embeddings.position_ids": torch.arange(POSITIONS)[None]}


def bert_state(
    seed: int = 9, prefix: str = "bert.", old_names: bool = True, vocab: int = VOCAB, layers: int = LAYERS
) -> State:
    """What bert-base-uncased holds, tiny; `old_names` spells LayerNorm weights gamma and beta."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (vocab, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    shapes |= {"embeddings.position_embeddings.weight": (POSITIONS, WIDTH), **_norm_shapes("embeddings.LayerNorm")}
    for number in range(layers):
        at = f"encoder.layer.{number}"
        shapes |= _attention_shapes(f"{at}.attention", WIDTH) | _linear_shapes(f"{at}.intermediate.dense", FFN, WIDTH)
        shapes |= _linear_shapes(f"{at}.output.dense", WIDTH, FFN) | _norm_shapes(f"{at}.output.LayerNorm")
    shapes |= _linear_shapes("pooler.dense", WIDTH, WIDTH)
    state = {name: torch.randn(shape, generator=draw) * 0.2 - 0.1 for name, shape in shapes.items()}
    if old_names:
        spelled = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        state = {_replace(name, spelled): tensor for name, tensor in state.items()}
    return {prefix + name: tensor for name, tensor in state.items()}


def with_text_of(state: State, bert: State) -> State:
    """`state` with what text alone passes through taken from `bert` (plain names, prefix `bert.`)."""
    own = {name.replace("bert.", ROOT): tensor for name, tensor in bert.items()}
    kinds = (".word_embeddings.", ".position_embeddings.", ".intermediate.")
    text = {n: t for n, t in own.items() if any(k in n for k in kinds) or (".output." in n and ".attention." not in n)}
    return state | text


def in_transformers(state: State, embeddings: bool = True) -> State:
    """The same tensors as transformers' InstructBLIP names them (`embeddings=False`: as its BLIP-2 does)."""
    norm = "qformer.embeddings.layernorm." if embeddings else "qformer.layernorm."
    table = {f"{ROOT}embeddings.LayerNorm.": norm, ".attention.self.": ".attention.attention."}
    table |= {".crossattention.self.": ".crossattention.attention."}
    if not embeddings:
        table[f"{ROOT}embeddings."] = "embeddings."
    table[ROOT] = "qformer."
    return {_replace(name, table): tensor for name, tensor in state.items() if not name.endswith("position_ids")}


def saved(path: Path, tensors: State, wrap: bool = False) -> Path:
    """Write `tensors` in the format that the name of `path` says; `wrap` as LAVIS does."""
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"model": tensors, "epoch": 3} if wrap else tensors, path)
    return path


def ragged_batch(cross: int = CROSS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """features [3,7,cross], their mask, text ids [3,6], their mask; lengths 7, 4, 1 and 6, 2, 3."""
    draw = torch.Generator().manual_seed(3)
    features = torch.randn(3, 7, cross, generator=draw)
    ids = torch.randint(1, VOCAB, (3, 6), generator=draw)
    return features, _lengths([7, 4, 1], 7), ids, _lengths([6, 2, 3], 6)


def _lengths(lengths: list[int], size: int) -> Tensor:
    return (torch.arange(size)[None] < torch.tensor(lengths)[:, None]).long()


def _replace(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def _linear_shapes(at: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{at}.weight": (rows, columns), f"{at}.bias": (rows,)}


def _norm_shapes(at: str) -> dict[str, tuple[int, ...]]:
    return {f"{at}.weight": (WIDTH,), f"{at}.bias": (WIDTH,)}


def _attention_shapes(at: str, seen: int) -> dict[str, tuple[int, ...]]:
    shapes = _linear_shapes(f"{at}.self.query", WIDTH, WIDTH) | _linear_shapes(f"{at}.output.dense", WIDTH, WIDTH)
    shapes |= _linear_shapes(f"{at}.self.key", WIDTH, seen) | _linear_shapes(f"{at}.self.value", WIDTH, seen)
    return shapes | _norm_shapes(f"{at}.output.LayerNorm")
