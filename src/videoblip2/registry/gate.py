"""The gate: what a challenger must show against the champion. Pure: settings and scores in, a verdict out.

The gain of one metric by a paired bootstrap (Koehn 2004), and limits on other losses; docs/decisions/0007-the-gate.md
gives the reasons. Without a champion, the opponent is the trivial baseline: the same text for every video.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator

from videoblip2.captions import METRICS, BootstrapResult, diversity
from videoblip2.captions.intervals import difference, resampled_means
from videoblip2.captions.metrics import PRIMARY, caption_metric, gain_and_cost, label_of, shown
from videoblip2.captions.predictions import AnswerRow, Prediction
from videoblip2.config import Section
from videoblip2.errors import validated
from videoblip2.evaluate import Evaluation
from videoblip2.overrides import read_yaml
from videoblip2.tracking.source import short_digest

DEFAULT_FILE = Path("experiments/gate.yaml")
ACCURACY = AnswerRow.metric
Sides = tuple[Evaluation, Evaluation]  # challenger, champion


class Gate(Section):
    """The conditions, in the scale of stored metrics: 0.01 is 1.0 of printed CIDEr."""

    metric: str = Field(PRIMARY, description="metric that must rise; accuracy if the task has no captions")
    minimum_gain: float = Field(0.01, ge=0, description="smallest gain in the mean of `metric`")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the interval, which must be above zero")
    resamples: int = Field(10_000, ge=100)
    seed: int = Field(0, ge=0)
    guards: dict[str, float] = Field({"METEOR": 0.015}, description="metric → margin that its interval must not exceed")
    max_accuracy_loss: float | None = Field(0.005, ge=0, description="for models that also answer; none = not compared")
    max_losses: dict[str, float] = Field({}, description="largest loss in the mean of other metrics, by name")
    length: tuple[float, float] = Field((0.8, 1.25), description="words per caption over the champion's or references'")
    max_bad_endings_rise: float = Field(0.02, ge=0, description="above the champion's share, or the references'")
    max_latency_ratio: float | None = Field(1.5, gt=0, description="times the champion's; none = not measured")
    latency_videos: int = Field(20, ge=3, description="videos (or questions) that both models decode one by one")
    same_features: bool = Field(True, description="false: each model reads features of its own encoders, same videos")

    @field_validator("metric", "guards", "max_losses")
    @classmethod
    def _known(cls, names: str | dict[str, float]) -> str | dict[str, float]:
        for name in [names] if isinstance(names, str) else names:
            if name != ACCURACY and not caption_metric(name).per_video:
                raise ValueError(f"{name} has no value per video; choose a metric that has one")
        return names

    def metric_for(self, evaluation: Evaluation) -> str:
        """The metric that must rise: `metric`, or that of the available rows."""
        if rows_of(evaluation, self.metric):
            return self.metric
        return PRIMARY if evaluation.caption_rows else ACCURACY

    @property
    def losses(self) -> dict[str, float]:
        """Metric → largest loss of its mean over videos or questions; for a guard, the margin of its interval."""
        accuracy = {} if self.max_accuracy_loss is None else {ACCURACY: self.max_accuracy_loss}
        return {**accuracy, **self.max_losses, **self.guards}

    @property
    def digest(self) -> str:
        """12 hex digits (sha256) of the conditions."""
        return short_digest(json.dumps(self.model_dump(), sort_keys=True))


@dataclass(frozen=True)
class Condition:
    """One line of the verdict, as shown. guard: the guarded metric, if any."""

    name: str
    challenger: str
    champion: str
    wanted: str
    passed: bool
    guard: str = ""


@dataclass(frozen=True)
class GateVerdict:
    """The gate's result: challenger minus champion in `metric`'s scale. sentence: the gain and its cost."""

    metric: str
    conditions: tuple[Condition, ...]
    gain: BootstrapResult
    differences: dict[str, float]
    sentence: str = ""

    @property
    def passed(self) -> bool:
        return all(condition.passed for condition in self.conditions)

    @property
    def failed(self) -> list[str]:
        """The failed conditions, one phrase each; violated guards are in the sentence."""
        failed = [condition for condition in self.conditions if not condition.passed]
        cost = [self.sentence] if any(condition.guard for condition in failed) else []
        return [*cost, *(f"{c.name} {c.challenger}, wanted {c.wanted}" for c in failed if not c.guard)]


def load_gate(path: Path | None = None) -> Gate:
    """Read a gate file; None = experiments/gate.yaml. Raises InputError naming the unknown key or the wrong value."""
    source = path or DEFAULT_FILE
    return validated(Gate, read_yaml(source), f"gate {source}")


def judge(
    gate: Gate,
    challenger: Evaluation,
    champion: Evaluation,
    seconds: Sequence[tuple[float, float]] = (),
    extra: Sequence[Condition] = (),
    trivial: bool = False,
) -> GateVerdict:
    """Compare challenger and champion on the same data.

    seconds: (challenger, champion) for single entries. extra: conditions already decided. trivial: `champion` is the
    trivial baseline, so lengths are compared with the references' instead.
    """
    metric, sides = gate.metric_for(challenger), (challenger, champion)
    found, say = _differences(gate, sides), partial(shown, metric)
    gain, (new, old) = found[metric], (_mean(side, metric) for side in sides)
    gained, least = f"{say(new)} ({say(gain.difference, '+')})", f"at least {say(gate.minimum_gain, '+')}"
    name = f"{100 * gate.confidence:g} % interval of the gain"
    conditions = [
        *extra,
        Condition(f"{label_of(metric)} gain", gained, say(old), least, gain.difference >= gate.minimum_gain),
        Condition(name, f"{say(gain.low, '+')} to {say(gain.high, '+')}", "", "above 0", gain.low > 0),
        *(_loss(gate, name, sides, found) for name in gate.losses if _is_compared(name, metric, challenger, trivial)),
        *(_form(gate, sides, trivial) if challenger.caption_rows else ()),
    ]
    if gate.max_latency_ratio is not None and seconds:
        # the median of the pairs' ratios is robust to a disturbance during one pair
        ratio = float(np.median([slow / fast for slow, fast in seconds]))
        mine, other = 1000 * np.median(np.asarray(seconds), axis=0)
        wanted, passed = f"at most {gate.max_latency_ratio:g} times", ratio <= gate.max_latency_ratio
        conditions.append(Condition("latency, ms", f"{mine:.0f} ({ratio:.2f} times)", f"{other:.0f}", wanted, passed))
    scores = [{row.key: row.scores[metric] for row in rows_of(side, metric)} for side in sides]
    differences = {key: float(score - scores[1][key]) for key, score in scores[0].items()}
    violated = [each.guard for each in conditions if each.guard and not each.passed]
    compared = {name: found[name] for name in (metric, *violated)} if trivial else found
    return GateVerdict(metric, tuple(conditions), gain, differences, gain_and_cost(metric, compared, violated))


def rows_of(evaluation: Evaluation, metric: str) -> Sequence[Prediction]:
    """The rows that a metric scores: captions or answers."""
    return evaluation.caption_rows if METRICS[metric].of == "captions" else evaluation.answer_rows


def _mean(evaluation: Evaluation, metric: str) -> float:
    return float(np.mean([row.scores[metric] for row in rows_of(evaluation, metric)]))


def _differences(gate: Gate, sides: Sides) -> dict[str, BootstrapResult]:
    """For all metrics with a value per row on both sides; metrics of one kind of row share the resamples."""
    found = dict[str, BootstrapResult]()
    for kind in sides[0].rows:
        new, old = ({row.key: row.scores for row in side.rows[kind]} for side in sides)
        names = [name for name in METRICS if all(name in scores for scores in (*new.values(), *old.values()))]
        table = np.array([[new[key][name] - old[key][name] for name in names] for key in new])
        drawn = resampled_means(table, gate.resamples, gate.seed)
        columns = zip(names, table.T, drawn.T, strict=True)
        found |= {name: difference(float(own.mean()), means, gate.confidence) for name, own, means in columns}
    return found


def _is_compared(name: str, metric: str, challenger: Evaluation, trivial: bool) -> bool:
    """Whether a metric's loss is limited; against the trivial baseline, only that of accuracy."""
    return name != metric and bool(rows_of(challenger, name)) and not (trivial and METRICS[name].of == "captions")


