"""What training and evaluation leave in their runs, and the runs of several seeds under one parent."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import CAPTIONS
from tracking_store import place_store
from typer.testing import CliRunner

from videoblip2.captions.predictions import CaptionRow
from videoblip2.cli import app
from videoblip2.config import InputError, parse_config
from videoblip2.features.store import write_features
from videoblip2.provenance import Provenance
from videoblip2.toy.networks import LanguageModelConfig, build_t5
from videoblip2.tracking import source as revision
from videoblip2.tracking.mlflow import store as stores
from videoblip2.training.evaluation import evaluate_model
from videoblip2.training.record import draw_categories, draw_curves, log_text
from videoblip2.training.seeds import mean_curve, run_seeds, seed_configs, seed_group
from videoblip2.training.stage import run_stage

SIZES = LanguageModelConfig(d_model=16, d_ff=16, num_heads=2, num_layers=1)
GROUPS = {"CIDEr x100", "train", "val", "best", "time", "sys"}
DIFF = "diff --git a/x.py b/x.py"


def write_world(root, tokenizers):
    """Four videos of two categories, a T5 of one layer, and an experiment file."""
    build_t5(len(tokenizers.text), SIZES).save_pretrained(root / "t5")
    tokenizers.text.save_pretrained(root / "t5")
    tokenizers.bert.save_pretrained(root / "bert")
    rng = np.random.default_rng(0)
    videos = [{"video_id": f"video{n}", "category": n % 2, "captions": CAPTIONS[n % 3 : n % 3 + 2]} for n in range(4)]
    for video in videos:
        frames, windows = rng.normal(size=(3, 768)), rng.normal(size=(2, 512))
        arrays = {"video": frames.astype("float32"), "audio": windows.astype("float32")}
        write_features(root / "features", video["video_id"], arrays)
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(videos))
    qformer = {"bert": str(root / "bert"), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer |= {"num_queries": 2, "intermediate_size": 16, "cross_attention_frequency": 1}
    content = {
        "data": {"annotations": str(root), "features": str(root / "features")},
        "model": {"language_model": str(root / "t5"), "qformer": qformer, "max_positions": 8},
        "optim": {"lr": 0.05, "warmup_steps": 0},
        "train": {"steps": 4, "batch_size": 2, "validate_every": 2, "log_every": 2},
        "scst": {"samples": 2},
        "decode": {"max_new_tokens": 6},
        "run": {"out": str(root / "runs"), "experiment": "toy"},
        "device": "cpu",
    }
    (root / "toy.yaml").write_text(yaml.safe_dump(content))
    return root


def git(command, *rest):
    return {"ls-files": "__init__.py", "status": " M x.py", "rev-parse": "abc123", "diff": DIFF}[command]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizers):
    """Seeds 0 and 1 of cross-entropy from the command line, self-critical training from the first, an evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        root = place_store(write_world(tmp_path_factory.mktemp("stages"), tokenizers), patch)
        patch.setattr(revision, "_git", git)
        words = ["ce", "toy.yaml", "model.lora.r=4", "--seeds", "2", "--json"]
        printed = CliRunner().invoke(app, words, catch_exceptions=False).stdout
        seeds = json.loads(printed.splitlines()[-1])
        config = parse_config(yaml.safe_load((root / "toy.yaml").read_text()))
        start = {"train": config.train.model_copy(update={"start_from": seeds["seeds"][0]["run_id"]})}
        scst = run_stage("scst", config.model_copy(update=start), usual=config)
        test = evaluate_model(str(scst.run_id), "val", metrics=("CIDEr", "Bleu_4", "ROUGE_L"))
        yield {"root": root, "printed": printed, "seeds": seeds, "scst": scst, "test": test, "config": config}


def run_of(run_id):
    return stores.connect().get_run(run_id)


def artifact(run_id, path):
    return Path(stores.connect().download_artifacts(run_id, path)).read_text(encoding="utf-8")


# --- one run


def test_every_metric_is_in_one_of_six_groups_of_charts(world):
    names = run_of(world["scst"].run_id).data.metrics
    assert {name.partition("/")[0] for name in names} == GROUPS
    assert {"time/step_seconds", "time/validation_seconds", "sys/memory_gib", "sys/cpu_percent"} <= set(names)
    assert {"best/val/CIDEr", "best/val/CIDEr_ci_low", "best/val/CIDEr_ci_high", "best/step"} <= set(names)
    assert names["train/reward/cider"] == pytest.approx(names["train/reward"])  # also of a single term
    low, value, high = (names[f"best/val/CIDEr{end}"] for end in ("_ci_low", "", "_ci_high"))
    assert low <= value <= high


