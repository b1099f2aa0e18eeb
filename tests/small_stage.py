"""A cross-entropy run and a self-critical one from it, tracked, real and tiny; made once a process."""

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CAPTIONS, ROOT
from folders import process_folder
from tracking_store import empty_store

from videoblip2.config import parse_config
from videoblip2.features.manifest import FeatureManifest
from videoblip2.features.store import write_features
from videoblip2.model.tokenizers import QFORMER_FOLDER, load_tokenizers
from videoblip2.registry import versions as registry
from videoblip2.toy.networks import LanguageModelConfig, build_t5
from videoblip2.tracking.mlflow import store
from videoblip2.training.stage import run_stage

SIZES = LanguageModelConfig(d_model=16, d_ff=16, num_heads=2, num_layers=1)
MANIFEST = {
    "clip": {"name": "encoders/clip", "fingerprint": "c1"},
    "clap": {"name": "encoders/clap", "fingerprint": "c2"},
    "settings": {"fps": 1.0},
    "videos": {f"video{n}": {} for n in range(3)},
}


@cache
def _made() -> SimpleNamespace:
    root = process_folder("vb2-stages-")
    for file in empty_store().glob("mlflow.db*"):
        shutil.copy(file, root / file.name)
    with pytest.MonkeyPatch.context() as patch:
        _enter(root, patch)
        write_world(root)
        ce = run_stage("ce", config(root, "ce"))
        registry.set_champion("videoblip2", registry.register(ce.model))
        scst = run_stage("scst", config(root, "scst", "train.start_from=models:/videoblip2@champion"))
    return SimpleNamespace(root=root, ce=ce, scst=scst)


def stages(patch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`root`, and the results `ce` and `scst`; their store is the one in use."""
    made = _made()
    _enter(made.root, patch)
    store.connect()  # MLflow remembers the store of the test before, whatever the environment says
    return made


def _enter(root: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        patch.delenv(name, raising=False)


def write_world(root: Path) -> None:
    """Three videos with features and captions, a T5, word pieces."""
    golden = ROOT / "tests" / "golden" / "tokenizers"
    tokenizers = load_tokenizers(golden, golden / QFORMER_FOLDER)
    build_t5(len(tokenizers.text), SIZES).save_pretrained(root / "t5")
    tokenizers.text.save_pretrained(root / "t5")
    tokenizers.bert.save_pretrained(root / "bert")
    rng = np.random.default_rng(0)
    videos = [{"video_id": f"video{n}", "category": 0, "captions": CAPTIONS[n : n + 2]} for n in range(3)]
    for video in videos:
        frames, windows = rng.normal(size=(3, 768)), rng.normal(size=(2, 512))
        arrays = {"video": frames.astype("float32"), "audio": windows.astype("float32")}
        write_features(root / "features", video["video_id"], arrays)
    FeatureManifest.model_validate(MANIFEST).write(root / "features")
    asked = [
        {
            "question_id": f"{n}{word}",
            "video_id": f"video{n}",
            "question": f"{word} is it?",
            "answer": CAPTIONS[n].split()[2],
        }
        for n in range(3)
        for word in ("what", "who")
    ]
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(videos))
        (root / f"{split}_qa.json").write_text(json.dumps(asked))


def config(root: Path, name: str, *overrides: str):
    """Four steps of a network of 16 units."""
    qformer = {"bert": str(root / "bert"), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer |= {"num_queries": 2, "intermediate_size": 16, "cross_attention_frequency": 1}
    content = {
        "data": {"annotations": str(root), "features": str(root / "features")},
        "model": {"language_model": str(root / "t5"), "qformer": qformer, "max_positions": 8},
        "optim": {"lr": 0.05, "warmup_steps": 0},
        "train": {"steps": 4, "batch_size": 2, "validate_every": 2, "log_every": 2},
        "scst": {"samples": 2},
        "decode": {"max_new_tokens": 8},
        "run": {"name": name, "out": str(root / "runs")},
        "device": "cpu",
        "seed": 3,
    }
    if name == "scst":
        del content["model"]
    return parse_config(content, overrides)
