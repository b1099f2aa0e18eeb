"""A comparison as one HTML file: styles and drawings inside, no network, light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoblip2.captions import tokenize
from videoblip2.captions.intervals import Interval
from videoblip2.captions.metrics import PRIMARY, label_of, scale_of, shown
from videoblip2.files import write_text
from videoblip2.tracking.compare import Comparison, Duel, Score, VideoPair, letter
from videoblip2.tracking.mlflow.run_records import curve

TEMPLATE = "compare.html.j2"
WIDTH, HEIGHT, MARGIN = 640, 220, 34
BINS = 41


@dataclass(frozen=True)
class Bar:
    """An interval on a scale from 0 to 100 % of a bar's width."""

    at: float
    low: float
    width: float


def write_page(path: Path, comparison: Comparison, top: int = 5) -> None:
    """Write the page."""
    write_text(path, render(comparison, top))


def render(comparison: Comparison, top: int = 5) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals.update(letter=letter, words=marked_words, bars=bars, shown=shown)
    return environment.get_template(TEMPLATE).render(
        c=comparison,
        parts=[_part(each) for each in (comparison, comparison.answers) if each],
        top=top,
        several_seeds=any(len(side.runs) > 1 for side in comparison.sides),
    )


def _part(comparison: Comparison) -> dict[str, object]:
    """What the template shows of captions, or of answers."""
    return {
        "c": comparison,
        "primary": comparison.metric,
        "label": label_of(comparison.metric),
        "histograms": [histogram(duel) for duel in comparison.duels],
        "categories": [categories(duel) for duel in comparison.duels],
        "curves": curves(comparison, f"val/{comparison.metric}"),
    }


def bars(score: Score) -> list[Bar]:
    """The sides' intervals of one metric on one scale, a little wider than they are together."""
    low, high = min(value.low for value in score.values), max(value.high for value in score.values)
    room = 0.08 * (high - low) or 1.0
    return [_bar(value, low - room, high - low + 2 * room) for value in score.values]


def _bar(value: Interval, start: float, length: float) -> Bar:
    return Bar(
        at=100 * (value.value - start) / length,
        low=100 * (value.low - start) / length,
        width=100 * (value.high - value.low) / length,
    )


def marked_words(caption: str, references: Sequence[str]) -> list[tuple[str, bool]]:
    """The words of a caption, each with whether some reference has it."""
    known = {token for text in references for token in tokenize(text)}
    return [(word, bool(set(tokenize(word)) & known)) for word in caption.split()]


def histogram(duel: Duel) -> dict[str, Any]:
    """Gains over all videos as bars: an odd number of equal bins about 0, the outer ones open."""
    gains = sorted(pair.gain for pair in duel.pairs)
    reach = max(abs(gains[int(0.01 * len(gains))]), abs(gains[int(0.99 * (len(gains) - 1))])) or 1.0
    counts = [0] * BINS
    for gain in gains:
        place = round((gain / reach + 1) / 2 * (BINS - 1))
        counts[min(max(place, 0), BINS - 1)] += 1
    highest, wide = max(counts), WIDTH / BINS
    drawn = [
        {
            "x": n * wide + 1,
            "height": HEIGHT * count / highest,
            "count": count,
            "sign": (n > BINS // 2) - (n < BINS // 2),
        }
        for n, count in enumerate(counts)
    ]
    return {"bars": drawn, "wide": wide - 2, "reach": scale_of(PRIMARY) * reach, "width": WIDTH, "height": HEIGHT}


def categories(duel: Duel) -> list[dict[str, Any]]:
    """Mean score of both sides for each category, the largest gain first; none where videos have no category."""
    groups: dict[int, list[VideoPair]] = {}
    for pair in duel.pairs:
        if pair.category is not None:
            groups.setdefault(pair.category, []).append(pair)
    rows: list[dict[str, Any]] = [
        {"name": name, "count": len(pairs), "scores": _means(pairs)} for name, pairs in groups.items()
    ]
    highest = max((score for row in rows for score in row["scores"]), default=0.0) or 1.0
    for row in rows:
        row |= {"gain": row["scores"][1] - row["scores"][0], "shares": [100 * s / highest for s in row["scores"]]}
    return sorted(rows, key=lambda row: -row["gain"]) if len(rows) > 1 else []


def _means(pairs: Sequence[VideoPair]) -> list[float]:
    return [sum(pair.scores[side] for pair in pairs) / len(pairs) for side in (0, 1)]


def curves(comparison: Comparison, metric: str = f"val/{PRIMARY}") -> dict[str, Any]:
    """Validation curves as lines of one drawing; nothing where no run has two points."""
    found = [(n, curve(run.run_id, metric)) for n, side in enumerate(comparison.sides) for run in side.runs]
    lines = [(n, points) for n, points in found if len(points) > 1]
    if not lines:
        return {}
    steps = max(step for _, points in lines for step, _ in points) or 1
    values = [value for _, points in lines for _, value in points]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def place(step: int, value: float) -> str:
        x = MARGIN + (WIDTH - MARGIN - 8) * step / steps
        return f"{x:.1f},{8 + (HEIGHT - 24) * (high - value) / span:.1f}"

    drawn = [{"side": n, "points": " ".join(place(*point) for point in points)} for n, points in lines]
    return {
        "lines": drawn,
        "low": scale_of(PRIMARY) * low,
        "high": scale_of(PRIMARY) * high,
        "steps": steps,
        "width": WIDTH,
        "height": HEIGHT,
    }
