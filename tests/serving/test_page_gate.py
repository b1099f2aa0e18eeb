"""What passes the page's gate, with a recorder in Gradio's place; and what is left of uploads."""

import json
import os

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from serving.page_gate import FILE, JOIN, UPLOAD, Gate, sweep

HERE = "http://testserver"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "uploads"
    (folder / "abc").mkdir(parents=True)
    (folder / "abc" / "clip.mp4").write_bytes(b"clip")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (folder / "abc" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    return folder


@pytest.fixture
def passed():
    return []


@pytest.fixture
def http(folder, passed):
    async def gradio(scope, receive, send):
        message = await receive()
        passed.append((scope["path"], message["body"]))
        await PlainTextResponse("here", headers={"Access-Control-Allow-Origin": "*"})(scope, receive, send)

    gate = Gate(gradio, folder, 1000, 1000)
    app = Starlette()
    app.mount("/", gate)
    return TestClient(app)


def event(path, **more):
    return {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}, **more}, "http://words/in.a.question"]}


def test_an_event_with_an_upload_passes_without_its_address(http, folder, passed):
    answer = http.post(JOIN, json=event(f"{folder}/abc/clip.mp4", url="http://127.0.0.1:9/x"), headers={"Origin": HERE})
    assert answer.status_code == 200
    assert json.loads(passed[0][1]) == event(f"{folder}/abc/clip.mp4")


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:9/v.mp4",
        "https://example.com/v.mp4",
        "/etc/passwd",
        "{folder}",
        "{folder}/abc",
        "{folder}/abc/../../secret.mp4",
        "{folder}/abc/link.mp4",
        "{folder}/abc/gone.mp4",
        "clip.mp4",
        "a\0b",
        None,
        7,
        {"path": "/etc/passwd"},
    ],
)
def test_an_event_that_names_an_address_or_another_path_does_not(http, folder, passed, path):
    named = path.format(folder=folder) if isinstance(path, str) else path
    for content in (event(named), {"data": [[{"video": event(named)}]]}):
        answer = http.post(JOIN, json=content)
        assert answer.status_code == 400
        assert answer.json()["error"] == "a clip is dropped on the page; an address or a path is not opened"
    assert not passed


def test_an_event_is_short_json(http, passed):
    for body in (b"{", b"\xff", b"[" * 60_000, b'"' + b"x" * 70_000 + b'"'):
        assert http.post(JOIN, content=body).status_code == 400
    assert not passed


def failing_gradio(folder, error):
    async def gradio(scope, receive, send):
        await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)
        if error:
            raise error

    app = Starlette()
    app.mount("/", Gate(gradio, folder, 1000, 1000))
    return TestClient(app)


def test_an_event_that_gradio_does_not_know_is_the_senders_mistake(folder, caplog):
    answer = failing_gradio(folder, KeyError(99)).post(JOIN, json={"data": [None], "fn_index": 99})
    assert (answer.status_code, answer.json()["error"]) == (400, "no event of this page")
    assert "KeyError: 99" in caplog.text


@pytest.mark.parametrize(("error", "said"), [(ValueError("a bug"), "a bug"), (None, "did not say why")])
def test_a_failure_of_gradio_itself_is_not_hidden(folder, error, said):
    with pytest.raises((ValueError, RuntimeError), match=said):
        failing_gradio(folder, error).post(JOIN, json={"data": [None], "fn_index": 0})


def test_only_what_lies_in_the_folder_is_given_out(http, folder, passed):
    assert http.get(f"{FILE}{folder}/abc/clip.mp4").status_code == 200
    outside = ("/etc/passwd", f"{folder}/abc/link.mp4", f"{folder}/abc/%2e%2e/%2e%2e/secret.mp4", "http://127.0.0.1:9/")
    assert [http.get(FILE + path).status_code for path in outside] == [403] * 4
    assert len(passed) == 1
    assert http.get("/static/ffmpeg/ffmpeg-core.wasm").status_code == 404


def test_a_post_of_another_sites_page_is_refused_and_no_site_is_given_leave_to_read(http, folder, passed):
    elsewhere = {"Origin": "https://elsewhere.example"}
    for path in (JOIN, UPLOAD, "/gradio_api/cancel"):
        assert http.post(path, json=event(f"{folder}/abc/clip.mp4"), headers=elsewhere).status_code == 403
    assert http.post(UPLOAD, headers={"Origin": "null"}).status_code == 403
    assert not passed
    answer = http.get("/config", headers=elsewhere)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_uploads_go_when_they_are_old_and_the_oldest_when_they_are_too_much(tmp_path):
    for number, seconds in enumerate((5, 50, 500, 5000)):
        file = tmp_path / str(number) / "clip.mp4"
        file.parent.mkdir()
        file.write_bytes(b"x" * 10)
        past = file.stat().st_mtime - seconds
        os.utime(file, (past, past))
    sweep(tmp_path, 1000, 1000)
    assert left(tmp_path) == ["0", "1", "2"]
    sweep(tmp_path, 20, 1000)
    assert left(tmp_path) == ["0", "1"]


def left(folder):
    return sorted(file.parent.name for file in folder.glob("*/clip.mp4"))


def test_an_upload_makes_room_first(http, folder):
    (folder / "abc" / "clip.mp4").write_bytes(b"x" * 2000)
    http.post(UPLOAD)
    assert left(folder) == []
