"""Compare runs by name: resolve the runs, group their seeds, list what differs.

Written as one HTML file (self-contained, light and dark) or as Markdown results.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from videoblip2.captions import tokenize
from videoblip2.captions.metrics import label_of, scale_of, shown, shown_interval
from videoblip2.captions.predictions import NAMES, Kind
from videoblip2.config import InputError
from videoblip2.files import write_text
from videoblip2.tracking.compare import Differences, Duel, RunComparison, Score, Side, compare_sides, letter
from videoblip2.tracking.mlflow import run_records
from videoblip2.tracking.mlflow.run_records import SPLITS, TRAINED_BY, RunRecord, curve, find_run, plain

#: Configuration keys about places and bookkeeping, not about the computation.
PLACES = ("run.", "train.resume", "train.save_every", "train.probe_videos", "device")
#: Tags that distinguish runs besides their configuration.
FACTS = {"stage": "stage", "lineage.parent_name": "started from"}
NOTHING = "—"
BINS = 41
RESULTS = """# Results

Generated from runs by the command below each title; do not edit. The ledger ([README.md](README.md)) has
everything else that was tried, and results whose runs are gone.
"""

Group = tuple[str, list[RunRecord]]
Sources = Mapping[str, Mapping[tuple[Kind, str], tuple[str, str]]]  # run id → see `rows_of`


def compare_runs(
    words: Sequence[str], split: str | None = None, resamples: int = 10_000, least: int = 2
) -> RunComparison:
    """Compare the runs named by `words`, at least `least`; the seeds of one configuration are one side.

    words: run ids, their first characters, or names; a parent from `--seeds` stands for its runs. split: val, test, or
    None for the first that every run has. Runs that also answer are compared on answers in `RunComparison.answers`.
    Raises InputError for a word that names no run, for too few runs, and for runs with nothing in common.
    """
    if split not in (None, *SPLITS):
        raise InputError(f"split {split!r}: not one of {', '.join(SPLITS)}")
    groups = _groups([find_run(word) for word in dict.fromkeys(words)])
    if min(len(groups), len({run.run_id for _, runs in groups for run in runs})) < least:
        raise InputError(f"{' '.join(words)}: only one side; name two runs or more, see `vb2 runs list`")
    sources = {run.run_id: run_records.rows_of(run) for _, runs in groups for run in runs}
    chosen, kinds = _common(sources, split, groups)
    found, differs = [], _differences(groups)
    for kind in kinds:
        rows = [
            [run_records.read_logged(kind, *sources[run.run_id][kind, chosen]) for run in runs] for _, runs in groups
        ]
        sides = [Side(name, tuple(runs), tuple(each)) for (name, runs), each in zip(groups, rows, strict=True)]
        found.append(compare_sides(chosen, sides, differs, resamples))
    return replace(found[0], answers=found[1]) if len(found) > 1 else found[0]


def _differences(groups: Sequence[Group]) -> Differences:
    """What differs: facts first (stage, data, source), then configuration keys, with each side's value as text."""
    any_seed = any(len(runs) > 1 for _, runs in groups)
    facts = [_together(map(_facts, runs)) for _, runs in groups]
    configs = [_together(_config(run, any_seed) for run in runs) for _, runs in groups]
    rows = []
    for columns in (facts, configs):
        for key in dict.fromkeys(key for column in columns for key in column):
            values = tuple(column.get(key, NOTHING) for column in columns)
            rows += [(key, values)] if len(set(values)) > 1 else []
    return rows


def _groups(records: Sequence[RunRecord]) -> list[Group]:
    """Replace parents by their seeds; then group runs that differ only in the seed, if that leaves two sides."""
    groups: list[Group] = []
    for record in records:
        runs = [run for run in run_records.seeds_of(record) if run.status == "FINISHED"] or [record]
        groups.append((record.name, runs))
    merged: dict[object, Group] = {}
    for name, runs in groups:
        key = (runs[0].stage, runs[0].tags.get("split"), *sorted(_config(runs[0], True).items()))
        if known := merged.get(key):  # `ce-seed0` and `ce-seed1` are shown as `ce`
            shared = os.path.commonprefix([known[0], name]).removesuffix("seed").rstrip("-_ ")  # noqa: RUF071
            merged[key] = (shared or known[0], [*known[1], *runs])
        else:
            merged[key] = (name, runs)
    found = list(merged.values()) if len(merged) > 1 else groups
    names = [name for name, _ in found]  # column names must differ
    return [(name if names.count(name) == 1 else f"{name} {runs[0].run_id[:6]}", runs) for name, runs in found]


