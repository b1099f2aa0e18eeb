"""The table of metrics, used wherever scores are shown or compared; see docs/how-to/add-a-metric.md.

The numbers equal those of `COCOEvalCap.evaluate`, but captions are tokenized in Python, METEOR and SPICE (Java) run in
parallel with the others, and a metric that cannot run is reported with the reason.
"""

import shutil
import subprocess
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any, Literal, NamedTuple

import numpy as np

from videoblip2.captions import functions
from videoblip2.captions.frequencies import check_references
from videoblip2.captions.functions import Floats, Groups, OwnCorpusScore, Texts, exact_match
from videoblip2.captions.tokenizer import joined
from videoblip2.config import InputError

#: What a function of captions and references may return: see `Metric.function`.
Outcome = Sequence[float] | Floats | OwnCorpusScore | float
Function = Callable[[Texts, Groups], Outcome]
#: The metric that selects checkpoints, ranks videos and must rise at the gate.
PRIMARY = "CIDEr"
FETCH_SPICE = "python -c 'from pycocoevalcap.spice.spice import Spice; Spice()'"


@dataclass(frozen=True)
class Metric:
    """One number about captions and their references (see `captions.functions`), or about answers.

    `function` returns one number per video, whose mean is the corpus score, with two exceptions: with `per_video`
    False it returns only the corpus score; with `pool` it returns counts [N,k], and `pool` turns their sum [...,k]
    into the score [...].
    """

    name: str  # in files, runs and JSON
    function: Function
    label: str = ""  # in tables and figures; empty = `name`
    scale: float = 100.0  # factor for display
    per_video: bool = True
    pool: Callable[[Floats], Floats] | None = None
    higher_is_better: bool | None = True  # None = neither
    needs: Literal["", "java", "spice"] = ""
    default: bool = True  # computed by `vb2 evaluate`
    summary: bool = True  # shown in short lists
    of: Literal["captions", "answers"] = "captions"
    mean_label: str = ""  # label of the mean over videos, if not the corpus score

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        object.__setattr__(self, "mean_label", self.mean_label or self.label)

    @property
    def unavailable(self) -> str:
        """Why the metric cannot run here; empty if it can."""
        if self.needs and shutil.which("java") is None:
            return "java not found"
        if self.needs == "spice" and not spice_models_present():
            return f"SPICE's model files are missing; fetch them once with network access: {FETCH_SPICE}"
        return ""

    def rows(self, outcome: Outcome, count: int) -> Floats:
        """What the function returned for each of `count` videos: scores [N], or counts [N,k]."""
        rows = np.asarray(outcome.each if isinstance(outcome, OwnCorpusScore) else outcome, np.float64)
        if rows.shape[:1] != (count,):
            raise InputError(f"metric {self.name!r} returned scores of shape {rows.shape} for {count} captions")
        return rows

    def scores(self, outcome: Outcome, count: int) -> tuple[float, Floats | None]:
        """The corpus score, and the score of each of `count` videos if the metric has one."""
        if not self.per_video:
            return float(outcome), None  # type: ignore[arg-type]
        rows = self.rows(outcome, count)
        if isinstance(outcome, OwnCorpusScore):
            return outcome.corpus, rows
        if self.pool is not None:
            return float(self.pool(rows.sum(axis=0))), self.pool(rows)
        return float(rows.mean()) if count else 0.0, rows


