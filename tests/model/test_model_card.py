"""The card of a checkpoint says what the folder's other files say."""

import json

import pytest
import yaml

from videoblip2.model.checkpoint import Checkpoint, save_checkpoint, write_card
from videoblip2.model.network import VideoBlip2
from videoblip2.provenance import Provenance

PROVENANCE = Provenance.model_validate(
    {
        "stage": "scst",
        "name": "scst-greedy",
        "run_id": "0b857ef6",
        "parent": "models:/m-1",
        "step": 125,
        "data": {"train": "51824ebd00c8", "val": "d4769fd3a5e4"},
        "features": {
            "clip": {"name": "openai/clip-vit-large-patch14", "fingerprint": "2406"},
            "settings": {"fps": 4.0},
        },
    }
)
CONFIG = {
    "seed": 3,
    "optim": {"lr": 1e-5},
    "model": {"language_model": "google/flan-t5-base", "qformer": {"weights": "blip2.pth"}},
}


@pytest.fixture
def folder(tiny_model, tokenizers, tmp_path):
    return save_checkpoint(tmp_path / "best", Checkpoint(tiny_model, tokenizers, CONFIG, {"CIDEr": 0.5}, PROVENANCE))


def test_says_where_it_came_from_and_what_it_scored(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    told = ["# scst-greedy", "0b857ef6", "models:/m-1", "51824ebd00c8", "step 125", "| CIDEr | 50.0 |"]
    told += ["openai/clip-vit-large-patch14", "google/flan-t5-base", "blip2.pth", "1e-05", "seed 3", "## Limits"]
    assert [text for text in told if text not in card] == []


def test_head_is_yaml_that_a_hub_reads(folder):
    head = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(head)["pipeline_tag"] == "video-text-to-text"


def test_sizes_are_the_networks(folder, tiny_model):
    sizes = {name: parameter.numel() for name, parameter in tiny_model.named_parameters()}
    card = (folder / "README.md").read_text(encoding="utf-8")
    lora = sum(size for name, size in sizes.items() if "lora_" in name)
    assert f"| LoRA | {lora:,} |" in card
    assert f"| all | {sum(sizes.values()):,} |" in card


def test_follows_new_scores_and_says_when_merged(folder, tiny_config, tokenizers):
    (folder / "metrics.json").write_text(json.dumps({"CIDEr": 0.75, "step": 4.0}))
    card = write_card(folder).read_text(encoding="utf-8")
    assert "| CIDEr | 75.0 |" in card and "| step |" not in card and "separate from its weights" in card
    tiny_config.lora_merged = True
    merged = save_checkpoint(folder.parent / "merged", Checkpoint(VideoBlip2(tiny_config), tokenizers))
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert "merged into its weights" in card and "| LoRA |" not in card
    assert "None recorded." in card and "not recorded" in card


def test_says_that_all_of_t5_was_trained(tiny_config, tokenizers, tmp_path):
    tiny_config.finetune = "full"
    checkpoint = Checkpoint(VideoBlip2(tiny_config), tokenizers, CONFIG, {"CIDEr": 0.5}, PROVENANCE)
    card = (save_checkpoint(tmp_path / "full", checkpoint) / "README.md").read_text(encoding="utf-8")
    assert "a fully fine-tuned T5 of width 32" in card and "LoRA (" not in card and "- lora" not in card
