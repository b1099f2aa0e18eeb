"""The page as Gradio serves it, spoken to as a browser does, and its desk without it."""

import asyncio
import json
import socket
import sys
from pathlib import Path

import pytest
from serving_app import Registry, counted
from serving_fakes import BUG_TEXT, FakeCaptioner, FakeDecoders, eventually

from serving.answers import Refusal
from serving.engine import Engine
from serving.page_desk import Desk
from serving.service_settings import Settings
from serving.uploads import MediaIntake
from videoblip2.predict import FoundModel

pytest.importorskip("gradio", reason="gradio is not installed (extra ui)")
pytest_plugins = ["serving_app"]

CAPTION, ASK = 0, 2  # the page's events, in the order in which it names them


@pytest.fixture(scope="module")
def page(start, tmp_path_factory):
    references = tmp_path_factory.mktemp("page") / "test.json"
    references.write_text(json.dumps([{"video_id": "video7", "category": 0, "captions": ["a dog barks", "a dog"]}]))
    registry = Registry()
    champion = registry.find
    challenger = FakeCaptioner("videoblip2/9")
    registry.find = lambda model: FoundModel(Path("9"), "videoblip2/9") if "challenger" in model else champion(model)
    registry.load = lambda found, model, device: challenger if "challenger" in model else registry.captioner
    with start(registry, PAGE="true", REFERENCES=str(references), SHADOW="models:/videoblip2@challenger") as client:
        eventually(lambda: (client.get("/model").json().get("shadow") or {}).get("model"))
        eventually(lambda: sys.modules["serving.service"].API.state.engine.shadow.follower.current)
        yield client
        folder = folder_of()
        assert list(folder.glob("*/*.mp4"))
    assert not folder.exists()  # with the service every upload goes


def folder_of():
    return sys.modules["serving.service"].PAGE._folder


def upload(client, content, name="video7.mp4"):
    answer = client.post("/gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code == 200
    (path,) = answer.json()
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def event(client, number, *data):
    """What an event ends with: the outputs' values."""
    body = {"data": data, "fn_index": number, "session_hash": "s1"}
    joined = client.post("/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    told = client.get("/gradio_api/queue/data", params={"session_hash": "s1"}).text
    messages = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line.startswith("data: ")]
    (done,) = [message for message in messages if message["msg"] == "process_completed"]
    steps = [message["output"]["data"] for message in messages if message["msg"] == "process_generating"]
    assert done["success"], done
    return steps[0], steps  # the first step holds whole values, later ones what changed


def whole(steps, place):
    """Everything that an output was told, changes included."""
    return json.dumps([step[place] for step in steps], ensure_ascii=False)


def test_a_clip_gets_caption_challenger_strip_and_references(page):
    before = counted("vb2_requests_total", path="/page/caption", status="200")
    first, steps = event(page, CAPTION, upload(page, b"video"))
    assert "Watching" in first[0]
    said, look, known = (whole(steps, place) for place in (0, 1, 3))
    assert "3 frames" in said
    assert "videoblip2/1" in said
    assert "videoblip2/9" in said
    assert "What mattered for the caption" in look
    assert "a dog barks" in known
    assert counted("vb2_requests_total", path="/page/caption", status="200") == before + 1
    _, steps = event(page, CAPTION, upload(page, b"video", "unknown.mp4"))
    assert "What people said" not in whole(steps, 3)


def test_a_question_is_answered_and_moves_the_strip(page):
    _, steps = event(page, ASK, upload(page, b"video"), " what <b>barks</b>? ")
    assert "3 frames" in whole(steps, 0)
    assert "what &lt;b&gt;barks&lt;/b&gt;?" in whole(steps, 0)
    assert "What mattered for “what &lt;b&gt;barks" in whole(steps, 1)


@pytest.mark.parametrize(
    ("number", "content", "question", "reason"),
    [
        (CAPTION, b"text", (), "the uploaded file: no video in it; send an mp4, avi or webm file"),
        (CAPTION, b"busy", (), "every decoder is at work"),
        (CAPTION, b"bug", (), "an unexpected error; the server&#x27;s log says more"),
        (ASK, b"text", ("what?",), "no video in it"),
        (ASK, b"video", ("  ",), "a question has 1 to 300 characters"),
        (ASK, b"video", ("x" * 301,), "a question has 1 to 300 characters"),
        (ASK, None, ("what?",), "there is no clip yet"),
    ],
)
def test_what_goes_wrong_is_told_in_words(page, number, content, question, reason):
    _, steps = event(page, number, content and upload(page, content), *question)
    assert "That did not work" in whole(steps, 0)
    assert reason in whole(steps, 0)
    for secret in (BUG_TEXT, "Traceback", str(folder_of()), "vb2-upload"):
        assert secret not in whole(steps, 0)


def test_no_address_and_no_path_of_a_client_is_opened(page, tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"video")
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v.mp4"
        for path in (address, str(tmp_path / "secret.mp4"), "/etc/passwd"):
            file = {"path": path, "url": address, "meta": {"_type": "gradio.FileData"}}
            for number, data in ((CAPTION, [file]), (ASK, [file, "what?"])):
                body = {"data": data, "fn_index": number, "session_hash": "s2"}
                assert page.post("/gradio_api/queue/join", json=body).status_code == 400
            assert page.get(f"/gradio_api/file={path}").status_code == 403
        ours = {**upload(page, b"video"), "url": address}
        event(page, CAPTION, ours)
        with pytest.raises(TimeoutError):
            asked.append(listener.accept())


DOORS = (
    "info openapi.json proxy=http://127.0.0.1:9/ call/watch run/predict api/predict component_server runs heartbeat/s"
)
DOORS += " process_recording vibe-edit stream/a/b/c/playlist.m3u8 startup-events"


@pytest.mark.parametrize("path", DOORS.split())
def test_gradios_other_doors_are_shut(page, path):
    assert page.get(f"/gradio_api/{path}").status_code == 404
    assert page.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404


def test_the_page_asks_nobody_else_for_anything(page):
    answer = page.get("/")
    assert "VideoBLIP2" in answer.text
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    config = page.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config["footer_links"]
    described = page.get("/docs").text
    assert "swagger-ui" in described
    assert "googletagmanager" not in described + answer.text
    assert page.get("/docs.json").status_code == 200


def test_a_clip_is_decoded_once_however_often_it_is_asked_about(tmp_path):
    """Until other encoders are in service; a clip that is gone then is told to be."""
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"video")
    decoders = FakeDecoders(Settings())
    decoded, decode = [], decoders.decode
    decoders.decode = lambda path, fps: decoded.append(path) or decode(path, fps)

    async def ask_all():
        engine = Engine(Settings())
        desk = Desk(engine, MediaIntake(decoders), {})
        engine.batcher.start()
        engine.follower.current = served_by(FakeCaptioner())
        for question in (None, "what?", "who?"):
            watched, _ = await desk.watch(clip, question)
        assert watched.prompt == "question: who? answer:"
        assert (watched.expected, await desk.challenger(watched)) == (None, None)
        clip.unlink()
        await desk.watch(clip, "why?")
        engine.follower.current = served_by(FakeCaptioner("videoblip2/2", encoders="other"))
        with pytest.raises(Refusal, match="no longer here"):
            await desk.watch(clip, "how?")
        await engine.stop()

    asyncio.run(ask_all())
    assert len(decoded) == 1


def served_by(captioner):
    from serving.following import Served

    return Served(captioner)
