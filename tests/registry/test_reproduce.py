"""A run made again: the same number, refused where the data changed, and what differs is named."""

import json
import shutil
from dataclasses import replace

import pytest
from small_stage import stages
from tracking_store import write_checkpoint

from videoblip2.config import InputError
from videoblip2.provenance import Provenance
from videoblip2.registry import lineage as room
from videoblip2.registry.lineage import read_recipe


@pytest.fixture
def made(monkeypatch):
    return stages(monkeypatch)


@pytest.mark.parametrize("stage", ["ce", "scst"])
def test_the_same_number_comes_out_as_a_run_of_its_own(made, tmp_path, stage):
    first = getattr(made, stage)
    recipe = read_recipe(first.run_id, tmp_path)
    again = recipe.repeat()
    assert again.reproduced and again.scores["CIDEr"] == (first.metrics["CIDEr"],) * 2
    assert again.result.run_id != first.run_id
    assert again.result.checkpoint.parent == tmp_path / f"reproduce-{stage}"
    assert recipe.command == f"vb2 {stage} {tmp_path}/reproduce-{stage}.yaml"
    assert recipe.differs == ()


def test_the_command_reads_back_to_the_same_configuration(made, tmp_path):
    from videoblip2.config import load_config

    recipe = read_recipe(made.scst.run_id, tmp_path)
    assert load_config(recipe.config_file) == recipe.config
    assert recipe.config.train.start_from == "models:/videoblip2/1"


def test_another_result_is_not_taken_for_the_same(made, tmp_path, monkeypatch):
    worse = replace(made.ce, metrics={**made.ce.metrics, "CIDEr": made.ce.metrics["CIDEr"] - 0.001})
    monkeypatch.setattr("videoblip2.training.stage.run_stage", lambda *_: worse)
    assert not read_recipe(made.ce.run_id, tmp_path).repeat().reproduced
    assert read_recipe(made.ce.run_id, tmp_path).repeat(0.2).reproduced


def test_what_is_not_as_it_was_is_named(made, tmp_path, monkeypatch):
    monkeypatch.setattr(room.source, "environment", lambda: "# python 3.11.0\nnumpy==0.1\n")
    monkeypatch.setattr(room.source, "revision_tags", lambda: {"git.commit": "abc", "git.dirty": "true"})
    differs = read_recipe(made.ce.run_id, tmp_path).differs
    assert any(line.startswith("git.commit ") and line.endswith("-> abc") for line in differs)
    assert any(line.startswith("numpy ") and line.endswith("-> 0.1") for line in differs)


@pytest.mark.parametrize(
    ("scores", "again", "reproduced"),
    [
        ({"accuracy_what": 0.1, "accuracy": 0.25}, {"accuracy_what": 0.2, "accuracy": 0.25}, True),
        ({"accuracy": 0.25}, {"accuracy": 0.2}, False),
        ({"CIDEr": 0.5, "accuracy": 0.25}, {"CIDEr": 0.5, "accuracy": 0.2}, False),
        ({"CIDEr": 0.5, "Bleu_4": 0.25}, {"CIDEr": 0.5, "Bleu_4": 0.2}, False),
    ],
)
def test_every_main_score_of_a_run_is_compared(made, tmp_path, monkeypatch, scores, again, reproduced):
    folder = shutil.copytree(made.ce.checkpoint, tmp_path / "best")
    (folder / "metrics.json").write_text(json.dumps({**scores, "step": 4.0}))
    monkeypatch.setattr("videoblip2.training.stage.run_stage", lambda *_: replace(made.ce, metrics=again))
    assert read_recipe(str(folder), tmp_path).repeat().reproduced is reproduced
    assert read_recipe(str(folder), tmp_path).repeat(6.0).reproduced


def test_changed_data_are_refused_before_anything_is_trained(made, tmp_path):
    file = made.root / "train.json"
    before = file.read_text()
    file.write_text(before.replace("circle", "square"))
    try:
        with pytest.raises(InputError, match=r"was trained on train data .*train\.json .* now; restore"):
            read_recipe(made.ce.run_id, tmp_path).repeat()
    finally:
        file.write_text(before)
    assert list(tmp_path.iterdir()) == []


def test_only_what_a_stage_made_can_be_repeated(tmp_path):
    folder = write_checkpoint(tmp_path / "best")
    Provenance(stage="merge").write(folder)
    with pytest.raises(InputError, match="made by merge, and only runs of ce and scst can be repeated"):
        read_recipe(str(folder))
