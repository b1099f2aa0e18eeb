"""The page's files, and the routes of the API that it uses beside those of every client."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from serving_app import ROOT, Registry, features, npy
from serving_fakes import FakeCaptioner, eventually

from serving.api import HEADERS, MEDIA_TYPES
from serving.engine import attention_over_time
from videoblip2.predict import FoundModel
from videoblip2.provenance import TOY, Provenance

pytest_plugins = ["serving_app"]

CLIP = {"video": ("video7.mp4", b"video")}
STATIC = ROOT / "serving" / "static"


@pytest.fixture(scope="module")
def both(start, tmp_path_factory):
    """A registry and a client of a service with a challenger and with references."""
    references = tmp_path_factory.mktemp("page") / "test.json"
    references.write_text(json.dumps([{"video_id": "video7", "category": 0, "captions": ["a dog barks", "a dog"]}]))
    registry = Registry()
    champion, challenger = registry.find, FakeCaptioner("videoblip2/9")
    registry.find = lambda model: FoundModel(Path("9"), "videoblip2/9") if "challenger" in model else champion(model)
    registry.load = lambda found, model, *rest: challenger if "challenger" in model else registry.captioner
    with start(registry, REFERENCES=str(references), SHADOW="models:/videoblip2@challenger") as client:
        engine = sys.modules["serving.service"].API.state.engine
        eventually(lambda: engine.follower.current and engine.shadow.follower.current)
        yield registry, client


@pytest.fixture
def http(both):
    return both[1]


def events(answer):
    blocks = [block.split("\n", 1) for block in answer.text.strip().split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


def test_the_page_needs_nothing_from_elsewhere_and_works_under_any_prefix(http):
    page = http.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"static/page.css", "static/page.js", "docs"} <= set(wanted)
    for address in wanted:
        assert address.startswith("data:") or http.get(f"/{address}").status_code == 200
    for name, kind in MEDIA_TYPES.items():
        answer = http.get(f"/static/{name}")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|eval\(", answer.text)
    assert {file.name for file in STATIC.iterdir()} == {"index.html", *MEDIA_TYPES}
    assert [http.get(f"/static/{name}").status_code for name in ("api.py", "..%2fapi.py", "")] == [404] * 3


def test_the_description_of_the_api_needs_nothing_from_elsewhere(http):
    described = http.get("/docs").text
    assert "<title>VideoBLIP2 API</title>" in described
    assert "googletagmanager" not in described and "https:" not in described
    addresses = re.findall(r'(?:src|href)="([^"]+)"', described)
    for address in [*addresses, "docs.json"]:
        assert address == "data:," or http.get(f"/{address}").status_code == 200


def test_without_the_page_the_description_of_the_api_is_at_the_root(http, monkeypatch):
    engine = sys.modules["serving.service"].API.state.engine
    monkeypatch.setattr(engine, "settings", engine.settings.model_copy(update={"page": False}))
    assert "swagger-ui" in http.get("/").text


def test_a_stream_ends_with_the_challengers_caption_if_it_is_asked_for(http):
    told = events(http.post("/caption_stream", files=CLIP, data={"challenger": True}))
    assert [kind for kind, _ in told] == ["text", "text", "caption", "challenger"]
    assert told[-1][1] == {"caption": "3 frames", "model_version": "videoblip2/9"}
    told = events(http.post("/caption_stream", files=CLIP))
    assert [kind for kind, _ in told] == ["text", "text", "caption"]


def test_a_challenger_that_fails_has_no_caption(http, monkeypatch):
    challenger = sys.modules["serving.service"].API.state.engine.shadow.follower.current
    monkeypatch.setattr(challenger, "caption", lambda *args, **options: 1 / 0)
    told = events(http.post("/caption_stream", files=CLIP, data={"challenger": True}))
    assert told[-1] == ("challenger", {"caption": None, "model_version": "videoblip2/9"})


def test_a_clip_is_uploaded_and_decoded_once_however_often_it_is_asked_about(both, monkeypatch):
    registry, http = both
    decoders = sys.modules["serving.service"].API.state.intake.decoders
    decoded, decode = [], decoders.decode
    monkeypatch.setattr(decoders, "decode", lambda path, *how: decoded.append(path) or decode(path, *how))
    clip = http.post("/caption", files=CLIP).json()["clip"]
    for question in ("what?", "who?"):
        answer = http.post("/ask", files={"clip": (None, clip)}, data={"question": question}).json()
        assert (answer["caption"], answer["clip"]) == ("3 frames", clip)
    assert registry.captioner.calls[-1]["prompt"] == ["question: who? answer:"]
    assert http.post("/attention", files={"clip": (None, clip)}).status_code == 200
    assert len(decoded) == 1
    assert http.post("/caption", files={**CLIP, "clip": (None, clip)}).status_code == 400


def test_a_clip_that_is_no_longer_held_is_410(both, monkeypatch):
    registry, http = both
    first, *_ = [http.post("/caption", files=CLIP).json()["clip"] for _ in range(33)]
    for token in ("made-up", first):
        answer = http.post("/ask", files={"clip": (None, token)}, data={"question": "what?"})
        assert (answer.status_code, answer.json()["error"]) == (410, "this clip is no longer kept; send the file again")
    last = http.post("/caption", files=CLIP).json()["clip"]
    monkeypatch.setattr(registry.captioner, "encoders_name", "other")
    assert http.post("/attention", files={"clip": (None, last)}).status_code == 410


def test_attention_is_told_for_the_caption_and_for_a_question(both, monkeypatch):
    registry, http = both
    told = http.post("/attention", files=features(4)).json()
    assert told["model_version"] == "videoblip2/1"
    assert told["seconds"] == 4.0
    assert told["modalities"]["video"][3] == {"start": 3.0, "end": 4.0, "weight": 0.4}
    assert told["modalities"]["audio"] == []
    prompts = []
    weigh = registry.captioner.attention
    monkeypatch.setattr(registry.captioner, "attention", lambda i, prompt: prompts.append(prompt) or weigh(i, prompt))
    http.post("/attention", files=features(4), data={"question": " who? "})
    http.post("/attention", files=features(4))
    assert prompts == ["question: who? answer:", None]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"video": ("a.mp4", b"text")}, "the uploaded file: no video in it"),
        ({"video_features": npy(np.ones((2, 25)))}, "video features of shape [2, 25]"),
        ({"video_features": npy(np.full((2, 24), np.nan))}, "video features contain NaN"),
    ],
)
def test_no_attention_to_what_cannot_be_captioned(http, files, reason):
    answer = http.post("/attention", files=files)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(reason)


def test_what_the_model_does_not_know_is_told_and_a_question_to_it_refused(both, monkeypatch):
    registry, http = both
    state = http.get("/model").json()
    assert (state["warning"], state["answers"]) == ("", True)
    toy = Provenance(descriptions=(TOY,))
    monkeypatch.setattr(registry.captioner, "provenance", toy)
    monkeypatch.setattr(registry.captioner, "never_asked", True)
    state = http.get("/model").json()
    assert (state["warning"], state["answers"]) == (toy.warning, False)
    for path in ("/ask", "/attention"):
        answer = http.post(path, files=CLIP, data={"question": "what?"})
        assert (answer.status_code, answer.json()["error"].split(";")[0]) == (
            400,
            "this model was never trained on questions",
        )
    assert http.post("/caption", files=CLIP).status_code == 200
    assert http.post("/attention", files=CLIP).status_code == 200


def test_what_people_said_of_a_known_video(http):
    assert http.get("/references/video7").json() == {"captions": ["a dog barks", "a dog"]}
    assert http.get("/references/unknown").json() == {"captions": []}


def test_references_that_cannot_be_read_end_the_start_with_one_line(service, monkeypatch, tmp_path):
    monkeypatch.setenv("VB2_REFERENCES", str(tmp_path / "gone.json"))
    with pytest.raises(Exception, match=r"gone.json: no such file"):
        service.inner.check_model()


@pytest.mark.parametrize(
    ("timeline", "video", "audio", "ends"),
    [
        (
            (4.0, 2.5),
            [0.1, 0.2, 0.4, 0.3],
            [0.75, 0.25],
            ([1, 2, 3, 4], [2.5, 4]),
        ),  # ends with the clip
        ((10.0, 1.0), [0.5, 0.5], [0.5, 0.5], ([5, 10], [5, 10])),  # windows that were thinned are spaced evenly
        ((None, None), [0.5, 0.5], [1.0], ([0.5, 1], [1])),  # unknown length: parts of the whole
        ((3.0, 1.0), [1.0], [], ([3], [])),
        ((3.0, 1.0), [1.0], None, ([3], None)),  # a model without sound
    ],
)
def test_every_moment_is_in_its_place_on_the_clips_own_time(timeline, video, audio, ends):
    weights = {"video": np.array(video)} | ({} if audio is None else {"audio": np.array(audio)})
    captioner = SimpleNamespace(attention=lambda *_: weights, timeline=lambda _: timeline, version="v")
    told = attention_over_time(captioner, None, None)
    for moments, given, expected in (
        (told.modalities["video"], video, ends[0]),
        (told.modalities["audio"], audio, ends[1]),
    ):
        assert (moments and [moment.end for moment in moments]) == expected
        assert (moments and [moment.weight for moment in moments]) == given
        if moments:
            assert [moment.start for moment in moments] == [0, *expected[:-1]]
