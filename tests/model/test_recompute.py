"""Gradient checkpointing: layers that run again in the backward pass give the same gradients, and keep less for it."""

import pytest
import torch
from test_sharing import CAPTIONS, network
from torch.nn import functional

from videoblip2.training.meters import Allocations


@pytest.fixture(params=["t5", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bart", "full"))])
def model(request, tiny_config, tokenizers):
    return network(request.param, tiny_config, len(tokenizers.text), dropout=0.1)


@pytest.fixture
def batch(make_batch):
    """Two videos, three captions of each, which share cross-attention's keys and values."""
    return make_batch(frames=(3, 5), windows=(2, 0), captions=CAPTIONS)


def kept(model, batch, train, checkpointing):
    """Gradients of the captions' cross-entropy, and the bytes that the forward pass keeps for them."""
    model.checkpointing = checkpointing
    model.train(train).zero_grad()
    torch.manual_seed(1)
    with Allocations() as allocations:
        loss = functional.cross_entropy(model(batch.labels, **batch.inputs).flatten(0, 1), batch.labels.flatten())
        bytes_kept = allocations.now
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.trainable().items() if weight.grad is not None}
    return gradients, bytes_kept


@pytest.mark.parametrize("train", [True, False], ids=["dropout", "eval"])
def test_gradients_are_equal_and_less_is_kept(model, batch, train):
    """In eval mode as in self-critical training's second pass; with dropout, the same places are dropped again."""
    expected, usual = kept(model, batch, train, False)
    found, less = kept(model, batch, train, True)
    assert found.keys() == expected.keys() and any(gradient.abs().max() > 1e-3 for gradient in found.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)
    assert less < 0.4 * usual, (less, usual)
    layers = [layer for layer in model.modules() if "forward" in vars(layer)]
    assert not layers, "the layers are as they were"


def test_nothing_is_kept_without_gradient(model, batch):
    model.checkpointing = True
    with torch.no_grad():
        assert not model.eval()(batch.labels, **batch.inputs).requires_grad