_ENTRIES = (
    Metric("CIDEr", functions.cider),
    *(
        Metric(f"Bleu_{n}", functions.bleu_counts, f"BLEU-{n}", pool=partial(functions.bleu, order=n), summary=n == 4)
        for n in (1, 2, 3, 4)
    ),
    Metric("ROUGE_L", functions.rouge, "ROUGE-L"),
    Metric("METEOR", functions.meteor, needs="java", mean_label="METEOR, mean of videos"),
    Metric("SPICE", functions.spice, needs="spice", default=False),
    Metric("content_precision", functions.content_precision, "content words, precision (%)", summary=False),
    Metric("content_recall", functions.content_recall, "content words, recall (%)", summary=False),
    Metric("distinct_1", partial(functions.distinct, order=1), "distinct words (%)", per_video=False, summary=False),
    Metric("distinct_2", partial(functions.distinct, order=2), "distinct bigrams (%)", per_video=False, summary=False),
    Metric("vocabulary", functions.vocabulary, scale=1.0, per_video=False, summary=False),
    Metric("mean_length", functions.length, "words per caption", 1.0, higher_is_better=None, summary=False),
    Metric("repetition", functions.repetition, "repeated bigrams (%)", higher_is_better=False, summary=False),
    Metric("bad_endings", functions.bad_ending, "bad endings (%)", higher_is_better=False, summary=False),
    Metric("accuracy", exact_match, of="answers"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ENTRIES}
DIVERSITY = ("distinct_1", "distinct_2", "vocabulary", "mean_length", "bad_endings")  # diversity of the captions


class CaptionMetrics(NamedTuple):
    """Scores of a set of captions, in the scale of each metric's function."""

    corpus: dict[str, float]  # metric → value
    per_video: dict[str, dict[str, float]]  # video id → metric → value
    unavailable: dict[str, str]  # metric → why it could not be computed


def default_metrics(fast: bool = False) -> list[str]:
    """Names of the caption metrics computed by default; `fast`: only those that need no Java."""
    return [name for name in _of_captions() if METRICS[name].default and not (fast and METRICS[name].needs)]


def summary_metrics(names: Container[str]) -> list[str]:
    """The metrics among `names` for short lists, in the table's order."""
    return [name for name, metric in METRICS.items() if metric.summary and name in names]


def shown(name: str, value: float, sign: str = "") -> str:
    """A value for display: CIDEr 0.613 → "61.3". Names outside the table are shares, shown ×100."""
    return f"{scale_of(name) * value:{sign}.1f}"


def shown_interval(name: str, interval: Sequence[float], sign: str = "") -> str:
    """(value, low, high, …) → "61.3 [60.1, 62.5]"."""
    value, low, high = (shown(name, number, sign) for number in interval[:3])
    return f"{value} [{low}, {high}]"


def scale_of(name: str) -> float:
    """The factor for display."""
    return METRICS[name].scale if name in METRICS else 100.0


def label_of(name: str, scale: bool = False) -> str:
    """A metric's name in tables and figures; with `scale`, such as "CIDEr ×100"."""
    label, factor = METRICS[name].label if name in METRICS else name, scale_of(name)
    return f"{label} ×{factor:g}" if scale and factor != 1.0 and "%" not in label else label


def caption_metrics(
    references: Mapping[str, Sequence[str]], captions: Mapping[str, str], metrics: Sequence[str] | None = None
) -> CaptionMetrics:
    """Score one raw caption per video, as `COCOEvalCap` does; CIDEr's document frequencies come from these references.

    metrics: names in METRICS; None for all that score captions. METEOR and SPICE need Java.
    Raises InputError for an unknown metric, a video without references, and a video that only one side has.
    """
    wanted = [caption_metric(name) for name in (_of_captions() if metrics is None else metrics)]
    if unpaired := sorted(captions.keys() ^ references.keys()):
        raise InputError(f"video {unpaired[0]!r} has only a caption or only references: give both or leave it out")
    check_references(references)
    texts = [joined(captions[video]) for video in references]
    groups = [[joined(text) for text in references[video]] for video in references]
    if not any(text for group in groups for text in group):
        raise InputError(f"references of video {next(iter(references))!r} and the others have no words: give captions")
    outcomes = _outcomes(wanted, texts, groups)
    found = CaptionMetrics({}, {video: {} for video in references}, {})
    for metric in wanted:
        outcome = outcomes[metric.function]
        if isinstance(outcome, str):
            found.unavailable[metric.name] = outcome
            continue
        found.corpus[metric.name], each = metric.scores(outcome, len(texts))
        for scores, score in zip(found.per_video.values(), () if each is None else each.tolist(), strict=False):
            scores[metric.name] = score
    return found


def diversity(captions: Iterable[str]) -> dict[str, float]:
    """The DIVERSITY metrics of a set of captions, all 0 for no captions."""
    texts = [joined(text) for text in captions]
    outcomes = _outcomes([METRICS[name] for name in DIVERSITY], texts, [()] * len(texts))
    return {name: METRICS[name].scores(outcomes[METRICS[name].function], len(texts))[0] for name in DIVERSITY}


def human_metrics(references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Human scores by the metrics that need no Java: one reference of each video, taken in turn, against the others.
    Videos with a single reference do not count; empty if there are no others."""
    several = {video: list(group) for video, group in references.items() if len(group) > 1}
    held = {video: group.pop(n % len(group)) for n, (video, group) in enumerate(several.items())}
    return caption_metrics(several, held, default_metrics(fast=True)).corpus if held else {}


def gain_and_cost(metric: str, differences: Mapping[str, Sequence[float]], also: Container[str] = ()) -> str:
    """Such as "+4.4 CIDEr, at the cost of −1.6 ROUGE-L [−2.3, −0.9]": the gain of `metric`, and the metrics that
    are significantly worse or in `also`. differences: metric → (difference, low, high, …)."""

    def said(name: str, numbers: Sequence[float]) -> str:
        value, *ends = (shown(name, number, "+").replace("-", "−") for number in numbers)
        return f"{value} {label_of(name).removesuffix(' (%)')}" + (f" [{', '.join(ends)}]" if ends else "")

    def is_worse(name: str) -> bool:
        found, (_, low, high, *_) = METRICS[name], differences[name]
        counts = name != metric and (found.pool is None or found.summary)  # of BLEU, BLEU-4 alone
        return counts and found.higher_is_better is not None and (high < 0 if found.higher_is_better else low > 0)

    costs = [said(name, differences[name][:3]) for name in differences if name in also or is_worse(name)]
    gain = said(metric, differences[metric][:1])
    if not costs:
        return f"{gain}, and no other metric is significantly worse" if len(differences) > 1 else gain
    price = "along with" if differences[metric][0] < 0 else "at the cost of"
    listed = f"{', '.join(costs[:-1])} and {costs[-1]}" if len(costs) > 1 else costs[0]
    return f"{gain}, {price} {listed}"


def caption_metric(name: str) -> Metric:
    """A caption metric by name. Raises InputError for any other name."""
    if name not in _of_captions():
        raise InputError(f"unknown metric {name!r}: choose from {', '.join(_of_captions())}")
    return METRICS[name]


def _of_captions() -> list[str]:
    return [name for name, metric in METRICS.items() if metric.of == "captions"]


def spice_models_present() -> bool:
    """Whether SPICE's folder has the Stanford files that it needs (pycocoevalcap downloads them on first use)."""
    names = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
    return all((resources.files("pycocoevalcap.spice") / "lib" / name).is_file() for name in names)


def _outcomes(metrics: Iterable[Metric], texts: Texts, groups: Groups) -> dict[Function, Any]:
    """The result of each function, called once if shared; for a metric that cannot run, the reason."""
    first = {metric.function: metric for metric in reversed(list(metrics))}

    def run(metric: Metric) -> Outcome | str:
        if not metric.needs:
            return metric.function(texts, groups)
        try:
            return metric.unavailable or metric.function(texts, groups)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            return f"its Java process failed: {error}"  # it did not start, died, or returned no number

    with ThreadPoolExecutor() as pool:
        return dict(zip(first, pool.map(run, first.values()), strict=True))
