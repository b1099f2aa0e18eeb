"""`vb2 ce`, `vb2 scst`, `vb2 lm`: the commands that train."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videoblip2.cli.options import ANY_OPTION, ConfigFile, Folder, Json, Overrides, overrides_from
from videoblip2.cli.output import Record, emit, progress, table

if TYPE_CHECKING:
    from videoblip2.config import Config
    from videoblip2.model.qformer.weight_report import WeightReport
    from videoblip2.training.seeds import SeedsResult
    from videoblip2.training.stage import StageResult

Seeds = Annotated[
    int, typer.Option(min=1, metavar="N", help="Train N seeds, starting at `seed`, under one parent run.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(context_settings=ANY_OPTION)(ce)
    app.command(context_settings=ANY_OPTION)(scst)
    app.command()(lm)


def ce(
    config: ConfigFile, overrides: Overrides = None, folder: Folder = Path(), seeds: Seeds = 1, json: Json = False
) -> None:
    """Stage 1: train with cross-entropy, as one MLflow run. resume=RUN resumes a run that was stopped.

    \b
    Examples:
      vb2 ce toy_ce
      vb2 ce experiments/msrvtt_ce.yaml optim.lr=1e-4 --seeds 3
    """
    _train("ce", config, overrides, folder, seeds, json)


def scst(
    config: ConfigFile, overrides: Overrides = None, folder: Folder = Path(), seeds: Seeds = 1, json: Json = False
) -> None:
    """Stage 2: train with self-critical sequence training on CIDEr-D, as one MLflow run.

    \b
    Examples:
      vb2 scst toy_scst
      vb2 scst experiments/msrvtt_scst.yaml train.start_from=RUN
      vb2 scst experiments/msrvtt_scst.yaml resume=RUN
    """
    _train("scst", config, overrides, folder, seeds, json)


def lm(
    annotations: Annotated[Path, typer.Argument(help="train.json: the captions to learn from.")],
    out: Annotated[Path, typer.Option(help="Folder for t5/ and bert/.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Such as steps=500.")] = None,
    prompt: Annotated[str, typer.Option(help="Words that both vocabularies must contain.")] = "a video of",
    json: Json = False,
) -> None:
    """Train a small T5 on captions alone, for machines and data sets without a pre-trained one."""
    from videoblip2.data.annotations import read_annotations
    from videoblip2.toy.small_t5 import parse_settings, train_language_model

    videos = read_annotations(annotations)
    t5, bert = train_language_model(videos, [prompt], out, parse_settings(settings or []), progress)
    emit({"t5": str(t5), "bert": str(bert)}, json, f"language model: {t5}\nword pieces: {bert}")


def go_to(folder: Path) -> None:
    """Let relative paths start at `folder`."""
    from videoblip2.errors import InputError

    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(f"--folder {folder}: {error.strerror}; give a folder that exists") from error


def _train(stage: str, path: str, overrides: list[str] | None, folder: Path, seeds: int, json: bool) -> None:
    from videoblip2.config import load_config

    usual, config = load_config(path), load_config(path, overrides_from(overrides))
    go_to(folder)
    try:
        if seeds > 1:
            _train_seeds(stage, config, usual, seeds, json)
        else:
            _train_one(stage, config, usual, json)
    except KeyboardInterrupt as stop:
        raise typer.Exit(130) from stop  # 128 + SIGINT, as the shell expects


def _train_one(stage: str, config: "Config", usual: "Config", json: bool) -> None:
    from videoblip2.training.stage import run_stage

    result = run_stage(stage, config, progress, show_weights, usual)
    emit(_record(result), json, _summary(result))


def _train_seeds(stage: str, config: "Config", usual: "Config", seeds: int, json: bool) -> None:
    from videoblip2.training.seeds import run_seeds

    result = run_seeds(stage, config, seeds, progress, show_weights, usual)
    record = {
        "stage": stage,
        "name": result.name,
        "run_id": result.run_id,
        "seeds": [_record(seed) for seed in result.seeds],
        "metrics": {name: value._asdict() for name, value in result.metrics.items()},
    }
    emit(record, json, _seeds_table(result))


def show_weights(lines: Mapping[str, str], reports: Mapping[str, "WeightReport"]) -> None:
    """Print the initial weights: a line for each part, a table of tensor groups for each loaded Q-Former."""
    for part, line in lines.items():
        print(f"{part}: {line}")
    for name, report in reports.items():
        columns = ["group", "tensors", "parameters", "what", "from or why"]
        print(table(f"{name} Q-Former from {report.file}", columns, report.table()))
    sys.stdout.flush()


def _record(result: "StageResult") -> Record:
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


def _seeds_table(result: "SeedsResult") -> str:
    from videoblip2.captions.metrics import label_of, shown, shown_interval, summary_metrics

    names = summary_metrics(result.metrics)
    rows = [
        [seed, *(shown(name, run.metrics[name]) for name in names), run.best_step, run.run_id or ""]
        for seed, run in zip(result.numbers, result.seeds, strict=True)
    ]
    means = [shown_interval(name, result.metrics[name]) for name in names]
    rows.append(["mean", *means, "", result.run_id or "not tracked"])
    title = f"{len(result.seeds)} seeds on val, ×100; the mean with its 95 % interval over seeds"
    return f"{result.name}\n{table(title, ['seed', *map(label_of, names), 'best step', 'run'], rows)}"
