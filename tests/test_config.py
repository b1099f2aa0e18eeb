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
        ("colour=red", "unknown key 'colour'"),
        ("optim.lr", "not of the form key=value"),
        ("seed.x=1", "seed"),
    ],
)
def test_what_is_wrong_is_named(override, message):
    with pytest.raises(InputError) as caught:
        parse_config({}, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
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
