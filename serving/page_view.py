"""What the page shows, as HTML and SVG. Everything that comes from a client or a model is escaped here."""

from collections.abc import Sequence
from html import escape

import numpy as np

from .answers import Answer, Timings
from .page_desk import Strip, Watched

HEADER = (
    "<header><h1>VideoBLIP2</h1><p>Drop a short clip: the model watches and listens, says what happens, and answers "
    "questions about it.</p></header>"
)
WAITING = '<section class="vb2-card vb2-hint"><p>The caption will stand here.</p></section>'
MOST_REFERENCES = 5


def working(what: str) -> str:
    """What is being done, while it is."""
    return f'<section class="vb2-card vb2-hint vb2-working" role="status"><p>{escape(what)}</p></section>'


def problem(reason: str) -> str:
    """Why there is no answer."""
    said = f"<h2>That did not work</h2><p>{escape(reason)}</p>"
    return f'<section class="vb2-card vb2-problem" role="alert">{said}</section>'


def caption_card(watched: Watched, challenger: str | None, waiting: bool = False) -> str:
    """The caption, and the challenger's beside it.

    Args:
        challenger: its caption; None where it says nothing, or, with `waiting`, nothing yet.
    """
    parts = [_said("Champion" if watched.challenger_version else "Caption", watched.answer)]
    if watched.challenger_version:
        said = escape(challenger or ("…" if waiting else "It said nothing in time."))
        parts.append(
            f'<section class="vb2-card vb2-challenger"><h2>Challenger</h2><p class="vb2-text">{said}</p>'
            f"<small>{escape(watched.challenger_version)} · captions along, and is never served</small></section>"
        )
    return f'<div class="vb2-pair">{"".join(parts)}</div>'


def answer_card(watched: Watched, question: str) -> str:
    """The answer to a question."""
    return _said(question, watched.answer)


def _said(title: str, answer: Answer) -> str:
    return (
        f'<section class="vb2-card"><h2>{escape(title)}</h2><p class="vb2-text">{escape(answer.caption)}</p>'
        f"<small>{escape(answer.model_version)} · {_timings(answer.seconds, answer.timings)}</small></section>"
    )


def _timings(total: float, timings: Timings) -> str:
    return (
        f"{total:.2f} s: reading the clip {timings.features:.2f} s, waiting {timings.queue:.2f} s, "
        f"model {timings.model:.2f} s"
    )


def references(captions: Sequence[str]) -> str:
    """What people said of the same clip; nothing where that is not known."""
    if not captions:
        return ""
    rows = "".join(f"<li>{escape(caption)}</li>" for caption in captions[:MOST_REFERENCES])
    more = f"<small>and {len(captions) - MOST_REFERENCES} more</small>" if len(captions) > MOST_REFERENCES else ""
    return f'<section class="vb2-card"><h2>What people said</h2><ul>{rows}</ul>{more}</section>'


def strip(look: Strip, about: str = "the caption") -> str:
    """Attention over time: a bar a frame, a bar an audio window, on one axis in seconds, to stand under the player."""
    end = look.seconds or 0
    rows = [
        _row("picture", "Picture", "a frame", look.video, _even(look.video, end)),
        _row("sound", "Sound", "a stretch of sound", look.audio, _windows(look, end)),
    ]
    title = f"What mattered for {escape(about)}"
    axis = (
        "".join(f"<span>{_clock(end * part / 4)}</span>" for part in range(5))
        if end
        else "<span>start</span><span>end</span>"
    )
    return (
        f'<section class="vb2-strip" data-seconds="{end:g}"><h2>{title}</h2>'
        f'<div class="vb2-rows">{"".join(rows)}<i class="vb2-now"></i></div><div class="vb2-axis">{axis}</div>'
        "<p>Taller = the model paid that moment more attention; the dashed line is where every bar would stand "
        "if all moments counted alike. Click to jump there.</p></section>"
    )


def _row(kind: str, name: str, unit: str, weights: np.ndarray | None, spans: np.ndarray) -> str:
    label = f'<span class="vb2-label"><b class="vb2-{kind}"></b>{name}</span>'
    if weights is None:
        return f"{label}<p>this model takes no {name.lower()}</p>"
    if not len(weights):
        return f"{label}<p>none in this clip</p>"
    top, even = float(weights.max()), 1 / len(weights)
    whole = float(spans[-1, 1]) or 1.0
    bars = "".join(_bar(weight, span, top, even, unit, whole) for weight, span in zip(weights, spans, strict=True))
    height = 100 * (1 - even / top)
    most = spans[int(weights.argmax())]
    return (
        f'{label}<svg class="vb2-{kind}" viewBox="0 0 {whole:g} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{name}: most attention at {_clock(most[0])}">{bars}'
        f'<line x1="0" x2="{whole:g}" y1="{height:.1f}" y2="{height:.1f}"></line></svg>'
    )


def _bar(weight: float, span: np.ndarray, top: float, even: float, unit: str, whole: float) -> str:
    gap = min(0.1 * (span[1] - span[0]), 0.006 * whole)
    width, height = span[1] - span[0] - gap, 100 * weight / top
    tip = f"{_clock(span[0])}: {100 * weight:.1f} % of the attention; {unit} has {100 * even:.1f} % if all count alike"
    place = f'x="{span[0] + gap / 2:.4f}" y="{100 - height:.2f}" width="{width:.4f}" height="{height:.2f}"'
    return f"<rect {place}><title>{tip}</title></rect>"


def _even(weights: np.ndarray | None, end: float) -> np.ndarray:
    """[N,2], begin and end in seconds (of the whole, where the length is not known) of N moments of one length."""
    count = 0 if weights is None else len(weights)
    edges = np.linspace(0, end or 1, count + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def _windows(look: Strip, end: float) -> np.ndarray:
    """As `_even`, of audio windows, the last of which ends with the clip; windows that were thinned lie evenly."""
    count, window = 0 if look.audio is None else len(look.audio), look.window_seconds
    if not (count and end and window and (count - 1) * window < end <= (count + 1) * window):
        return _even(look.audio, end)
    begins = np.arange(count) * window
    return np.stack([begins, np.append(begins[1:], end)], axis=1)


def _clock(seconds: float) -> str:
    """1.5 → 1.5 s, 75.5 → 1:15."""
    minutes, rest = divmod(float(seconds), 60)
    return f"{int(minutes)}:{int(rest):02}" if minutes else f"{rest:.1f} s"
