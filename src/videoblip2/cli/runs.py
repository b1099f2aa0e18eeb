"""`vb2 runs`: the runs of the MLflow store, and how they compare."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videoblip2.cli.console import Json, Record, emit, table

if TYPE_CHECKING:
    from videoblip2.tracking.compare import Comparison, Duel, VideoPair
    from videoblip2.tracking.mlflow.run_records import RunRecord

app = typer.Typer(help="The runs of the MLflow store.", no_args_is_help=True)

SHOWN_REFERENCES = 3
LONGEST = 40  # characters of a configuration value


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run ids, the start of run ids, or names.")],
    split: Annotated[str | None, typer.Option(help="val or test; by default val, if every run has it.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Number of largest wins and losses to show.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page that works offline.")] = None,
    json: Json = False,
) -> None:
    """Compare runs: what differs, scores with 95 % intervals and p-values, the largest wins and losses.

    The first run is the baseline. Seeds of one configuration count as one side.

    \b
    Example:
      vb2 runs compare ce scst --html compare.html
    """
    from videoblip2.tracking.sides import compare_runs

    comparison = compare_runs(runs, split)
    if html is not None:
        from videoblip2.tracking.compare_page import write_page

        write_page(html, comparison, top)
    page = [f"page: {html}"] if html else []
    record = {**_comparison_record(comparison, top), "html": str(html) if html else None}
    emit(record, json, "\n\n".join([*_comparison_text(comparison, top), *page]))


@app.command("list")
def list_(
    experiment: Annotated[str | None, typer.Option(help="Show this experiment only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of most recent runs to show.")] = 20,
    json: Json = False,
) -> None:
    """List the most recent runs with the scores of their best checkpoint."""
    from videoblip2.tracking.mlflow.run_records import list_runs

    runs = list_runs(experiment, limit)
    emit({"runs": [run.listed() for run in runs]}, json, _runs_table("Runs", runs))


@app.command()
def gc(
    hours: Annotated[
        float, typer.Option(min=0.0, help="Hours of silence after which another machine's run counts as dead.")
    ] = 24.0,
    json: Json = False,
) -> None:
    """Mark abandoned runs as failed: those left RUNNING by a process that was killed."""
    from videoblip2.tracking.mlflow.run_records import close_dead_runs

    closed = close_dead_runs(hours)
    emit({"closed": [run.run_id for run in closed]}, json, _runs_table(f"Closed {len(closed)} runs", closed))


def _runs_table(title: str, runs: "list[RunRecord]") -> str:
    from videoblip2.captions.metrics import PRIMARY, label_of, shown

    rows = []
    for run in runs:
        scores = [run.metrics.get(key) for key in (f"best/val/{PRIMARY}", f"test/{PRIMARY}")]
        started = datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M")
        cells = ["" if value is None else shown(PRIMARY, value) for value in scores]
        rows.append([run.run_id, run.name, run.stage, run.status, started, *cells])
    scores_of = [f"{label_of(PRIMARY)} {split}" for split in ("val", "test")]
    return table(title, ["run id", "name", "stage", "status", "started", *scores_of], rows, fold=("name",))


def _comparison_text(comparison: "Comparison", top: int) -> list[str]:
    """The parts of the terminal's text. Letters stand for the sides, since names of runs are long."""
    from videoblip2.tracking.compare import letter

    letters = [letter(place) for place in range(len(comparison.sides))]
    legend = [f"{comparison.videos} {comparison.counted} of {comparison.split}"]
    for name, side in zip(letters, comparison.sides, strict=True):
        runs = side.runs[0].run_id if len(side.runs) == 1 else f"{len(side.runs)} seeds"
        legend.append(f"  {name}  {side.name}  {runs}")
    differs = "Nothing differs in configuration, data and source."
    if comparison.differs:  # a long value is cut at its start: paths and addresses differ at the end
        cut = [[v if len(v) <= LONGEST else f"…{v[1 - LONGEST :]}" for v in values] for _, values in comparison.differs]
        keys = [key for key, _ in comparison.differs]
        differs = table("What differs", ["", *letters], [[key, *row] for key, row in zip(keys, cut, strict=True)])
    parts = ["\n".join(legend), *(f"warning: {line}" for line in comparison.warnings), differs]
    parts += _scores_and_duels(comparison, letters, top)
    if comparison.answers:
        title = f"{comparison.answers.videos} answers of {comparison.answers.split}"
        parts += [title, *_scores_and_duels(comparison.answers, letters, top)]
    return parts


