"""The Captioner: one and many, bad features named, a bad video beside good ones."""

import numpy as np
import pytest

from videoblip2.config import InputError
from videoblip2.model.checkpoint import Checkpoint, save_checkpoint
from videoblip2.predict import Captioner, caption_each, load, load_captioner, pick_device


@pytest.fixture
def captioner(tiny_model, tokenizers):
    return Captioner(tiny_model, tokenizers, {}, "tiny", "1")


def item(frames=4, windows=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(frames, 24)).astype("float32"), rng.normal(size=(windows, 12)).astype("float32")


@pytest.mark.parametrize("beams", [1, 3])
def test_one_alone_is_one_among_many(captioner, beams):
    items = [item(2, 0, 1), item(7, 3, 2), item(4, 1, 3)]
    together = captioner.caption(items, num_beams=beams, max_new_tokens=10)
    for single, among in zip(items, together, strict=True):
        (alone,) = captioner.caption([single], num_beams=beams, max_new_tokens=10)
        assert alone.text == among.text
        assert alone.score == pytest.approx(among.score, abs=1e-4)


@pytest.mark.parametrize(
    ("video", "audio", "message"),
    [
        (np.zeros((3, 25), "float32"), np.zeros((0, 12), "float32"), r"item 0: video features of shape \[3, 25\]"),
        (np.zeros((0, 24), "float32"), np.zeros((1, 12), "float32"), "item 0: video"),
        (np.zeros((3, 24), "float32"), np.zeros((1, 13), "float32"), "item 0: audio"),
        (np.full((3, 24), np.nan, "float32"), np.zeros((1, 12), "float32"), "NaN"),
    ],
)
def test_wrong_features_are_named(captioner, video, audio, message):
    with pytest.raises(InputError, match=message):
        captioner.caption([(video, audio)])


def test_a_checkpoint_captions_like_its_model(captioner, tmp_path):
    folder = save_checkpoint(tmp_path / "best", Checkpoint(captioner.model, captioner.tokenizers))
    loaded = load_captioner(folder, "cpu")
    assert loaded.caption([item()], max_new_tokens=10) == captioner.caption([item()], max_new_tokens=10)
    assert not load(folder, "cpu").training


def test_media_without_known_encoders_says_what_to_do(captioner):
    rows = list(caption_each(captioner, ["a.mp4"]))
    assert rows == [{"video": "a.mp4", "error": rows[0]["error"]}]
    assert "manifest" in rows[0]["error"]


@pytest.mark.parametrize("name", ["warp", "cuda:0"])
def test_a_device_that_is_not_there(monkeypatch, name):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"device={name}"):
        pick_device(name)
