"""README's blocks on data run as written, on small random weights of the real layouts in a cache like the hub's."""

import os
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import reference_qformer
import yaml
from conftest import ROOT
from huggingface_hub import constants
from reference_qformer import bert_state, lavis_state, saved
from tracking_store import place_store
from transformers import BertConfig
from typer.testing import CliRunner

from videoblip2.cli import app
from videoblip2.config import load_config
from videoblip2.model.weight_fetch import KNOWN
from videoblip2.toy.networks import LanguageModelConfig, build_t5, build_toy_clap, build_toy_clip
from videoblip2.toy.world import write_toy_world


def commands(heading):
    """The commands of the one block under a heading of the README, without comments."""
    section = re.search(rf"^## {heading}$(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    return [shlex.split(line, comments=True)[1:] for line in section.splitlines() if line.startswith("    vb2 ")]


def figures(text):
    """Every number with a decimal, and every interval: `31.9`, `31.9 [20.5, 43.3]`."""
    number = r"-?\d+\.\d\b"
    plain = text.replace("+", "").replace("−", "-")
    return {*re.findall(number, plain), *re.findall(rf"{number} \[{number}, {number}\]", plain)}


def test_the_readme_quotes_no_figure_but_those_of_the_page_of_results():
    section = (ROOT / "README.md").read_text().partition("## Try it")[2].partition("\n## ")[0]
    found = figures(section)
    assert len(found) >= 30 and found <= figures((ROOT / "experiments" / "RESULTS.md").read_text())


def in_cache(cache, name, make):
    """A repository in the hub's cache, its snapshot filled by `make`."""
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    folder.mkdir(parents=True)
    make(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(folder.name)


@pytest.fixture(scope="module")
def supplies(tmp_path_factory, tokenizers):
    """A hub cache, BLIP-2's file, videos with sound and their captions as MSR-VTT publishes them."""
    root, vocabulary = tmp_path_factory.mktemp("supplies"), len(tokenizers.bert)
    sizes = LanguageModelConfig(d_model=16, d_ff=16, num_heads=2, num_layers=1)

    def t5(folder):
        build_t5(len(tokenizers.text), sizes).save_pretrained(folder)
        tokenizers.text.save_pretrained(folder)

    def bert(folder):
        saved(folder / "model.safetensors", bert_state(vocab=vocabulary))
        BertConfig(vocab_size=vocabulary).save_pretrained(folder)
        tokenizers.bert.save_pretrained(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_qformer, "WIDTH", 24)  # the real files have twelve heads
        in_cache(root / "hub", "bert-base-uncased", bert)
        (root / "models").mkdir()
        saved(root / "models" / "blip2_pretrained_flant5xl.pth", lavis_state(text=False), wrap=True)
    in_cache(root / "hub", "google/flan-t5-base", t5)
    in_cache(root / "hub", "openai/clip-vit-large-patch14", lambda folder: build_toy_clip(folder, 0))
    in_cache(root / "hub", "laion/clap-htsat-unfused", lambda folder: build_toy_clap(folder, 0))
    world = write_toy_world(root / "toy", 30, 0)
    for archive, annotations in zip(
        ("train_val_annotation.zip", "test_videodatainfo.json.zip"), world.annotations, strict=True
    ):
        with zipfile.ZipFile(root / archive, "w") as zipped:
            zipped.write(annotations, Path(annotations).name)
    return root


@pytest.fixture
def clone(tmp_path, supplies, monkeypatch):
    """The root of a clone with all supplies; its experiments are as published, but for the number of steps."""
    place_store(tmp_path, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(supplies / "hub"))
    monkeypatch.setattr(shutil, "which", lambda name, *_, **__: None)  # no Java: METEOR takes seconds
    monkeypatch.setattr(os, "execve", lambda *call: None)
    for name in ("models", "experiments"):
        shutil.copytree((ROOT if name == "experiments" else supplies) / name, tmp_path / name)
    for path in (tmp_path / "experiments").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        if "train" in content:
            content["train"] |= {"steps": 2, "validate_every": 2, "batch_size": 2}
            path.write_text(yaml.safe_dump(content))
    shutil.copytree(supplies / "toy" / "videos", tmp_path / "videos")
    return tmp_path


def run(heading):
    """Run a block as it is written, with the ids of its runs in their places; what each command printed."""
    ids, said = {}, []
    for words in commands(heading):
        words = [re.sub("CE_RUN|SCST_RUN", lambda name: ids[name[0]], word) for word in words]
        result = CliRunner().invoke(app, words)
        if words[0] == "promote" and "does not pass the gate" in str(result.exception):  # two steps from random weights
            result = CliRunner().invoke(app, [*words, "--force", "--reason", "a test"])
        assert result.exit_code == 0, (words, result.output, result.exception)
        if found := re.search(r"^run: (\w{32})$", result.stdout, re.MULTILINE):
            ids[f"{words[0].upper()}_RUN"] = found[1]
        said.append(result.stdout)
    return said


@pytest.mark.slow
def test_the_block_on_msrvtt(clone, supplies):
    for archive in supplies.glob("*.zip"):
        shutil.copy(archive, clone)
    said = run("MSR-VTT on a GPU")
    assert "CIDEr" in said[-1]


@pytest.mark.slow
def test_the_block_on_your_own_videos(clone):
    for n in range(30):  # these names put 4 videos in val.json
        (clone / "videos" / f"video{n}.mp4").rename(clone / "videos" / f"take{n}.mp4")
    things, deeds = ("a red circle", "a blue square", "the star", "a dog"), ("moves left", "jumps", "is quiet", "barks")
    said = [f"{things[n % 4]} {deeds[n // 4 % 4]}" for n in range(30)]
    rows = [f"take{n},{text}" for n in range(30) for text in (said[n], f"{said[n]} at {things[n % 3]}")]
    (clone / "captions.csv").write_text("\n".join(["video_id,caption", *rows, "gone,a video that nobody has"]))
    shutil.copy(clone / "videos" / "take0.mp4", clone / "clip.mp4")
    said = run("Your own videos")
    assert any("left out, not in features/own: 1 video (gone)" in text for text in said)
    assert said[-2].startswith("clip.mp4: ")


def test_what_the_blocks_write_is_not_committed():
    written = ["data/own/train.json", "features/own/manifest.json", "models/blip2_pretrained_flant5xl.pth", "runs/ce/x"]
    kept = ["src/videoblip2/data/prepare.py", "src/videoblip2/features/store.py", "tests/data/test_prepare.py"]
    ask = ["git", "check-ignore", "--no-index", *written, *kept]
    assert subprocess.run(ask, cwd=ROOT, capture_output=True, text=True).stdout.split() == written


def test_the_blocks_read_what_they_write():
    for heading, names in (
        ("Your own videos", ("own_ce", "own_scst")),
        ("MSR-VTT on a GPU", ("msrvtt_ce", "msrvtt_scst")),
    ):
        made = [word for words in commands(heading) for word in words]
        for config in (load_config(ROOT / "experiments" / f"{name}.yaml") for name in names):
            assert {config.data.annotations, config.data.features} <= set(made)
            assert config.model.qformer.weights in (None, f"models/{KNOWN['blip2-flant5xl'].url.rpartition('/')[2]}")
