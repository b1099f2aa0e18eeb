"""A CUDA device gives what the CPU gives: equal in fp32, within tolerance in bf16. Without one the CPU stands in.

`python benchmarks/gpu.py` runs these on a machine with torch, transformers, peft and pytest only.
"""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from videoblip2.features.towers import FrameEncoder
from videoblip2.model import decode
from videoblip2.provenance import EncoderIdentity

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CAPTIONS = ["a red circle moves left", "the star is quiet", "a dog barks at a man"] * 2


def moved(model, device=DEVICE):
    return copy.deepcopy(model).to(device)


def bf16():
    return torch.autocast(DEVICE.type, torch.bfloat16)


def steps(model, batch, device=DEVICE):
    """Losses of three steps of cross-entropy with the fused optimizer, and the first gradients."""
    model, batch = moved(model, device), batch.to(device)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-4, fused=True)
    losses, gradients = [], {}
    for _ in range(3):
        logits = model(batch.labels, **batch.inputs).float()
        loss = functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        loss.backward()
        losses.append(loss.item())
        gradients = gradients or {name: weight.grad.cpu() for name, weight in model.trainable().items()}
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients


def test_steps_of_cross_entropy(tiny_model, make_batch):
    batch = make_batch(captions=CAPTIONS)
    expected, expected_gradients = steps(tiny_model, batch, "cpu")
    losses, gradients = steps(tiny_model, batch)
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    with bf16():
        rounded, _ = steps(tiny_model, batch)
    # Adam's first moves follow the sign of a gradient, however small: later losses differ more.
    assert rounded[0] == pytest.approx(expected[0], rel=0.01) and rounded[0] != losses[0]


@pytest.fixture
def encoded(tiny_model, make_batch):
    with torch.no_grad():
        return tiny_model.encode(**make_batch(frames=(3, 5, 2, 4), windows=(2, 0, 3, 1)).inputs)


def drawn():
    """A generator a caption, on the CPU: the same numbers on any device."""
    return decode.Sampling(3, generator=[torch.Generator().manual_seed(seed) for seed in range(16)])


DECODE = {
    "greedy": lambda model, *encoded: decode.greedy(model.text, *encoded, 12),
    "samples": lambda model, *encoded: decode.greedy_and_sample(model.text, *encoded, 12, drawn())[1],
    "beams": lambda model, *encoded: decode.beam(model.text, *encoded, 12, 3)[0],
}


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compile"])
@pytest.mark.parametrize("form", DECODE)
def test_captions(tiny_model, encoded, form, compiled):
    """Twice, with other weights the second time: a captured step is replayed."""
    model, states = moved(tiny_model), [part.to(DEVICE) for part in encoded]
    model.compiled_decoding = compiled
    for change in (0.0, 0.3):
        with torch.no_grad():
            for one, other in zip(tiny_model.trainable().values(), model.trainable().values(), strict=True):
                other.copy_(one.add_(torch.randn(one.shape), alpha=change))
        expected, found = DECODE[form](tiny_model, *encoded), DECODE[form](model, *states)
        assert torch.equal(found.ids.cpu(), expected.ids)
        torch.testing.assert_close(found.log_probs.cpu(), expected.log_probs, rtol=1e-4, atol=1e-4)


def test_both_passes_are_one_policy(tiny_model, encoded):
    """Log-probabilities of sampled tokens, and of the same tokens by teacher forcing: the tolerances of SCST."""
    model, encoded = moved(tiny_model), [part.to(DEVICE) for part in encoded]
    for context, tolerance in ((torch.no_grad(), 1e-3), (bf16(), 0.5)):
        with torch.no_grad(), context:
            sampled = decode.sample(model.text, *encoded, 12, drawn())
            logits = model.decode(*encoded, sampled.ids)
        exact = torch.log_softmax(logits.float(), dim=-1).gather(2, sampled.ids[..., None])[..., 0]
        assert ((exact - sampled.log_probs).abs() * sampled.mask).max() < tolerance


def test_frames():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=64, patch_size=16)).eval()
    frames = [{"pixel_values": frame} for frame in np.random.default_rng(0).normal(size=(5, 3, 64, 64))]
    expected, found, half = (
        FrameEncoder(EncoderIdentity(), model, None)._vectors(frames).float().cpu()
        for model in (clip, moved(clip), moved(clip).bfloat16())
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert functional.cosine_similarity(half, expected).min() > 0.99
