"""`vb2 score`: captions of any system against references; needs neither torch nor mlflow."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, Typer

from videoblip2.cli import console

if TYPE_CHECKING:
    from videoblip2.score import ScoreReport


app = Typer()


@app.command(
    epilog=console.examples(
        "score results.json data/msrvtt/test.json",
        "score results.json test_videodatainfo.json.zip --against other.jsonl --json",
    )
)
def score(
    predictions: Annotated[Path, Argument(help="COCO or LAVIS results, JSON lines, CSV, TSV: one caption per video.")],
    references: Annotated[list[Path], Argument(help="References in any format that `vb2 data prepare` reads.")],
    against: Annotated[Path | None, Option(help="Other captions of the same videos: differences and p-values.")] = None,
    per_video: Annotated[bool, Option("--per-video", help="Also print the scores of each video.")] = False,
    json: console.Json = False,
) -> None:
    """Score captions that any system wrote: every metric, with 95 % intervals over videos."""
    from videoblip2.score import record, score_predictions

    report = score_predictions(predictions, references, against)
    parts = [_scores(report, [str(file) for file in (predictions, against) if file])]
    parts += [f"{name}: unavailable, {reason}" for name, reason in report.scores[0].unavailable.items()]
    if report.unpredicted:
        parts.append(f"{report.unpredicted} more videos have references and no caption; they do not count")
    if per_video:
        parts.insert(0, _each(report))
    console.emit(record(report, per_video), json, "\n".join(parts))


def _scores(report: "ScoreReport", names: list[str]) -> str:
    from videoblip2.captions.metrics import label_of, shown_interval
    from videoblip2.cli.runs import p_value
    from videoblip2.score import shown_metrics

    compared = {score.metric.name: score for score in report.comparison.scores}
    rows = []
    for name in shown_metrics(report):
        rows.append([label_of(name), *(_cell(report, name, place) for place in range(len(names)))])
        if len(names) > 1:
            if name in compared and compared[name].metric.mean_label != label_of(name):
                means = [shown_interval(name, value) for value in compared[name].values[::-1]]
                rows += [[*rows.pop(), "", ""], [compared[name].metric.mean_label, *means]]
            gaps = compared[name].differences if name in compared else ()
            rows[-1] += [text for gap in gaps for text in (shown_interval(name, gap, "+"), p_value(gap.p_value))]
    heads = [*names, "difference", "p"] if len(names) > 1 else names
    rows = [row + [""] * (1 + len(heads) - len(row)) for row in rows]
    return console.table(f"{report.videos} videos, 95 % intervals by resampling videos", ["", *heads], rows)


def _cell(report: "ScoreReport", name: str, place: int) -> str:
    from videoblip2.captions.metrics import shown, shown_interval

    value, between = report.scores[place].corpus[name], report.interval(name, place)
    return shown(name, value) if between is None else shown_interval(name, (value, *between))


def _each(report: "ScoreReport") -> str:
    from videoblip2.captions.metrics import label_of, shown, summary_metrics

    each = report.scores[0].per_video
    names = summary_metrics(next(iter(each.values())))
    rows = [[video, *(shown(name, scores[name]) for name in names)] for video, scores in each.items()]
    return console.table("Scores of each video", ["video", *map(label_of, names)], rows)
