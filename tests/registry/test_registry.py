"""Versions and the champion alias."""

import pytest
from tracking_store import place_store, write_checkpoint

from videoblip2.config import InputError
from videoblip2.registry import versions as registry
from videoblip2.tracking import RunSpec, find_model, open_run


@pytest.fixture
def uri(tmp_path, monkeypatch):
    """The address of a logged checkpoint."""
    place_store(tmp_path, monkeypatch)
    with open_run(RunSpec("ce", "name", "toy")) as tracker:
        return tracker.log_checkpoint(write_checkpoint(tmp_path / "checkpoint"), "ce", {})


def test_versions_count_up_and_champion_follows_the_alias(uri):
    assert registry.champion() is None
    assert [registry.register(uri), registry.register(uri)] == [1, 2]
    assert registry.champion() is None
    registry.set_champion("videoblip2", 2)
    assert registry.champion() == 2
    registry.set_champion("videoblip2", 1)
    assert registry.champion() == 1


def test_a_registered_version_is_found_by_alias_and_number(uri):
    registry.set_champion("videoblip2", registry.register(uri))
    for model in ("models:/videoblip2@champion", "models:/videoblip2/1"):
        found = find_model(model)
        assert found.version == "videoblip2/1"
        assert found.folder == find_model(uri).folder


def test_what_does_not_exist_is_refused_in_one_line(uri):
    with pytest.raises(InputError, match="models:/m-0: no logged model"):
        registry.register("models:/m-0")
    registry.register(uri)
    with pytest.raises(InputError, match="videoblip2 has no version 7"):
        registry.set_champion("videoblip2", 7)
