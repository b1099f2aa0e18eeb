"""`vb2 evaluate`, `vb2 caption`, `vb2 ask`: the commands that use a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from videoblip2.cli.console import (
    Beams,
    FeatureStore,
    Folder,
    Json,
    ModelName,
    Overrides,
    emit,
    exit_if_failed,
    go_to,
    overrides_from,
    progress,
    table,
)


def evaluate(
    model: ModelName,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    out: Annotated[Path | None, typer.Option(help="Predictions file; by default runs/evaluate-….jsonl.")] = None,
    folder: Folder = Path(),
    json: Json = False,
) -> None:
    """Compute all metrics of a model on a split, per-video scores and a predictions file, as one MLflow run.

    \b
    Examples:
      vb2 evaluate models:/videoblip2@champion --split test
      vb2 evaluate runs/demo/runs/ce/best decode.num_beams=3
    """
    from videoblip2.captions.metrics import label_of, shown
    from videoblip2.training.evaluation import evaluate_model

    go_to(folder)
    result = evaluate_model(model, split, overrides_from(overrides), out, progress)
    rows = [[label_of(name), shown(name, value)] for name, value in result.metrics.items()]
    rows += [[label_of(name), f"unavailable: {reason}"] for name, reason in result.unavailable.items()]
    text = table(f"{model} on {split} ({result.videos} videos)", ["metric", "score"], rows)
    files = [f"predictions: {result.predictions}", *([f"answers: {result.answers}"] if result.answers else [])]
    lines = [text, *files, f"run: {result.run_id or 'not tracked'}"]
    record = {
        "run_id": result.run_id,
        "split": split,
        "metrics": result.metrics,
        "unavailable": result.unavailable,
        "predictions": str(result.predictions),
        **({"answers": str(result.answers)} if result.answers else {}),
    }
    emit(record, json, "\n".join(lines))


def caption(
    model: ModelName,
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO", help="Media files, or video ids with --features.")],
    features: FeatureStore = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt to use instead of the model's own.")] = None,
    beams: Beams = 1,
    json: Json = False,
) -> None:
    """Caption media files, or stored features.

    \b
    Examples:
      vb2 caption models:/videoblip2@champion holiday.mp4
      vb2 caption runs/demo/runs/scst/best video560 video561 --features runs/demo/features
    """
    from videoblip2.config import Decoding
    from videoblip2.predict import caption_each, load_captioner

    captioner = load_captioner(model)
    rows = list(caption_each(captioner, videos, features, prompt, Decoding(beams)))
    lines = [f"{row['video']}: {row.get('caption') or 'error: ' + row['error']}" for row in rows]
    emit({"model_version": captioner.version, "captions": rows}, json, "\n".join(lines))
    failed = sum("error" in row for row in rows)
    exit_if_failed(failed, len(rows) - failed)


def ask(
    model: ModelName,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Media file, or video id with --features.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help="Such as 'what color is the ball?'.")],
    features: FeatureStore = None,
    beams: Beams = 1,
    json: Json = False,
) -> None:
    """Answer questions about one video, with a model trained on questions (data.task=qa or mixed).

    \b
    Example:
      vb2 ask runs/demo/runs/qa/best ball.mp4 'what color is the ball?' 'what can be heard?'
    """
    from videoblip2.config import Decoding
    from videoblip2.predict import ask_video, load_captioner

    captioner = load_captioner(model)
    answers = ask_video(captioner, video, questions, features, Decoding(beams))
    rows = [
        {"question": question, "answer": answer.text, "score": round(answer.score, 4)}
        for question, answer in zip(questions, answers, strict=True)
    ]
    lines = [f"{row['question']}  {row['answer'] or '(no answer)'}" for row in rows]
    emit({"model_version": captioner.version, "video": video, "answers": rows}, json, "\n".join(lines))