def _common(sources: Sources, split: str | None, groups: Sequence[Group]) -> tuple[str, list[Kind]]:
    """The split to compare, and the kinds that every run has: captions, answers or both."""
    for chosen in [split] if split else SPLITS:
        if kinds := [kind for kind in NAMES if all((kind, chosen) in found for found in sources.values())]:
            return chosen, kinds
    named = {f"{run.name} ({run.run_id})": sources[run.run_id] for _, runs in groups for run in runs}
    parts = {name: [f"{kind} of {part}" for kind, part in found] for name, found in named.items()}
    has = "; ".join(f"{name} has {' and '.join(each) or 'none'}" for name, each in parts.items())
    remedy = f"make them with `vb2 evaluate RUN --split {split or 'val'}`"
    raise InputError(f"{split or 'val or test'}: not every run has captions or answers for it ({has}); {remedy}")


def _config(run: RunRecord, any_seed: bool) -> dict[str, str]:
    """The configuration in normal form; for an evaluation, that of the run that trained its model."""
    trained_by = run.tags.get(TRAINED_BY, "None")
    params = run.params or (find_run(trained_by).params if trained_by != "None" else {})
    left_out = (*PLACES, "seed") if any_seed else PLACES
    return {key: plain(value) for key, value in params.items() if not key.startswith(left_out)}


def _facts(run: RunRecord) -> dict[str, str]:
    facts = {name: run.tags[tag] for tag, name in FACTS.items() if tag in run.tags}
    facts |= {f"data ({context})": what for context, what in sorted(run.data.items())}
    return {**facts, "source": run.commit} if run.commit else facts


def _together(runs: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The facts of a side's runs, each distinct value once."""
    known = list(runs)
    keys = dict.fromkeys(key for run in known for key in run)
    return {key: ", ".join(dict.fromkeys(run[key] for run in known if key in run)) for key in keys}


def write_page(path: Path, comparison: RunComparison, top: int = 5) -> None:
    """Write the HTML page, with at most `top` wins and losses for each duel."""
    write_text(path, _rendered("compare.html.j2", c=comparison, top=top))


def results(comparison: RunComparison, title: str, command: str) -> str:
    """A section of the results page, in Markdown; the comparison may have a single side."""
    return _rendered("results.md.j2", c=comparison, title=title, command=command).strip()


def write_results(path: Path, title: str, section: str) -> None:
    """Put a section into the results page, replacing an earlier one of the same title."""
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
    """(value, low, width) of each side's interval, in percent of a scale slightly wider than all of them."""
    low, high = min(each.low for each in score.values), max(each.high for each in score.values)
    room = 0.08 * (high - low) or 1.0
    start, unit = low - room, (high - low + 2 * room) / 100
    return [((v - start) / unit, (low - start) / unit, (high - low) / unit) for v, low, high in score.values]


def marked_words(caption: str, references: Sequence[str]) -> list[tuple[str, bool]]:
    """The words of a caption, each with whether a reference contains it."""
    known = {token for text in references for token in tokenize(text)}
    return [(word, bool(set(tokenize(word)) & known)) for word in caption.split()]


def histogram(duel: Duel) -> tuple[list[int], float]:
    """Histogram of gains: counts in an odd number of equal bins around 0, open at both ends, and the range."""
    gains = np.array([pair.gain for pair in duel.pairs])
    reach = float(np.abs(np.quantile(gains, (0.01, 0.99))).max()) or 1.0
    places = np.clip(np.rint((gains / reach + 1) / 2 * (BINS - 1)), 0, BINS - 1).astype(int)
    return np.bincount(places, minlength=BINS).tolist(), reach


def categories(duel: Duel) -> list[tuple[int, int, float, float]]:
    """(category, videos, mean of the first side, of the other), largest gain first; empty if there is only one."""
    groups: dict[int, list[tuple[float, float]]] = {}
    for pair in duel.pairs:
        if pair.category is not None:
            groups.setdefault(pair.category, []).append(pair.scores)
    rows = [(name, len(scores), *np.mean(scores, axis=0).tolist()) for name, scores in groups.items()]
    return sorted(rows, key=lambda row: row[2] - row[3]) if len(rows) > 1 else []


def curves(comparison: RunComparison) -> list[tuple[int, list[tuple[int, float]]]]:
    """(side, points of its validation curve) for each run that has two points or more."""
    metric = f"val/{comparison.metric}"
    found = [(n, curve(run.run_id, metric)) for n, side in enumerate(comparison.sides) for run in side.runs]
    return [(n, points) for n, points in found if len(points) > 1]
