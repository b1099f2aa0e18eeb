"""What the page shows: escaped, in plain words, each bar in its place."""

import re

import numpy as np
import pytest

from serving import page_view
from serving.answers import EXAMPLE, Answer
from serving.page_desk import Strip, Watched

NASTY = '<img src=x onerror="alert(1)">'


def watched(**options):
    return Watched(Answer(**{**EXAMPLE, "caption": NASTY}), (None, None), None, None, **options)


def bars(html, kind):
    svg = re.search(rf'<svg class="vb2-{kind}".*?</svg>', html).group()
    found = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="([\d.]+)"', svg)
    return np.array(found, float)


def test_nothing_of_a_client_or_a_model_becomes_markup():
    shown = [
        page_view.caption_card(watched(challenger_version=NASTY), NASTY),
        page_view.references([NASTY]),
        page_view.answer_card(watched(), NASTY),
        page_view.problem(NASTY),
        page_view.working(NASTY),
        page_view.strip(Strip(np.ones(1), np.ones(1), 1.0, 1.0), NASTY),
    ]
    assert not [html for html in shown if "<img" in html]
    assert all("&lt;img" in html for html in shown)


def test_a_caption_says_version_and_where_the_time_went():
    card = page_view.caption_card(watched(), None)
    assert "videoblip2/3 · 0.08 s: reading the clip 0.05 s, waiting 0.00 s, model 0.03 s" in card
    assert "Caption" in card
    assert "Challenger" not in card


@pytest.mark.parametrize(
    ("said", "waiting", "shown"), [("a dog", False, "a dog"), (None, True, "…"), (None, False, "nothing in time")]
)
def test_the_challenger_stands_beside_the_champion(said, waiting, shown):
    card = page_view.caption_card(watched(challenger_version="videoblip2/9"), said, waiting)
    assert card.index("Champion") < card.index("Challenger") < card.index(shown) < card.index("videoblip2/9")


def test_of_many_references_some_are_shown_and_the_rest_counted():
    shown = page_view.references([f"caption {number}" for number in range(20)])
    assert shown.count("<li>") == 5
    assert "and 15 more" in shown
    assert page_view.references([]) == ""


def test_bars_lie_on_one_axis_in_seconds_and_their_heights_are_the_weights():
    html = page_view.strip(Strip(np.array([0.1, 0.2, 0.4, 0.3]), np.array([0.75, 0.25]), 4.0, 2.5))
    picture, sound = bars(html, "picture"), bars(html, "sound")
    assert picture[:, 0] + picture[:, 1] / 2 == pytest.approx([0.5, 1.5, 2.5, 3.5])
    assert picture[:, 2] == pytest.approx([25, 50, 100, 75])
    assert sound[:, 0] + sound[:, 1] / 2 == pytest.approx([1.25, 3.25])  # the last window ends with the clip
    assert sound[:, 2] == pytest.approx([100, 100 / 3], abs=0.01)
    assert re.findall(r"<span>([\d.]+ s)</span>", html) == ["0.0 s", "1.0 s", "2.0 s", "3.0 s", "4.0 s"]
    assert "most attention at 2.0 s" in html
    assert "40.0 % of the attention" in html
    assert float(re.search(r'y1="([\d.]+)"', html).group(1)) == pytest.approx(100 - 100 * 0.25 / 0.4, abs=0.06)


def test_what_is_not_there_is_said():
    silent = page_view.strip(Strip(np.ones(3) / 3, np.zeros(0), 3.0, 1.0))
    assert "none in this clip" in silent
    deaf = page_view.strip(Strip(np.ones(3) / 3, None, None, None))
    assert "this model takes no sound" in deaf
    assert "<span>start</span><span>end</span>" in deaf


def test_a_minute_and_more_is_told_as_a_clock_does():
    html = page_view.strip(Strip(np.ones(4) / 4, np.zeros(0), 300.0, 10.0))
    assert re.findall(r"<span>(\d+:\d+)</span>", html) == ["1:15", "2:30", "3:45", "5:00"]
