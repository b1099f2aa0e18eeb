"""The Captioner: one and many, bad features named, a bad video beside good ones."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from videoblip2.captioner import Captioner, pick_device
from videoblip2.config import Decoding, InputError
from videoblip2.features.sources import VideoSource
from videoblip2.jobs.caption import CaptionOptions, JobPlan
from videoblip2.model.checkpoint import Checkpoint, save_checkpoint
from videoblip2.predict import load, load_captioner
from videoblip2.provenance import FeatureOrigin, FeatureSampling, Provenance


@pytest.fixture
def captioner(tiny_model, tokenizers):
    return Captioner(tiny_model, tokenizers, model_name="tiny", version="1")


SHORT = Decoding(max_new_tokens=10)
DRAWN = Decoding(max_new_tokens=10, temperature=1.5, sampled=True)


def item(frames=4, windows=3, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"video": (frames, 24), "audio": (windows, 12)}
    return {name: rng.normal(size=size).astype("float32") for name, size in sizes.items()}


@pytest.mark.parametrize("beams", [1, 3])
def test_one_alone_is_one_among_many(captioner, beams):
    items = [item(2, 0, 1), item(7, 3, 2), item(4, 1, 3)]
    together = captioner.caption(items, decoding=Decoding(beams, max_new_tokens=10))
    for single, among in zip(items, together, strict=True):
        (alone,) = captioner.caption([single], decoding=Decoding(beams, max_new_tokens=10))
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
        captioner.caption([{"video": video, "audio": audio}])


def test_a_modality_left_out_is_one_without_rows(captioner):
    whole = item(4, 0)
    assert captioner.caption([{"video": whole["video"]}]) == captioner.caption([whole])
    with pytest.raises(InputError, match=r"item 0: video features of shape \[0, 24\]"):
        captioner.caption([{"audio": item()["audio"]}])


def test_an_item_is_cut_to_what_the_model_reads(captioner):
    long = item(1000, 2, 5)
    cut = captioner.cut(long)
    assert len(cut["video"]) == captioner.model.config.max_positions and len(cut["audio"]) == 2
    assert (cut["video"][[0, -1]] == long["video"][[0, -1]]).all()
    assert captioner.caption([cut], decoding=SHORT) == captioner.caption([long], decoding=SHORT)


def test_patch_tokens_are_not_counted_as_frames(captioner):
    item = {"video": np.zeros((40, 768), np.float32), "audio": np.zeros((3, 512), np.float32)}
    for tokens, frames, length in (("pooled", None, 20), ("patch", None, 6), ("patch", 10, 5)):
        made = FeatureOrigin(settings=FeatureSampling(fps=2, window_seconds=2, tokens=tokens))
        one = replace(captioner, provenance=captioner.provenance.model_copy(update={"features": made}))
        assert one.timeline(item, frames) == (length, 2)


def test_a_checkpoint_captions_like_its_model(captioner, tmp_path):
    folder = save_checkpoint(tmp_path / "best", Checkpoint(captioner.model, captioner.tokenizers))
    loaded = load_captioner(folder, "cpu")
    assert loaded.caption([item()], decoding=SHORT) == captioner.caption([item()], decoding=SHORT)
    assert not load(folder, "cpu").training


def test_media_without_known_encoders_says_once_what_to_do(captioner):
    with pytest.raises(InputError, match="manifest"):
        captioner.load_media_encoders()


@pytest.fixture
def project(tiny_model, tokenizers, encoders, tmp_path):
    """A folder with a model in runs/ce/best and the encoders of its features in encoders/."""
    home = tmp_path / "home"
    named = {kind: home / "encoders" / kind for kind in ("clip", "clap")}
    for kind, folder in named.items():
        shutil.copytree(getattr(encoders, kind).identity.name, folder)
    origin = {
        kind: {"name": str(folder), "fingerprint": getattr(encoders, kind).identity.fingerprint}
        for kind, folder in named.items()
    }
    provenance = Provenance.model_validate({"features": {**origin, "settings": {"fps": 4.0, "window_seconds": 1.0}}})
    save_checkpoint(home / "runs" / "ce" / "best", Checkpoint(tiny_model, tokenizers, provenance=provenance))
    return home


def test_encoders_are_found_in_a_project_that_moved(project, tmp_path):
    project.rename(tmp_path / "elsewhere")
    captioner = load_captioner(tmp_path / "elsewhere" / "runs" / "ce" / "best", "cpu")
    assert captioner.media_encoders.clip.identity.name == str(tmp_path / "elsewhere" / "encoders" / "clip")


@pytest.mark.parametrize("place", ["named", "inside"])
def test_a_checkpoint_that_was_copied_alone_takes_its_encoders_by_name_or_inside(project, tmp_path, place):
    copied, there = tmp_path / "other" / "model", tmp_path / "mine"
    shutil.copytree(project / "runs" / "ce" / "best", copied)
    shutil.move(project / "encoders", there)
    with pytest.raises(InputError, match=r"encoders/clip: no such folder.*--clip.*model/encoders/clip"):
        load_captioner(copied, "cpu").load_media_encoders()
    given = {kind: str(there / kind) for kind in ("clip", "clap")} if place == "named" else {}
    if place == "inside":
        there.rename(copied / "encoders")
    loaded = load_captioner(copied, "cpu", given).media_encoders
    assert loaded.clap.identity.name == (given.get("clap") or str(copied / "encoders" / "clap"))


@pytest.mark.parametrize("kind", ["clip", "clap"])
def test_an_encoder_of_other_weights_is_refused(project, tmp_path, kind):
    from videoblip2.toy.networks import build_toy_clap, build_toy_clip

    other = {"clip": build_toy_clip, "clap": build_toy_clap}[kind](tmp_path / "other", 1)
    with pytest.raises(InputError, match=rf"other: is {kind.upper()} \w+, .*needs features of \w+; .*--{kind}"):
        load_captioner(project / "runs" / "ce" / "best", "cpu", {kind: str(other)}).load_media_encoders()


@pytest.mark.parametrize("settings", [{"fps": 240.5}, {"output": "new"}, {"frames": 3, "max_frames": 3}])
def test_features_made_with_settings_of_another_version_can_be_captioned_but_media_files_cannot(project, settings):
    file = project / "runs" / "ce" / "best" / "provenance.json"
    content = json.loads(file.read_text())
    content["features"]["settings"] = settings
    file.write_text(json.dumps(content))
    captioner = load_captioner(file.parent, "cpu")
    key, value = next(iter(settings.items()))
    with pytest.raises(InputError, match=f"best: its features: {key}={value!r}: "):
        captioner.load_media_encoders()


@pytest.mark.parametrize(
    ("known", "warns", "refuses"),
    [
        ({}, False, False),
        ({"descriptions": ["VideoBLIP2 toy world"], "kinds": ["captions"]}, True, True),
        ({"descriptions": ["VideoBLIP2 toy world", "mine"], "kinds": ["answers"]}, False, False),
        ({"descriptions": ["mine"], "kinds": ["answers", "captions"]}, False, False),
    ],
)
def test_what_a_model_was_taught_decides_what_is_said(captioner, known, warns, refuses, tmp_path):
    captioner.provenance = Provenance.model_validate(known)
    folder = save_checkpoint(
        tmp_path / "best", Checkpoint(captioner.model, captioner.tokenizers, provenance=captioner.provenance)
    )
    card, loaded = (folder / "README.md").read_text(encoding="utf-8"), load_captioner(folder, "cpu")
    assert ("toy world only" in loaded.provenance.warning) == ("toy world only" in card) == warns
    assert ("it was never trained on questions" in card) == loaded.never_asked == refuses
    with pytest.raises(InputError, match="never trained on questions.*task=qa" if refuses else "no packed features"):
        job = JobPlan(str(folder), CaptionOptions(questions=("a dog?",)), store=tmp_path / "none").open()
        next(job.run([VideoSource("video0")], {}))


@pytest.mark.parametrize("name", ["warp", "cuda:0"])
def test_a_device_that_is_not_there(monkeypatch, name):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"device={name}"):
        pick_device(name)


def test_a_drawn_caption_depends_on_its_seed_and_not_on_its_batch(captioner):
    items = [item(2, 0, 1), item(7, 3, 2), item(4, 1, 3)]
    together = captioner.caption(items, decoding=DRAWN, seeds=[5, 6, 2**63 - 1])
    for one, seed, among in zip(items, [5, 6, 2**63 - 1], together, strict=True):
        (alone,) = captioner.caption([one], decoding=DRAWN, seeds=[seed])
        assert alone.text == among.text
    others = captioner.caption(items, decoding=DRAWN, seeds=[7, 8, 9])
    assert [one.text for one in others] != [one.text for one in together]


def test_a_prompt_an_item_is_the_same_as_alone(captioner):
    items = [item(2, 0, 1), item(7, 3, 2)]
    together = captioner.caption(items, prompt=["a dog barks at a man", None], decoding=SHORT)
    (first,) = captioner.caption(items[:1], prompt="a dog barks at a man", decoding=SHORT)
    (second,) = captioner.caption(items[1:], decoding=SHORT)
    assert [one.text for one in together] == [first.text, second.text]


@pytest.mark.parametrize("seeds", [None, [1, 2]])
def test_who_watches_sees_the_captions_grow_to_what_they_become(captioner, seeds):
    seen = []
    final = captioner.caption(
        [item(2), item(5, 1, 4)], decoding=replace(SHORT, sampled=bool(seeds)), seeds=seeds, watch=seen.append
    )
    assert seen[-1] == [caption.text for caption in final]
    assert len(seen) > 2
    for before, after in itertools.pairwise(seen):
        assert all(new.startswith(old) for old, new in zip(before, after, strict=True))


def test_warming_up_needs_no_media_encoders_and_loading_them_says_what_is_missing(captioner):
    captioner.warm()
    with pytest.raises(InputError, match="model tiny: its features have no manifest"):
        captioner.load_media_encoders()


def test_models_with_the_same_encoders_and_settings_have_the_same_encoders_name(tiny_model, tokenizers):
    def name(clip="c1", fps=1.0):
        settings = {"fps": fps, "max_frames": None, "window_seconds": 1.0}
        features = {"clip": {"fingerprint": clip}, "clap": {"fingerprint": "a"}, "settings": settings}
        return Captioner(tiny_model, tokenizers, Provenance.model_validate({"features": features})).encoders_name

    assert name() == name()
    assert len({name(), name(clip="c2"), name(fps=2.0)}) == 3
