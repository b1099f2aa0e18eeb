"""A tiny network with real tokenizers, and the places of things."""

import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
# A shell starts what runs in its background with SIGINT ignored, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("serving_app")  # the tests that name it as a plugin import it, too
ROOT = Path(__file__).resolve().parents[1]
CAPTIONS = [
    "a red circle moves left",
    "a blue square jumps and beeps play",
    "the star is quiet",
    "a dog barks at a man",
]


@pytest.fixture(scope="session")
def tokenizers():
    """Kept in golden/ (made once by `train_t5_tokenizer` and `train_bert_tokenizer` from CAPTIONS, 80 pieces each):
    training breaks ties in another order each time, and the small experiments of the tests would differ with it."""
    from videoblip2.model.tokenizers import QFORMER_FOLDER, load_tokenizers

    folder = ROOT / "tests" / "golden" / "tokenizers"
    return load_tokenizers(folder, folder / QFORMER_FOLDER)


@pytest.fixture(scope="session")
def toy_encoders(tmp_path_factory):
    """Toy CLIP and CLAP, loaded from folders that a checkpoint can name."""
    from videoblip2.features.encoders import load_clap, load_clip
    from videoblip2.toy.networks import build_toy_clap, build_toy_clip

    folder = tmp_path_factory.mktemp("encoders")
    return load_clip(build_toy_clip(folder / "clip", 0)), load_clap(build_toy_clap(folder / "clap", 0))


@pytest.fixture
def tiny_config(tokenizers):
    from transformers import T5Config

    from videoblip2.model.configuration import VideoBlip2Config

    qformer = {
        "vocab_size": len(tokenizers.bert),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "cross_attention_frequency": 1,
        "encoder_hidden_size": 24,
    }
    text = T5Config(
        vocab_size=len(tokenizers.text),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return VideoBlip2Config(
        text_config=text,
        video_qformer_config=dict(qformer),
        audio_qformer_config=dict(qformer),
        num_queries=4,
        video_dim=24,
        audio_dim=12,
        upscaled_dim=24,
        max_positions=10,
        separate_lm_head=True,
    )


@pytest.fixture
def tiny_model(tiny_config):
    """Random weights everywhere that matter, LoRA's second matrix too, so that a wrong wiring shows."""
    import torch

    from videoblip2.model.network import VideoBlip2

    torch.manual_seed(0)
    model = VideoBlip2(tiny_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith("lm_head.weight"):
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def make_batch(tokenizers):
    """(lengths of video, lengths of audio) → a Batch of seeded features; labels where captions are given."""
    import numpy as np

    from videoblip2.data.batches import collate

    def make(frames=(3, 5), windows=(2, 0), captions=None, seed=0):
        rng = np.random.default_rng(seed)
        items = [
            {"video": rng.normal(size=(f, 24)).astype("float32"), "audio": rng.normal(size=(a, 12)).astype("float32")}
            for f, a in zip(frames, windows, strict=True)
        ]
        labels = tokenizers.labels(captions, 16) if captions else None
        ids = [f"video{i}" for i in range(len(items))]
        return collate(ids, items, ["a video of"] * len(items), tokenizers, 10, labels)

    return make


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """CLIP and CLAP of the toy world, with random weights."""
    from videoblip2.features.encoders import load_clap, load_clip
    from videoblip2.features.media_features import Encoders
    from videoblip2.toy.networks import TOY_SETTINGS, build_toy_clap, build_toy_clip

    root = tmp_path_factory.mktemp("encoders")
    clip, clap = build_toy_clip(root / "clip", 0), build_toy_clap(root / "clap", 0)
    return Encoders(load_clip(clip), load_clap(clap), TOY_SETTINGS)


def plug_in(name, code, folder, monkeypatch):
    """Name a module of the current folder in VB2_PLUGINS, and load it."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("VB2_PLUGINS", name)
    from videoblip2.plugins import load_plugins

    load_plugins()


def pytest_addoption(parser):
    parser.addoption("--regenerate-golden", action="store_true", help="write tests/golden/curves.json anew")
