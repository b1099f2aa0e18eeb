"""T5's decoder one token at a time, for inference only: LoRA merged, static caches, one encoding for many captions.

Faster than `generate`, with the same numbers: captions of a video share its cross-attention and their first token,
ended ones are dropped, and a CPU uses its own kernels (`cpu_kernels`). `StaticDecoder` turns it into fixed-shape steps.

Letters: B videos · R rows (captions) per video · S encoder places · E width · H heads · d width of a head · T tokens ·
V vocabulary.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import T5ForConditionalGeneration

from videoblip2.model.decode.cpu_kernels import Product, attend, attention_pays, product
from videoblip2.model.language_model import LanguageModel

_Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layer:
    """Weights of one block: of the norms, and products with the other weights."""

    own_norm: Tensor
    own_qkv: Product  # E → 3·H·d
    own_out: Product
    cross_norm: Tensor
    cross_q: Product
    cross_kv: Tensor  # [2,H,d,E]
    cross_out: Product
    feed_norm: Tensor
    feed_in: tuple[Product, ...]  # two if gated
    feed_out: Product


class T5Stepper:
    """A `stepper.Stepper` on the decoder and `lm_head` of a T5, with the current adapters merged.

    Under autocast the weights are cast once, at construction.

    tensors: the weights and encoder states that steps read, always in the same order.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, states: Tensor, mask: Tensor, max_tokens: int, rows: int) -> None:
        network: T5ForConditionalGeneration = model.network
        config, decoder = network.config, network.decoder
        self._rows = len(states) * rows
        self._heads, self._eps = config.num_heads, config.layer_norm_epsilon
        self._scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self._embedding = network.shared.weight
        self.device = self._embedding.device
        self.tensors: list[Tensor] = [self._embedding.detach()]
        cast = torch.is_autocast_enabled(self.device.type)
        self.dtype = torch.get_autocast_dtype(self.device.type) if cast else self._embedding.dtype
        self._activation = decoder.block[0].layer[2].DenseReluDense.act
        self._final_norm = self._cast(decoder.final_layer_norm.weight)
        self._lm_head = self._product(network.lm_head)
        self._layers = [self._layer(block.layer) for block in decoder.block]
        bias = decoder.block[0].layer[0].SelfAttention.compute_bias(max_tokens, max_tokens, device=self.device)
        unwritten = torch.ones(max_tokens, max_tokens, dtype=torch.bool, device=self.device).triu(diagonal=1)
        self._bias = bias.to(self.dtype).masked_fill(unwritten, torch.finfo(self.dtype).min)  # [1,H,T,T]
        self.tensors.append(self._bias)
        self._length = 0
        self._start(states.to(self.dtype), mask, max_tokens)

    def _start(self, states: Tensor, mask: Tensor, max_tokens: int) -> None:
        """Caches for one row per video, one entry per layer: `_own` [B·R,H,T,d], `_cross` [B,H,S,d] or the states."""
        shape = (len(states), self._heads, max_tokens, self._layers[0].cross_kv.shape[2])
        self._own = [(states.new_zeros(shape), states.new_zeros(shape)) for _ in self._layers]
        bias = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)
        self._cross_bias = bias.masked_fill(mask == 0, torch.finfo(self.dtype).min)[:, None, None]  # [B,1,1,S]
        if attention_pays(states, self._rows, max_tokens):
            self._cross: list[_Pair | Tensor] = [states] * len(self._layers)
            return
        self._cross = []
        self.tensors.append(self._cross_bias)
        for layer in self._layers:
            key, value = functional.linear(states, layer.cross_kv.flatten(0, 2)).chunk(2, dim=-1)  # [B,S,H·d] each
            self._cross.append((self._split(key).contiguous(), self._split(value).contiguous()))
            self.tensors += self._cross[-1]

    def step(self, tokens: Tensor) -> Tensor:
        at = self._length
        self._length += 1
        return self.advance(tokens, at)

    def repeat(self, rows: int) -> None:
        self._own = [(k.repeat_interleave(rows, 0), v.repeat_interleave(rows, 0)) for k, v in self._own]

    def select(self, videos: Tensor, rows: Tensor) -> None:
        if isinstance(states := self._cross[0], Tensor):
            self._cross = [states[videos]] * len(self._layers)
        else:
            self._cross = [(k[videos], v[videos]) for k, v in self._cross]
        self._cross_bias = self._cross_bias[videos]
        self.reorder(rows)

    def reorder(self, rows: Tensor) -> None:
        self._own = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self._own]

    def reorder_in_place(self, rows: Tensor) -> None:
        """`reorder` in place, for the caches of a captured step."""
        for part in chain.from_iterable(self._own):
            part.copy_(part.index_select(0, rows))

    def advance(self, tokens: Tensor, at: int | Tensor) -> Tensor:
        """Tokens [B·R] at place `at`, an int or [1] → [B·R,V] float32."""
        with torch.autocast(self.device.type, enabled=False):
            hidden = functional.embedding(tokens, self._embedding).to(self.dtype)  # [B·R,E]
            for layer, own_cache, cross_cache in zip(self._layers, self._own, self._cross, strict=True):
                hidden = hidden + self._attend_own(hidden, layer, own_cache, at)
                hidden = hidden + self._attend_cross(hidden, layer, cross_cache, self._cross_bias)
                hidden = hidden + self._feed_forward(hidden, layer)
            return self._lm_head(self._norm(hidden, self._final_norm) * self._scale).float()

    def _attend_own(self, hidden: Tensor, layer: Layer, own: _Pair, at: int | Tensor) -> Tensor:
        qkv = layer.own_qkv(self._norm(hidden, layer.own_norm))
        query, key, value = qkv.view(len(hidden), 3, self._heads, -1).unbind(dim=1)  # [B·R,H,d] each
        if isinstance(at, int):  # the places written so far
            own[0][:, :, at], own[1][:, :, at] = key, value
            keys, values, bias = (*(part[:, :, : at + 1] for part in own), self._bias[:, :, at : at + 1, : at + 1])
        else:  # [1]: all places, of fixed shape
            own[0].index_copy_(2, at, key.unsqueeze(2))
            own[1].index_copy_(2, at, value.unsqueeze(2))
            keys, values, bias = *own, self._bias.index_select(2, at)
        context = functional.scaled_dot_product_attention(query.unsqueeze(2), keys, values, bias, scale=1.0)
        return layer.own_out(context.reshape(len(hidden), -1))

    def _attend_cross(self, hidden: Tensor, layer: Layer, cross: _Pair | Tensor, bias: Tensor) -> Tensor:
        videos = len(bias)
        query = layer.cross_q(self._norm(hidden, layer.cross_norm))
        if isinstance(cross, Tensor):
            return layer.cross_out(attend(query, layer.cross_kv, cross, bias[:, 0]))
        query = self._split(query.view(videos, len(hidden) // videos, -1))  # [B,H,R,d]
        context = functional.scaled_dot_product_attention(query, *cross, bias, scale=1.0)
        return layer.cross_out(context.transpose(1, 2).reshape(len(hidden), -1))

    def _feed_forward(self, hidden: Tensor, layer: Layer) -> Tensor:
        normed = self._norm(hidden, layer.feed_norm)
        inner = self._activation(layer.feed_in[0](normed))
        if len(layer.feed_in) == 2:
            inner = inner * layer.feed_in[1](normed)
        return layer.feed_out(inner)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, (hidden.shape[-1],), weight, self._eps)

    def _split(self, merged: Tensor) -> Tensor:
        """[B,L,H·d] → [B,H,L,d]."""
        return merged.view(*merged.shape[:2], self._heads, -1).transpose(1, 2)

    def _layer(self, parts: Any) -> Layer:
        own, cross, feed = parts[0].SelfAttention, parts[1].EncDecAttention, parts[2].DenseReluDense
        entries = (feed.wi_0, feed.wi_1) if hasattr(feed, "wi_0") else (feed.wi,)
        cross_kv = torch.stack([folded(cross.k), folded(cross.v)])  # [2,H·d,E]
        return Layer(
            own_norm=self._cast(parts[0].layer_norm.weight),
            own_qkv=product(self._cast(torch.cat([folded(own.q), folded(own.k), folded(own.v)])), self._rows),
            own_out=self._product(own.o),
            cross_norm=self._cast(parts[1].layer_norm.weight),
            cross_q=self._product(cross.q),
            cross_kv=self._cast(cross_kv).view(2, self._heads, -1, cross_kv.shape[-1]),
            cross_out=self._product(cross.o),
            feed_norm=self._cast(parts[2].layer_norm.weight),
            feed_in=tuple(self._product(entry) for entry in entries),
            feed_out=self._product(feed.wo),
        )

    def _product(self, module: Any) -> Product:
        weight, own = folded(module), getattr(module, "weight", None)
        if (cast := self._cast(weight)).dtype != weight.dtype:
            weight = cast
        # Only a frozen weight in its own dtype is the same tensor at the next call.
        return product(weight, self._rows, keep=weight is own and not own.requires_grad)

    def _cast(self, weight: Tensor) -> Tensor:
        self.tensors.append(weight.detach().to(self.dtype))
        return self.tensors[-1]


def folded(module: Any) -> Tensor:
    """A linear layer's weight with its LoRA added: W + (alpha / r) · B A."""
    adapters = getattr(module, "active_adapters", ())
    weight = cast(Tensor, module.base_layer.weight if adapters else module.weight)
    for name in adapters:
        down, up = module.lora_A[name].weight, module.lora_B[name].weight
        weight = torch.addmm(weight.to(up.dtype), up, down, alpha=module.scaling[name])
    return weight
