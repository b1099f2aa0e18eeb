"""`vb2 evaluate`, `vb2 ask`: the commands that use a trained model; `vb2 caption` is in caption.py."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, Typer

from videoblip2.cli import console
from videoblip2.errors import counted

if TYPE_CHECKING:
    from videoblip2.captioner import Captioner

app = Typer()
REMEDY = "give a media file, or --features with a feature store and the ids of its videos"
Split = StrEnum("Split", "val test")

Clip = Annotated[str | None, Option(help="CLIP that made the model's features, if it has moved: folder or hub name.")]
Clap = Annotated[str | None, Option(help="CLAP that made the model's features, if it has moved: folder or hub name.")]


@app.command(
    epilog=console.examples("evaluate models:/videoblip2@champion --split test", "evaluate RUN decode.num_beams=3")
)
def evaluate(
    model: console.ModelName,
    overrides: Annotated[
        console.Words,
        console.key_values("Keys of the model's own configuration, such as decode.num_beams=3 or data.features=DIR."),
    ] = None,
    split: Annotated[Split, Option(help="Split of the model's own data.")] = Split.val,
    out: Annotated[Path | None, Option(help="Predictions file; by default runs/evaluate-….jsonl.")] = None,
    folder: console.Folder = Path(),
    json: console.Json = False,
) -> None:
    """Compute all metrics of a model on a split, per-video scores and a predictions file, as one MLflow run."""
    console.go_to(folder)
    console.require_model(model)
    from videoblip2.captions.metrics import label_of, shown
    from videoblip2.training.evaluation import evaluate_model

    result = evaluate_model(model, split, overrides or [], out, console.progress)
    rows = [[label_of(name), shown(name, value)] for name, value in result.metrics.items()]
    rows += [[label_of(name), f"unavailable: {reason}"] for name, reason in result.unavailable.items()]
    answers = {"answers": str(result.answers)} if result.answers else {}
    files = {"predictions": str(result.predictions), **answers}
    lines = [console.table(f"{model} on {split} ({counted(result.videos, 'video')})", ["metric", "score"], rows)]
    lines += [f"{name}: {file}" for name, file in {**files, "run": result.run_id or "not tracked"}.items()]
    scores = {"metrics": result.metrics, "unavailable": result.unavailable}
    console.emit({"run_id": result.run_id, "split": split, **scores, **files}, json, "\n".join(lines))


@app.command(epilog=console.examples("ask runs/demo/runs/qa/best ball.mp4 'what color is the ball?' 'what is heard?'"))
def ask(
    model: console.ModelName,
    video: Annotated[str, Argument(metavar="VIDEO", help="Media file, or video id with --features.")],
    questions: Annotated[list[str], Argument(metavar="QUESTION", help="Such as 'what color is the ball?'.")],
    features: console.FeatureFolder = None,
    num_beams: console.Beams = 1,
    clip: Clip = None,
    clap: Clap = None,
    json: console.Json = False,
) -> None:
    """Answer questions about one video, with a model trained on questions (data.task=qa or mixed)."""
    from videoblip2.config import Decoding
    from videoblip2.predict import ask_video, load_captioner

    console.require_model(model)
    console.require([features or video], REMEDY)
    captioner = load_captioner(model, encoders={"clip": clip, "clap": clap})
    warn(captioner)
    answers = ask_video(captioner, video, questions, features, Decoding(num_beams))
    rows = [
        {"question": question, "answer": answer.text, "score": round(answer.score, 4)}
        for question, answer in zip(questions, answers, strict=True)
    ]
    lines = [f"{row['question']}  {row['answer'] or '(no answer)'}" for row in rows]
    told = {"model_version": captioner.version, "warning": captioner.warning}
    console.emit({"video": video, "answers": rows}, json, "\n".join(lines), **told)


def warn(captioner: "Captioner") -> None:
    if captioner.warning:
        print(f"warning: {captioner.model_name} was {captioner.warning}", file=sys.stderr, flush=True)
