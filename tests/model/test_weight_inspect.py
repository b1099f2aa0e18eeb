"""`vb2 weights inspect`: what a file holds, and whether a Q-Former can be loaded from it."""

import json

import pytest
import torch
from reference_qformer import CROSS, FFN, LAYERS, POSITIONS, QUERIES, VOCAB, WIDTH, bert_state, lavis_state, saved
from typer.testing import CliRunner

from videoblip2.config import InputError
from videoblip2.model.weight_source import inspect_weights

SIZES = {
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "encoder_hidden_size": CROSS,
    "cross_attention_frequency": 2,
}


def test_a_stage_2_checkpoint(tmp_path):
    state = {name: t.half() if t.is_floating_point() else t for name, t in lavis_state(text=False).items()}
    inspection = inspect_weights(saved(tmp_path / "stage2.pth", state, wrap=True))
    found = inspection.qformers[0]
    assert (inspection.format, inspection.looks_like) == ("torch", "LAVIS BLIP-2 stage 2")
    assert inspection.tensors == len(state)
    assert inspection.parameters == sum(tensor.numel() for tensor in state.values())
    assert inspection.dtypes == {"float16": len(state) - 1, "int64": 1}
    assert (found.prefix, found.text_branch, found.sizes) == ("Qformer.bert.", False, SIZES)
    assert found.query_tokens == (1, QUERIES, WIDTH)
    group = "Qformer.bert.encoder.layer.*.crossattention.self.key"
    assert (group, LAYERS, LAYERS // 2 * (WIDTH * CROSS + WIDTH)) in inspection.groups
    assert sum(count for _, count, _ in inspection.groups) == len(state)


def test_a_text_branch_shows_its_vocabulary(tmp_path):
    found = inspect_weights(saved(tmp_path / "q.safetensors", lavis_state())).qformers[0]
    assert found.text_branch
    assert found.sizes == SIZES | {"vocab_size": VOCAB, "max_position_embeddings": POSITIONS}


def test_other_files_are_named_and_broken_q_formers_explained(tmp_path):
    inspection = inspect_weights(saved(tmp_path / "bert.bin", bert_state()))
    assert inspection.looks_like.startswith("a BERT-like text encoder") and not inspection.qformers
    no_cross = {name: tensor for name, tensor in lavis_state().items() if "cross" not in name}
    assert "no cross-attention" in inspect_weights(saved(tmp_path / "q.pth", no_cross)).qformers[0].problem
    two = {f"{side}_{name}": tensor for side in ("video", "audio") for name, tensor in lavis_state().items()}
    prefixes = [found.prefix for found in inspect_weights(saved(tmp_path / "two.pth", two)).qformers]
    assert prefixes == ["audio_Qformer.bert.", "video_Qformer.bert."]
    with pytest.raises(InputError, match="no such file"):
        inspect_weights(tmp_path / "none.pth")


def test_the_command(tmp_path):
    from videoblip2.cli.setup import weights as app

    torch.manual_seed(0)
    path = saved(tmp_path / "q.pth", lavis_state(text=False))
    result = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    *lines, last = result.output.splitlines()
    assert json.loads(last)["qformers"][0]["sizes"] == SIZES
    assert lines[0] == f"{path}: LAVIS BLIP-2 stage 2 (torch)"
    assert "no text branch: give a BERT" in lines[2]
    assert any("crossattention.self.key" in line for line in lines)
