"""Flan-T5 keeps `lm_head` apart from `shared`; both stay as they were, bit by bit, on every road here."""

import json

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from videoblip2.config import Decoding, parse_config
from videoblip2.features.store import write_features
from videoblip2.model.build import build_model
from videoblip2.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from videoblip2.predict import load_captioner
from videoblip2.toy.networks import LanguageModelConfig, build_t5
from videoblip2.training.stage import run_stage

SIZES = LanguageModelConfig(d_model=16, d_ff=16, num_heads=2, num_layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizers):
    """Two videos with features and captions, an untied T5, word pieces."""
    root = tmp_path_factory.mktemp("untied")
    build_t5(len(tokenizers.text), SIZES).save_pretrained(root / "t5")
    tokenizers.text.save_pretrained(root / "t5")
    tokenizers.bert.save_pretrained(root / "bert")
    rng = np.random.default_rng(0)
    videos = [{"video_id": f"video{n}", "category": 0, "captions": CAPTIONS[n : n + 2]} for n in range(2)]
    for video in videos:
        frames, windows = rng.normal(size=(3, 768)), rng.normal(size=(2, 512))
        arrays = {"video": frames.astype("float32"), "audio": windows.astype("float32")}
        write_features(root / "features", video["video_id"], arrays)
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(videos))
    return root


def config(folder, name, *overrides):
    qformer = {"bert": str(folder / "bert"), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer |= {"num_queries": 2, "intermediate_size": 16, "cross_attention_frequency": 1}
    content = {
        "data": {"annotations": str(folder), "features": str(folder / "features")},
        "model": {"language_model": str(folder / "t5"), "qformer": qformer, "max_positions": 8},
        "optim": {"lr": 0.05, "warmup_steps": 0},
        "train": {"steps": 2, "batch_size": 2, "validate_every": 1, "log_every": 1},
        "scst": {"samples": 2},
        "decode": {"max_new_tokens": 6},
        "run": {"tracking": False, "name": name, "out": str(folder / "runs")},
        "device": "cpu",
    }
    return parse_config(content, overrides)


def head_and_embeddings(file):
    """(`shared`, `lm_head`) of a safetensors file, in T5's own folder or in a checkpoint."""
    tensors = load_file(file)
    return [next(t for name, t in tensors.items() if name.endswith(end)) for end in ("shared.weight", "lm_head.weight")]


def apart_and_equal(language_model, folder):
    shared, head = head_and_embeddings(folder / "t5" / "model.safetensors")
    assert not torch.equal(shared, head)
    assert torch.equal(language_model.shared.weight, shared)
    assert torch.equal(language_model.encoder.embed_tokens.weight, shared)
    assert torch.equal(language_model.decoder.embed_tokens.weight, shared)
    assert torch.equal(language_model.lm_head.weight, head)
    return True


@pytest.fixture(scope="module")
def stages(folder):
    """Cross-entropy, more of it from its checkpoint, and self-critical training from that one."""
    first = run_stage("ce", config(folder, "ce"))
    second = run_stage("ce", config(folder, "more", f"train.start_from={first.checkpoint}"))
    third = run_stage("scst", config(folder, "scst", f"train.start_from={second.checkpoint}"))
    return first.checkpoint, second.checkpoint, third.checkpoint


def test_building(folder):
    model, _, _ = build_model(config(folder, "x").model, "a video of")
    assert model.config.separate_lm_head
    assert apart_and_equal(model.language_model, folder)


def test_training_saving_and_resuming(folder, stages):
    untouched = head_and_embeddings(folder / "t5" / "model.safetensors")
    for checkpoint in stages:
        saved = head_and_embeddings(checkpoint / "model.safetensors")
        assert all(torch.equal(got, expected) for got, expected in zip(saved, untouched, strict=True))
    first, second = (load_file(checkpoint / "model.safetensors") for checkpoint in stages[:2])
    assert not torch.equal(first["proj_video.weight"], second["proj_video.weight"])


def test_saving_again_and_serving(folder, stages, tmp_path):
    loaded = load_checkpoint(stages[-1])
    again = save_checkpoint(tmp_path / "again", Checkpoint(loaded.model, loaded.tokenizers))
    video = np.random.default_rng(1).normal(size=(3, 768)).astype("float32")
    item = {"video": video}
    texts = []
    for checkpoint in (stages[-1], again):
        captioner = load_captioner(checkpoint, device="cpu")
        assert apart_and_equal(captioner.model.language_model, folder)
        texts.append(captioner.caption([item], decoding=Decoding(max_new_tokens=6))[0].text)
    assert texts[0] == texts[1]


def test_a_tied_t5_stays_tied(folder, tokenizers, tmp_path):
    """T5 1.0 has one matrix for both: its checkpoint holds it once and loads whole."""
    tied = T5ForConditionalGeneration(build_t5(len(tokenizers.text), SIZES).config)
    assert tied.lm_head.weight is tied.shared.weight
    tied.save_pretrained(tmp_path / "t5")
    tokenizers.text.save_pretrained(tmp_path / "t5")
    settings = config(folder, "x").model.model_copy(update={"language_model": str(tmp_path / "t5")})
    model, tokens, _ = build_model(settings, "a video of")
    assert not model.config.separate_lm_head
    save_checkpoint(tmp_path / "checkpoint", Checkpoint(model, tokens))
    loaded = load_checkpoint(tmp_path / "checkpoint").model.language_model
    assert loaded.lm_head.weight is loaded.shared.weight
    assert torch.equal(loaded.shared.weight, tied.shared.weight)