def _scores_and_duels(comparison: "Comparison", letters: list[str], top: int) -> list[str]:
    duels = [part for duel in comparison.duels for part in _duel_text(duel, comparison.metric, letters, top)]
    return [_scores(comparison, letters), *duels]


def _scores(comparison: "Comparison", letters: list[str]) -> str:
    """One table for two sides; for more, the scores and below them the differences to the first."""
    from videoblip2.captions.metrics import shown_interval

    resampled = "videos and seeds" if any(len(side.runs) > 1 for side in comparison.sides) else "videos"
    title = f"Scores ×100 with 95 % intervals, by resampling {resampled}"
    values, gaps = [], []
    for score in comparison.scores:
        name, label = score.metric.name, score.metric.mean_label
        values.append([label, *(shown_interval(name, value) for value in score.values)])
        pairs = [(shown_interval(name, found, "+"), _p_value(found.p_value)) for found in score.differences]
        gaps.append([label, *(text for pair in pairs for text in pair)])
    heads = [head for other in letters[1:] for head in (f"{other} − {letters[0]}", "p")]
    if len(letters) == 2:
        rows = [[*value, *gap[1:]] for value, gap in zip(values, gaps, strict=True)]
        return table(title, ["", *letters, *heads], rows)
    return f"{table(title, ['', *letters], values)}\n\n{table('Differences', ['', *heads], gaps)}"


def _p_value(value: float) -> str:
    """As many digits as ten thousand resamples carry."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _duel_text(duel: "Duel", metric: str, letters: list[str], top: int) -> list[str]:
    from videoblip2.captions.metrics import label_of

    first, second = letters[0], letters[duel.side]
    counted = "questions" if any(pair.question for pair in duel.pairs) else "videos"
    higher = f"{second} has the higher {label_of(metric)} on {duel.better} {counted}"
    parts = [f"{higher}, {first} on {duel.worse}, equal on {duel.equal}."]
    for title, pairs in (("wins", duel.wins(top)), ("losses", duel.losses(top))):
        if pairs:
            parts.append(f"Largest {title} of {second} over {first} ({label_of(metric, scale=True)})")
            parts += [_pair_text(pair, metric, (first, second)) for pair in pairs]
    return parts


def _pair_text(pair: "VideoPair", metric: str, letters: Sequence[str]) -> str:
    from videoblip2.captions.metrics import shown

    before, after = (shown(metric, score) for score in pair.scores)
    asked = f"  {pair.question}" if pair.question else ""
    lines = [f"{pair.video_id}{asked}  {before} → {after}  ({shown(metric, pair.gain, '+')})"]
    for letter, captions in zip(letters, pair.captions, strict=True):
        lines += [f"  {letter}  {caption}" for caption, _ in captions]
    lines += [f"  =  {text}" for text in pair.references[:SHOWN_REFERENCES]]
    more = len(pair.references) - SHOWN_REFERENCES
    return "\n".join([*lines, *([f"     … {more} more references with --json or --html"] if more > 0 else [])])


def _comparison_record(comparison: "Comparison", top: int) -> Record:
    """The comparison as plain data; scores in pycocoevalcap's scale."""
    answers = {"answers": _comparison_record(comparison.answers, top)} if comparison.answers else {}
    return {
        "split": comparison.split,
        "videos": comparison.videos,
        "sides": [{"name": side.name, "runs": [run.run_id for run in side.runs]} for side in comparison.sides],
        "warnings": list(comparison.warnings),
        "differs": {key: list(values) for key, values in comparison.differs},
        "metrics": {
            score.metric.name: {
                "values": [value._asdict() for value in score.values],
                "differences": [found._asdict() for found in score.differences],
            }
            for score in comparison.scores
        },
        "duels": [
            {
                "baseline": comparison.sides[0].name,
                "challenger": comparison.sides[duel.side].name,
                **{name: getattr(duel, name) for name in ("better", "worse", "equal")},
                "wins": [_pair_record(pair) for pair in duel.wins(top)],
                "losses": [_pair_record(pair) for pair in duel.losses(top)],
            }
            for duel in comparison.duels
        ],
        **answers,
    }


def _pair_record(pair: "VideoPair") -> Record:
    name = "accuracy" if pair.question else "cider"
    sides = [
        {name: score, "captions": [caption for caption, _ in captions]}
        for score, captions in zip(pair.scores, pair.captions, strict=True)
    ]
    return {
        "video_id": pair.video_id,
        **({"question": pair.question} if pair.question else {"category": pair.category}),
        "baseline": sides[0],
        "challenger": sides[1],
        "gain": pair.gain,
        "references": list(pair.references),
    }
