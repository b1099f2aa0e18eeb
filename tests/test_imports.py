"""What a caption imports, and that what is replaced meanwhile is put back."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from videoblip2.features.media import write_video
from videoblip2.imports import LightMeta
from videoblip2.model.checkpoint import Checkpoint, save_checkpoint
from videoblip2.model.network import VideoBlip2
from videoblip2.provenance import Provenance

UNUSED = ("scipy", "sympy", "torch._dynamo", "torch.distributed.tensor", "mlflow", "optuna", "pandas", "sklearn")
SCRIPT = """
import json, sys
from videoblip2.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
print(json.dumps([name for name in UNUSED if name in sys.modules]))
import scipy.optimize, torch._dynamo
assert torch.distributed.is_available() and torch.compiler.disable(len) is not len
"""


FALLBACK = """
from videoblip2 import imports
def moved():
    raise AttributeError("no such name in this version")
imports._list_models_once = moved
imports.import_transformers()
import torch
from transformers import T5Config, T5ForConditionalGeneration
sizes = dict(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
T5ForConditionalGeneration(T5Config(**sizes)).generate(torch.tensor([[1, 2]]), max_new_tokens=2)
"""


@pytest.mark.slow
def test_another_version_of_transformers_is_imported_as_usual():
    subprocess.run([sys.executable, "-c", FALLBACK], check=True)


def test_a_caption_imports_nothing_that_only_training_needs(tiny_config, tokenizers, encoders, tmp_path):
    tiny_config.video_dim, tiny_config.audio_dim = 768, 512
    named = {kind: {"name": getattr(encoders, kind).identity.name} for kind in ("clip", "clap")}
    provenance = Provenance.model_validate({"features": {**named, "settings": {"fps": 4.0, "window_seconds": 1.0}}})
    folder = save_checkpoint(tmp_path / "best", Checkpoint(VideoBlip2(tiny_config), tokenizers, provenance=provenance))
    write_video(tmp_path / "a.mp4", np.zeros((4, 32, 32, 3), np.uint8), 4, None, 48_000)
    words = [sys.executable, "-c", SCRIPT.replace("UNUSED", repr(UNUSED)), "caption", str(folder), "a.mp4"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, imported = done.stdout.splitlines()
    assert said.startswith("a.mp4: ") and json.loads(imported) == []


def test_a_network_on_the_meta_device_counts_and_draws_nothing():
    with LightMeta(), torch.device("meta"):
        table = torch.nn.Embedding(4, 3)
        drawn, counted = torch.randn(2, 3), torch.arange(4).expand(1, 4)
    assert table.weight.is_meta and table.weight.shape == (4, 3) and drawn.is_meta
    assert torch.empty_like(drawn).shape == (2, 3) and counted.tolist() == [[0, 1, 2, 3]]
