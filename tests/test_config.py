"""Configuration: overrides, refusals by name, round trip."""

import pytest

from videoblip2.config import Config, InputError, flatten, load_config, parse_config, to_yaml


def test_file_then_overrides_in_order(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 1e-3}\ntrain: {steps: 5}\n")
    config = load_config(path, ["optim.lr=1e-5", "train.steps=7", "train.steps=8", "data.prompt=what is heard"])
    assert (config.optim.lr, config.train.steps, config.data.prompt) == (1e-5, 8, "what is heard")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("optim.lr=fast", "optim.lr='fast'"),
        ("optim.lr=-1", "optim.lr=-1"),
        ("color=red", "unknown key 'color'"),
        ("optim.lr", "not of the form key=value"),
        ("seed.x=1", "seed"),
        ("optim.lr={", "override 'optim.lr={': not a valid value"),
        ("optim.lr=inf", "optim.lr=inf: input should be a finite number"),
        ("optim=3", "optim=3: a section; set its keys, such as optim.lr"),
        ("scst.reward.cider=0", "scst.reward={'cider': 0}: every weight is 0"),
        (
            "model.qformer.hidden_size=100",
            "num_attention_heads=12: does not divide model.qformer.hidden_size=100; change",
        ),
    ],
)
def test_what_is_wrong_is_named(override, message):
    with pytest.raises(InputError) as caught:
        parse_config({}, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(("data.prompt", text) for text in ("clip #3 shows", "a video of: ", "what's this: {", '"quoted"', "", "yes")),
        *(("run.name", text) for text in ("2026-11-29", "7e12345", "0x10", "12:30", "- a", "[x", "null and void")),
        *(("run.out", text) for text in ("/x/demo #2", "a: b", "*star", "&x", "@home", "%y", "!tag")),
        *(("train.resume", "12e3" * 8), ("train.start_from", "7e12345"), ("model.modalities", "audio")),
    ],
)
def test_where_a_key_is_text_the_text_is_the_value(tmp_path, key, text):
    config = parse_config({}, [f"{key}={text}"])
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert flatten(config)[key] == text == flatten(load_config(tmp_path / "c.yaml"))[key]


@pytest.mark.parametrize("text", ["~/x y", "$HOME/x y", "${HOME}/x y"])
def test_home_is_replaced_where_paths_are_given(tmp_path, monkeypatch, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text(f"run: {{out: '{text}'}}\ndata: {{prompt: '{text}'}}")
    paths = ("data.annotations", "data.features", "model.language_model", "model.qformer.weights", "train.start_from")
    config = flatten(load_config("~/c.yaml", [f"{key}={text}" for key in paths]))
    assert {config[key] for key in (*paths, "run.out")} == {f"{tmp_path}/x y"}
    assert config["data.prompt"] == text


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=1e-5", "optim.lr", 1e-5),
        ("train.start_from=null", "train.start_from", None),
        ("run.name=", "run.name", None),
        ("model.modalities=[audio]", "model.modalities", "audio"),
        ("model.lora.target_modules=[q, k]", "model.lora.target_modules", ["q", "k"]),
        ("scst.reward.terms.my.rewards:short=-0.5", "scst.reward.terms.my.rewards:short", -0.5),
    ],
)
def test_other_values_are_read_as_yaml(override, key, value):
    assert flatten(parse_config({}, [override]))[key] == value


def test_what_is_wrong_is_the_file_or_an_override(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3")
    with pytest.raises(InputError, match=r"^optim.lr=-1: "):
        load_config(path, ["optim.lr=-1"])
    path.write_text("optim: {lr: -1}")
    assert load_config(path, ["optim.lr=1"]).optim.lr == 1
    with pytest.raises(InputError, match=r"c\.yaml: optim.lr=-1: "):
        load_config(path, ["seed=2"])
    for wrong, named in (("seed=abc", "seed='abc'"), ("optim.lrr=1", "unknown key 'optim.lrr'")):
        with pytest.raises(InputError, match=f"^{named}"):
            load_config(path, ["optim.lr=1e-4", wrong])


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00", "seed: 1\noptim: {lr: 1}\nseed: 2"])
def test_a_file_that_is_no_configuration(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=r"c\.yaml"):
        load_config(path)


def test_missing_file_names_it():
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_round_trip_and_flat_keys(tmp_path):
    config = parse_config({}, ["model.lora.r=4", "optim.betas=[0.9, 0.95]", "train.start_from=null"])
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config
    flat = flatten(config)
    assert flat["model.lora.r"] == 4
    assert not any(isinstance(value, dict) for value in flat.values())


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3
