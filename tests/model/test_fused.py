"""Fewer passes than transformers' norms and peft's LoRA: the same numbers and gradients."""

import pytest
import torch
from peft.tuners import lora
from torch import nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from videoblip2.model.fused import Adapted, Norm


def gradients(output, given):
    return torch.autograd.grad(output, given, torch.linspace(-1, 1, output.numel()).view_as(output))


def some(model, kind):
    return [module for module in model.language_model.modules() if isinstance(module, kind)]


def test_norms_of_a_frozen_t5_are_transformers_to_the_last_bit(tiny_model, monkeypatch):
    norms = some(tiny_model, T5LayerNorm)
    assert {type(norm) for norm in norms} == {Norm}
    x = torch.randn(3, 5, 32, requires_grad=True)
    norm = norms[0]
    norm.weight.data.uniform_(0.5, 2)
    expected = T5LayerNorm.forward(norm, x)
    assert torch.equal(norm(x), expected)
    torch.testing.assert_close(gradients(norm(x), x), gradients(expected, x), rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(T5LayerNorm, "forward", lambda *_: "transformers")
    assert norm(x.bfloat16()) == norm.requires_grad_(True)(x) == "transformers"


def adapted(model):
    """A layer with a bias whose LoRA does something, in double precision, its input and the parameters that train."""
    layer = some(model, lora.Linear)[0]
    layer.base_layer.bias = nn.Parameter(torch.linspace(-1, 1, layer.out_features), requires_grad=False)
    layer.double().eval()
    (down,), (up,) = ([linear.weight for linear in group.values()] for group in (layer.lora_A, layer.lora_B))
    nn.init.normal_(up)
    return layer, (torch.randn(2, 3, 32, dtype=torch.double, requires_grad=True), down, up)


@pytest.mark.parametrize("training", [False, True])
def test_lora_is_pefts(tiny_model, training):
    layer, given = adapted(tiny_model)
    layer.train(training)
    assert type(layer) is Adapted
    found, expected = (
        torch.manual_seed(0) and forward(layer, given[0]) for forward in (Adapted.forward, lora.Linear.forward)
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, given), gradients(expected, given))
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(given[0]), layer.base_layer(given[0]))