def _loss(gate: Gate, name: str, sides: Sides, found: Mapping[str, BootstrapResult]) -> Condition:
    """A limit on the loss of a metric: of its mean or, for a guard, the end of its interval (non-inferiority)."""
    if reason := sides[0].unavailable.get(name) or sides[1].unavailable.get(name):
        return Condition(name, f"not measured: {reason}", "", f"a number, or no {name} in the gate file", False)
    (new, old), gain, say = (_mean(side, name) for side in sides), found[name], partial(shown, name)
    limit, guarded = gate.losses[name], name in gate.guards
    down = METRICS[name].higher_is_better is False
    end = (gain.high if down else gain.low) if guarded else gain.difference
    wanted = f"{'no loss beyond' if guarded else 'a loss of at most'} {say(limit)}"
    given, passed = f"{say(new)} ({say(gain.low, '+')} to {say(gain.high, '+')})", (end if down else -end) <= limit
    return Condition(METRICS[name].mean_label, given, say(old), wanted, passed, name if guarded else "")


def _form(gate: Gate, sides: Sides, trivial: bool) -> list[Condition]:
    """Limits on caption length and on bad endings; the references' own share of bad endings is allowed."""
    human = diversity([text for group in sides[0].references.values() for text in group])
    new, old = (side.corpus for side in sides)
    usual = human["mean_length"] if trivial else old["mean_length"]
    low, high = (factor * usual for factor in gate.length)
    most = max(old["bad_endings"], human["bad_endings"]) + gate.max_bad_endings_rise

    def row(name: str, other: float, wanted: str, passed: bool) -> Condition:
        return Condition(label_of(name), shown(name, new[name]), shown(name, other), wanted, passed)

    return [
        row("mean_length", usual, f"{low:.1f} to {high:.1f}", low <= new["mean_length"] <= high),
        row("bad_endings", old["bad_endings"], f"at most {shown('bad_endings', most)}", new["bad_endings"] <= most),
    ]
