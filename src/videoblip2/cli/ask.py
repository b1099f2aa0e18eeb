"""`vb2 ask`: answer questions on a media file, or on stored features."""

from pathlib import Path
from typing import Annotated

import typer

from videoblip2.cli.output import emit


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(ask)


def ask(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder, run id, models:/…@champion.")],
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A media file, or an id with --features.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="Such as 'what color is the ball?'.")],
    features: Annotated[Path | None, typer.Option(help="Feature store; VIDEO is then an id.")] = None,
    beams: Annotated[int, typer.Option(min=1)] = 1,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of standard output.")] = False,
) -> None:
    """Answer questions on one video; train for it with `vb2 ce experiments/toy_qa.yaml` or data.task=mixed."""
    from videoblip2.config import Decoding
    from videoblip2.predict import ask_video, load_captioner

    captioner = load_captioner(model)
    answers = ask_video(captioner, video, questions, features, Decoding(beams))
    rows = [
        {"question": question, "answer": answer.text, "score": round(answer.score, 4)}
        for question, answer in zip(questions, answers, strict=True)
    ]
    lines = [f"{row['question']}  {row['answer'] or '(nothing)'}" for row in rows]
    emit({"model_version": captioner.version, "video": video, "answers": rows}, json, "\n".join(lines))
