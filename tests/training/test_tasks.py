"""Answers, and their mixture with captions, in training, seeds, trials, evaluation, comparison and the model card."""

import json
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from small_stage import config, stages
from typer.testing import CliRunner

from videoblip2.captions.predictions import AnswerRow, CaptionRow, read_rows, video_scores, write_rows
from videoblip2.cli import app
from videoblip2.config import Config
from videoblip2.data.annotations import Question, VideoAnnotation
from videoblip2.errors import no_progress
from videoblip2.provenance import Provenance
from videoblip2.tracking.mlflow import store
from videoblip2.tracking.reports import compare_runs, results
from videoblip2.training.evaluation import evaluate_model
from videoblip2.training.seeds import run_seeds
from videoblip2.training.state import FOLDER
from videoblip2.training.tasks import evaluate_tasks, tasks_of
from videoblip2.tune.plan import Plan
from videoblip2.tune.report import judge, line_of, rows_of
from videoblip2.tune.trials import Watcher, train_trial

TASKS = {"qa": ("accuracy",), "mixed": ("CIDEr", "accuracy")}
MADE = {}


@pytest.fixture(params=TASKS)
def made(request, monkeypatch):
    """Two seeds of a task that has answers, made once a process."""
    root, task = stages(monkeypatch).root, request.param
    if task not in MADE:
        MADE[task] = run_seeds("ce", config(root, task, f"data.task={task}"), 2)
    return SimpleNamespace(root=root, task=task, metrics=TASKS[task], seeds=MADE[task], runs=MADE[task].seeds)


def artifact(run_id, path, folder):
    file = Path(store.connect().download_artifacts(run_id, path, str(folder)))
    return json.loads(file.read_text(encoding="utf-8"))


def test_seeds_have_the_mean_of_what_the_task_is_judged_by(made, tmp_path):
    parent = store.connect().get_run(made.seeds.run_id)
    for metric in made.metrics:
        mean = sum(run.metrics[metric] for run in made.runs) / 2
        assert made.seeds.metrics[metric].value == pytest.approx(mean)
        assert parent.data.metrics[f"best/val/{metric}_ci_low"] <= mean
        assert metric in parent.data.tags["mlflow.note.content"]
    table = artifact(made.seeds.run_id, "answers.json", tmp_path)
    assert table["columns"][:2] == ["video_id", "question_id"] and len(table["data"]) == 6


def test_captions_and_answers_are_files_of_their_own(made):
    folder = made.runs[0].checkpoint.parent
    answers = read_rows(folder / "val_answers.jsonl", "answers")
    assert sum(row.correct for row in answers) / 6 == made.runs[0].metrics["accuracy"]
    if made.task == "qa":
        assert not (folder / "val_predictions.jsonl").exists()
    else:
        assert [row.video_id for row in read_rows(folder / "val_predictions.jsonl", "captions")] == [
            "video0",
            "video1",
            "video2",
        ]


def test_a_comparison_is_of_captions_of_answers_or_of_both(made):
    words = [run.run_id for run in made.runs]
    comparison = compare_runs(words, resamples=20)
    answers = comparison.answers if made.task == "mixed" else comparison
    assert comparison.metric == made.metrics[0]
    (score,) = [score for score in answers.scores if score.metric.name == "accuracy"]
    assert [value.value for value in score.values] == [run.metrics["accuracy"] for run in made.runs]
    assert answers.videos == 6 and len(answers.duels[0].pairs) == 6
    page = made.root / "page.html"
    shown = CliRunner().invoke(app, ["runs", "compare", *words, "--html", str(page), "--json"])
    assert shown.exit_code == 0, shown.output
    assert "6 answers of val" in shown.output
    record = json.loads(shown.output.splitlines()[-1])
    html = page.read_text(encoding="utf-8")
    assert "6 answers" in html and ("3 videos" in html) == (made.task == "mixed")
    assert html.count("<h2>Scores</h2>") == len(made.metrics) and html.count("What differs") == 1
    assert "accuracy" in (record.get("answers") or record)["metrics"]
    assert "\n\n6 answers of the validation split." in results(comparison, "Both", "vb2 runs report")


def test_a_mixture_is_compared_with_captions_alone(monkeypatch):
    root = stages(monkeypatch)
    if "mixed" not in MADE:
        pytest.skip("no mixture was made")
    comparison = compare_runs([root.ce.run_id, MADE["mixed"].seeds[0].run_id], resamples=20)
    assert comparison.metric == "CIDEr" and comparison.answers is None


