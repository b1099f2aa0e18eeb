"""T5's decoder one token at a time, for decoding only: LoRA folded in, static caches, one encoding for many captions.

What makes it quicker than `generate`, with the same numbers:
1. Cross-attention keys and values are computed once a video and shared by all captions of that video.
2. The first token of all captions of a video is one computation: they begin alike.
3. Self-attention writes into caches of fixed size; LoRA costs nothing, as it is folded into q and v beforehand.
4. On a CPU, weights are laid out for few rows at a time (`packed`).
5. Rows whose caption has ended can be dropped (`Caches.select`).

Letters: B videos · R rows (captions) a video · S encoder places · E width · H heads · d width of a head · T tokens ·
V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import T5ForConditionalGeneration

from videoblip2.model.packed import Product, product


@dataclass
class Caches:
    """Keys and values, one entry a layer. cross: [B,H,S,d]. own: [B·R,H,T,d], filled up to `length`."""

    cross: list[tuple[Tensor, Tensor]]
    own: list[tuple[Tensor, Tensor]]
    cross_bias: Tensor  # [B,1,1,S]: 0 where an encoder place is real, else the most negative number
    length: int = 0

    @property
    def videos(self) -> int:
        return len(self.cross_bias)

    def repeat(self, rows: int) -> None:
        """One row a video becomes `rows` equal ones."""
        self.own = [(k.repeat_interleave(rows, 0), v.repeat_interleave(rows, 0)) for k, v in self.own]

    def select(self, videos: Tensor, rows: Tensor) -> None:
        """Keep some videos [B'] and of their rows those numbered `rows` [B'·R'], video by video."""
        self.cross = [(k[videos], v[videos]) for k, v in self.cross]
        self.cross_bias = self.cross_bias[videos]
        self.reorder(rows)

    def reorder(self, rows: Tensor) -> None:
        """New row i is old row `rows[i]`."""
        self.own = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.own]


@dataclass(frozen=True)
class Layer:
    """Weights of one block: those of the norms, and the products with the others."""

    own_norm: Tensor
    own_qkv: Product  # E → 3·H·d
    own_out: Product
    cross_norm: Tensor
    cross_q: Product
    cross_kv: Tensor  # [2·H·d, E]
    cross_out: Product
    feed_norm: Tensor
    feed_in: tuple[Product, ...]  # two where gated
    feed_out: Product


class T5Decoder:
    """The decoder and `lm_head` of a T5, its adapters folded in, as they are at this moment.

    Under autocast the weights are cast once, here. `rows` is about how many captions are decoded at a time.
    """

    @torch.no_grad()
    def __init__(self, language_model: T5ForConditionalGeneration, rows: int = 1) -> None:
        config: Any = language_model.config
        self.rows = rows
        decoder: Any = language_model.decoder
        self.heads, self.eps = config.num_heads, config.layer_norm_epsilon
        self.scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self.device = language_model.shared.weight.device
        self.dtype = _compute_dtype(language_model.shared.weight)
        self._activation = decoder.block[0].layer[2].DenseReluDense.act
        self._position = decoder.block[0].layer[0].SelfAttention
        self._embedding = language_model.shared.weight
        self._final_norm = self._cast(decoder.final_layer_norm.weight)
        self._lm_head = self._product(language_model.lm_head)
        self._layers = [self._layer(block.layer) for block in decoder.block]

    def start(self, states: Tensor, mask: Tensor, max_tokens: int) -> Caches:
        """Caches for one row a video: states [B,S,E], mask [B,S]."""
        states = states.to(self.dtype)
        cross = []
        for layer in self._layers:
            key, value = functional.linear(states, layer.cross_kv).chunk(2, dim=-1)  # [B,S,H·d] each
            cross.append((self._split(key).contiguous(), self._split(value).contiguous()))
        width = cross[0][0].shape[-1]
        shape = (len(states), self.heads, max_tokens, width)
        own = [(states.new_zeros(shape), states.new_zeros(shape)) for _ in self._layers]
        bias = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)
        bias = bias.masked_fill(mask == 0, torch.finfo(self.dtype).min)
        self._bias = self._position.compute_bias(max_tokens, max_tokens, device=self.device).to(self.dtype)
        return Caches(cross, own, bias[:, None, None])

    def step(self, tokens: Tensor, caches: Caches) -> Tensor:
        """Next token's logits: tokens [B·R] → [B·R,V] float32; the caches grow by one place."""
        with torch.autocast(self.device.type, enabled=False):
            hidden = functional.embedding(tokens, self._embedding).to(self.dtype)  # [B·R,E]
            for layer, own, cross in zip(self._layers, caches.own, caches.cross, strict=True):
                hidden = hidden + self._attend_own(hidden, layer, own, caches.length)
                hidden = hidden + self._attend_cross(hidden, layer, cross, caches.cross_bias)
                hidden = hidden + self._feed_forward(hidden, layer)
            caches.length += 1
            return self._lm_head(self._norm(hidden, self._final_norm) * self.scale).float()

    def _attend_own(self, hidden: Tensor, layer: Layer, own: tuple[Tensor, Tensor], at: int) -> Tensor:
        qkv = layer.own_qkv(self._norm(hidden, layer.own_norm))
        query, key, value = qkv.view(len(hidden), 3, self.heads, -1).unbind(dim=1)  # [B·R,H,d] each
        own[0][:, :, at] = key
        own[1][:, :, at] = value
        keys, values = own[0][:, :, : at + 1], own[1][:, :, : at + 1]
        bias = self._bias[:, :, at : at + 1, : at + 1]
        seen = functional.scaled_dot_product_attention(query.unsqueeze(2), keys, values, bias, scale=1.0)
        return layer.own_out(seen.reshape(len(hidden), -1))

    def _attend_cross(self, hidden: Tensor, layer: Layer, cross: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        videos = len(bias)
        query = layer.cross_q(self._norm(hidden, layer.cross_norm))
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
        return Layer(
            own_norm=self._cast(parts[0].layer_norm.weight),
            own_qkv=product(self._cast(torch.cat([folded(own.q), folded(own.k), folded(own.v)])), self.rows),
            own_out=self._product(own.o),
            cross_norm=self._cast(parts[1].layer_norm.weight),
            cross_q=self._product(cross.q),
            cross_kv=self._cast(torch.cat([folded(cross.k), folded(cross.v)])),
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


def folded(module: Any) -> Tensor:
    """A linear layer's weight with its LoRA added: W + (alpha / r) · B A."""
    if not hasattr(module, "get_delta_weight"):
        weight: Tensor = module.weight
        return weight
    total: Tensor = module.base_layer.weight
    if module.merged:
        return total
    for adapter in module.active_adapters:
        total = total + module.get_delta_weight(adapter)
    return total


def _compute_dtype(weight: Tensor) -> torch.dtype:
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
