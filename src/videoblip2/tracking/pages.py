"""A comparison as one HTML file (styles and drawings inside, no network, light and dark) and as Markdown results."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from videoblip2.captions import tokenize
from videoblip2.captions.metrics import label_of, scale_of, shown, shown_interval
from videoblip2.files import write_text
from videoblip2.tracking.compare import Comparison, Duel, Score, letter
from videoblip2.tracking.mlflow.run_records import curve

BINS = 41
RESULTS = """# Results

Written from runs by the command below each title: edit nothing here. What was tried on the way is in the ledger
([README.md](README.md)), and so are results whose runs are gone.
"""


def write_page(path: Path, comparison: Comparison, top: int = 5) -> None:
    """Write the HTML page, with at most `top` wins and losses for each duel."""
    write_text(path, _rendered("compare.html.j2", c=comparison, top=top))


def results(comparison: Comparison, title: str, command: str) -> str:
    """A section of a page of results, in Markdown; the comparison may have a single side."""
    return _rendered("results.md.j2", c=comparison, title=title, command=command).strip()


def write_results(path: Path, title: str, section: str) -> None:
    """Put a section into a page of results, in the place of an earlier one with its title; the others stay."""
    text = path.read_text(encoding="utf-8") if path.is_file() else RESULTS
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    named = {each.partition("\n")[0]: each for each in sections}
    named[f"## {title}"] = section
    write_text(path, "\n\n".join(map(str.strip, (head, *named.values()))) + "\n")


def _rendered(template: str, **content: object) -> str:
    loader, html = FileSystemLoader(Path(__file__).parent), ".html" in template
    environment = Environment(loader=loader, autoescape=html, undefined=StrictUndefined, trim_blocks=True)
    used = (bars, categories, curves, histogram, marked_words, letter, shown, shown_interval, label_of, scale_of)
    environment.globals.update({each.__name__: each for each in used})
    return environment.get_template(template).render(**content)


def bars(score: Score) -> list[tuple[float, float, float]]:
    """(value, low, width) of each side's interval, in percent of a scale a little wider than all of them."""
    low, high = min(each.low for each in score.values), max(each.high for each in score.values)
    room = 0.08 * (high - low) or 1.0
    start, unit = low - room, (high - low + 2 * room) / 100
    return [((v - start) / unit, (low - start) / unit, (high - low) / unit) for v, low, high in score.values]


def marked_words(caption: str, references: Sequence[str]) -> list[tuple[str, bool]]:
    """The words of a caption, each with whether some reference has it."""
    known = {token for text in references for token in tokenize(text)}
    return [(word, bool(set(tokenize(word)) & known)) for word in caption.split()]


def histogram(duel: Duel) -> tuple[list[int], float]:
    """Gains over all videos: counts in an odd number of equal bins about 0, the outer ones open, and the reach."""
    gains = np.array([pair.gain for pair in duel.pairs])
    reach = float(np.abs(np.quantile(gains, (0.01, 0.99))).max()) or 1.0
    places = np.clip(np.rint((gains / reach + 1) / 2 * (BINS - 1)), 0, BINS - 1).astype(int)
    return np.bincount(places, minlength=BINS).tolist(), reach


def categories(duel: Duel) -> list[tuple[int, int, float, float]]:
    """(category, videos, mean of the first side, of the other), largest gain first; none where there is only one."""
    groups: dict[int, list[tuple[float, float]]] = {}
    for pair in duel.pairs:
        if pair.category is not None:
            groups.setdefault(pair.category, []).append(pair.scores)
    rows = [(name, len(scores), *np.mean(scores, axis=0).tolist()) for name, scores in groups.items()]
    return sorted(rows, key=lambda row: row[2] - row[3]) if len(rows) > 1 else []


def curves(comparison: Comparison) -> list[tuple[int, list[tuple[int, float]]]]:
    """(side, points of its validation curve) for each run that has two points or more."""
    metric = f"val/{comparison.metric}"
    found = [(n, curve(run.run_id, metric)) for n, side in enumerate(comparison.sides) for run in side.runs]
    return [(n, points) for n, points in found if len(points) > 1]
