"""Other features than CLIP's and CLAP's, from outside the package: a third modality, and frames of another width."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT, plug_in
from tiny_world import make_world, tiny_config

from videoblip2 import modality
from videoblip2.config import InputError, load_config, parse_config, to_yaml
from videoblip2.features.pack import pack_features
from videoblip2.features.store import FeatureStore, check_features, digest
from videoblip2.modality import Modality, modality_label
from videoblip2.model.checkpoint import load_checkpoint
from videoblip2.predict import load_captioner
from videoblip2.training.stage import run_stage

UNTRACKED = ("run.tracking=false", "run.name=run", "train.steps=2", "train.validate_every=1")
FLOW = "model.modalities=[video, audio, flow]"


def block(language):
    """The only block of a language in the page on adding a modality."""
    page = (ROOT / "docs" / "how-to" / "add-a-modality.md").read_text()
    (found,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return found


@pytest.fixture
def world(tokenizers, tmp_path):
    return make_world(tmp_path, tokenizers)


@pytest.fixture
def flow(monkeypatch, world):
    """A store that has optical flow beside frames and sound; the second video has none."""
    monkeypatch.setitem(modality.MODALITIES, "flow", None)  # to be undone
    plug_in("my_flow", block("python"), world, monkeypatch)
    (world / "features" / "flow").mkdir()
    rows = np.random.default_rng(7).normal(size=(4, 256)).astype("float32")
    for name, array in (("video0", rows), ("video1", rows[:0])):
        np.save(world / "features" / "flow" / f"{name}.npy", array)
    return world


def train(world, features, *overrides):
    config = tiny_config(world, world / "runs", *UNTRACKED, f"data.features={features}", *overrides)
    return run_stage("ce", config)


@pytest.mark.parametrize("packed", [False, True])
def test_a_third_modality_is_one_entry_of_the_table(flow, packed):
    store = flow / "features"
    if packed:
        report = pack_features(store, flow / "packed.safetensors")
        assert report.kinds["flow"] == "float32"
        assert len({digest(FeatureStore(root), ["video0", "video1"]) for root in (store, report.out)}) == 1
        store = report.out
    assert check_features(store).ok
    model = yaml.safe_load(block("yaml"))["model"]
    train(flow, store, *(f"model.{key}={json.dumps(value)}" for key, value in model.items()))
    del modality.MODALITIES["flow"], sys.modules["my_flow"]  # as in another process
    captioner = load_captioner(flow / "runs" / "run" / "best", "cpu")
    assert captioner.model.config.widths == {"video": 768, "audio": 512, "flow": 256}
    item = captioner.store(store).features("video0")
    shapes = {name: array.shape for name, array in item.items()}
    assert shapes == {"video": (3, 768), "audio": (2, 512), "flow": (4, 256)}
    lengths = {name: len(weights) for name, weights in captioner.attention(item).items()}
    assert lengths == {"video": 3, "audio": 2, "flow": 4}
    still = {name: array for name, array in item.items() if name != "flow"}
    assert captioner.caption([item])[0].score != captioner.caption([still])[0].score
    assert "flow features [rows, 256]" in (flow / "runs" / "run" / "best" / "README.md").read_text()


def test_a_network_reads_any_choice_of_the_table(flow, monkeypatch, capsys):
    for path in (flow / "features" / "flow").glob("*.npy"):
        np.save(path, np.ones((2, 100), np.float32))
    train(flow, flow / "features", "model.modalities=[flow]", "model.widths={flow: 100}")
    model = load_checkpoint(flow / "runs" / "run" / "best").model
    assert model.config.widths == {"flow": 100}
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert parts == {"flow_branch", "proj_flow", "language_model"}
    monkeypatch.delenv("VB2_PLUGINS")
    del modality.MODALITIES["flow"]
    with pytest.raises(InputError, match=r"best: its .*'flow' is not a modality; .*; VB2_PLUGINS names modules"):
        load_captioner(flow / "runs" / "run" / "best", "cpu")
    capsys.readouterr()
    pack_features(flow / "features", flow / "packed.safetensors")
    warning = "flow: left out, since it is not a modality; VB2_PLUGINS names modules that add others\n"
    assert capsys.readouterr().err == f"warning: {flow}/features/{warning}"


def test_features_that_a_run_does_not_read_leave_its_digest_alone(flow):
    store, ids = flow / "features", ["video0", "video1"]
    read = digest(FeatureStore(store, ("video",)), ids)
    assert read == digest(FeatureStore(store, ("video", "audio")), ids) != digest(FeatureStore(store), ids)
    shutil.rmtree(store / "flow")
    assert read == digest(FeatureStore(store), ids)


def test_frames_of_another_width(world):
    """From the store's files to a caption: nothing but the configuration fixes a width."""
    store, packed = world / "features", world / "packed.safetensors"
    for path in (store / "video").glob("*.npy"):
        np.save(path, np.ones((3, 1024), np.float32))
    pack_features(store, packed)
    with pytest.raises(InputError, match=r"video features are 1024 wide, .*; set model\.video_dim=1024"):
        train(world, packed)
    train(world, packed, "model.video_dim=1024")
    captioner = load_captioner(world / "runs" / "run" / "best", "cpu")
    assert captioner.caption([captioner.store(packed).features("video0")])[0].text is not None


def test_a_width_in_the_table_of_widths_is_checked_against_the_store(flow):
    with pytest.raises(InputError, match=r"flow features are 256 wide, model\.widths\.flow=100; set model\.widths"):
        train(flow, flow / "features", FLOW, "model.widths.flow=100")


@pytest.mark.parametrize(
    ("setting", "names", "label"),
    [
        ("both", ("video", "audio"), "both"),
        (["audio", "video"], ("video", "audio"), "both"),
        ("audio", ("audio",), "audio"),
        (["audio"], ("audio",), "audio"),
        (["flow", "video"], ("video", "flow"), "video+flow"),
    ],
)
def test_modalities_of_a_configuration(monkeypatch, tmp_path, setting, names, label):
    monkeypatch.setitem(modality.MODALITIES, "flow", Modality("flow", 256))
    config = parse_config({"model": {"modalities": setting, "widths": {"flow": 300}}})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert config.model.modality_names == names and modality_label(config.model.modalities) == label
    assert [config.model.width(name) for name in ("video", "audio", "flow")] == [768, 512, 300]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.modalities=smell", "'smell' is not a modality; use both or names from video, audio"),
        ("model.modalities=[]", "no modality"),
        ("model.widths={smell: 3}", "'smell' is not another modality"),
        ("model.widths={video: 3}", "'video' is not another modality"),
    ],
)
def test_names_that_are_not_in_the_table(override, message):
    with pytest.raises(InputError, match=message):
        parse_config({}, [override])
