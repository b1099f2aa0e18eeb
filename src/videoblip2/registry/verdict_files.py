"""A verdict as a reader meets it: a table in Markdown, a table of the videos, JSON, and a plot."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from videoblip2.captions.metrics import label_of, scale_of, shown
from videoblip2.evaluate import Evaluation
from videoblip2.registry.gate import Gate, Verdict

COLUMNS = ["condition", "challenger", "opponent", "wanted", "verdict"]


def table_rows(verdict: Verdict) -> list[list[str]]:
    """One row a condition, in the order of COLUMNS."""
    return [
        [c.name, c.challenger, c.champion, c.wanted, "passed" if c.passed else "FAILED"] for c in verdict.conditions
    ]


def markdown(verdict: Verdict, labels: tuple[str, str], facts: Mapping[str, str]) -> str:
    """The verdict for the page of a version or a run; labels: challenger, champion."""
    won, lost = (np.sign(list(verdict.differences.values())) == sign for sign in (1, -1))
    videos = f"{int(won.sum())} videos won, {int(lost.sum())} lost, {len(verdict.differences)} in all"
    head = f"**Gate: {'passed' if verdict.passed else 'failed'}.** {labels[0]} beside {labels[1]}: {videos}."
    rows = [COLUMNS, ["---"] * len(COLUMNS), *table_rows(verdict)]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([head, "", *lines, "", *(f"- {key}: {value}" for key, value in facts.items())])


def write_verdict(
    folder: Path, verdict: Verdict, gate: Gate, sides: tuple[Evaluation, Evaluation], facts: Mapping[str, str]
) -> None:
    """Write verdict.json, videos.csv (worst loss first) and verdict.png; sides: challenger, champion."""
    content = {
        **facts,
        "passed": verdict.passed,
        "gain": verdict.gain._asdict(),
        "conditions": [asdict(condition) for condition in verdict.conditions],
        "gate": gate.model_dump(mode="json"),
        "corpus": {"challenger": sides[0].corpus, "champion": sides[1].corpus},
    }
    (folder / "verdict.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_videos(folder / "videos.csv", verdict, sides, gate.metric)
    plot(folder / "verdict.png", verdict, gate)


def _write_videos(path: Path, verdict: Verdict, sides: tuple[Evaluation, Evaluation], metric: str) -> None:
    challenger, champion = sides
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video_id", "difference", "challenger", "champion", "challenger_caption", "champion_caption"])
        for video, difference in sorted(verdict.differences.items(), key=lambda pair: pair[1]):
            scores = [side.per_video[video][metric] for side in sides]
            numbers = [f"{number:.6f}" for number in (difference, *scores)]
            writer.writerow([video, *numbers, challenger.captions[video], champion.captions[video]])


def plot(path: Path, verdict: Verdict, gate: Gate) -> None:
    """The differences of the videos with the mean, its interval, zero and the smallest gain, as they are printed."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state
    from matplotlib.ticker import MaxNLocator

    gain, factor, colour = verdict.gain, scale_of(gate.metric), "#2c7a4b" if verdict.passed else "#b3392f"
    differences = factor * np.sort(list(verdict.differences.values()))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(differences, bins=min(40, max(10, len(differences) // 10)), color="#b8c4d6")
    axes.axvspan(factor * gain.low, factor * gain.high, color=colour, alpha=0.3)
    axes.axvline(factor * gain.difference, color=colour, linewidth=2)
    axes.axvline(0, color="black", linewidth=1)
    axes.axvline(factor * gate.minimum_gain, color="black", linewidth=1, linestyle="--")
    axes.set_xlabel(f"{label_of(gate.metric, scale=True)} of a video, challenger - opponent")
    axes.set_ylabel("videos")
    value, low, high = (shown(gate.metric, number, "+") for number in gain[:3])
    title = f"mean {value}, {100 * gate.confidence:g} % interval {low} to {high}"
    words = "passed" if verdict.passed else "\n".join(["failed", *verdict.failed])
    axes.set_title(f"{title}\ngate {words}", fontsize="medium")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(["interval of the mean", "mean", "no difference", "smallest gain"], frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)
