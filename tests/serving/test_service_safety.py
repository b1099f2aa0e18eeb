"""The service over HTTP: what it refuses, what it keeps to itself, and what can be seen of it."""

import io
import json
import sys
import threading
from collections import Counter

import pytest
from serving_app import Registry, counted, features, npy
from serving_fakes import BUG_TEXT, POISON, eventually, item

pytest_plugins = ["serving_app"]

QUESTION = {"/ask": {"question": (None, "what?")}}
PHASES = ("decode", "encode", "queue", "generate")


def test_the_guard_knows_the_endpoints(service):
    endpoints = {"/caption", "/captions", "/ask", "/caption_stream", "/attention"}
    assert [(kind.__name__, options) for kind, options in service.middlewares] == [("Guard", {"endpoints": endpoints})]


@pytest.mark.parametrize("path", ["/caption", "/captions", "/ask", "/caption_stream"])
@pytest.mark.parametrize("field", ["video", "video_features", "audio_features", "features"])
def test_no_address_in_a_file_field_is_passed_on(http, path, field):
    answer = http.post(path, files={field: (None, "http://127.0.0.1:9/v.mp4"), **QUESTION.get(path, {})})
    refused = f"{field}: must be a file, not text or an address"
    assert (answer.status_code, answer.json()["error"].split(";")[0]) == (400, refused)
    assert http.post(path, data={field: "http://127.0.0.1:9/v.mp4"}).status_code == 415


def test_with_all_decoders_at_work_the_answer_is_429_and_when_to_come_back(http):
    before = counted("vb2_errors_total", kind="overloaded")
    answer = http.post("/caption", files={"video": ("a.mp4", b"busy")})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert counted("vb2_errors_total", kind="overloaded") == before + 1
    files = [("video", ("a.mp4", b"busy")), ("video", ("b.mp4", b"video"))]
    busy, good = http.post("/captions", files=files).json()["results"]
    assert (busy["status"], good["caption"]) == (429, "3 frames")


def test_every_answer_carries_the_requests_id(http):
    for content in (b"video", b"text", b"bug"):
        answer = http.post("/caption", files={"video": ("v.mp4", content)}, headers={"X-Request-ID": "my-1"})
        assert answer.headers["x-request-id"] == "my-1"
    assert answer.json()["request_id"] == "my-1"


def test_other_sites_pages_are_given_no_leave_to_read(http):
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for answer in (http.options("/caption", headers=headers), http.get("/livez", headers=headers)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_each_phase_and_event_is_seen(running):
    registry, http = running
    version = {"model_version": registry.captioner.version}

    def now():
        phases = {f"phase {name}": counted("vb2_phase_seconds_count", phase=name) for name in PHASES}
        errors = {
            f"error {kind}": counted("vb2_errors_total", kind=kind) for kind in ("media", "malformed", "internal")
        }
        refused = {"400": counted("vb2_requests_total", path="/caption", status="400")}
        seen = {"captions": counted("vb2_captions_total", **version), "batches": counted("vb2_batch_size_count")}
        return Counter({**phases, **errors, **refused, **seen})

    before = now()
    http.post("/caption", files={"video": ("a.mp4", b"video")})
    http.post("/caption", files={"video": ("a.mp4", b"text")})
    http.post("/caption", files={"video": ("a.mp4", b"bug")})
    http.post("/captions", files=[("video_features", b"x"), ("video_features", npy(item()["video"]))])
    http.post("/caption", files=features(first=POISON))
    told = {"captions": 2, "batches": 3, "phase encode": 2, "phase queue": 2, "phase generate": 2}
    assert now() - before == told | {"400": 1, "error media": 1, "error malformed": 1, "error internal": 2}
    assert counted("vb2_model", version=registry.captioner.version) == 1
    assert counted("vb2_queue_length") == 0


def test_a_request_is_one_json_line_with_its_id(running, monkeypatch):
    _, http = running
    handler = sys.modules["serving.observe"].log.handlers[0]
    text = io.StringIO()
    monkeypatch.setattr(handler, "stream", text)
    http.post("/caption", files=features(), headers={"X-Request-ID": "line-1"})
    (line,) = [json.loads(line) for line in text.getvalue().splitlines()]
    assert (line["event"], line["path"], line["status"], line["request_id"]) == ("request", "/caption", 200, "line-1")


@pytest.mark.parametrize("path", ["/caption", "/captions", "/caption_stream"])
@pytest.mark.parametrize("files", [{"video": ("a.mp4", b"bug")}, features(first=POISON)], ids=["media", "model"])
def test_a_bug_is_logged_once_with_its_trace(running, monkeypatch, path, files):
    _, http = running
    handler = sys.modules["serving.observe"].log.handlers[0]
    text = io.StringIO()
    monkeypatch.setattr(handler, "stream", text)
    http.post(path, files=files)
    assert text.getvalue().count(BUG_TEXT + '"') == 1


def test_uploads_wait_for_their_turn_at_the_decoders_for_a_bounded_time(start):
    registry = Registry()
    with start(registry, DECODERS="1", DECODE_WAIT_SECONDS="0.05") as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        decoders = sys.modules["serving.service"].API.state.intake.decoders
        decoders.go_on.clear()
        files, answers = [("video", ("a.mp4", b"video"))] * 3, []
        thread = threading.Thread(target=lambda: answers.append(client.post("/captions", files=files)))
        thread.start()
        eventually(sys.modules["serving.service"].API.state.intake._room.locked)
        refused = client.post("/caption", files=files[:1])
        assert refused.status_code == 429
        assert "every decoder is busy" in refused.json()["error"]
        assert client.post("/caption", files=features()).status_code == 200
        decoders.go_on.set()
        thread.join(30)
        assert sorted(one.get("status", 200) for one in answers[0].json()["results"]) == [200, 429, 429]


def test_a_key_closes_every_route_but_the_probes(start):
    with start(Registry(), API_KEY="k") as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/livez").status_code == 200
        paths = {"/caption", "/captions", "/ask", "/caption_stream", "/attention"}
        assert {client.post(path, files=features()).status_code for path in paths} == {401}
        assert {
            client.get(path).status_code
            for path in ("/model", "/docs.json", "/", "/static/page.js", "/references/video7")
        } == {401}
        assert client.get("/model", headers={"Authorization": "Bearer k"}).status_code == 200


def test_a_swap_of_the_model_is_seen(start):
    registry = Registry()
    with start(registry) as client:
        for version in ("videoblip2/11", "videoblip2/12"):
            registry.promote(version)
            eventually(lambda version=version: counted("vb2_model", version=version) == 1)
        assert counted("vb2_model", version="videoblip2/11") == 0
        assert client.get("/model").json()["model_version"] == "videoblip2/12"
