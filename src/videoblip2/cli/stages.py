"""ce, scst, evaluate, caption, lm: the commands of the main loop."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videoblip2.cli.output import emit, progress, table

if TYPE_CHECKING:
    from videoblip2.model.qformer.weight_report import WeightReport
    from videoblip2.training.stage import StageResult

Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of standard output.")]
ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of experiments/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as optim.lr=1e-5; `--optim.lr 1e-5` is the same."),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint folder, run id, models:/videoblip2@champion.")
]
Folder = Annotated[
    Path, typer.Option(help="Relative paths of the configuration start here; CONFIG's own starts where you are.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Train so many seeds, from `seed` on, under one parent run.")]
#: `mlflow run -P optim.lr=1e-5` arrives as `--optim.lr 1e-5`.
ANY_OPTION = {"ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(context_settings=ANY_OPTION)(ce)
    app.command(context_settings=ANY_OPTION)(scst)
    app.command(context_settings=ANY_OPTION)(evaluate)
    app.command()(caption)
    app.command()(lm)


def ce(
    config: ConfigFile, overrides: Overrides = None, folder: Folder = Path(), seeds: Seeds = 1, json: Json = False
) -> None:
    """Stage 1: cross-entropy training, as one MLflow run; resume=RUN goes on with one that was stopped."""
    _train("ce", config, overrides, folder, seeds, json)


def scst(
    config: ConfigFile, overrides: Overrides = None, folder: Folder = Path(), seeds: Seeds = 1, json: Json = False
) -> None:
    """Stage 2: self-critical training on CIDEr-D, as one MLflow run; set train.start_from=MODEL, or resume=RUN."""
    _train("scst", config, overrides, folder, seeds, json)


def evaluate(
    model: ModelName,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    out: Annotated[Path | None, typer.Option(help="Predictions file; default runs/evaluate-….jsonl.")] = None,
    folder: Folder = Path(),
    json: Json = False,
) -> None:
    """All metrics of a model on a split, per-video scores and a predictions file, as one MLflow run."""
    from videoblip2.captions.metrics import label_of, shown
    from videoblip2.training.evaluation import evaluate_model

    go_to(folder)
    result = evaluate_model(model, split, overrides_from(overrides), out, progress)
    rows = [[label_of(name), shown(name, value)] for name, value in result.metrics.items()]
    rows += [[name, f"unavailable: {reason}"] for name, reason in result.unavailable.items()]
    text = table(f"{model} on {split} ({result.videos} videos)", ["metric", "score"], rows)
    lines = [text, f"predictions: {result.predictions}", f"run: {result.run_id or 'not tracked'}"]
    record = {
        "run_id": result.run_id,
        "split": split,
        "metrics": result.metrics,
        "unavailable": result.unavailable,
        "predictions": str(result.predictions),
    }
    emit(record, json, "\n".join(lines))


def caption(
    model: ModelName,
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="Media files, or ids with --features.")],
    features: Annotated[Path | None, typer.Option(help="Feature store; VIDEO is then an id.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Another prompt than the model's own.")] = None,
    beams: Annotated[int, typer.Option(min=1)] = 1,
    json: Json = False,
) -> None:
    """Caption media files, or stored features."""
    from videoblip2.config import Decoding
    from videoblip2.predict import caption_each, load_captioner

    captioner = load_captioner(model)
    results = list(caption_each(captioner, videos, features, prompt, Decoding(beams)))
    good = [row for row in results if "error" not in row]
    lines = [f"{row['video']}: {row.get('caption') or 'error: ' + row['error']}" for row in results]
    emit({"model_version": captioner.version, "captions": results}, json, "\n".join(lines))
    if not good:
        raise typer.Exit(1)


def lm(
    annotations: Annotated[Path, typer.Argument(help="train.json: the captions to learn from.")],
    out: Annotated[Path, typer.Option(help="Folder for t5/ and bert/.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as steps=500.")] = None,
    prompt: Annotated[str, typer.Option(help="Words that the vocabularies must know.")] = "a video of",
    json: Json = False,
) -> None:
    """A small T5 trained on captions alone, for machines and data sets without a pre-trained one."""
    from videoblip2.data.annotations import read_annotations
    from videoblip2.toy.language_model import parse_settings, train_language_model

    t5, bert = train_language_model(
        read_annotations(annotations), [prompt], out, parse_settings(settings or []), progress
    )
    emit({"t5": str(t5), "bert": str(bert)}, json, f"language model: {t5}\nword pieces: {bert}")


def overrides_from(words: list[str] | None) -> list[str]:
    """["a=1", "--b.c", "2"] → ["a=1", "b.c=2"]."""
    pairs, rest = [], list(words or [])
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            key, separator, value = word[2:].partition("=")
            word = f"{key}={value if separator or not rest else rest.pop(0)}"
        pairs.append(word)
    return pairs


def go_to(folder: Path) -> None:
    """Let relative paths start at `folder`."""
    from videoblip2.config import InputError

    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(f"--folder {folder}: {error.strerror}; give a folder that exists") from error


def _train(stage: str, config: str, overrides: list[str] | None, folder: Path, seeds: int, json: bool) -> None:
    from videoblip2.config import load_config

    usual, wanted = load_config(config), load_config(config, overrides_from(overrides))
    go_to(folder)
    try:
        if seeds > 1:
            from videoblip2.cli.seeds import train_seeds

            train_seeds(stage, wanted, seeds, usual, json)
            return
        from videoblip2.training.stage import run_stage

        result = run_stage(stage, wanted, progress, show_weights, usual)
    except KeyboardInterrupt as stop:
        raise typer.Exit(130) from stop  # 128 + SIGINT, as the shell expects
    emit(describe(result), json, _summary(result))


def show_weights(lines: Mapping[str, str], reports: Mapping[str, "WeightReport"]) -> None:
    """Print what the network starts from: a line a part, and a table of tensor groups for each loaded Q-Former."""
    for part, line in lines.items():
        print(f"{part}: {line}")
    for name, report in reports.items():
        columns = ["group", "tensors", "parameters", "what", "from or why"]
        print(table(f"{name} Q-Former from {report.file}", columns, [list(row) for row in report.table()]))
    sys.stdout.flush()


def describe(result: "StageResult") -> dict[str, Any]:
    """A stage's result as plain data."""
    return {
        "stage": result.stage,
        "name": result.name,
        "run_id": result.run_id,
        "model": result.model,
        "checkpoint": str(result.checkpoint),
        "best_step": result.best_step,
        "metrics": result.metrics,
    }


def _summary(result: "StageResult") -> str:
    from videoblip2.captions.metrics import label_of, shown

    metrics = result.metrics.items()
    scores = "  ".join(f"{label_of(name)} {shown(name, value)}" for name, value in metrics if name != "step")
    return "\n".join(
        [
            f"{result.name}: best at step {result.best_step}: {scores}",
            f"run: {result.run_id or 'not tracked'}",
            f"checkpoint: {result.checkpoint}",
            f"model: {result.model}",
        ]
    )
