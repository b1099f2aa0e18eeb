"""The checkpoint folder: whole or not at all, self-contained, no pickle, refuses what does not fit."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

from videoblip2.config import InputError
from videoblip2.data.batches import collate
from videoblip2.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from videoblip2.model.network import VideoBlip2
from videoblip2.provenance import FORMAT, EncoderIdentity, FeatureOrigin, Provenance


@pytest.fixture
def saved(tiny_model, tokenizers, tmp_path):
    features = FeatureOrigin(encoders={"clip": EncoderIdentity(name="x")})
    provenance = Provenance(stage="ce", features=features)
    checkpoint = Checkpoint(tiny_model, tokenizers, {"seed": 3}, {"val/CIDEr": 0.5}, provenance)
    return save_checkpoint(tmp_path / "best", checkpoint, {"frequencies.txt": lambda path: path.write_text("df")})


def test_round_trip(saved, tiny_model, make_batch):
    loaded = load_checkpoint(saved)
    batch = make_batch()
    with torch.no_grad():
        expected, got = tiny_model.encode(**batch.inputs)[0], loaded.model.encode(**batch.inputs)[0]
    assert torch.allclose(expected, got, atol=1e-6)
    assert loaded.config == {"seed": 3}
    assert loaded.metrics == {"val/CIDEr": 0.5}
    assert loaded.provenance.stage == "ce"
    ids = loaded.tokenizers.labels(["a red circle moves left"], 16)
    assert loaded.tokenizers.texts(ids) == ["a red circle moves left"]
    assert not loaded.model.training


def test_holds_no_pickle_and_what_extras_wrote(saved):
    endings = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert endings <= {".json", ".safetensors", ".yaml", ".txt", ".md"}
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


def rewrite(saved, **changes):
    path = saved / "provenance.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_of_a_newer_version_says_who_wrote_it(saved):
    rewrite(saved, format=FORMAT + 1, written_by="videoblip2 7.0")
    with pytest.raises(InputError, match=rf"format {FORMAT + 1}, written by videoblip2 7\.0; .*update videoblip2"):
        load_checkpoint(saved)


def test_saved_again_names_its_format_and_writer(saved, tmp_path):
    again = save_checkpoint(tmp_path / "again", load_checkpoint(saved))
    written = json.loads((again / "provenance.json").read_text())
    assert written["format"] == FORMAT and written["written_by"].startswith("videoblip2 ")


@pytest.mark.parametrize("kind", ["lora", "merged"])
def test_an_earlier_checkpoint_captions_as_it_did(kind, tokenizers, tmp_path):
    """golden/checkpoints, written by format 2, with LoRA apart from T5's weights and folded into them."""
    golden = Path(__file__).parents[1] / "golden"
    folder = shutil.copytree(golden / "checkpoints" / kind, tmp_path / kind)
    tokenizers.save(folder)
    model = load_checkpoint(folder).model
    expected = json.loads((golden / "checkpoints" / "expected.json").read_text())[kind]
    video, audio = np.linspace(-1, 1, 48).reshape(2, 3, 8), np.linspace(1, -1, 16).reshape(2, 2, 4)
    items = [{"video": video[0], "audio": audio[0]}, {"video": video[1], "audio": audio[1][:0]}]
    batch = collate(["a", "b"], items, ["a video of"] * 2, tokenizers, 4)
    ids = model.generate(**batch.inputs, max_new_tokens=8)
    assert ids.tolist() == expected["ids"]
    logits = model(ids[:, 1:], **batch.inputs)
    log_probs = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None]).sum(dim=(1, 2))
    assert log_probs.tolist() == pytest.approx(expected["log_probs"], abs=1e-3)


@pytest.mark.parametrize("found", [1, None])
def test_of_a_version_too_old_to_read(saved, found):
    rewrite(saved, format=found)
    with pytest.raises(InputError, match=rf"format {found or 0}, written by .*reads format {FORMAT}: train again"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["provenance.json", "metrics.json", "config.yaml"])
def test_a_damaged_or_missing_file_is_named(saved, name):
    (saved / name).write_text('{"format": ')
    with pytest.raises(InputError, match=re.escape(name)):
        load_checkpoint(saved)
    (saved / name).unlink()
    with pytest.raises(InputError, match=re.escape(f"{saved}: no {name}")):
        load_checkpoint(saved)


def test_a_pickle_in_place_of_safetensors_is_refused(saved, tiny_model):
    (saved / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(InputError, match="does not load"):
        load_checkpoint(saved)


def test_loads_with_no_network(saved, tmp_path, monkeypatch):
    """Moved elsewhere, and with the hub's offline switch off: nothing is asked of any host."""
    asked = []

    def refuse(self, address):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: refuse(None, address))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    load_checkpoint(saved.rename(tmp_path / "moved"))
    assert asked == []


def test_is_as_readable_as_the_umask_says(tiny_model, tokenizers, tmp_path):
    before = os.umask(0o022)
    try:
        folder = save_checkpoint(tmp_path / "best", Checkpoint(tiny_model, tokenizers))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o644} and folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("more", [-1, 1], ids=["tensors too many", "tensors too few"])
def test_weights_of_another_network(saved, more):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_queries": 5}))
    with pytest.raises(InputError, match=rf"{saved}.*size mismatch"):
        load_checkpoint(saved)
    config["text_config"]["num_layers"] += more
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"{saved}.* tensors do not fit its config\.json, .*mixes two models"):
        load_checkpoint(saved)


def test_truncated_weights(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="does not load"):
        load_checkpoint(saved)


def test_is_the_network_that_from_pretrained_gives(saved, make_batch):
    """Same tensors, same buffers, same sharing, same freezing; and training leaves the file alone."""
    ours, theirs = load_checkpoint(saved).model, VideoBlip2.from_pretrained(saved)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    buffers = dict(theirs.named_buffers())
    assert buffers and all(torch.equal(buffer, buffers[name]) for name, buffer in ours.named_buffers())
    assert list(dict(ours.named_parameters())) == list(dict(theirs.named_parameters()))
    assert ours.trainable().keys() == theirs.trainable().keys()
    assert ours.language_model.encoder.embed_tokens.weight is ours.language_model.shared.weight
    before, batch = (saved / "model.safetensors").read_bytes(), make_batch()
    assert torch.equal(ours.generate(**batch.inputs), theirs.generate(**batch.inputs))
    with torch.no_grad():
        ours.proj_video.weight.add_(1)
    assert (saved / "model.safetensors").read_bytes() == before
