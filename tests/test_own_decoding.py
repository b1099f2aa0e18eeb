"""A checkpoint decodes as its own configuration says, wherever it is used: what is measured is what is served."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from serving_fakes import eventually_async
from tiny_world import make_world
from tiny_world import tiny_config as world_config

from serving import observe
from serving.engine import Engine
from serving.following import open_servable
from serving.messages import Ask, Options
from serving.service_settings import Settings
from videoblip2.captions import DocumentFrequencies
from videoblip2.cli import main
from videoblip2.config import Decoding, InputError
from videoblip2.data.annotations import question_prompt
from videoblip2.data.batches import collate
from videoblip2.features.store import FeatureStore
from videoblip2.modality import MODALITIES
from videoblip2.model.checkpoint import Checkpoint, save_checkpoint
from videoblip2.model.network import VideoBlip2
from videoblip2.predict import load, load_captioner
from videoblip2.registry.pyfunc_model import CaptionModel
from videoblip2.training.evaluation import evaluate_model

QUESTION = "a dog barks"
BEAMS = "decode.max_new_tokens=2", "decode.num_beams=3", "decode.length_penalty=2"
VOTES = "decode.max_new_tokens=5", "decode.strategy=consensus", "decode.samples=4", "decode.temperature=0.6"
CAPTIONED = {"video0": ["a red circle moves left"], "video1": ["a blue square jumps"]}


@pytest.fixture
def made(tmp_path, tiny_config, tokenizers):
    """(settings) → a checkpoint with these, and its two videos."""
    import torch

    tiny_config.video_dim, tiny_config.audio_dim = 768, 512
    torch.manual_seed(3)
    network = VideoBlip2(tiny_config).eval()
    with torch.no_grad():
        network.language_model.lm_head.weight.normal_(std=0.3)

    def make(*settings):
        config = world_config(make_world(tmp_path, tokenizers), tmp_path, *settings, "data.task=mixed")
        asked = [{"question_id": v, "video_id": v, "question": QUESTION, "answer": "x"} for v in CAPTIONED]
        for split in ("train", "val"):
            (tmp_path / f"{split}_qa.json").write_text(json.dumps(asked))
        extras = {"document_frequencies": DocumentFrequencies.from_references(CAPTIONED).save}
        checkpoint = Checkpoint(network, tokenizers, config.model_dump(mode="json"))
        return save_checkpoint(tmp_path / "best", checkpoint, extras)

    return make


def command(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["vb2", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def shown(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def measured(folder):
    """The caption and the answer of each video, from `vb2 evaluate`."""
    out = folder.parent / "measured.jsonl"
    found = evaluate_model(str(folder), "val", ["run.tracking=false"], out, metrics=("CIDEr",)).evaluation
    return [row.caption for row in found.caption_rows], [row.answer for row in found.answer_rows]


def served(folder, features):
    """What the service says without any option, as a caption and as an answer."""

    observe.metrics()  # before the follower's thread

    async def scenario():
        engine = Engine(Settings(model=str(folder), device="cpu"))
        engine.start()
        try:
            captioner = await eventually_async(lambda: engine.follower.current, 60)
            asks = Ask(), Ask(Options(), question_prompt(QUESTION), question=True)
            return [[a.caption for a in await engine.answer(features, captioner, ask)] for ask in asks]
        finally:
            await engine.stop()

    return asyncio.run(scenario())


@pytest.mark.parametrize("settings", [BEAMS, VOTES], ids=["beams", "consensus"])
def test_what_is_measured_is_what_is_captioned_and_served(made, monkeypatch, capsys, settings):
    folder = made(*settings)
    captions, answers = measured(folder)
    store = folder.parent / "features"
    features = [FeatureStore(store).features(video) for video in CAPTIONED]
    capsys.readouterr()
    assert not command(monkeypatch, "caption", folder, *CAPTIONED, "--features", store, "--json")
    assert [row["caption"] for row in shown(capsys)["captions"]] == captions
    assert not command(monkeypatch, "ask", folder, "video0", QUESTION, "--features", store, "--json")
    assert shown(capsys)["answers"][0]["answer"] == answers[0]
    captioner = load_captioner(folder, "cpu")
    assert [caption.text for caption in captioner.caption(features)] == captions
    assert served(folder, features) == [captions, answers]
    model = CaptionModel()
    model.load_context(SimpleNamespace(artifacts={"checkpoint": str(folder)}))
    rows = [{kind: str(store / kind / f"{video}.npy") for kind in ("video", "audio")} for video in CAPTIONED]
    assert list(model.predict(None, pd.DataFrame(rows), {"prompt": "", "num_beams": 0}).caption) == captions
    assert [caption.text for caption in captioner.caption(features, decoding=Decoding())] != captions


def test_the_network_generates_as_its_checkpoint_decodes(made, tokenizers):
    folder = made(*BEAMS)
    items = [FeatureStore(folder.parent / "features").features(video) for video in CAPTIONED]
    network = load(folder, "cpu")
    inputs = collate([*CAPTIONED], items, [network.config.prompt] * 2, tokenizers, 10).inputs
    assert tokenizers.texts(network.generate(**inputs)[:, 1:]) == measured(folder)[0]
    assert network.generate(**inputs, max_new_tokens=4, num_beams=1).shape[1] > 3


def test_an_option_replaces_one_setting_and_a_file_never_mixes_two(made, monkeypatch, capsys):
    folder = made(*BEAMS)
    words = ["caption", folder, "video0", "--features", folder.parent / "features"]
    out = folder.parent / "out.jsonl"
    assert not command(monkeypatch, *words, "--out", out, "--max-new-tokens", "4")
    options = json.loads(out.read_text().splitlines()[0])["options"]
    assert options == "beams=3 length_penalty=2.0 max_new_tokens=4"
    file = folder / "config.yaml"
    file.write_text((text := file.read_text()).replace("max_new_tokens: 2", "max_new_tokens: 4"))
    assert not command(monkeypatch, *words, "--out", out)  # the same settings, now the checkpoint's own
    file.write_text(text)
    capsys.readouterr()
    assert command(monkeypatch, *words, "--out", out) == 1
    assert "(beams=3 length_penalty=2.0 max_new_tokens=2) and 'best-" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--samples 3 --num-beams 3", "num_beams=3: beam search takes no samples and no seed; leave one out"),
        ("--samples 3 --consensus 3", "--samples 3: consensus gives one caption"),
        ("--samples 2 --temperature -1", "temperature=-1.0: give a positive number"),
        ("--samples 2 --temperature nan", "temperature=nan: give a positive number"),
        ("--samples 2 --temperature 0", "temperature=0.0: give a positive number"),
        ("--temperature 0.5", "--temperature 0.5: nothing is sampled; add --samples or --consensus"),
        ("--length-penalty inf", "length_penalty=inf: give a finite number"),
        ("--keep-features kept", "--keep-features kept: the features are in --features"),
    ],
)
def test_options_that_would_be_ignored_or_give_nonsense_are_refused(made, monkeypatch, capsys, words, message):
    folder = made(*BEAMS)
    given = ["video0", "--features", folder.parent / "features", *words.split()]
    assert command(monkeypatch, "caption", folder, *given) == 1
    assert message in capsys.readouterr().err


def test_drawing_samples_replaces_the_beams_or_the_consensus_of_the_checkpoint():
    own = Decoding(3, 8, 2.0, 0.6, consensus=5)
    assert own.but(sampled=True) == Decoding(1, 8, 2.0, 1.0, sampled=True)
    assert own.but(num_beams=1, temperature=0.9, consensus=None) == Decoding(1, 8, 2.0, 0.9, consensus=5)
    assert Options(seed=4).decoding(own) == own and Options(seed=4, consensus=0).decoding(own).sampled
    with pytest.raises(InputError, match="num_beams=2: beam search takes no samples and no seed"):
        Options(seed=4, num_beams=2, consensus=0).decoding(own)


@pytest.mark.parametrize(("key", "value"), [("num_beams", 11), ("samples", 65), ("max_new_tokens", 129)])
def test_a_checkpoint_beyond_the_limits_of_the_service_is_not_served(made, key, value):
    folder = made(f"decode.{key}={value}", "decode.strategy=consensus")
    message = rf"^{folder}: decode.{key}={value}: input .*; promote a model within these limits of the service$"
    with pytest.raises(InputError, match=message):
        open_servable(str(folder))


def test_settings_that_the_checkpoint_does_not_use_may_be_beyond_the_limits_of_the_service(made):
    assert open_servable(str(made("decode.temperature=0.01", "decode.length_penalty=9"))).decode.temperature == 0.01


@pytest.mark.parametrize(("old", "new"), [("  name: ", "  name: x/"), ("cider: 1.0", "cider: 0"), ("seed: ", "sed: ")])
def test_only_how_it_decodes_must_fit_this_version_to_caption_and_serve(made, monkeypatch, old, new):
    file = (folder := made(*BEAMS)) / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace(old, new))
    assert old in text
    assert not command(monkeypatch, "caption", folder, "video0", "--features", folder.parent / "features")
    assert open_servable(str(folder), "cpu").captioner.model.decoding.num_beams == 3


def test_a_checkpoint_without_its_configuration_is_copied_again(made, monkeypatch, capsys):
    ((folder := made()) / "config.yaml").unlink()
    assert command(monkeypatch, "caption", folder, "video0", "--features", folder.parent / "features") == 1
    assert f"error: checkpoint {folder}: no config.yaml; train or copy it again\n" in capsys.readouterr().err


def test_beams_that_no_memory_holds_are_refused():
    with pytest.raises(InputError, match=r"decode.num_beams=100000: input should be less than or equal to 100"):
        world_config(Path(), Path(), "decode.num_beams=100000")


def test_a_modality_that_no_media_file_gives_is_named_once(made, monkeypatch, capsys):
    monkeypatch.setattr("videoblip2.features.media_features.load_encoders", lambda *_: None)
    captioner = load_captioner(folder := made(), "cpu")
    capsys.readouterr()
    captioner.load_media_encoders()
    assert not capsys.readouterr().err
    monkeypatch.setitem(MODALITIES, "audio", replace(MODALITIES["audio"], extracted=False))
    captioner = load_captioner(folder, "cpu")
    for _ in range(2):
        captioner.load_media_encoders()
    warning = "reads audio, which media files do not give; use features to caption with it"
    assert capsys.readouterr().err == f"warning: {folder} {warning}\n"