def test_the_name_says_what_differs_and_the_tags_say_the_rest(world):
    run, first = run_of(world["scst"].run_id), world["seeds"]["seeds"][0]
    assert run.info.run_name == f"scst-greedy-from_{first['run_id'][:6]}-lr0.05-seed0"
    tags = run.data.tags
    assert tags["differs"] == f"from_{first['run_id'][:6]}"
    assert (tags["git.commit"], tags["git.dirty"], tags["mlflow.source.git.commit"]) == ("abc123", "true", "abc123")
    assert (tags["stage"], tags["seed"], tags["modalities"]) == ("scst", "0", "both")
    assert tags["command"]


def test_a_self_critical_run_names_the_run_it_started_from(world):
    first, tags = world["seeds"]["seeds"][0], run_of(world["scst"].run_id).data.tags
    assert tags["lineage.parent_run"] == tags["warm_start"] == first["run_id"]
    assert (tags["lineage.parent_name"], tags["lineage.parent_stage"]) == (first["name"], "ce")
    assert float(tags["lineage.parent_cider"]) == pytest.approx(first["metrics"]["CIDEr"])
    experiment = run_of(first["run_id"]).info.experiment_id
    assert f"[{first['name']}](#/experiments/{experiment}/runs/{first['run_id']})" in tags["mlflow.note.content"]
    assert not any(key.startswith("lineage.") for key in run_of(first["run_id"]).data.tags)


def test_a_self_critical_run_and_its_card_say_what_was_gained_at_what_cost(world):
    checkpoint = world["scst"].checkpoint
    sentence = Provenance.read(checkpoint).gained
    assert re.match(
        r"[+−][\d.]+ CIDEr, (at the cost of|along with|and no other metric is significantly worse)", sentence
    )
    assert f"Compared with the model it started from: {sentence}." in (checkpoint / "README.md").read_text()
    note = run_of(world["scst"].run_id).data.tags["mlflow.note.content"]
    assert f"| gained | {sentence} |" in note


def test_source_and_environment_are_files_of_the_run(world):
    assert artifact(world["scst"].run_id, "source.diff") == f"{DIFF}\n"
    lock = artifact(world["scst"].run_id, "environment.txt").splitlines()
    assert lock[0].startswith("# python 3.")
    assert {"torch", "mlflow", "transformers"} <= {line.partition("==")[0] for line in lock}
    assert lock[1:] == sorted(lock[1:], key=lambda line: line.partition("==")[0])


def test_a_clean_source_leaves_no_diff_also_not_an_older_one(world, tmp_path, monkeypatch):
    kept = []
    tracker = type("Keep", (), {"log_file": lambda self, path: kept.append(path.name)})()
    (tmp_path / "source.diff").write_text("of an earlier run")
    monkeypatch.setattr(revision, "_git", lambda command, *rest: "" if command == "diff" else "tracked")
    log_text(tmp_path / "source.diff", revision.source_diff(), tracker)
    assert (list(tmp_path.iterdir()), kept) == ([], [])


def test_captions_are_a_table_of_the_same_videos_in_every_run_and_a_file_of_all(world):
    runs = [seed["run_id"] for seed in world["seeds"]["seeds"]] + [world["scst"].run_id]
    tables = [json.loads(artifact(run, "predictions.json")) for run in runs]
    assert all(table["columns"][:2] == ["video_id", "caption"] for table in tables)
    assert [[row[0] for row in table["data"]] for table in tables] == [["video0", "video1", "video2", "video3"]] * 3
    rows = [json.loads(line) for line in artifact(runs[0], "val_predictions.jsonl").splitlines()]
    assert [row["category"] for row in rows] == [0, 1, 0, 1]
    assert run_of(runs[0]).data.tags["predictions.val"] == "val_predictions.jsonl"


