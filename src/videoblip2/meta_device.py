"""Build a network on torch's meta device without torch's Python kernels, which import sympy and the compiler."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class LightMeta(TorchFunctionMode):
    """Around `torch.device("meta")`: what is counted (position ids) is on the CPU, and random weights are not drawn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        tensor: Any = args[0] if args else options.get("tensor")
        there = isinstance(tensor, torch.Tensor) and tensor.is_meta
        if there and func.__name__ in ("normal_", "uniform_"):
            return tensor
        if there and func is torch.empty_like:
            return torch.empty(tensor.shape, **{"dtype": tensor.dtype, "device": "meta", **options})
        if str(options.get("device")) == "meta" and func in (torch.randn, torch.arange):
            return torch.empty(*args, **options) if func is torch.randn else func(*args, **{**options, "device": "cpu"})
        return func(*args, **options)
