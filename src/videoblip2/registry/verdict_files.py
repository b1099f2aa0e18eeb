"""A verdict as files: a Markdown table, a CSV table of the videos or questions, JSON, and a plot."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from videoblip2.captions.metrics import METRICS, label_of, scale_of, shown
from videoblip2.files import write_json, write_text
from videoblip2.registry.gate import Gate, GateVerdict, Sides, rows_of
from videoblip2.tracking.tracker import markdown_table

TAG = "mlflow.gate"  # of a version: the facts of its promotion as JSON; MLflow's page hides it
COLUMNS = ["condition", "challenger", "opponent", "wanted", "verdict"]


def facts_of(tags: Mapping[str, str]) -> dict[str, str]:
    """The facts of a promotion from the version's tags: with the outcome, and the place of the files."""
    return dict(json.loads(tags.get(TAG, "{}")))


def table_rows(verdict: GateVerdict) -> list[list[str]]:
    """One row per condition, in the order of COLUMNS."""
    rows = verdict.conditions
    return [[c.name, c.challenger, c.champion, c.wanted, "passed" if c.passed else "FAILED"] for c in rows]


def markdown(verdict: GateVerdict, labels: tuple[str, str], facts: Mapping[str, str]) -> str:
    """The verdict for the page of a version or a run; labels: challenger, champion."""
    won, lost = (np.sign(list(verdict.differences.values())) == sign for sign in (1, -1))
    judged = "videos" if METRICS[verdict.metric].of == "captions" else "questions"
    counts = f"{int(won.sum())} {judged} won, {int(lost.sum())} lost, {len(verdict.differences)} in total"
    head = f"**Gate: {'passed' if verdict.passed else 'failed'}.** {labels[0]} compared with {labels[1]}: {counts}."
    reason = f" Promoted anyway: {facts['reason']}." if "reason" in facts else ""
    foot = f"Judged {facts['when']} by {facts['who']} in run {facts['run_id']}.{reason}"
    return "\n\n".join([head, f"{verdict.sentence}.", markdown_table(COLUMNS, table_rows(verdict)), foot])


def write_verdict(folder: Path, verdict: GateVerdict, gate: Gate, sides: Sides, facts: Mapping[str, str]) -> None:
    """Write verdict.json, verdict.png and a table with the worst loss first, videos.csv or questions.csv."""
    content = {
        **facts,
        "passed": verdict.passed,
        "gain": verdict.gain._asdict(),
        "sentence": verdict.sentence,
        "conditions": [asdict(condition) for condition in verdict.conditions],
        "gate": gate.model_dump(mode="json"),
        "corpus": {"challenger": dict(sides[0].corpus), "champion": dict(sides[1].corpus)},
    }
    write_json(folder / "verdict.json", content, indent=1)
    plot(folder / "verdict.png", verdict, gate)
    of_captions = METRICS[verdict.metric].of == "captions"
    file, key, text = ("videos", "video_id", "caption") if of_captions else ("questions", "question_id", "answer")
    challenger, champion = ({row.key: row for row in rows_of(side, verdict.metric)} for side in sides)
    with (folder / f"{file}.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow([key, "difference", "challenger", "champion", f"challenger_{text}", f"champion_{text}"])
        for name, difference in sorted(verdict.differences.items(), key=lambda pair: pair[1]):
            new, old = challenger[name], champion[name]
            numbers = [f"{n:.6f}" for n in (difference, new.scores[verdict.metric], old.scores[verdict.metric])]
            writer.writerow([name, *numbers, new.text, old.text])


def write_card(folder: Path, checkpoint: Path, verdict: str) -> Path | None:
    """Write the model card with the verdict as its last section, replacing an earlier one; None if there is no card."""
    if not (checkpoint / "README.md").is_file():
        return None
    card = (checkpoint / "README.md").read_text(encoding="utf-8").partition("\n## Gate\n")[0]
    write_text(folder / "README.md", f"{card.rstrip()}\n\n## Gate\n\n{verdict}\n")
    return folder / "README.md"


def plot(path: Path, verdict: GateVerdict, gate: Gate) -> None:
    """Plot the differences by video with their mean, its interval, zero and the smallest gain, in the printed scale."""
    from videoblip2.training.record import new_figure, save_figure  # imports torch

    gain, factor, color = verdict.gain, scale_of(verdict.metric), "#2c7a4b" if verdict.passed else "#b3392f"
    differences = factor * np.sort(list(verdict.differences.values()))
    value, low, high = (shown(verdict.metric, number, "+") for number in gain[:3])
    words = "passed" if verdict.passed else "\n".join(["failed", *verdict.failed])
    title = f"mean {value}, {100 * gate.confidence:g} % interval {low} to {high}\ngate {words}"
    figure, (axes,) = new_figure(1, title, height=4)
    axes.hist(differences, bins=min(40, max(10, len(differences) // 10)), color="#b8c4d6")
    axes.axvspan(factor * gain.low, factor * gain.high, color=color, alpha=0.3)
    axes.axvline(factor * gain.difference, color=color, linewidth=2)
    axes.axvline(0, color="black", linewidth=1)
    axes.axvline(factor * gate.minimum_gain, color="black", linewidth=1, linestyle="--")
    axes.set_xlabel(f"{label_of(verdict.metric, scale=True)} of a video, challenger - opponent")
    axes.set_ylabel("videos")
    axes.locator_params(axis="y", integer=True)
    axes.legend(["interval of the mean", "mean", "no difference", "smallest gain"], frameon=False, fontsize="small")
    save_figure(figure, path)
