"""The frozen language model in bf16: what autocast computes with float32 weights, in half the memory."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import workspace
from tiny_world import make_world, tiny_config
from torch import nn

from videoblip2.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from videoblip2.training.ce import ce_step
from videoblip2.training.workspace import open_workspace


def dtypes(model):
    """Of the language model's own linear layers, and of everything else."""
    linear = {id(m.weight) for m in model.language_model.modules() if isinstance(m, nn.Linear)}
    trained = {id(weight) for weight in model.trainable().values()}
    kinds = {True: set(), False: set()}
    for weight in model.parameters():
        kinds[id(weight) in linear - trained].add(weight.dtype)
    return kinds[True], kinds[False]


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_precision_decides_what_is_stored(finetune, tmp_path, tokenizers):
    world = make_world(tmp_path, tokenizers)
    work = open_workspace(tiny_config(world, tmp_path, "precision=bf16", f"model.finetune={finetune}"))
    half = {torch.bfloat16} if finetune == "lora" else set()
    assert dtypes(work.model) == (half, {torch.float32})


def losses(work, half):
    """Of three updates."""
    if half:
        work.model.text.halve()
    optimizer = torch.optim.AdamW(work.model.trainable().values(), lr=5e-3)
    found = []
    for step in range(3):
        for part in ce_step(work, work.batches(step), step):
            part.loss.backward()
            found.append(part.loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return found


def test_training_is_that_of_float32_weights_under_autocast(tiny_model, tokenizers):
    options = "precision=bf16", "data.captions_per_video=2"
    full, half = (losses(workspace(tiny_model, tokenizers, *options), wanted) for wanted in (False, True))
    assert half == pytest.approx(full, rel=1e-3) and full[2] < full[0]


def test_checkpoints_have_the_same_tensors_in_float32(tiny_model, tokenizers, make_batch, tmp_path):
    plain = save_checkpoint(tmp_path / "plain", Checkpoint(tiny_model, tokenizers))
    tiny_model.text.halve()
    batch = make_batch(captions=["a dog", "the star"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = tiny_model(batch.labels, **batch.inputs)
    half = save_checkpoint(tmp_path / "half", Checkpoint(tiny_model, tokenizers))
    assert json.loads((half / "config.json").read_text()) == json.loads((plain / "config.json").read_text())
    before, after = (load_file(folder / "model.safetensors") for folder in (plain, half))
    assert {name: (t.shape, t.dtype) for name, t in after.items()} == {
        name: (t.shape, t.dtype) for name, t in before.items()
    }
    loaded = load_checkpoint(half).model
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loaded(batch.labels, **batch.inputs), expected, rtol=0, atol=0)
