"""Environment variables to settings."""

import re

import pytest
from conftest import ROOT

from serving import service_settings
from serving.service_settings import Settings, read_settings
from videoblip2.config import InputError


def test_nothing_set_follows_the_champion():
    assert read_settings({"VB2_MODEL": "", "PATH": "/bin"}) == Settings()
    assert read_settings({}).address == "models:/videoblip2@champion"


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({"VB2_MODEL": "runs/ce"}, "runs/ce"),
        ({"VB2_PIN": "3"}, "models:/videoblip2/3"),
        ({"VB2_PIN": "3", "VB2_MODEL": "models:/other@champion"}, "models:/other/3"),
        ({"VB2_PIN": "3", "VB2_MODEL": "models:/other/1"}, "models:/other/3"),
    ],
)
def test_the_model_and_its_pin(environment, address):
    assert read_settings(environment).address == address


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"VB2_MAX_BATCH": "many"}, "VB2_MAX_BATCH='many': input should be a valid integer"),
        ({"VB2_MAX_BATCH": "0"}, "VB2_MAX_BATCH='0': input should be greater than or equal to 1"),
        ({"VB2_TIMEOUT_SECONDS": "nan"}, "VB2_TIMEOUT_SECONDS='nan'"),
        ({"VB2_MAX_UPLOAD_MB": "inf"}, "VB2_MAX_UPLOAD_MB='inf'"),
        ({"VB2_DECODERS": "-1"}, "VB2_DECODERS='-1'"),
        ({"VB2_LOG_LEVEL": "loud"}, "VB2_LOG_LEVEL='loud': input should be 'DEBUG', 'INFO'"),
        ({"VB2_PIN": "3", "VB2_MODEL": "runs/ce"}, "VB2_PIN=3: VB2_MODEL=runs/ce has no versions"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(environment, message):
    with pytest.raises(InputError, match=message) as caught:
        read_settings(environment)
    assert "\n" not in str(caught.value)


def test_a_model_baked_in_goes_before_the_champion_and_has_no_versions(monkeypatch):
    monkeypatch.setattr(service_settings, "baked_model", lambda: "/bento/src/model")
    assert read_settings({}).address == "/bento/src/model"
    assert read_settings({"VB2_MODEL": "runs/ce"}).address == "runs/ce"
    with pytest.raises(InputError, match="VB2_PIN=3: the model baked into this Bento has no versions"):
        read_settings({"VB2_PIN": "3"})


def test_keys_are_separated_by_commas_and_never_shown():
    settings = read_settings({"VB2_API_KEY": "secret, second,"})
    assert settings.api_keys == ("secret", "second")
    assert "secret" not in repr(settings)


def test_every_setting_and_its_default_stand_in_the_table():
    rows = re.findall(r"^\| `(VB2_[A-Z_]+)` \| (.*?) \|", (ROOT / "docs" / "serving.md").read_text(), re.MULTILINE)
    fields = {f"VB2_{name.upper()}": field.default for name, field in Settings.model_fields.items()}
    assert {name for name, _ in rows} == set(fields)
    for name, told in rows:
        assert fields[name] in (None, "") or told == str(fields[name]).removesuffix(".0")
