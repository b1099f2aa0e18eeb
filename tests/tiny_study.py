"""A study small enough for a test: two videos with features, a T5 of one layer, and a runner that only computes."""

import json

import numpy as np
import yaml
from conftest import CAPTIONS

from videoblip2.features.store import write_features
from videoblip2.toy.networks import LanguageModelConfig, build_t5
from videoblip2.tune.plan import load_plan
from videoblip2.tune.trials import TrialScore

SIZES = LanguageModelConfig(d_model=16, d_ff=16, num_heads=2, num_layers=1)
QFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_queries": 2}


def write_world(root, tokenizers):
    """Data, features and a language model in a folder."""
    build_t5(len(tokenizers.text), SIZES).save_pretrained(root / "t5")
    tokenizers.text.save_pretrained(root / "t5")
    tokenizers.bert.save_pretrained(root / "bert")
    rng = np.random.default_rng(0)
    videos = [{"video_id": f"video{n}", "category": 0, "captions": CAPTIONS[n : n + 2]} for n in range(3)]
    for video in videos:
        frames, windows = rng.normal(size=(3, 768)), rng.normal(size=(2, 512))
        arrays = {"video": frames.astype("float32"), "audio": windows.astype("float32")}
        write_features(root / "features", video["video_id"], arrays)
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(videos))
    return root


def write_study(root, name="study", tracking=False, **changes):
    """`base.yaml` and a study over it; `changes` replace whole keys of the study."""
    qformer = {**QFORMER, "bert": str(root / "bert"), "intermediate_size": 16, "cross_attention_frequency": 1}
    base = {
        "data": {"annotations": str(root), "features": str(root / "features")},
        "model": {"language_model": str(root / "t5"), "qformer": qformer, "max_positions": 8},
        "optim": {"lr": 0.01, "warmup_steps": 0},
        "train": {"steps": 4, "batch_size": 2, "validate_every": 2, "log_every": 2, "save_every": 1},
        "decode": {"max_new_tokens": 6},
        "run": {"tracking": tracking, "experiment": "toy"},
        "device": "cpu",
    }
    study = {
        "study": name,
        "stage": "ce",
        "base": str(root / "base.yaml"),
        "search": {"optim.lr": {"low": 0.001, "high": 0.1, "log": True}},
        "n_trials": 3,
        "out": str(root / "runs"),
        **changes,
    }
    (root / "base.yaml").write_text(yaml.safe_dump(base))
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in study.items() if value is not None}))
    return path


def tiny_plan(root, *overrides, **changes):
    """A plan over data that need not be there, but for `val.json`."""
    if not (root / "val.json").exists():
        (root / "val.json").write_text("[]")
    return load_plan(write_study(root, **changes), overrides)


def peak_at(best):
    """A runner whose score falls off with the distance of log10(lr) from `best`."""

    def run(trial, watcher, progress):
        cider = 1.0 - abs(float(np.log10(trial.params["optim.lr"])) - best)
        watcher.validated(2, cider)
        return TrialScore(cider, [cider - 0.1, cider, cider + 0.1], "somewhere")

    return run
