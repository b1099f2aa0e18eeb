"""Features, captions, a T5 and a configuration on disk, small enough to train on in a second."""

import json
from pathlib import Path

import numpy as np
from conftest import CAPTIONS

from videoblip2.config import Config, parse_config
from videoblip2.features.store import write_features
from videoblip2.toy.networks import LanguageModelConfig, build_t5

SIZES = LanguageModelConfig(d_model=16, d_ff=16, num_heads=2, num_layers=1)
STEPS, PAUSE = 8, 5


def make_world(root: Path, tokenizers) -> Path:
    """Two videos with features and captions, an untied T5, word pieces."""
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


def tiny_config(world: Path, out: Path, *overrides: str) -> Config:
    """Eight steps of cross-entropy, each logged, the state saved after every second."""
    qformer = {"bert": str(world / "bert"), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer |= {"num_queries": 2, "intermediate_size": 16, "cross_attention_frequency": 1}
    content = {
        "data": {"annotations": str(world), "features": str(world / "features")},
        "model": {"language_model": str(world / "t5"), "qformer": qformer, "max_positions": 8},
        "optim": {"lr": 0.05, "warmup_steps": 0},
        "train": {"steps": STEPS, "batch_size": 2, "validate_every": 4, "log_every": 1, "save_every": 2},
        "decode": {"max_new_tokens": 6},
        "run": {"experiment": "toy", "out": str(out)},
        "device": "cpu",
    }
    return parse_config(content, overrides)
