"""Linear layers for a few rows at a time, on the CPU: the weight laid out once as oneDNN's kernels read it.

A decoding step multiplies a handful of rows by each weight, where `torch.nn.functional.linear` reaches a third to two
thirds of the speed that oneDNN has on a weight in its own layout (`torch.compile` does the same in inference). The
sums are those of float32 in another order.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

Product = Callable[[Tensor], Tensor]

#: Fewer rows than these gain nothing from the layout, and a small weight loses by the call.
ROWS, NUMBERS = 4, 2**18

_packs: Any = WeakTensorKeyDictionary()


def product(weight: Tensor, rows: int, keep: bool = False) -> Product:
    """Return x [n,K] → x Wᵀ [n,N] for W [N,K], laid out for about `rows` rows where that pays.

    Args:
        keep: hold the layout for the next call, as for a frozen weight; one that changed is laid out again.
    """
    if not pays(weight, rows):
        return lambda data: functional.linear(data, weight)
    packed = _kept(weight) if keep else _lay_out(weight)
    return lambda data: torch.ops.mkldnn._linear_pointwise(data, packed, None, "none", [], "")


def pays(weight: Tensor, rows: int) -> bool:
    """Whether the layout is quicker, and there is one for this weight."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return fits and rows >= ROWS and weight.numel() >= NUMBERS and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _kept(weight: Tensor) -> Tensor:
    stamp = _stamp(weight)
    if weight not in _packs or _packs[weight][0] != stamp:
        _packs[weight] = (stamp, _lay_out(weight))
    packed: Tensor = _packs[weight][1]
    return packed


def _lay_out(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def _stamp(weight: Tensor) -> tuple[Any, ...]:
    """What a change of the weight changes: its place, its version, and (for a write through `.data`) some numbers."""
    version = None if weight.is_inference() else weight._version
    sample = weight.detach().flatten()[:: max(1, weight.numel() // 256)]
    return weight.data_ptr(), version, sample.double().sum().item()