def test_the_parent_shows_the_middle_seeds_captions_and_mean_scores(world):
    seeds, table = world["seeds"]["seeds"], json.loads(artifact(world["seeds"]["run_id"], "predictions.json"))
    assert table["columns"] == ["video_id", "caption", "CIDEr", "reference"]
    tables = [json.loads(artifact(seed["run_id"], "predictions.json"))["data"] for seed in seeds]
    best = max(range(2), key=lambda n: seeds[n]["metrics"]["CIDEr"])  # of two seeds, the upper one is the middle
    assert [row[1] for row in table["data"]] == [row[1] for row in tables[best]]
    assert [row[2] for row in table["data"]] == pytest.approx(
        [(a[2] + b[2]) / 2 for a, b in zip(*tables, strict=True)], abs=1e-3
    )


def test_figures_are_images_of_the_run(world):
    client = stores.connect()
    files = [file.path for file in client.list_artifacts(world["scst"].run_id, "figures")]
    assert files == ["figures/categories.png", "figures/learning_curves.png"]
    for file in files:
        path = client.download_artifacts(world["scst"].run_id, file)
        assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_has_its_configuration_interval_lineage_and_the_same_data(world):
    run, trained = run_of(world["test"].run_id), run_of(world["scst"].run_id)
    assert run.data.params["optim.lr"] == "0.05"
    assert (
        run.data.metrics["val/CIDEr_ci_low"] <= run.data.metrics["val/CIDEr"] <= run.data.metrics["val/CIDEr_ci_high"]
    )
    assert run.data.tags["lineage.parent_run"] == world["scst"].run_id
    digests = [{d.dataset.digest for d in r.inputs.dataset_inputs if d.tags[0].value == "val"} for r in (run, trained)]
    assert digests[0] == digests[1]
    assert re.match(r"\*\*val\*\*: CIDEr [\d.]+ \[.* on 4 videos$", run.data.tags["mlflow.note.content"])


def test_the_sign_of_life_of_a_run_costs_few_messages(world, monkeypatch):
    """A step is a thousand times longer than handing a point over; what counts is how often the store is asked."""
    from mlflow import MlflowClient

    calls = []
    send = MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args, **more: (calls.append(1), send(*args, **more))[1])
    longer = world["config"].train.model_copy(update={"steps": 40, "validate_every": 40, "log_every": 1})
    run = world["config"].run.model_copy(update={"name": "longer"})
    result = run_stage("ce", world["config"].model_copy(update={"train": longer, "run": run}))
    assert len(stores.connect().get_metric_history(result.run_id, "train/loss")) == 40
    assert len(calls) < 25  # 40 steps × 8 points are in two or three of them


# --- seeds


def test_seeds_are_children_of_one_parent_with_mean_and_interval(world):
    seeds, parent = world["seeds"], run_of(world["seeds"]["run_id"])
    assert [seed["name"] for seed in seeds["seeds"]] == ["ce-r4-lr0.05-seed0", "ce-r4-lr0.05-seed1"]
    assert (parent.info.run_name, parent.info.status) == ("ce-r4-lr0.05-2seeds", "FINISHED")
    for number, seed in enumerate(seeds["seeds"]):
        child = run_of(seed["run_id"]).data
        assert child.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (child.params["seed"], child.params["model.lora.r"]) == (str(number), "4")
    values = [seed["metrics"]["CIDEr"] for seed in seeds["seeds"]]
    metrics = parent.data.metrics
    assert metrics["best/val/CIDEr"] == pytest.approx(np.mean(values))
    half = 12.7062 * np.std(values, ddof=1) / 2**0.5  # Student's t, one degree of freedom
    assert metrics["best/val/CIDEr_ci_high"] == pytest.approx(np.mean(values) + half, rel=1e-4)
    assert (parent.data.params["seed"], parent.data.tags["seeds"], parent.data.tags["stage"]) == ("0, 1", "0, 1", "ce")
    losses = [dict(history(seed["run_id"], "train/loss")) for seed in seeds["seeds"]]
    assert history(parent.info.run_id, "train/loss") == [
        (step, pytest.approx((losses[0][step] + losses[1][step]) / 2)) for step in (2, 4)
    ]


def history(run_id, metric):
    return [(point.step, point.value) for point in stores.connect().get_metric_history(run_id, metric)]


