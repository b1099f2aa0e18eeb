"""The BentoML service, in this process, with a captioner of its own."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp(prefix="vb2-bentoml-"))  # BentoML makes folders when imported

from bentoml._internal.service.loader import load as load_service
from bentoml.exceptions import BentoMLException
from starlette.testclient import TestClient

from serving.media import Busy
from videoblip2.config import InputError

ROOT = Path(__file__).resolve().parents[1]


class Captioner:
    model_name, version, media_fps = "models:/videoblip2@champion", "videoblip2/3", 1.0

    def __init__(self):
        self.started, self.go_on = threading.Event(), threading.Event()

    def encode_media(self, frames, sound_after):
        (content,) = frames
        if content == b"slow":
            self.started.set()
            assert self.go_on.wait(30)
        if content == b"bug":
            raise RuntimeError("a secret of the inside")
        return content, sound_after()

    def caption(self, items):
        return [SimpleNamespace(text="a red circle moves left", score=-0.25) for _ in items]


class Decoders:
    """In the place of the pool of processes, which has tests of its own: a file's content is its only frame."""

    def start(self):
        pass

    stop = start

    @contextmanager
    def decode(self, path, fps):
        content = path.read_bytes()
        if content == b"text":
            raise InputError("the uploaded file: no video in it; send an mp4, avi or webm file")
        if content == b"busy":
            raise Busy("every decoder is at work; try again later")
        yield SimpleNamespace(frames=iter([content]), sound=lambda: None)


@pytest.fixture(scope="module")
def service():
    """The service as `bentoml serve` finds it at the repository root."""
    return load_service(".", working_dir=str(ROOT), standalone_load=True)


@pytest.fixture(scope="module")
def captioner():
    return Captioner()


@pytest.fixture(scope="module")
def http(service, captioner):
    patch = pytest.MonkeyPatch()
    patch.setattr(sys.modules["serving.service"], "load", lambda: captioner)
    patch.setattr(sys.modules["serving.service"], "Decoders", Decoders)
    with TestClient(service.to_asgi(is_main=True), raise_server_exceptions=False) as client:
        yield client
    patch.undo()


def post(http, content):
    return http.post("/caption", files={"video": ("video.mp4", content)})


def test_an_uploaded_file_gets_a_caption_with_the_models_version(http):
    answer = post(http, b"video")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("seconds") >= 0
    assert body == {"caption": "a red circle moves left", "score": -0.25, "model_version": "videoblip2/3"}


def test_an_unreadable_file_is_400_with_the_reason_and_no_path_of_the_server(http):
    answer = post(http, b"text")
    assert answer.status_code == 400
    assert answer.json() == {"error": "the uploaded file: no video in it; send an mp4, avi or webm file"}


def test_with_all_decoders_at_work_the_answer_is_429_and_when_to_come_back(http):
    answer = post(http, b"busy")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


def test_every_answer_carries_the_requests_id(http):
    for content in (b"video", b"text", b"bug"):
        answer = http.post("/caption", files={"video": ("v.mp4", content)}, headers={"X-Request-ID": "my-1"})
        assert answer.headers["x-request-id"] == "my-1"


def test_no_address_in_a_file_field_is_fetched(http):
    answer = http.post("/caption", data={"video": "http://127.0.0.1:9/v.mp4"}, files={"other": b""})
    assert answer.status_code == 400
    assert "takes a file" in answer.json()["error"]
    assert http.post("/caption", data={"video": "http://127.0.0.1:9/v.mp4"}).status_code == 415


def test_other_sites_pages_are_given_no_leave_to_read(http):
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for answer in (http.options("/caption", headers=headers), http.get("/livez", headers=headers)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_bug_shows_nothing_of_the_inside(http):
    answer = post(http, b"bug")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_a_request_without_a_file_is_400(http):
    assert http.post("/caption").status_code == 400
    assert http.post("/caption", json={"video": "/etc/hostname"}).status_code == 400


def test_probes_answer_while_a_caption_is_being_made(http, captioner):
    answers = []
    request = threading.Thread(target=lambda: answers.append(post(http, b"slow")))
    request.start()
    assert captioner.started.wait(30)
    try:
        assert [http.get(path).status_code for path in ("/livez", "/readyz")] == [200, 200]
        assert answers == []
    finally:
        captioner.go_on.set()
        request.join(30)
    assert answers[0].status_code == 200


def test_the_endpoint_is_described(http):
    described = http.get("/docs.json").json()["paths"]["/caption"]["post"]
    assert list(described["requestBody"]["content"]) == ["multipart/form-data"]
    answer = described["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    assert set(answer) == {"caption", "score", "model_version", "seconds"}


def test_the_champion_is_served_unless_a_model_is_named(service, monkeypatch):
    module = sys.modules["serving.service"]
    monkeypatch.delenv("VB2_MODEL", raising=False)
    assert module.model() == "models:/videoblip2@champion"
    monkeypatch.setattr(module, "baked_model", lambda: "/bento/src/model")
    assert module.model() == "/bento/src/model"
    monkeypatch.setenv("VB2_MODEL", "runs/ce")
    assert module.model() == "runs/ce"


@pytest.mark.parametrize("name", ["VB2_MAX_REQUESTS", "VB2_DECODERS"])
def test_a_wrong_setting_stops_the_start_with_one_line(service, monkeypatch, name):
    monkeypatch.setenv(name, "many")
    with pytest.raises(BentoMLException, match=f"{name}=many: not a positive number"):
        service.inner.check_model()


def test_without_a_champion_the_start_fails_with_one_line_that_says_how_to_make_one(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "VB2_MODEL"}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "BENTOML_HOME": str(tmp_path)}
    code = "from bentoml_cli.cli import cli; cli()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "no MLflow store there" in done.stderr
    assert "`vb2 demo`" in done.stderr
