"""The checkpoint folder: whole or not at all, self-contained, no pickle, refuses what does not fit."""

import json

import pytest
import torch

from videoblip2.config import InputError
from videoblip2.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture
def saved(tiny_model, tokenizers, tmp_path):
    checkpoint = Checkpoint(
        tiny_model, tokenizers, {"seed": 3}, {"val/CIDEr": 0.5}, {"stage": "ce", "features": {"clip": {"name": "x"}}}
    )
    return save_checkpoint(tmp_path / "best", checkpoint, {"frequencies.txt": lambda path: path.write_text("df")})


def test_round_trip(saved, tiny_model, make_batch):
    loaded = load_checkpoint(saved)
    batch = make_batch()
    with torch.no_grad():
        expected, got = tiny_model.encode(**batch.inputs)[0], loaded.model.encode(**batch.inputs)[0]
    assert torch.allclose(expected, got, atol=1e-6)
    assert loaded.config == {"seed": 3}
    assert loaded.metrics == {"val/CIDEr": 0.5}
    assert loaded.provenance["stage"] == "ce"
    ids = loaded.tokenizers.labels(["a red circle moves left"], 16)
    assert loaded.tokenizers.texts(ids) == ["a red circle moves left"]
    assert not loaded.model.training


def test_holds_no_pickle_and_what_extras_wrote(saved):
    endings = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert endings <= {".json", ".safetensors", ".yaml", ".txt"}
    assert (saved / "frequencies.txt").read_text() == "df"


def test_a_failing_save_leaves_the_old_one(saved, tiny_model, tokenizers):
    before = (saved / "model.safetensors").read_bytes()

    def fails(path):
        raise OSError("No space left on device")

    with torch.no_grad():
        tiny_model.proj_video.weight.zero_()
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, Checkpoint(tiny_model, tokenizers), {"df": fails})
    assert (saved / "model.safetensors").read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["best"]


def test_saving_again_replaces(saved, tiny_model, tokenizers):
    save_checkpoint(saved, Checkpoint(tiny_model, tokenizers, {"seed": 4}))
    assert load_checkpoint(saved).config == {"seed": 4}
    assert [path.name for path in saved.parent.iterdir()] == ["best"]


def test_no_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no provenance\.json"):
        load_checkpoint(tmp_path)


def test_from_the_future(saved):
    path = saved / "provenance.json"
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        load_checkpoint(saved)


def test_weights_of_another_network(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config["num_queries"] = 5
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=str(saved)):
        load_checkpoint(saved)


def test_truncated_weights(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="does not load"):
        load_checkpoint(saved)
