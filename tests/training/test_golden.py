"""Golden curves: refactoring must not move a number. `pytest -k golden --regenerate-golden` writes them again."""

import json
import subprocess
from importlib.metadata import version

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny_world import make_world, tiny_config
from tracking_store import place_store

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.training.stage import run_stage

FILE = ROOT / "tests" / "golden" / "curves.json"
#: Charts that hold no clock, memory or machine. CPUs round differently, and training amplifies it: with these learning
#: rates the charts below agree to 5e-6 across instruction sets, while gradient norms do not.
CURVES = {
    "ce": ("train/loss", "train/token_accuracy", "train/lr", "val/CIDEr"),
    "scst": ("train/loss", "train/reward", "train/greedy_reward", "val/CIDEr"),
}
CAPTIONS = {
    "video0": "a red circle moves left and stops",
    "video1": "a man's dog runs, and a dog barks",
    "video2": "",
    "video3": "the the the star star is quiet",
}
REFERENCES = {
    "video0": ["A red circle moves left.", "the red circle slowly moves to the left"],
    "video1": ["a man's dog runs", "a dog barks at a man", "a dog is running"],
    "video2": ["a blue square jumps"],
    "video3": ["the star is quiet", "a quiet star"],
}


def curves(stage, run_id):
    """Metric → values, step by step."""
    from mlflow import MlflowClient

    history = {name: MlflowClient().get_metric_history(run_id, name) for name in CURVES[stage]}
    return {
        f"{stage} {name}": [p.value for p in sorted(points, key=lambda p: p.step)] for name, points in history.items()
    }


def train(tmp_path, tokenizers):
    """20 steps of cross-entropy, every dropout on, then 10 of self-critical training from its best checkpoint."""
    torch.manual_seed(0)
    world = make_world(tmp_path, tokenizers)
    ce = (
        "run.name=ce",
        "train.steps=20",
        "train.validate_every=5",
        "data.captions_per_video=2",
        "optim.lr=0.016",
        "decode.max_new_tokens=10",
    )
    made = run_stage("ce", tiny_config(world, tmp_path / "runs", *ce))
    scst_keys = (
        f"train.start_from={made.checkpoint}",
        "run.name=scst",
        "train.steps=10",
        "optim.lr=0.002",
        "scst.samples=4",
    )
    scst = tiny_config(world, tmp_path / "runs", *scst_keys, "scst.temperature=0.7", "decode.max_new_tokens=10")
    return curves("ce", made.run_id) | curves("scst", run_stage("scst", scst).run_id)


def commit():
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def cider_d():
    df = DocumentFrequencies.from_references(REFERENCES)
    return {"CIDEr-D": CiderD(REFERENCES, df).score(list(CAPTIONS), list(CAPTIONS.values())).tolist()}


@pytest.fixture
def golden(request):
    """(what a test computed) → it equals what is stored, or is stored where the flag says so."""

    def check(found):
        stored = json.loads(FILE.read_text()) if FILE.exists() else {}
        if request.config.getoption("--regenerate-golden"):
            origin = {
                "commit": commit(),
                "torch": version("torch"),
                "transformers": version("transformers"),
                "platform": "cpu, one thread",
            }
            stored |= {"origin": origin, **found}
            FILE.write_text(json.dumps(stored, indent=1) + "\n")
        for name, values in found.items():
            np.testing.assert_allclose(values, stored[name], rtol=1e-5, atol=1e-6, err_msg=name)

    return check


def test_golden_training_curves(tmp_path, tokenizers, monkeypatch, golden):
    place_store(tmp_path, monkeypatch)
    torch.set_num_threads(1)
    golden(train(tmp_path, tokenizers))


def test_golden_cider_d(golden):
    golden(cider_d())
