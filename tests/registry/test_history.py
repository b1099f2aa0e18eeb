"""The way back: along the champions that led here, written down, never to one that is gone."""

import shutil

import pytest
from tracking_store import place_store, write_checkpoint

from videoblip2.config import InputError
from videoblip2.registry import versions as registry
from videoblip2.registry.promote import rollback
from videoblip2.registry.versions import Move, move_champion, moves, succession
from videoblip2.tracking import RunSpec, find_model, open_run
from videoblip2.tracking.mlflow.store import connect

NAME = "videoblip2"


@pytest.fixture
def versions(tmp_path, monkeypatch):
    """Three versions of one checkpoint, made champion one after the other."""
    place_store(tmp_path, monkeypatch)
    monkeypatch.setattr("videoblip2.registry.versions.SETTLE_SECONDS", 0.0)
    with open_run(RunSpec("ce", "one", "toy")) as tracker:
        uri = tracker.log_checkpoint(write_checkpoint(tmp_path / "one"), "ce", {})
    for number in (1, 2, 3):
        registry.register(uri)
        move_champion(NAME, Move("promote", number, number - 1 or None, "better"))
    return tmp_path


def test_back_and_back_again_with_who_when_and_why(versions):
    move = rollback(NAME, "captions were cut off")
    assert (move.action, move.version, move.previous, registry.champion()) == ("rollback", 2, 3, 2)
    assert rollback().version == 1
    with pytest.raises(InputError, match="version 1 has no champion before it"):
        rollback()
    trail = moves()
    assert [(m.action, m.version) for m in trail] == [
        ("promote", 1),
        ("promote", 2),
        ("promote", 3),
        ("rollback", 2),
        ("rollback", 1),
    ]
    assert trail[3].why == "captions were cut off" and trail[4].why == "no reason given"
    assert all(m.who and m.when.endswith("+00:00") for m in trail)
    assert "captions were cut off" in connect().get_model_version(NAME, "3").tags["rolled_back"]


def test_a_champion_set_by_hand_can_be_left(versions):
    rollback()
    registry.set_champion(NAME, 3)
    assert rollback().version == 2


def test_deleted_versions_are_passed_over(versions):
    connect().delete_model_version(NAME, "2")
    assert rollback().version == 1


def test_a_version_whose_files_are_gone_is_refused(versions):
    shutil.rmtree(find_model(f"models:/{NAME}/2").folder.parents[1])
    with pytest.raises(InputError, match=f"models:/{NAME}/2: its files are gone"):
        rollback()
    assert registry.champion() == 3
    assert len(moves()) == 3


def test_without_a_champion_there_is_no_way_back(versions):
    connect().delete_registered_model_alias(NAME, "champion")
    with pytest.raises(InputError, match="has no champion to roll back"):
        rollback()


def test_no_move_overwrites_another(versions):
    connect().delete_registered_model_tag(NAME, "mlflow.champion_trail.000001")
    rollback()
    assert [m.version for m in moves()] == [2, 3, 2]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], []),
        ([("promote", 1, None), ("promote", 2, 1)], [1, 2]),
        ([("promote", 1, None), ("promote", 2, 1), ("rollback", 1, 2), ("promote", 3, 1)], [1, 3]),
        ([("promote", 1, None), ("promote", 5, 4)], [1, 4, 5]),  # 4 was set by hand
        ([("promote", 1, None), ("promote", 2, 1), ("force", 1, 2), ("promote", 3, 1), ("rollback", 1, 3)], [1, 2, 1]),
        ([("rollback", 7, 9)], [7]),
    ],
)
def test_a_rollback_takes_back_what_it_left(history, expected):
    assert succession([Move(*move) for move in history]) == expected
