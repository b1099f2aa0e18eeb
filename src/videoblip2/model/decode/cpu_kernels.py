"""Fast decoding steps on a CPU: weights laid out for few rows, and attention directly on the encoder's states.

1. For a handful of rows `torch.nn.functional.linear` reaches a third to two thirds of the speed of a product with the
   weight in oneDNN's own layout, or transposed. Results differ only in float32 summation order (decision 0005).
2. Cross-attention can use the encoder's states directly, with its key and value weights applied to the query and the
   result:

       for one head:  q · (W_k s) = (W_kᵀ q) · s      and      Σ a_s (W_v s) = W_v (Σ a_s s)

   No keys and values are computed, but each token costs more arithmetic: worthwhile for a few dozen tokens and one
   caption per video (decision 0005). This is DeepSeek-V2's "absorption" (2024, section 2.1).

Letters: B videos · S encoder places · E width · H heads · d width of a head.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

Product = Callable[[Tensor], Tensor]

#: Below these numbers of rows the layout gains nothing; for a small weight the call costs more than it saves.
ROWS, NUMBERS = 4, 2**18
#: A weight with at most this many outputs is faster transposed than in oneDNN's layout; padding avoids a stride of 2^n.
NARROW, APART = 4096, 16
#: With fewer videos or more tokens, reading the weights for each token costs more than keys and values.
VIDEOS, TOKENS = 8, 32

_packs: Any = WeakTensorKeyDictionary()


def product(weight: Tensor, rows: int, keep: bool = False) -> Product:
    """Return x [n,K] → x Wᵀ [n,N] for W [N,K], laid out for about `rows` rows if that is faster.

    Args:
        keep: cache the layout for the next call, as for a frozen weight; a changed weight is laid out again.
    """
    if not layout_pays(weight, rows):
        return lambda data: functional.linear(data, weight)
    return _kept(weight) if keep else _packed(weight)


def layout_pays(weight: Tensor, rows: int) -> bool:
    """Whether this weight has such a layout, and it is faster."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return fits and rows >= ROWS and weight.numel() >= NUMBERS and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _kept(weight: Tensor) -> Product:
    # A change of the weight shows in its address, its version or (for a write through `.data`) sampled values.
    version = None if weight.is_inference() else weight._version
    sample = weight.detach().flatten()[:: max(1, weight.numel() // 256)]
    stamp = weight.data_ptr(), version, sample.double().sum().item()
    if weight not in _packs or _packs[weight][0] != stamp:
        _packs[weight] = (stamp, _transposed(weight) if len(weight) <= NARROW else _packed(weight))
    return cast(Product, _packs[weight][1])


def _packed(weight: Tensor) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return lambda data: torch.ops.mkldnn._linear_pointwise(data, packed, None, "none", [], "")


def _transposed(weight: Tensor) -> Product:
    outputs, inputs = weight.shape
    turned = weight.new_empty(inputs, outputs + APART)[:, :outputs].copy_(weight.detach().t())
    return lambda data: torch.mm(data, turned)


def attention_pays(states: Tensor, rows: int, max_tokens: int) -> bool:
    """Whether `attend` is faster for states [B,S,E] and `rows` captions of at most `max_tokens`."""
    fits = states.device.type == "cpu" and states.dtype == torch.float32
    return fits and rows == len(states) >= VIDEOS and max_tokens <= TOKENS


def attend(query: Tensor, key_value: Tensor, states: Tensor, bias: Tensor) -> Tensor:
    """query [B,H·d], weights [2,H,d,E], states [B,S,E], bias [B,1,S] → attention output, [B,H·d]."""
    key_weight, value_weight = key_value
    heads, width, _ = key_weight.shape
    query = query.view(-1, heads, width).transpose(0, 1)  # [H,B,d]
    projected = torch.bmm(query, key_weight).transpose(0, 1)  # [B,H,E]
    weights = (torch.bmm(projected, states.transpose(1, 2)) + bias).softmax(dim=-1)  # [B,H,S]
    context = torch.bmm(weights, states).transpose(0, 1)  # [H,B,E]
    return torch.bmm(context, value_weight.transpose(1, 2)).transpose(0, 1).reshape(-1, heads * width)
