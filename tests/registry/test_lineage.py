"""Lineage: what a checkpoint says of itself, of its parent by names that stay, and where the line breaks off."""

import json

import pytest
from small_stage import stages
from tracking_store import place_store, write_checkpoint

from videoblip2.config import InputError
from videoblip2.provenance import Provenance
from videoblip2.registry import versions as registry
from videoblip2.registry.lineage import lineage, parent_of
from videoblip2.registry.verdict_files import TAG
from videoblip2.tracking.source import environment, revision_tags, short_digest


@pytest.fixture
def made(monkeypatch):
    return stages(monkeypatch)


def test_the_line_of_a_self_critical_model(made):
    scst, ce = lineage(made.scst.run_id)
    assert (scst.stage, scst.run_id, scst.parent) == ("scst", made.scst.run_id, "models:/videoblip2/1")
    assert (ce.stage, ce.run_id, ce.version, ce.parent) == ("ce", made.ce.run_id, "videoblip2/1", None)
    assert (scst.seed, ce.seed) == (3, 3)
    assert set(ce.data) == {"train", "val"} and scst.data["val"] == ce.data["val"]
    assert ce.encoders == {"clip": "encoders/clip (c1)", "clap": "encoders/clap (c2)", "settings": "fps 1.0"}
    assert ce.first_weights["T5"].endswith("t5") and scst.first_weights == {}
    assert ce.lock == f"{short_digest(environment())} (environment.txt)"
    assert ce.commit == revision_tags().get("git.commit", "not recorded")
    assert ce.scores["CIDEr"] == made.ce.metrics["CIDEr"]


def test_an_alias_that_moves_on_does_not_take_the_parent_with_it(made):
    registry.set_champion("videoblip2", registry.register(made.scst.model))
    try:
        assert [ancestor.run_id for ancestor in lineage(made.scst.run_id)] == [made.scst.run_id, made.ce.run_id]
    finally:
        registry.set_champion("videoblip2", 1)


def test_the_verdict_of_a_registered_version_belongs_to_it(made):
    from videoblip2.tracking.mlflow.store import connect

    connect().set_model_version_tag("videoblip2", "1", TAG, '{"verdict": "passed"}')
    assert lineage("models:/videoblip2/1")[0].gate == {"verdict": "passed"}
    assert lineage(str(made.ce.checkpoint))[0].gate == {}


def test_a_parent_that_is_gone_ends_the_line_and_says_why(tmp_path, monkeypatch):
    place_store(tmp_path, monkeypatch)
    folder = write_checkpoint(tmp_path / "best")
    (folder / "provenance.json").write_text(json.dumps({"format": 2, "parent": "runs/ce/best", "stage": "scst"}))
    first, gone = lineage(str(folder))
    assert (first.stage, first.commit, first.lock) == ("scst", "not recorded", "not recorded")
    assert gone.model == "runs/ce/best" and "no such folder" in gone.missing
    with pytest.raises(InputError, match="nowhere"):
        lineage("nowhere")


def test_a_line_that_goes_in_a_circle_ends(tmp_path, monkeypatch):
    place_store(tmp_path, monkeypatch)
    folder = write_checkpoint(tmp_path / "best")
    (folder / "provenance.json").write_text(json.dumps({"format": 2, "parent": str(folder)}))
    assert "already" in lineage(str(folder))[1].missing


def test_the_parents_name_is_the_one_that_stays(tmp_path):
    folder = tmp_path / "best"
    folder.mkdir()
    given = Provenance(parent=str(folder), parent_run_id="r1", parent_version="best")
    Provenance(run_id="r1").write(folder)
    assert parent_of(given) == str(folder)
    Provenance(run_id="r2").write(folder)  # another run wrote there since
    assert parent_of(given) == "r1"
    assert parent_of(Provenance(parent="models:/a@champion", parent_version="a/3")) == "models:/a/3"
    assert parent_of(Provenance(parent="f" * 32, parent_version="m-12")) == "models:/m-12"
    assert parent_of(Provenance(parent="models:/a@champion")) == "models:/a@champion"  # an older checkpoint
    assert parent_of(Provenance()) is None
