"""Figures of a run, drawn once at its end: learning curves, and the primary metric of each category."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoblip2.captions.metrics import PRIMARY, label_of, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[tuple[int, float]]
BLUE, RED, GREY = "#2563eb", "#dc2626", "#6b7280"

VALIDATION = f"val/{PRIMARY}"
#: Panels: title → the metrics drawn in it, and the factor that they are shown with.
PANELS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "training loss": (("train/loss",), 1.0),
    "reward in training ×100": (("train/reward", "train/greedy_reward"), 100.0),
    f"validation {label_of(PRIMARY, scale=True)}": ((VALIDATION,), scale_of(PRIMARY)),
}
METRICS = tuple(name for names, _ in PANELS.values() for name in names)


def draw_curves(path: Path, runs: Mapping[str, Mapping[str, Curve]], title: str) -> Path | None:
    """Draw the learning curves of one run, or of several over each other, as PNG; None where there are no points.

    Args:
        runs: label → metric (of METRICS) → points (step, value).
    """
    panels = [
        name for name, (metrics, _) in PANELS.items() if any(curves.get(m) for curves in runs.values() for m in metrics)
    ]
    if not panels:
        return None
    figure, axes = _figure(len(panels), title)
    for axis, name in zip(axes, panels, strict=True):
        _panel(axis, name, runs)
    return _save(figure, path)


def draw_categories(path: Path, scores: Mapping[str, float], categories: Mapping[str, int], title: str) -> Path | None:
    """Draw the mean score of each category as bars, best first, as PNG; None where all videos are of one category.

    Args:
        scores: the primary metric by video. categories: each video's.
    """
    means = category_means(scores, categories)
    if len(means) < 2:
        return None
    figure, (axis,) = _figure(1, title, height=1.2 + 0.28 * len(means))
    names = [f"category {category}  ({count})" for category, (_, count) in means.items()]
    factor = scale_of(PRIMARY)
    bars = axis.barh(names, [factor * mean for mean, _ in means.values()], color=BLUE)
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    whole = factor * sum(scores.values()) / len(scores)
    axis.axvline(whole, color=GREY, linestyle="--", linewidth=1, label=f"all videos {whole:.1f}")
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel(label_of(PRIMARY, scale=True))
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return _save(figure, path)


def category_means(scores: Mapping[str, float], categories: Mapping[str, int]) -> dict[int, tuple[float, int]]:
    """Category → mean score and number of videos, the best first."""
    groups: dict[int, list[float]] = {}
    for video, score in scores.items():
        groups.setdefault(categories[video], []).append(score)
    means = {category: (sum(values) / len(values), len(values)) for category, values in groups.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1][0]))


def _panel(axis: "Axes", name: str, runs: Mapping[str, Mapping[str, Curve]]) -> None:
    metrics, factor = PANELS[name]
    for label, curves in runs.items():
        for metric in metrics:
            points = curves.get(metric) or ()
            said = " ".join(
                [label] * (len(runs) > 1) + [metric.partition("/")[2].replace("_", " ")] * (len(metrics) > 1)
            )
            axis.plot([s for s, _ in points], [factor * v for _, v in points], linewidth=1.5, label=said or None)
    if len(runs) == 1 and metrics == (VALIDATION,):
        _mark_best(axis, next(iter(runs.values()))[VALIDATION], factor)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("step")
    axis.locator_params(axis="x", integer=True)
    if len(runs) * len(metrics) > 1:
        axis.legend(fontsize=8, frameon=False)


def _mark_best(axis: "Axes", points: Curve, factor: float) -> None:
    step, value = max(points, key=lambda point: point[1])
    axis.plot([step], [factor * value], "o", color=RED, markersize=5)
    text, point = f"best {factor * value:.1f}", (step, factor * value)
    axis.annotate(text, point, (-6, -2), textcoords="offset points", ha="right", va="top", fontsize=8)


def _figure(panels: int, title: str, height: float = 3.4) -> tuple[Any, Sequence["Axes"]]:
    """A figure outside pyplot's global state, with its panels. The first import takes more than a second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels if panels > 1 else 7.0, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
