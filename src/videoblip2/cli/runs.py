"""`vb2 runs`: runs, and how they compare; `vb2 score`: captions of any system, without torch and mlflow."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from videoblip2.cli.console import Commands, emit, table
from videoblip2.errors import counted

if TYPE_CHECKING:
    from videoblip2.tracking.compare import Duel, RunComparison, VideoPair
    from videoblip2.tracking.mlflow.run_records import RunRecord

app = Commands(help="The runs of the MLflow store.", no_args_is_help=True)
scoring = Commands()
Runs = Annotated[list[str], Argument(metavar="RUN", help="Run ids, their first characters, or run names.")]
Part = Annotated[str | None, Option(help="val or test; by default val, if every run has it.")]
SHOWN_REFERENCES = 3
LONGEST = 40  # characters of a configuration value


@app.report("runs compare ce scst --html compare.html")
def compare(
    runs: Runs,
    split: Part = None,
    top: Annotated[int, Option(min=0, help="Number of largest wins and losses to show.")] = 5,
    html: Annotated[Path | None, Option(dir_okay=False, help="Also write an HTML page that works offline.")] = None,
) -> None:
    """Compare runs: what differs, scores with 95 % intervals and p-values, the largest wins and losses.

    The first run is the baseline. Seeds of one configuration count as one side.
    """
    from videoblip2.tracking.reports import compare_runs, write_page

    comparison = compare_runs(runs, split)
    if html is not None:
        write_page(html, comparison, top)
    page = [f"page: {html}"] if html else []
    text = "\n\n".join([*_comparison_text(comparison, top), *page])
    emit(_comparison_record(comparison, top), text, html=str(html) if html else None)


@app.report("runs report ce scst --split test --title 'The demo' --out experiments/RESULTS.md")
def report(
    runs: Runs,
    split: Part = None,
    title: Annotated[str, Option(help="Title of the section.")] = "Runs",
    out: Annotated[
        Path | None, Option(dir_okay=False, help="Markdown file; replaces its section of that title.")
    ] = None,
) -> None:
    """Report the results of runs as Markdown: scores with 95 % intervals, seeds, minutes, commit and command.

    The first run is the baseline of the others. Seeds of one configuration count as one side.
    """
    from videoblip2.tracking.reports import compare_runs, results, write_results

    comparison = compare_runs(runs, split, least=1)
    options = [f"--split {comparison.split}", f"--title {shlex.quote(title)}", *([f"--out {out}"] if out else [])]
    section = results(comparison, title, " ".join(["vb2 runs report", *runs, *options]))
    if out is not None:
        write_results(out, title, section)
    emit(_comparison_record(comparison, 0), f"results: {out}" if out else section, out=str(out) if out else None)


@app.report("runs list", "runs list --experiment videoblip2 --limit 50", name="list")
def list_(
    experiment: Annotated[str | None, Option(help="Show this experiment only.")] = None,
    limit: Annotated[int, Option(min=1, max=1000, help="Number of most recent runs to show.")] = 20,
) -> None:
    """List the most recent runs with the scores of their best checkpoint."""
    from videoblip2.tracking.mlflow.run_records import list_runs

    runs = list_runs(experiment, limit)
    emit({"runs": [run.listed() for run in runs]}, _runs_table("Runs", runs))


@app.report("runs gc", "runs gc --hours 1")
def gc(
    hours: Annotated[float, Option(min=0.0, help="Close another machine's run after this many silent hours.")] = 24.0,
) -> None:
    """Mark abandoned runs as failed: those left RUNNING by a process that was killed."""
    from videoblip2.tracking.mlflow.run_records import close_dead_runs

    closed = close_dead_runs(hours)
    title = f"Closed {counted(len(closed), 'run')}"
    emit({"closed": [run.run_id for run in closed]}, _runs_table(title, closed))


@scoring.report("score results.json test.json", "score results.json test.json --against other.jsonl")
def score(
    predictions: Annotated[Path, Argument(help="COCO or LAVIS results, JSON lines, CSV, TSV: one caption per video.")],
    references: Annotated[list[Path], Argument(help="References in any format that `vb2 data prepare` reads.")],
    against: Annotated[Path | None, Option(help="Other captions of the same videos: differences and p-values.")] = None,
    per_video: Annotated[bool, Option("--per-video", help="Also print the scores of each video.")] = False,
) -> None:
    """Score captions from any system: every metric, with 95 % intervals over videos."""
    from videoblip2.captions.metrics import METRICS, label_of, shown, summary_metrics
    from videoblip2.score import record, score_predictions

    report = score_predictions(predictions, references, against)
    own, parts = report.scores[0], []
    if per_video:
        names = summary_metrics(own.caption_rows[0].scores)
        rows = [[row.video_id, *(shown(name, row.scores[name]) for name in names)] for row in own.caption_rows]
        parts.append(table("Scores of each video", ["video", *map(label_of, names)], rows))
    whole = [name for name in own.corpus if METRICS[name].mean_label != METRICS[name].label]
    corpus = {name: [scores.corpus[name] for scores in report.scores[::-1]] for name in whole}
    parts.append(_scores(report.comparison, [side.name for side in report.comparison.sides], corpus))
    parts += [f"{name}: unavailable, {reason}" for name, reason in own.unavailable.items()]
    parts.append(f"{counted(report.videos, 'video')}")
    if report.unpredicted:
        parts[-1] += f"; {report.unpredicted} more have references but no caption and are not counted"
    emit(record(report, per_video), "\n".join(parts))


def _runs_table(title: str, runs: "list[RunRecord]") -> str:
    from videoblip2.captions.metrics import PRIMARY, label_of, shown

    rows = []
    for run in runs:
        scores = [run.metrics.get(key) for key in (f"{run.validated}{PRIMARY}", f"test/{PRIMARY}")]
        started = datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M")
        cells = ["" if value is None else shown(PRIMARY, value) for value in scores]
        rows.append([run.run_id, run.name, run.stage, run.status, started, *cells])
    scores_of = [f"{label_of(PRIMARY)} {split}" for split in ("val", "test")]
    return table(title, ["run id", "name", "stage", "status", "started", *scores_of], rows, fold=("name",))


def _comparison_text(comparison: "RunComparison", top: int) -> list[str]:
    """The comparison in blocks of text. Letters stand for the sides, since run names are long."""
    from videoblip2.tracking.compare import letter

    letters = list(map(letter, range(len(comparison.sides))))
    legend = [f"{counted(comparison.videos, comparison.counted.removesuffix('s'))} of {comparison.split}"]
    for name, side in zip(letters, comparison.sides, strict=True):
        runs = side.runs[0].run_id if len(side.runs) == 1 else f"{len(side.runs)} seeds"
        legend.append(f"  {name}  {side.name}  {runs}")
    # Long values are cut at the start: paths and addresses differ at the end.
    cut = [[key, *(v if len(v) <= LONGEST else f"…{v[1 - LONGEST :]}" for v in row)] for key, row in comparison.differs]
    nothing = "Configuration, data and source are the same."
    differs = table("What differs", ["", *letters], cut) if cut else nothing
    parts = ["\n".join(legend), *(f"warning: {line}" for line in comparison.warnings), differs]
    for judged in filter(None, (comparison, comparison.answers)):
        parts += [] if judged is comparison else [f"{counted(judged.videos, 'answer')} of {judged.split}"]
        parts.append(_scores(judged, letters))
        for duel in judged.duels:
            parts.append(f"{letters[duel.side]} against {letters[0]}: {judged.sentence(duel)}")
            parts += _duel_text(duel, judged.metric, letters, top)
    return parts


def _scores(comparison: "RunComparison", letters: list[str], corpus: Mapping[str, list[float]] | None = None) -> str:
    """One table for up to two sides; with more, a second one of differences. corpus: scores without an interval."""
    from videoblip2.captions.metrics import label_of, shown, shown_interval

    resampled = "videos and seeds" if any(len(side.runs) > 1 for side in comparison.sides) else "videos"
    title = f"Scores ×100 with 95 % intervals, by resampling {resampled}"
    values, gaps, people = list[list[str]](), [], ["humans"] if comparison.humans else []
    for score in comparison.scores:
        name, label = score.metric.name, score.metric.mean_label
        human = [shown(name, comparison.humans[name]) if name in comparison.humans else ""] if people else []
        values.append([label, *(shown_interval(name, value) for value in score.values), *human])
        gap = [label]
        for found in score.differences:  # as many digits as ten thousand resamples support
            p_value = "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"
            gap += [shown_interval(name, found, "+"), p_value]
        gaps.append(gap)
    columns = ["", *letters, *people]
    heads = [head for other in letters[1:] for head in (f"{other} − {letters[0]}", "p")]
    whole = [
        [label_of(name), *(shown(name, value) for value in (*each, *filter(None, [comparison.humans.get(name)])))]
        for name, each in {**(corpus or {}), **comparison.whole}.items()
    ]
    if len(letters) > 2:
        return f"{table(title, columns, [*values, *whole])}\n\n{table('Differences', ['', *heads], gaps)}"
    columns += heads
    rows = [[*value, *gap[1:]] for value, gap in zip(values, gaps, strict=True)] + whole
    return table(title, columns, [[*row, *[""] * (len(columns) - len(row))] for row in rows])


def _duel_text(duel: "Duel", metric: str, letters: list[str], top: int) -> list[str]:
    from videoblip2.captions.metrics import label_of

    first, second = letters[0], letters[duel.side]
    noun = "question" if any(pair.question for pair in duel.pairs) else "video"
    higher = f"{second} has the higher {label_of(metric)} on {counted(duel.better, noun)}"
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
    lines += [f"     … {counted(more, 'more reference')} with --json or --html"] if more > 0 else []
    return "\n".join(lines)


def _comparison_record(comparison: "RunComparison", top: int) -> dict[str, object]:
    """The comparison as plain data; scores in pycocoevalcap's scale."""
    answers = {"answers": _comparison_record(comparison.answers, top)} if comparison.answers else {}
    return {
        **{name: getattr(comparison, name) for name in ("split", "videos", "warnings")},
        "sides": [{"name": side.name, "runs": [run.run_id for run in side.runs]} for side in comparison.sides],
        "differs": dict(comparison.differs),
        "metrics": {s.metric.name: {"values": s.values, "differences": s.differences} for s in comparison.scores},
        **{name: getattr(comparison, name) for name in ("whole", "humans")},
        "duels": [
            {
                "baseline": comparison.sides[0].name,
                "challenger": comparison.sides[duel.side].name,
                **{name: getattr(duel, name) for name in ("better", "worse", "equal")},
                "sentence": comparison.sentence(duel),
                "wins": [_pair_record(pair) for pair in duel.wins(top)],
                "losses": [_pair_record(pair) for pair in duel.losses(top)],
            }
            for duel in comparison.duels
        ],
        **answers,
    }


def _pair_record(pair: "VideoPair") -> dict[str, object]:
    name = "accuracy" if pair.question else "cider"
    baseline, challenger = (
        {name: score, "captions": [caption for caption, _ in captions]}
        for score, captions in zip(pair.scores, pair.captions, strict=True)
    )
    shared = {key: getattr(pair, key) for key in ("video_id", "question", "category", "gain", "references")}
    return {**shared, "baseline": baseline, "challenger": challenger}
