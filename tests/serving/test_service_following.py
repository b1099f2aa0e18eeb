"""Following a model: what comes into service, what stays, what is said."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving_fakes import FakeCaptioner

from serving import following
from serving.following import Follower
from videoblip2.config import InputError
from videoblip2.predict import FoundModel


class Registry:
    """An alias that moves, and models that load or do not."""

    def __init__(self):
        self.version, self.gone, self.broken, self.loads = 1, "", set(), []

    def find(self, model):
        if self.gone:
            raise InputError(self.gone)
        return FoundModel(Path(f"/models/{self.version}"), f"videoblip2/{self.version}")

    def load(self, found, model, device):
        self.loads.append(found.version)
        if found.version in self.broken:
            raise OSError("model.safetensors: torn")
        return FakeCaptioner(found.version)


@pytest.fixture
def registry(monkeypatch):
    registry = Registry()
    monkeypatch.setattr(following, "find_model", registry.find)
    monkeypatch.setattr(following, "load_warm", registry.load)
    return registry


@pytest.fixture
def follower(registry):
    return Follower("models:/videoblip2@champion")


def test_a_promotion_and_a_rollback_are_followed(registry, follower):
    assert follower.current is None
    seen = []
    for version in (1, 2, 1):
        registry.version = version
        assert follower.look() is True
        assert follower.look() is False
        seen.append(follower.current.version)
    assert seen == ["videoblip2/1", "videoblip2/2", "videoblip2/1"]
    assert registry.loads == seen


def test_a_request_keeps_the_model_it_began_with(registry, follower):
    follower.look()
    held = follower.current
    registry.version = 2
    follower.look()
    assert (held.version, follower.current.version) == ("videoblip2/1", "videoblip2/2")


def test_a_version_that_does_not_load_leaves_the_old_one_and_is_tried_again_later(
    registry, follower, caplog, monkeypatch
):
    follower.look()
    registry.version, registry.broken = 2, {"videoblip2/2"}
    with caplog.at_level(logging.ERROR, "videoblip2.serving"):
        assert [follower.look() for _ in range(3)] == [False] * 3
    assert follower.current.version == "videoblip2/1"
    assert registry.loads == ["videoblip2/1", "videoblip2/2"]
    assert len(caplog.records) == 1
    assert "videoblip2/2 does not load (OSError: model.safetensors: torn); version videoblip2/1 stays" in caplog.text
    assert follower.trouble
    registry.broken = set()
    monkeypatch.setattr(following.time, "monotonic", lambda: follower._retry_at + 1)
    assert follower.look() is True
    assert (follower.current.version, follower.trouble) == ("videoblip2/2", "")


def test_a_way_back_from_a_version_that_did_not_load_is_no_new_load(registry, follower):
    follower.look()
    registry.version, registry.broken = 2, {"videoblip2/2"}
    follower.look()
    registry.version = 1
    assert follower.look() is False
    assert follower.trouble == ""
    assert registry.loads == ["videoblip2/1", "videoblip2/2"]


def test_a_registry_that_does_not_answer_is_said_once_and_changes_nothing(registry, follower, caplog):
    follower.look()
    registry.gone = "models:/videoblip2@champion: no such model\nhere"
    with caplog.at_level(logging.ERROR, "videoblip2.serving"):
        assert [follower.look() for _ in range(3)] == [False] * 3
    assert follower.current.version == "videoblip2/1"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"{follower.model}: no such model here; version videoblip2/1 stays"
    registry.gone = ""
    assert follower.look() is False
    assert follower.trouble == ""


def test_without_media_encoders_a_model_serves_features(monkeypatch, caplog):
    class Loaded(FakeCaptioner):
        warmed = False

        def warm(self):
            self.warmed = True

        def load_media_encoders(self):
            raise InputError("clip: no such folder")

    monkeypatch.setattr(following, "open_model", lambda *args, **options: SimpleNamespace(captioner=Loaded()))
    with caplog.at_level(logging.WARNING, "videoblip2.serving"):
        captioner = following.load_warm(FoundModel(Path("m"), "m"), "m", "cpu")
    assert captioner.warmed
    assert "features only, no media: clip: no such folder" in caplog.text
