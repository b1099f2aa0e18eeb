"""T5's decoder one token at a time, for decoding only: LoRA folded in, static caches, one encoding for many captions.

What makes it quicker than `generate`, with the same numbers:
1. Cross-attention keys and values are computed once per video and shared by all captions of that video.
2. The first token of all captions of a video is one computation: they begin alike.
3. Self-attention writes into caches of fixed size; LoRA costs nothing, as it is folded into q and v beforehand.
4. On a CPU, weights are laid out for few rows at a time (`cpu_kernels`).
5. Rows whose caption has ended can be dropped (`T5Stepper.select`).
6. One caption per video on a CPU needs no cross-attention keys and values at all (`cpu_kernels.attend`).
7. Where it is compiled, a step has the same shapes at every token: one graph, few launches on a GPU.

Letters: B videos · R rows (captions) a video · S encoder places · E width · H heads · d width of a head · T tokens ·
V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import T5ForConditionalGeneration

from videoblip2.model.decode.cpu_kernels import Product, attend, attention_pays, product
from videoblip2.model.language_model import LanguageModel

_Pair = tuple[Tensor, Tensor]
_Pairs = list[_Pair]


@dataclass(frozen=True)
class Layer:
    """Weights of one block: those of the norms, and the products with the others."""

    own_norm: Tensor
    own_qkv: Product  # E → 3·H·d
    own_out: Product
    cross_norm: Tensor
    cross_q: Product
    cross_kv: Tensor  # [2,H,d,E]
    cross_out: Product
    feed_norm: Tensor
    feed_in: tuple[Product, ...]  # two where gated
    feed_out: Product


class T5Decoder:
    """The decoder and `lm_head` of a T5, its adapters folded in, as they are at this moment.

    Under autocast the weights are cast once, here.

    Args:
        rows: about how many captions are decoded at a time.
        compiled: run each step as one graph of `torch.compile`, built at the first call for a size of batch.
    """

    @torch.no_grad()
    def __init__(self, language_model: T5ForConditionalGeneration, rows: int = 1, compiled: bool = False) -> None:
        config: Any = language_model.config
        self.compiled = compiled
        self.rows = 0 if compiled else rows  # a compiled step brings its own layout of the weights
        decoder: Any = language_model.decoder
        self.heads, self.eps = config.num_heads, config.layer_norm_epsilon
        self.scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self.device = language_model.shared.weight.device
        kind, stored = self.device.type, language_model.shared.weight.dtype
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else stored
        self._activation = decoder.block[0].layer[2].DenseReluDense.act
        self._position = decoder.block[0].layer[0].SelfAttention
        self._embedding = language_model.shared.weight
        self._final_norm = self._cast(decoder.final_layer_norm.weight)
        self._lm_head = self._product(language_model.lm_head)
        self._layers = [self._layer(block.layer) for block in decoder.block]

    def start(self, states: Tensor, mask: Tensor, max_tokens: int) -> "T5Stepper":
        """Caches for one row per video: states [B,S,E], mask [B,S]."""
        states = states.to(self.dtype)
        direct = not self.compiled and attention_pays(states, self.rows, max_tokens)
        cross: _Pairs = []
        for layer in () if direct else self._layers:
            key, value = functional.linear(states, layer.cross_kv.flatten(0, 2)).chunk(2, dim=-1)  # [B,S,H·d] each
            cross.append((self._split(key).contiguous(), self._split(value).contiguous()))
        shape = (len(states), self.heads, max_tokens, self._layers[0].cross_kv.shape[2])
        own = [(states.new_zeros(shape), states.new_zeros(shape)) for _ in self._layers]
        cross_bias = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)
        cross_bias = cross_bias.masked_fill(mask == 0, torch.finfo(self.dtype).min)
        bias = self._position.compute_bias(max_tokens, max_tokens, device=self.device)  # [1,H,T,T]
        unwritten = torch.ones(max_tokens, max_tokens, dtype=torch.bool, device=self.device).triu(diagonal=1)
        self._bias = bias.to(self.dtype).masked_fill(unwritten, torch.finfo(self.dtype).min)
        self.places = torch.arange(max_tokens, device=self.device)
        return T5Stepper(self, cross, own, cross_bias[:, None, None], states=states if direct else None)

    def logits(
        self, tokens: Tensor, at: int | Tensor, own: _Pairs, cross: Sequence[_Pair | Tensor], cross_bias: Tensor
    ) -> Tensor:
        """Tokens [B·R] at place `at` → [B·R,V] float32."""
        hidden = functional.embedding(tokens, self._embedding).to(self.dtype)  # [B·R,E]
        for layer, own_cache, cross_cache in zip(self._layers, own, cross, strict=True):
            hidden = hidden + self._attend_own(hidden, layer, own_cache, at)
            hidden = hidden + self._attend_cross(hidden, layer, cross_cache, cross_bias)
            hidden = hidden + self._feed_forward(hidden, layer)
        return self._lm_head(self._norm(hidden, self._final_norm) * self.scale).float()

    def _attend_own(self, hidden: Tensor, layer: Layer, own: _Pair, at: int | Tensor) -> Tensor:
        qkv = layer.own_qkv(self._norm(hidden, layer.own_norm))
        query, key, value = qkv.view(len(hidden), 3, self.heads, -1).unbind(dim=1)  # [B·R,H,d] each
        if isinstance(at, int):  # what is written so far
            own[0][:, :, at], own[1][:, :, at] = key, value
            keys, values, bias = (*(part[:, :, : at + 1] for part in own), self._bias[:, :, at : at + 1, : at + 1])
        else:  # [1]: all places, of fixed shape
            own[0].index_copy_(2, at, key.unsqueeze(2))
            own[1].index_copy_(2, at, value.unsqueeze(2))
            keys, values, bias = *own, self._bias.index_select(2, at)
        seen = functional.scaled_dot_product_attention(query.unsqueeze(2), keys, values, bias, scale=1.0)
        return layer.own_out(seen.reshape(len(hidden), -1))

    def _attend_cross(self, hidden: Tensor, layer: Layer, cross: _Pair | Tensor, bias: Tensor) -> Tensor:
        videos = len(bias)
        query = layer.cross_q(self._norm(hidden, layer.cross_norm))
        if isinstance(cross, Tensor):
            return layer.cross_out(attend(query, layer.cross_kv, cross, bias[:, 0]))
        query = self._split(query.view(videos, len(hidden) // videos, -1))  # [B,H,R,d]
        seen = functional.scaled_dot_product_attention(query, *cross, bias, scale=1.0)
        return layer.cross_out(seen.transpose(1, 2).reshape(len(hidden), -1))

    def _feed_forward(self, hidden: Tensor, layer: Layer) -> Tensor:
        normed = self._norm(hidden, layer.feed_norm)
        inner = self._activation(layer.feed_in[0](normed))
        if len(layer.feed_in) == 2:
            inner = inner * layer.feed_in[1](normed)
        return layer.feed_out(inner)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, (hidden.shape[-1],), weight, self.eps)

    def _split(self, merged: Tensor) -> Tensor:
        """[B,L,H·d] → [B,H,L,d]."""
        return merged.view(*merged.shape[:2], self.heads, -1).transpose(1, 2)

    def _layer(self, parts: Any) -> Layer:
        own, cross, feed = parts[0].SelfAttention, parts[1].EncDecAttention, parts[2].DenseReluDense
        entries = (feed.wi_0, feed.wi_1) if hasattr(feed, "wi_0") else (feed.wi,)
        cross_kv = torch.stack([folded(cross.k), folded(cross.v)])  # [2,H·d,E]
        return Layer(
            own_norm=self._cast(parts[0].layer_norm.weight),
            own_qkv=product(self._cast(torch.cat([folded(own.q), folded(own.k), folded(own.v)])), self.rows),
            own_out=self._product(own.o),
            cross_norm=self._cast(parts[1].layer_norm.weight),
            cross_q=self._product(cross.q),
            cross_kv=self._cast(cross_kv).view(2, self.heads, -1, cross_kv.shape[-1]),
            cross_out=self._product(cross.o),
            feed_norm=self._cast(parts[2].layer_norm.weight),
            feed_in=tuple(self._product(entry) for entry in entries),
            feed_out=self._product(feed.wo),
        )

    def _product(self, module: Any) -> Product:
        weight, own = folded(module), getattr(module, "weight", None)
        cast = self._cast(weight)
        # Only a frozen weight in its own dtype is the same tensor at the next call.
        return product(
            cast if cast.dtype != weight.dtype else weight, self.rows, weight is own and not own.requires_grad
        )

    def _cast(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.dtype)


@dataclass
class T5Stepper:
    """A `stepper.Stepper` with keys and values: one entry per layer.

    cross: [B,H,S,d]. own: [B·R,H,T,d], filled up to `length`.
    states: [B,S,E], in place of `cross` where attention goes to them directly (`cpu_kernels.attend`).
    """

    decoder: T5Decoder
    cross: _Pairs
    own: _Pairs
    cross_bias: Tensor  # [B,1,1,S]: 0 where an encoder place is real, else the most negative number
    length: int = 0
    states: Tensor | None = None

    @property
    def fixed_shape(self) -> bool:
        return self.decoder.compiled

    def step(self, tokens: Tensor) -> Tensor:
        decoder, at = self.decoder, self.length
        self.length += 1
        with torch.autocast(decoder.device.type, enabled=False):
            if decoder.compiled:
                place = decoder.places[at : at + 1]
                return _graph()(decoder, tokens, place, self.own, self.cross, self.cross_bias)
            seen = self.cross if self.states is None else [self.states] * len(self.own)
            return decoder.logits(tokens, at, self.own, seen, self.cross_bias)

    def repeat(self, rows: int) -> None:
        self.own = [(k.repeat_interleave(rows, 0), v.repeat_interleave(rows, 0)) for k, v in self.own]

    def select(self, videos: Tensor, rows: Tensor) -> None:
        self.cross = [(k[videos], v[videos]) for k, v in self.cross]
        self.cross_bias = self.cross_bias[videos]
        self.states = None if self.states is None else self.states[videos]
        self.reorder(rows)

    def reorder(self, rows: Tensor) -> None:
        self.own = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.own]


@cache
def _graph() -> Callable[..., Tensor]:
    """The step as a compiled graph; shapes that change from call to call become symbols of it."""
    compiled: Callable[..., Tensor] = torch.compile(T5Decoder.logits, fullgraph=True)
    return compiled


def start_t5(language_model: LanguageModel, states: Tensor, mask: Tensor, max_tokens: int, rows: int) -> T5Stepper:
    """See `stepper.start`."""
    decoder = T5Decoder(language_model.network, len(states) * rows, language_model.compiled)
    return decoder.start(states, mask, max_tokens)


def folded(module: Any) -> Tensor:
    """A linear layer's weight with its LoRA added: W + (alpha / r) · B A."""
    if not hasattr(module, "get_delta_weight"):
        weight: Tensor = module.weight
        return weight
    total: Tensor = module.base_layer.weight
    for adapter in module.active_adapters:
        total = total + module.get_delta_weight(adapter)
    return total
