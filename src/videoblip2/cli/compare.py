"""`vb2 runs compare`: what differs between runs, in configuration, score and captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videoblip2.cli.options import Json
from videoblip2.cli.output import Record, emit, table

if TYPE_CHECKING:
    from videoblip2.captions import BootstrapResult
    from videoblip2.tracking.compare import Comparison, Duel, Side, VideoPair

SHOWN_REFERENCES = 3


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
    emit(as_record(comparison, top, html), json, "\n\n".join([*text_of(comparison, top), *page]))


def text_of(comparison: "Comparison", top: int) -> list[str]:
    """The parts of the terminal's text. Letters stand for the sides, since names of runs are long."""
    from videoblip2.tracking.compare import letter

    title = f"{comparison.videos} {comparison.counted} of {comparison.split}"
    legend = [f"  {letter(n)}  {_called(side)}" for n, side in enumerate(comparison.sides)]
    warnings = [f"warning: {line}" for line in comparison.warnings]
    letters = [letter(n) for n in range(len(comparison.sides))]
    duels = [part for duel in comparison.duels for part in _duel(duel, comparison.metric, letters, top)]
    head = ["\n".join([title, *legend]), *warnings, _differs(comparison, letters)]
    return [*head, _scores(comparison, letters), *duels, *_answers(comparison.answers, letters, top)]


def _answers(comparison: "Comparison | None", letters: list[str], top: int) -> list[str]:
    """What is shown of the answers of runs whose captions are shown above."""
    if comparison is None:
        return []
    duels = [part for duel in comparison.duels for part in _duel(duel, comparison.metric, letters, top)]
    return [f"{comparison.videos} answers of {comparison.split}", _scores(comparison, letters), *duels]


def _called(side: "Side") -> str:
    """A run's name and id, or the name of several seeds."""
    if len(side.runs) == 1:
        return f"{side.name}  {side.runs[0].run_id}"
    return f"{side.name}  {len(side.runs)} seeds"


def as_record(comparison: "Comparison", top: int, html: Path | None = None) -> Record:
    """The comparison as plain data; scores in pycocoevalcap's scale."""
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
        "duels": [_duel_record(comparison, duel, top) for duel in comparison.duels],
        "html": str(html) if html else None,
        **({"answers": as_record(comparison.answers, top)} if comparison.answers else {}),
    }


def _differs(comparison: "Comparison", letters: list[str]) -> str:
    if not comparison.differs:
        return "Nothing differs in configuration, data and source."
    rows = [[key, *(_cut(value) for value in values)] for key, values in comparison.differs]
    return table("What differs", ["", *letters], rows)


def _scores(comparison: "Comparison", letters: list[str]) -> str:
    """One table for two sides; for more, the scores and below them the differences to the first."""
    from videoblip2.captions.metrics import shown_interval

    resampled = "videos and seeds" if any(len(side.runs) > 1 for side in comparison.sides) else "videos"
    title = f"Scores ×100 with 95 % intervals, by resampling {resampled}"
    names = [score.metric.mean_label for score in comparison.scores]
    values = [[shown_interval(score.metric.name, value) for value in score.values] for score in comparison.scores]
    gaps = [[text for found in s.differences for text in _difference(s.metric.name, found)] for s in comparison.scores]
    heads = [head for other in letters[1:] for head in (f"{other} − {letters[0]}", "p")]
    if len(letters) == 2:
        rows = [[name, *value, *gap] for name, value, gap in zip(names, values, gaps, strict=True)]
        return table(title, ["", *letters, *heads], rows)
    first = table(title, ["", *letters], [[name, *value] for name, value in zip(names, values, strict=True)])
    second = table("Differences", ["", *heads], [[name, *gap] for name, gap in zip(names, gaps, strict=True)])
    return f"{first}\n\n{second}"


def p_text(p_value: float) -> str:
    """A p-value with as many digits as ten thousand resamples carry."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _difference(metric: str, found: "BootstrapResult") -> tuple[str, str]:
    """A difference with its interval, and its p-value."""
    from videoblip2.captions.metrics import shown_interval

    return shown_interval(metric, found, "+"), p_text(found.p_value)


def _duel(duel: "Duel", metric: str, letters: list[str], top: int) -> list[str]:
    from videoblip2.captions.metrics import label_of

    first, second, label = letters[0], letters[duel.side], label_of(metric)
    counted = "questions" if any(pair.question for pair in duel.pairs) else "videos"
    parts = [
        f"{second} has the higher {label} on {duel.better} {counted}, {first} on {duel.worse}, equal on {duel.equal}."
    ]
    for title, pairs in (("wins", duel.wins(top)), ("losses", duel.losses(top))):
        if pairs:
            parts.append(f"Largest {title} of {second} over {first} ({label_of(metric, scale=True)})")
            parts += [_video(pair, metric, (first, second)) for pair in pairs]
    return parts


def _video(pair: "VideoPair", metric: str, letters: Sequence[str]) -> str:
    from videoblip2.captions.metrics import shown

    before, after = (shown(metric, score) for score in pair.scores)
    asked = f"  {pair.question}" if pair.question else ""
    lines = [f"{pair.video_id}{asked}  {before} → {after}  ({shown(metric, pair.gain, '+')})"]
    for letter, captions in zip(letters, pair.captions, strict=True):
        lines += [f"  {letter}  {caption}" for caption, _ in captions]
    lines += [f"  =  {text}" for text in pair.references[:SHOWN_REFERENCES]]
    more = len(pair.references) - SHOWN_REFERENCES
    return "\n".join([*lines, *([f"     … {more} more references with --json or --html"] if more > 0 else [])])


def _duel_record(comparison: "Comparison", duel: "Duel", top: int) -> Record:
    return {
        "baseline": comparison.sides[0].name,
        "challenger": comparison.sides[duel.side].name,
        "better": duel.better,
        "worse": duel.worse,
        "equal": duel.equal,
        "wins": [_pair_record(pair) for pair in duel.wins(top)],
        "losses": [_pair_record(pair) for pair in duel.losses(top)],
    }


def _pair_record(pair: "VideoPair") -> Record:
    return {
        "video_id": pair.video_id,
        **({"question": pair.question} if pair.question else {"category": pair.category}),
        "baseline": {_stored(pair): pair.scores[0], "captions": [caption for caption, _ in pair.captions[0]]},
        "challenger": {_stored(pair): pair.scores[1], "captions": [caption for caption, _ in pair.captions[1]]},
        "gain": pair.gain,
        "references": list(pair.references),
    }


def _stored(pair: "VideoPair") -> str:
    """Under which key the JSON has the score of a pair."""
    return "accuracy" if pair.question else "cider"


def _cut(text: str, longest: int = 40) -> str:
    """A long value from its end, where paths and addresses differ."""
    return text if len(text) <= longest else f"…{text[-longest + 1 :]}"
