"""The tables of metrics and rewards from outside the package: the pages of docs/how-to do what they say."""

import json
import re
import sys

import pytest
import yaml
from conftest import ROOT, plug_in
from gate_world import FAIR, GOOD, REFERENCES, Gatehouse
from tiny_world import make_world, tiny_config
from tracking_store import place_store
from typer.testing import CliRunner

from videoblip2.captions import METRICS
from videoblip2.captions.metrics import default_metrics
from videoblip2.captions.predictions import write_rows
from videoblip2.cli import main
from videoblip2.cli.runs import app
from videoblip2.evaluate import evaluate
from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.mlflow.store import connect
from videoblip2.training.record import log_predictions
from videoblip2.training.stage import run_stage


def block(page, language):
    """The only block of a language in a page of docs/how-to."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "how-to" / page).read_text(), re.DOTALL)
    return found


@pytest.fixture
def brevity(tmp_path, monkeypatch):
    """The metric of the page, in a module of the current folder, registered for one test."""
    before = dict(METRICS)
    plug_in("my_metrics", block("add-a-metric.md", "python"), tmp_path, monkeypatch)
    yield METRICS["Brevity"]
    METRICS.clear()
    METRICS.update(before)


def test_a_registered_metric_is_in_evaluation_predictions_and_tables(brevity, tmp_path):
    captions = {"video0": "a red circle moves", "video1": "a b c d"}
    references = {"video0": ["red circle"], "video1": ["x"]}
    result = evaluate(captions, references, default_metrics(fast=True))
    assert result.corpus["Brevity"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    write_rows(tmp_path / "predictions.jsonl", result.caption_rows)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["scores"]["Brevity"] for row in rows] == [0.5, 0.25]


def logged(folder, name, captions):
    """A run with these captions, evaluated by the default metrics."""
    result = evaluate(captions, REFERENCES, default_metrics(fast=True))
    with open_run(RunSpec("ce", name, "toy")) as tracker:
        log_predictions({"captions": folder / f"{name}.jsonl"}, "val", result, 200, tracker)
    return tracker.run_id


@pytest.mark.parametrize("earlier", [False, True], ids=["new runs", "runs evaluated before"])
def test_a_registered_metric_is_compared_with_an_interval(brevity, tmp_path, monkeypatch, earlier):
    folder = place_store(tmp_path, monkeypatch)
    if earlier:
        del METRICS["Brevity"]
    runs = [logged(folder, "fair", FAIR), logged(folder, "good", GOOD)]
    METRICS["Brevity"] = brevity
    said = CliRunner().invoke(app, ["compare", *runs, "--json"], catch_exceptions=False).stdout
    low, high = (json.loads(said.splitlines()[-1])["metrics"]["Brevity"]["values"][1][end] for end in ("low", "high"))
    assert low <= sum(map(brevity_of, GOOD)) / len(GOOD) <= high
    assert re.search(r"brevity \(%\).*\[", CliRunner().invoke(app, ["compare", *runs], catch_exceptions=False).stdout)


def brevity_of(video):
    return min(1.0, min(len(text.split()) for text in REFERENCES[video]) / len(GOOD[video].split()))


def test_a_registered_metric_is_a_condition_of_the_gate(brevity, tmp_path, monkeypatch):
    house = Gatehouse(tmp_path, monkeypatch)
    conditions = yaml.safe_load(block("add-a-metric.md", "yaml"))
    house.gate.write_text(json.dumps(json.loads(house.gate.read_text()) | conditions | {"length": [0, 9]}))
    house.promote(house.log("fair", FAIR), reason="a first champion")
    long = {video: f"{text} and there it stays for good now" for video, text in GOOD.items()}
    verdict = house.promote(house.log("long", long)).verdict
    assert verdict.failed[0] == verdict.sentence and re.search(r"along with −[\d.]+ brevity \[", verdict.sentence)
    assert any(each.guard == "Brevity" and not each.passed for each in verdict.conditions)


def test_a_users_reward_trains_and_its_mean_is_in_the_run_with_the_registered_metric(
    brevity, tmp_path, tokenizers, monkeypatch, capsys
):
    place_store(tmp_path, monkeypatch)
    (tmp_path / "my_rewards.py").write_text(block("add-a-reward.md", "python"))
    reward = yaml.safe_load(block("add-a-reward.md", "yaml"))["scst"]["reward"]
    keys = [f"scst.reward={json.dumps(reward)}", "train.steps=2", "scst.samples=30", "decode.max_new_tokens=10"]
    config = tiny_config(make_world(tmp_path, tokenizers), tmp_path / "runs", *keys)
    made = run_stage("scst", config)
    found = connect().get_run(made.run_id).data
    total, cider, own = (
        found.metrics[f"train/{name}"] for name in ("reward", "reward/cider", "reward/my_rewards:reward")
    )
    assert 0 < own <= 1
    assert total == pytest.approx(cider + 0.5 * own, rel=1e-5)
    assert found.params["scst.reward.terms.my_rewards:reward"] == "0.5"
    assert 0 < found.metrics["best/val/Brevity"] <= 1
    del METRICS["Brevity"], sys.modules["my_metrics"]  # as in another process
    monkeypatch.setenv("PATH", "")  # without Java there is no METEOR, which takes seconds
    monkeypatch.setattr(sys, "argv", ["vb2", "evaluate", str(made.checkpoint)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code and re.search(r"brevity \(%\) .*\d", capsys.readouterr().out)
