"""Cross-attention over time: the weight of each frame and audio window, placed on the clip's own time axis."""

from typing import TYPE_CHECKING

import numpy as np

from videoblip2.modality import Features

from .answers import Attention, Moment

if TYPE_CHECKING:
    from videoblip2.predict import Captioner


def attention_over_time(captioner: "Captioner", item: Features, prompt: str | None) -> Attention:
    """How the Q-Formers of `captioner` divide their attention over one item."""
    weights = captioner.attention(item, prompt)
    seconds, window_seconds = captioner.timeline(item)
    video, audio = weights.get("video"), weights.get("audio")
    return Attention(
        model_version=captioner.version,
        seconds=seconds,
        video=None if video is None else _moments(video, even_edges(len(video), seconds)),
        audio=None if audio is None else _moments(audio, window_edges(len(audio), seconds, window_seconds)),
    )


def even_edges(count: int, seconds: float | None) -> np.ndarray:
    """[count + 1] times at which moments of equal length begin and end; from 0 to 1 if the length is unknown."""
    return np.linspace(0, seconds or 1, count + 1)


def window_edges(count: int, seconds: float | None, window: float | None) -> np.ndarray:
    """As `even_edges`, for audio windows: the last one ends with the clip. Thinned windows are spaced evenly."""
    if not (count and seconds and window and (count - 1) * window < seconds <= (count + 1) * window):
        return even_edges(count, seconds)
    return np.append(np.arange(count) * window, seconds)


def _moments(weights: np.ndarray, edges: np.ndarray) -> list[Moment]:
    rows = zip(edges[:-1], edges[1:], weights, strict=True)
    return [Moment(start=round(float(a), 3), end=round(float(b), 3), weight=round(float(w), 6)) for a, b, w in rows]
