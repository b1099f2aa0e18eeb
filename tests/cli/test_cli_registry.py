"""promote, rollback, lineage, reproduce as a user meets them: exit codes, the last line, one-line errors."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from gate_world import FAIR, GOOD, Gatehouse

from videoblip2.cli import main, registry


@pytest.fixture
def house(tmp_path, monkeypatch):
    return Gatehouse(tmp_path, monkeypatch)


def vb2(monkeypatch, capsys, *words):
    """(exit code, standard output, standard error) of a command."""
    monkeypatch.setattr(sys, "argv", ["vb2", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0, *capsys.readouterr()


def test_promote_back_and_lineage(house, monkeypatch, capsys):
    gate = ("--gate", str(house.gate), "--json")
    fair, good = house.log("fair", FAIR), house.log("good", GOOD)
    code, out, _ = vb2(monkeypatch, capsys, "promote", good, *gate)
    assert code == 0 and "champion: videoblip2/1 (passed the gate)" in out
    code, out, err = vb2(monkeypatch, capsys, "promote", fair, *gate)
    record = json.loads(out.splitlines()[-1])
    assert (code, record["promoted"], record["champion"], record["version"]) == (1, False, 1, 2)
    assert err.startswith(f"error: {fair} does not pass the gate: CIDEr gain ") and err.count("\n") == 1
    assert err.endswith("; version 1 stays champion\n")
    code, out, _ = vb2(monkeypatch, capsys, "promote", fair, *gate, "--force", "--reason", "a test of the way back")
    assert code == 0 and json.loads(out.splitlines()[-1])["forced"] and "(by force), was videoblip2/1" in out
    code, out, _ = vb2(monkeypatch, capsys, "rollback", "--reason", "it was one", "--json")
    record = json.loads(out.splitlines()[-1])
    assert (code, record["version"], record["previous"], record["why"]) == (0, 1, 2, "it was one")
    code, out, err = vb2(monkeypatch, capsys, "rollback")
    assert code == 1 and "no champion before it" in err
    code, out, _ = vb2(monkeypatch, capsys, "lineage", "models:/videoblip2/2", "--json")
    assert code == 0 and "verdict failed; outcome forced" in out
    assert json.loads(out.splitlines()[-1])["lineage"][0]["gate"]["reason"] == "a test of the way back"


@pytest.mark.parametrize("words", [("--force",), ("--reason", "no force"), ("--force", "--reason", " ")])
def test_force_and_reason_go_together(monkeypatch, capsys, words):
    code, _, err = vb2(monkeypatch, capsys, "promote", "f" * 32, *words)
    assert code == 2 and "--force and --reason go together" in err


@pytest.mark.parametrize(("found", "code"), [(0.5, 0), (0.499, 1)])
def test_reproduce_says_what_differs_and_fails_where_the_score_does(monkeypatch, capsys, found, code):
    from videoblip2.registry import lineage as room

    recipe = room.Recipe("ce", None, Path("runs/again.yaml"), {"CIDEr": 0.5}, ("numpy 1 -> 2",))
    result = SimpleNamespace(run_id="r2", checkpoint="runs/again/best", metrics={"CIDEr": found})
    monkeypatch.setattr("videoblip2.training.stage.run_stage", lambda *_: result)
    monkeypatch.setattr(room, "read_recipe", lambda run, out: recipe)
    monkeypatch.setattr("videoblip2.tracking.find_model", lambda model: SimpleNamespace(folder=None))
    got, out, err = vb2(monkeypatch, capsys, "reproduce", "r1", "--tolerance", "0.05", "--json")
    assert got == code and "changed: numpy 1 -> 2" in out
    assert json.loads(out.splitlines()[-1])["reproduced"] is (code == 0)
    assert ("not reproduced within 0.05" in err) is (code == 1)


def test_a_parent_that_is_gone_is_shown():
    from videoblip2.registry.lineage import Ancestor

    text = registry.lineage_text([Ancestor("a", seed=3, dirty=True, commit="abc"), Ancestor("b", missing="no such")])
    assert "abc, with uncommitted changes" in text
    assert text.endswith("started from b\n  missing      no such")