def test_a_trial_is_judged_by_the_score_that_training_maximises(made, tmp_path):
    class Plan:
        folder = tmp_path
        tuning = SimpleNamespace(stage="ce", seconds=False)

        def config_of(self, params, *overrides):
            return config(made.root, made.task, f"data.task={made.task}", *overrides)

    trial = optuna.create_study().ask()
    score = train_trial(Plan(), trial, Watcher(trial), no_progress)
    (run,) = store.connect().search_runs(
        [e.experiment_id for e in store.connect().search_experiments()], "tags.`optuna.trial` = '0'", max_results=1
    )
    assert score.value == pytest.approx(sum(run.data.metrics[f"best/val/{name}"] for name in made.metrics))
    assert len(score.scores) == 3 and sum(score.scores) / 3 == pytest.approx(score.value, abs=1e-4)


def test_the_mean_over_videos_is_the_sum_of_what_training_maximises(tmp_path):
    videos = [VideoAnnotation(f"video{n}", 0, (f"a dog runs {n}", "a dog")) for n in range(3)]
    answers = ["dog", "cat", "dog", "two"]
    questions = [Question(str(n), f"video{n // 2}", "what is it?", text) for n, text in enumerate(answers)]
    captions = {video.video_id: "a dog runs 0" for video in videos}
    said = {"captions": captions, "answers": dict.fromkeys("0123", "dog")}
    entries = {"captions": videos, "answers": questions}
    both = Config.model_validate({"data": {"task": "mixed", "annotations": str(tmp_path)}})
    found = evaluate_tasks(both, entries, said, ("CIDEr",))
    training = {task.metric: task.scorer(entries[task.kind])(said[task.kind]) for task in tasks_of(both)}
    assert training["accuracy"] == 0.5 and training["CIDEr"] > 0.1
    shares = video_scores(found.caption_rows, found.answer_rows)
    assert sum(shares.values()) / len(shares) == pytest.approx(sum(training.values()))


@pytest.mark.parametrize(
    ("task", "stage", "name"),
    [
        ("caption", "ce", "CIDEr"),
        ("qa", "ce", "accuracy"),
        ("mixed", "ce", "CIDEr + accuracy"),
        ("mixed", "decode", "CIDEr"),
    ],
)
def test_a_study_names_what_it_maximises(task, stage, name):
    plan = Plan(SimpleNamespace(stage=stage, seconds=False), {"data": {"task": task}}, "study.yaml")
    study = optuna.create_study(direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.75, user_attrs={"default": True, "scores": [0.75]}))
    (trial,) = study.get_trials()
    assert f": {name} 75.0, the best so far" in line_of(plan, study, trial)
    assert rows_of(plan, study)[0][name] == 0.75
    assert judge([trial], plan.metric).metric == name


def test_an_evaluation_scores_and_writes_both(made, tmp_path):
    result = evaluate_model(str(made.runs[0].checkpoint), "val", out=tmp_path / "rows.jsonl", metrics=("CIDEr",))
    assert {name: result.evaluation.corpus[name] for name in made.metrics} == pytest.approx(
        {name: made.runs[0].metrics[name] for name in made.metrics}
    )
    assert len(result.evaluation.videos) == 3
    files = {"qa": ["rows.jsonl"], "mixed": ["rows.jsonl", "rows_answers.jsonl"]}[made.task]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert len(read_rows(tmp_path / files[-1], "answers")) == 6


def test_the_model_card_shows_every_score_and_all_data(made):
    card = (made.runs[0].checkpoint / "README.md").read_text(encoding="utf-8")
    assert all(f"| {metric} |" in card for metric in made.metrics)
    assert ("train_qa data" in card) == (made.task == "mixed")
    kinds = ("answers",) if made.task == "qa" else ("answers", "captions")
    assert Provenance.read(made.runs[0].checkpoint).kinds == kinds


def test_a_finished_run_keeps_no_state(made):
    assert not (made.runs[0].checkpoint.parent / FOLDER / "state.safetensors").exists()


def test_rows_survive_a_round_trip(tmp_path):
    captions = [
        CaptionRow("video0", "a dog", {"CIDEr": 0.5}, ("a dog", "the dog"), 3),
        CaptionRow("v", "é", {}, ("b",)),
    ]
    answers = [AnswerRow.of("video0", "0", "what is it?", "the dog", "dog")]
    assert answers[0].correct and answers[0].type == "what"
    file = tmp_path / "rows.jsonl"
    write_rows(file, captions)
    assert read_rows(file, "captions") == captions
    assert "category" not in file.read_text(encoding="utf-8").splitlines()[1]
    write_rows(file, answers)
    assert read_rows(file, "answers") == answers
