"""Norms, activations and LoRA of a frozen language model: the same numbers with fewer passes over memory."""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5LayerNorm


def fuse(model: nn.Module) -> None:
    """Replace transformers' GELU by tanh with torch's own, one pass instead of eight, and T5's norms with `Norm`."""
    for parent in [*model.modules()]:
        for name, module in parent.named_children():
            if isinstance(module, NewGELUActivation):
                parent.add_module(name, nn.GELU(approximate="tanh"))
            elif isinstance(module, T5LayerNorm):
                module.__class__ = Norm  # with the same weight


class Norm(T5LayerNorm):  # type: ignore[misc, no-any-unimported]
    """T5's norm, in fewer passes if frozen."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.weight.requires_grad or hidden_states.dtype == torch.bfloat16:
            return cast(Tensor, super().forward(hidden_states))
        return cast(Tensor, _Norm.apply(hidden_states, self.weight, self.variance_epsilon))


class Adapted(LoraLinear):
    """A frozen linear layer with LoRA, scaled and added as part of its second product."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        (name,) = self.active_adapters
        out: Tensor = self.base_layer(x)
        inner = self.lora_A[name](self.lora_dropout[name](x).flatten(0, -2))
        return out.flatten(0, -2).addmm(inner, self.lora_B[name].weight.t(), alpha=self.scaling[name]).view_as(out)


class _Norm(torch.autograd.Function):
    """x [...,E], w [E] → x / sqrt(mean x² + eps) · w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = x.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        grad = grad * weight
        along = (grad * x).sum(dim=-1, keepdim=True) * scale**3 / -x.shape[-1]
        return grad.mul_(scale).addcmul_(x, along), None, None