def test_the_command_prints_each_seed_and_the_mean(world):
    title = "2 seeds on val, ×100; the mean with its 95 % interval over seeds"
    assert f"ce-r4-lr0.05-2seeds\n{title}" in world["printed"]
    ids = [seed["run_id"] for seed in world["seeds"]["seeds"]] + [world["seeds"]["run_id"]]
    assert all(run_id in world["printed"].splitlines()[n - 5] for n, run_id in enumerate(ids))
    assert set(world["seeds"]["metrics"]["CIDEr"]) == {"value", "low", "high"}


def test_resuming_keeps_finished_seeds_and_their_parent_and_trains_the_missing_one(world):
    config = world["config"]
    lora = config.model.lora.model_copy(update={"r": 4})
    more = config.model_copy(
        update={
            "model": config.model.model_copy(update={"lora": lora}),
            "train": config.train.model_copy(update={"resume": "auto"}),
        }
    )
    result = run_seeds("ce", more, 3, usual=config)
    assert [seed.run_id for seed in result.seeds[:2]] == [seed["run_id"] for seed in world["seeds"]["seeds"]]
    assert result.run_id == world["seeds"]["run_id"]
    assert run_of(result.seeds[2].run_id).data.tags["mlflow.parentRunId"] == result.run_id
    assert run_of(result.run_id).info.run_name == "ce-r4-lr0.05-3seeds"


def test_a_wrong_input_leaves_no_parent(world):
    before = len(stores.connect().search_runs([run_of(world["scst"].run_id).info.experiment_id]))
    wrong = world["config"].data.model_copy(update={"annotations": "nowhere"})
    with pytest.raises(InputError, match="nowhere"):
        run_seeds("ce", world["config"].model_copy(update={"data": wrong}), 2)
    assert len(stores.connect().search_runs([run_of(world["scst"].run_id).info.experiment_id])) == before


def test_under_mlflow_run_the_given_run_is_the_parent(world, monkeypatch):
    client = stores.connect()
    given, child = (client.create_run(client.create_experiment(name), run_name=name) for name in ("given", "child"))
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    with pytest.raises(KeyboardInterrupt), seed_group("ce", "other", "toy") as group:
        assert group.tracker.run_id == given.info.run_id
        group.join(child.info.run_id)
        raise KeyboardInterrupt
    assert run_of(child.info.run_id).data.tags["mlflow.parentRunId"] == given.info.run_id
    assert (run_of(given.info.run_id).info.status, run_of(given.info.run_id).info.run_name) == ("KILLED", "given")


def test_seeds_without_tracking_join_nothing():
    with seed_group("ce", "name", "toy") as group:
        group.join(None)
        group.tracker.set_tags({"a": "b"})
    assert group.tracker.run_id is None


def test_seeds_resume_their_own_runs_only():
    with pytest.raises(InputError, match="with --seeds give"):
        seed_configs("ce", parse_config({}, ["train.resume=runs/x"]), 2, None)


def test_names_of_seeds_follow_the_users_name():
    configs, parent = seed_configs("ce", parse_config({}, ["seed=3", "run.name=mine"]), 2, None)
    assert ([c.run.name for c in configs], [c.seed for c in configs], parent) == (
        ["mine-seed3", "mine-seed4"],
        [3, 4],
        "mine-2seeds",
    )


# --- figures


def test_a_mean_curve_has_the_steps_that_all_have():
    assert mean_curve([[(2, 1.0), (4, 3.0)], [(4, 5.0), (6, 1.0)]]) == [(4, 4.0)]
    assert mean_curve([]) == []


def scored(category, score):
    return CaptionRow("video", "a cat", {"CIDEr": score}, ("a cat",), category)


def test_category_means_are_sorted_and_counted(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("videoblip2.training.record.save_figure", lambda figure, path: drawn.append(figure))
    draw_categories(tmp_path / "a.png", [scored(0, 1.0), scored(0, 3.0), scored(7, 2.5), scored(None, 0.0)], "run")
    (axis,) = drawn[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["category 7  (1)", "category 0  (2)"]
    assert [bar.get_width() for bar in axis.patches] == [250.0, 200.0]


def test_nothing_to_draw_draws_nothing(tmp_path):
    assert draw_curves(tmp_path / "a.png", {"run": {"train/loss": []}}, "run") is None
    assert draw_categories(tmp_path / "b.png", [scored(0, 1.0), scored(None, 1.0)], "run") is None
    assert list(tmp_path.iterdir()) == []
