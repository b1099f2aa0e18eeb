"""Environment variables to settings."""

import pytest

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
        ({"VB2_MAX_BATCH": "many"}, "VB2_MAX_BATCH=many: input should be a valid integer"),
        ({"VB2_MAX_BATCH": "0"}, "VB2_MAX_BATCH=0: input should be greater than or equal to 1"),
        ({"VB2_TIMEOUT_SECONDS": "nan"}, "VB2_TIMEOUT_SECONDS=nan"),
        ({"VB2_PIN": "3", "VB2_MODEL": "runs/ce"}, "VB2_PIN=3: VB2_MODEL=runs/ce has no versions"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(environment, message):
    with pytest.raises(InputError, match=message) as caught:
        read_settings(environment)
    assert "\n" not in str(caught.value)
