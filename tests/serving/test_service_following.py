"""Following a model: what comes into service, what stays, what is said."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving_fakes import FakeCaptioner
from tracking_store import place_store

from serving import following
from serving.following import Follower
from videoblip2.config import InputError
from videoblip2.predict import FoundModel, model_mark
from videoblip2.tracking.mlflow import store


class Registry:
    """An alias that moves, and models that load or do not."""

    def __init__(self):
        self.version, self.gone, self.broken, self.loads = 1, "", set(), []

    def find(self, model):
        if self.gone:
            raise InputError(self.gone)
        return FoundModel(Path(f"/models/{self.version}"), f"videoblip2/{self.version}")

    def load(self, found, model, device, before):
        self.loads.append(found.version)
        if found.version in self.broken:
            raise OSError("model.safetensors: torn")
        return FakeCaptioner(found.version)


@pytest.fixture
def registry(monkeypatch):
    registry = Registry()
    monkeypatch.setattr(following, "model_mark", lambda model: None)
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


def test_a_registry_that_nobody_wrote_is_not_asked_again(registry, follower, monkeypatch):
    """A full look costs up to 120 ms of CPU, and there is one a second."""
    marks, asked = ["1", "1", "1", "2", None, None], []
    monkeypatch.setattr(following, "model_mark", lambda model: marks.pop(0))
    monkeypatch.setattr(following, "find_model", lambda model: asked.append(len(marks)) or registry.find(model))
    assert [follower.look() for _ in range(3)] == [True, False, False]
    registry.version = 2
    assert [follower.look() for _ in range(3)] == [True, False, False]
    assert asked == [5, 2, 1, 0]  # without a mark, each look is a full one


def test_after_a_trouble_the_registry_is_asked_whatever_the_mark(registry, follower, monkeypatch):
    monkeypatch.setattr(following, "model_mark", lambda model: "1")
    registry.gone = "no such model"
    assert follower.look() is False
    registry.gone = ""
    assert follower.look() is True


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
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
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

    monkeypatch.setattr(following, "open_servable", lambda *args: SimpleNamespace(captioner=Loaded()))
    with caplog.at_level(logging.WARNING, "videoblip2.serving"):
        captioner = following.load_warm(FoundModel(Path("m"), "m"), "m", "cpu")
    assert captioner.warmed
    assert "features only, no media: clip: no such folder" in caplog.text


@pytest.mark.parametrize(("name", "shared"), [("clip a, clap b", True), ("clip c, clap b", False)])
def test_a_new_version_takes_the_media_encoders_in_service_if_they_are_its_own(monkeypatch, name, shared):
    new = SimpleNamespace(encoders_name=name, media_encoders="its own", warm=int, load_media_encoders=int)
    before = SimpleNamespace(encoders_name="clip a, clap b", media_encoders="in service")
    monkeypatch.setattr(following, "open_servable", lambda *args: SimpleNamespace(captioner=new))
    following.load_warm(FoundModel(Path("m"), "m"), "m", "cpu", before)
    assert new.media_encoders == ("in service" if shared else "its own")


@pytest.fixture
def sqlite_registry(tmp_path, monkeypatch):
    """An sqlite store with two versions, the first of them the champion."""
    from mlflow import MlflowClient

    place_store(tmp_path, monkeypatch)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_registered_model("videoblip2")
    for number in (1, 2):
        client.create_model_version("videoblip2", f"{tmp_path}/{number}")
    client.set_registered_model_alias("videoblip2", "champion", "1")
    return client


def test_the_mark_of_an_alias_moves_with_it_and_sqlite_is_asked_without_mlflow(sqlite_registry, monkeypatch):
    address = "models:/videoblip2@champion"
    monkeypatch.setattr(store, "connect", lambda: 1 / 0)
    first = model_mark(address)
    sqlite_registry.set_registered_model_tag("videoblip2", "some", "tag")
    assert model_mark(address) == first == "1"
    sqlite_registry.set_registered_model_alias("videoblip2", "champion", "2")
    assert model_mark(address) == "2"
    assert model_mark("models:/videoblip2@nobody") is None
    assert model_mark("models:/videoblip2/1") == model_mark("models:/videoblip2/1")
    assert model_mark("runs/ce/best") is None


def test_a_server_is_asked_one_small_question(monkeypatch):
    asked = []
    answer = {"model_version": {"version": "3"}}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(
        store, "get", lambda *asks, params: asked.append(params) or SimpleNamespace(json=lambda: answer)
    )
    assert model_mark("models:/a b@champion") == "3"
    assert asked == [{"name": "a b", "alias": "champion"}]
    answer.clear()
    assert model_mark("models:/videoblip2@champion") is None
