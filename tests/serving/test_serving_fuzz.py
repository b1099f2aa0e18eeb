"""The whole service over a real socket, with real decoding processes: malformed requests, and a good one among them."""

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import uvicorn
from conftest import ROOT
from folders import process_folder
from serving_fakes import FakeCaptioner

os.environ.setdefault("BENTOML_HOME", str(process_folder("vb2-bentoml-")))  # it makes folders when imported

from bentoml._internal.service.loader import load as load_service

sys.path.append(str(ROOT / "benchmarks"))  # not in front: a decoder inherits the path, and serving.py lies there
import serving_fuzz

from videoblip2.predict import FoundModel

REQUESTS = 10 * len(serving_fuzz.MALFORMED)


def prepare(frames, sound_after):
    prepared = SimpleNamespace(pixels=list(frames))
    sound_after()
    return prepared


def encode(videos):
    """Real decoding, no encoders."""
    return [{"video": np.zeros((len(video.pixels), 768), "float32")} for video in videos]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    service = load_service(".", working_dir=str(ROOT), standalone_load=True)
    patch = pytest.MonkeyPatch()
    captioner, following = FakeCaptioner(width=768), sys.modules["serving.following"]
    captioner.prepare, captioner.encode = prepare, encode
    patch.setattr(following, "model_mark", lambda model: None)
    patch.setattr(following, "find_model", lambda model: FoundModel(Path("1"), "1"))
    patch.setattr(following, "load_warm", lambda *found: captioner)
    log = sys.modules["serving.observe"].log
    kept = log.handlers, log.propagate, log.level
    patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    patch.delenv("VB2_API_KEY", raising=False)
    before = decoders()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(service.to_asgi(is_main=True), log_config=None, server_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not (server.started and sys.modules["serving.service"].API.state.engine.follower.current):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    patch.undo()
    log.handlers, log.propagate, log.level = kept
    assert not decoders() - before, "decoders outlive the service"


def decoders():
    """The decoding processes below this one."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "serving.decoder" in child.cmdline():
                found.add(child.pid)
    return found


def good(url):
    host, port = url.removeprefix("http://").split(":")
    target = serving_fuzz.Target("/caption", ("video",))
    return serving_fuzz.send(host, int(port), serving_fuzz.form(target, serving_fuzz.sample_video()))


def test_the_endpoints_and_their_fields_are_found(url):
    found = {target.path: (set(target.files), target.texts) for target in serving_fuzz.endpoints(url)}
    files = {"video", "video_features", "audio_features", "features"}
    texts = {"/caption": (), "/captions": (), "/ask": ("question",), "/caption_stream": (), "/attention": ()}
    assert found == {path: (files, text) for path, text in texts.items()}


@pytest.mark.parametrize("path", ["/caption", "/captions", "/ask", "/caption_stream"])
def test_what_is_good_in_each_kind_of_field_is_answered(url, path):
    """Otherwise a malformed request might be refused for something else than what is wrong in it."""
    (target,) = (target for target in serving_fuzz.endpoints(url) if target.path == path)
    host, port = url.removeprefix("http://").split(":")
    for data, name in ((serving_fuzz.sample_video(), "v.mp4"), (serving_fuzz.sound_features(), "v.npy")):
        assert serving_fuzz.send(host, int(port), serving_fuzz.form(target, data, name)) == 200


def test_every_malformed_request_is_4xx_and_the_service_goes_on(url):
    assert good(url) == 200
    result = serving_fuzz.fuzz(url, REQUESTS)
    assert result["not_4xx"] == []
    assert sum(result["by_status"].values()) == REQUESTS and len(result["by_kind"]) == len(serving_fuzz.MALFORMED)
    assert good(url) == 200


def test_no_upload_is_left_behind(url):
    """The last one goes when its answer is out."""
    deadline = time.monotonic() + 20
    while uploads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert uploads() == []


def uploads():
    return [name for _, _, files in os.walk(tempfile.tempdir) for name in files]


def test_an_answer_that_is_no_4xx_is_told(url, monkeypatch):
    def fine(rng, target, video):
        return serving_fuzz.form(target, video)

    monkeypatch.setattr(serving_fuzz, "MALFORMED", (fine,))
    (wrong,) = serving_fuzz.fuzz(url, 1)["not_4xx"]
    assert wrong.startswith("fine") and wrong.endswith("200")
