"""Flan-T5-large, XL and patch tokens of EVA-CLIP-g by configuration alone: all widths at 1/32, two layers."""

import json

import numpy as np
import pytest
from tiny_world import make_world, tiny_config
from transformers import T5Config, T5ForConditionalGeneration

from videoblip2 import load
from videoblip2.captioner import Captioner
from videoblip2.features.store import FeatureStore, write_features
from videoblip2.training.stage import run_stage

#: d_model, d_ff, heads and width of a head. T5-3B is one whose heads together are wider than the model.
SHAPES = {"large": (1024, 2816, 16, 64), "xl": (2048, 5120, 32, 64), "t5-3b": (1024, 16384, 32, 128)}
FRAMES, PATCHES, WIDTH = 2, 257, 1408
KEYS = (f"model.video_dim={WIDTH}", f"model.max_positions={FRAMES * PATCHES}")


@pytest.fixture(scope="module")
def patches(tmp_path_factory, tokenizers):
    """The tiny world with features [F·257, 1408]."""
    world, rng = make_world(tmp_path_factory.mktemp("patches"), tokenizers), np.random.default_rng(0)
    for video in json.loads((world / "train.json").read_text()):
        arrays = {"video": rng.normal(size=(FRAMES * PATCHES, WIDTH)), "audio": rng.normal(size=(2, 512))}
        features = {name: array.astype("float32") for name, array in arrays.items()}
        write_features(world / "features", video["video_id"], features)
    return world


@pytest.mark.parametrize("size", ["xl", *(pytest.param(size, marks=pytest.mark.slow) for size in ("large", "t5-3b"))])
def test_trains_saves_loads_and_captions(size, patches, tokenizers, tmp_path):
    width, inner, heads, head = SHAPES[size]
    sizes = {"d_model": width // 32, "d_ff": inner // 32, "num_heads": heads, "d_kv": head // 32, "num_layers": 2}
    ids = {"decoder_start_token_id": 0, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}
    text = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizers.text), **sizes, **ids))
    text.save_pretrained(tmp_path / "t5")
    tokenizers.text.save_pretrained(tmp_path / "t5")
    keys = *KEYS, f"model.language_model={tmp_path / 't5'}", "train.steps=2", "train.validate_every=2"
    done = run_stage("ce", tiny_config(patches, tmp_path, "run.name=x", "run.tracking=false", "optim.lr=1e-3", *keys))
    model, store = load(str(done.checkpoint)), FeatureStore(patches / "features", ("video", "audio"))
    assert model.video_branch.positions.weight.shape == (FRAMES * PATCHES, WIDTH)
    captioner = Captioner(model, tokenizers)
    assert len(captioner.caption([store.features("video0"), store.features("video1")])) == 2
