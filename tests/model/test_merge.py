"""LoRA folded into T5: the same logits, nothing else changed, and a folder of its own."""

import pytest
import torch

from videoblip2.config import InputError
from videoblip2.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from videoblip2.model.merge import merge_checkpoint
from videoblip2.model.network import VideoBlip2

CAPTIONS = ["a red circle moves left", "the star is quiet"]


def same_logits(got, expected):
    """To 1e-5 of the largest logit: float32 sums in another order."""
    got, expected = got.detach(), expected.detach()
    return float((got - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.fixture
def saved(tiny_model, tokenizers, tmp_path):
    checkpoint = Checkpoint(tiny_model, tokenizers, {"seed": 3}, {"CIDEr": 0.5}, {"stage": "ce", "run_id": "abc"})
    return save_checkpoint(tmp_path / "best", checkpoint, {"document_frequencies": lambda path: path.write_text("df")})


def test_logits_stay_and_lora_is_gone(tiny_model, make_batch):
    batch = make_batch(captions=CAPTIONS)
    expected = tiny_model(batch.labels, **batch.inputs)
    frozen = [name for name in tiny_model.state_dict() if "base_layer" not in name and "lora_" not in name]
    before = {name: tiny_model.state_dict()[name].clone() for name in frozen}
    merged = tiny_model.merge()
    assert merged is tiny_model
    assert same_logits(merged(batch.labels, **batch.inputs), expected)
    assert not any("lora_" in name or "base_layer" in name for name in merged.state_dict())
    assert all(torch.equal(merged.state_dict()[name], tensor) for name, tensor in before.items())
    assert not any(name.startswith("language_model") for name in merged.trainable())


def test_the_fold_is_exact_but_for_rounding(tiny_model, make_batch):
    """In float64 nothing but the formula is left to differ."""
    batch = make_batch(captions=CAPTIONS)
    inputs = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.inputs.items()}
    expected = tiny_model.double()(batch.labels, **inputs)
    assert torch.allclose(tiny_model.merge()(batch.labels, **inputs), expected, atol=1e-12)


def test_lora_mattered(tiny_model, make_batch):
    """Without this the equality above could hold with LoRA merely dropped."""
    batch = make_batch(captions=CAPTIONS)
    expected = tiny_model(batch.labels, **batch.inputs)
    with torch.no_grad():
        for name, parameter in tiny_model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    assert not torch.allclose(tiny_model(batch.labels, **batch.inputs), expected, atol=1e-2)


def test_merged_saves_and_loads_without_lora(tiny_model, make_batch, tmp_path):
    batch = make_batch(captions=CAPTIONS)
    expected = tiny_model.merge()(batch.labels, **batch.inputs)
    tiny_model.save_pretrained(tmp_path)
    loaded, info = VideoBlip2.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.lora_merged
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in tiny_model.state_dict().items())
    assert same_logits(loaded.eval()(batch.labels, **batch.inputs), expected)


def test_merging_again_changes_nothing(tiny_model):
    before = {name: tensor.clone() for name, tensor in tiny_model.merge().state_dict().items()}
    again = tiny_model.merge().state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


def test_a_merged_folder_keeps_scores_origin_and_document_frequencies(saved, tmp_path, make_batch):
    original = (saved / "model.safetensors").read_bytes()
    merged = merge_checkpoint(saved, tmp_path / "merged")
    loaded, source, batch = load_checkpoint(merged), load_checkpoint(saved), make_batch(captions=CAPTIONS)
    assert same_logits(loaded.model(batch.labels, **batch.inputs), source.model(batch.labels, **batch.inputs))
    assert (loaded.config, loaded.metrics) == ({"seed": 3}, {"CIDEr": 0.5})
    assert (loaded.provenance["run_id"], loaded.provenance["merged_from"]) == ("abc", "best")
    assert (merged / "document_frequencies").read_text() == "df"
    assert (saved / "model.safetensors").read_bytes() == original


def test_what_cannot_be_merged_is_refused(saved, tmp_path):
    with pytest.raises(InputError, match="another folder"):
        merge_checkpoint(saved, saved)
    merged = merge_checkpoint(saved, tmp_path / "merged")
    with pytest.raises(InputError, match="merged already"):
        merge_checkpoint(merged, tmp_path / "twice")
    with pytest.raises(InputError, match=r"no provenance\.json"):
        merge_checkpoint(tmp_path, tmp_path / "none")


def test_a_network_without_lora_is_refused(tiny_config, tokenizers, tmp_path):
    tiny_config.finetune = "full"
    checkpoint = Checkpoint(VideoBlip2(tiny_config), tokenizers, {"seed": 3}, {"CIDEr": 0.5}, {"stage": "ce"})
    saved = save_checkpoint(tmp_path / "best", checkpoint, {})
    with pytest.raises(InputError, match="without LoRA"):
        merge_checkpoint(saved, tmp_path / "merged")
