"""The service over HTTP, as BentoML serves it, with captioners that need no network."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp(prefix="vb2-bentoml-"))  # BentoML makes folders when imported

from _bentoml_impl.server.app import ServiceAppFactory
from bentoml._internal.service.loader import load as load_service
from bentoml.exceptions import BentoMLException
from prometheus_client import REGISTRY
from serving_fakes import BUG_TEXT, NAN, POISON, FakeCaptioner, FakeDecoders, eventually, item
from starlette.testclient import TestClient

from videoblip2.predict import FoundModel

ROOT = Path(__file__).resolve().parents[1]

PHASES = ("decode", "encode", "queue", "generate")


class Registry:
    """What the follower finds and loads."""

    def __init__(self):
        self.captioner = FakeCaptioner()
        self.gone = False
        self.may_load = threading.Event()
        self.may_load.set()

    def find(self, model):
        return FoundModel(Path(self.captioner.version), self.captioner.version)

    def load(self, found, model, device):
        assert self.may_load.wait(30)
        return self.captioner

    def promote(self, version):
        self.captioner = FakeCaptioner(version)
        return self.captioner


@pytest.fixture(scope="module")
def service():
    """The service as `bentoml serve` finds it at the repository root."""
    service = load_service(".", working_dir=str(ROOT), standalone_load=True)
    service.inject_config()
    log = sys.modules["serving.observe"].log
    before = log.handlers, log.propagate, log.level
    yield service
    log.handlers, log.propagate, log.level = before[0], before[1], before[2]


@pytest.fixture(scope="module")
def start(service):
    """A function that starts the service with a registry and environment variables."""
    patch = pytest.MonkeyPatch()
    following = sys.modules["serving.following"]
    patch.setenv("VB2_POLL_SECONDS", "0.02")

    def client(registry, **environment):
        patch.setattr(following, "find", registry.find)
        patch.setattr(following, "load_warm", registry.load)
        patch.setattr(sys.modules["serving.service"], "Decoders", FakeDecoders)
        for name in (name for name in os.environ if name.startswith("VB2_") and name != "VB2_POLL_SECONDS"):
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(f"VB2_{name}", value)
        app = ServiceAppFactory(service, is_main=True, enable_metrics=False)()  # metrics can be made once a process
        return TestClient(app, raise_server_exceptions=False)

    yield client
    patch.undo()


@pytest.fixture(scope="module")
def running(start):
    """A registry and a ready client."""
    registry = Registry()
    with start(registry) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        yield registry, client


@pytest.fixture
def http(running):
    return running[1]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def features(*args, **options):
    return {"video_features": npy(item(*args, **options)[0])}


def events(text):
    pairs = [block.split("\n", 1) for block in text.strip().split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in pairs]


@pytest.mark.parametrize(
    ("files", "caption"),
    [
        ({"video": ("video.mp4", b"video")}, "3 frames"),
        (features(5), "5 frames"),
        ({**features(5), "audio_features": npy(np.zeros((2, 12), "float32"))}, "5 frames"),
        ({"features": save({"video": item(6)[0], "audio": np.zeros((2, 12), "float16")})}, "6 frames"),
    ],
    ids=["media", "npy", "npy with sound", "safetensors"],
)
def test_every_kind_of_input_gets_a_caption_with_version_and_timings(http, files, caption):
    answer = http.post("/caption", files=files)
    assert answer.status_code == 200
    body = answer.json()
    timings = body.pop("timings")
    assert set(timings) == {"features", "queue", "model"}
    assert body.pop("seconds") + 0.001 >= sum(timings.values()) > 0  # each is rounded
    assert body == {"caption": caption, "score": -0.25, "model_version": "videoblip2/1", "batch": 1}


def test_options_reach_the_model(running):
    registry, http = running
    options = {"num_beams": 3, "max_new_tokens": 9, "length_penalty": 0.5, "prompt": "a film of"}
    assert http.post("/caption", files=features(), data=options).status_code == 200
    said = {"num_beams": 3, "max_new_tokens": 9, "length_penalty": 0.5, "temperature": 1.0}
    assert registry.captioner.calls[-1] == {"prompt": ["a film of"], "seeds": None, **said}
    http.post("/caption", files=features(), data={"seed": 7, "temperature": 0.5})
    assert registry.captioner.calls[-1]["seeds"] == [7]
    assert registry.captioner.calls[-1]["temperature"] == 0.5
    http.post("/ask", files=features(), data={"question": " who sings? "})
    assert registry.captioner.calls[-1]["prompt"] == ["question: who sings? answer:"]


def test_many_items_where_the_bad_ones_fail_in_their_places(http):
    files = [
        ("video", ("a.mp4", b"video")),
        ("video", ("b.mp4", b"text")),
        ("video_features", npy(item(5)[0])),
        ("video_features", npy(np.ones((4, 25), "float32"))),
        ("video_features", npy(item(first=POISON)[0])),
        ("video_features", npy(item(first=NAN)[0])),
        ("features", save({"a.video": item(7)[0], "b.video": item(8)[0]})),
        ("features", b"none"),
    ]
    answer = http.post("/captions", files=files)
    assert answer.status_code == 200
    results = answer.json()["results"]
    said = [one.get("caption") or (one["status"], one["error"].split(";")[0]) for one in results]
    assert said == [
        "3 frames",
        (400, "the uploaded file: no video in it"),
        "5 frames",
        (400, "video features of shape [4, 25]"),
        (500, "the model failed on this item"),
        (400, "the network answers these features with NaN"),
        "7 frames",
        "8 frames",
        (400, "features: not a safetensors file of float16, float32 or float64 tensors"),
    ]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({}, "no video in the request"),
        ({"json": {"video": "/etc/hostname"}}, "no video in the request"),
        ({"data": {"video": "/etc/hostname"}, "files": {"x": b""}}, "video: takes a file, not text or an address"),
        ({"files": {"video": ("a.mp4", b"text")}}, "the uploaded file: no video in it; send an mp4, avi or webm file"),
        ({"files": {"video_features": b"x"}}, "video_features: not a .npy file; send what numpy.save wrote"),
        ({"files": {"video_features": npy(np.full((2, 24), np.nan))}}, "video features hold NaN or infinity"),
        ({"files": features(first=NAN)}, "the network answers these features with NaN"),
        ({"files": {**features(), "video": ("a.mp4", b"video")}}, "more than one video in the request"),
        ({"files": {"audio_features": npy(item()[0])}}, "no video in the request"),
        ({"files": {"features": save({"a.video": item()[0], "b.video": item()[0]})}}, "2 items in `features`"),
        ({"files": features(), "data": {"num_beams": 99}}, "num_beams='99': input should be less than or equal to 10"),
        ({"files": features(), "data": {"temperature": "nan"}}, "temperature='nan': input should be a finite number"),
        ({"files": features(), "data": {"seed": 1, "num_beams": 2}}, "seed=1 with num_beams=2"),
        ({"files": features(), "data": {"prompt": "x" * 301}}, "prompt='xxxx"),
        ({"files": features(), "data": {"beams": 2}}, "unknown field 'beams'; known: audio_features, features"),
        (
            {"content": b"--", "headers": {"Content-Type": "multipart/form-data"}},
            "the form has no boundary in its Content-Type",
        ),
        (
            {"content": b"--a\r\nx", "headers": {"Content-Type": "multipart/form-data; boundary=a"}},
            "the form ends before its last boundary",
        ),
    ],
    ids=range(17),
)
def test_a_wrong_request_is_400_with_one_line_that_says_why(http, request_, reason):
    answer = http.post("/caption", **request_)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.startswith(reason)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "\n" not in error
    assert tempfile.gettempdir() not in error


def test_no_path_of_a_client_is_opened_and_no_upload_stays(http, tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"text")
    before = set(Path(tempfile.gettempdir()).glob("vb2-upload-*"))
    assert http.post("/caption", files={"video": (f"../../{secret}", b"video")}).json()["caption"] == "3 frames"
    http.post("/caption", files={"video": ("a.mp4", b"bug")})
    assert set(Path(tempfile.gettempdir()).glob("vb2-upload-*")) <= before


@pytest.mark.parametrize("files", [{"video": ("a.mp4", b"bug")}, features(first=POISON)], ids=["media", "model"])
def test_a_bug_shows_nothing_of_the_inside(http, files):
    answer = http.post("/caption", files=files)
    assert answer.status_code == 500
    assert BUG_TEXT not in answer.text
    assert "Traceback" not in answer.text
    assert http.post("/caption", files=features()).status_code == 200


def test_a_stream_tells_the_caption_as_it_grows(http):
    answer = http.post("/caption_stream", files=features(5))
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    assert told[:2] == [("text", {"text": "a"}), ("text", {"text": "a red"})]
    assert (told[2][0], told[2][1]["caption"], told[2][1]["model_version"]) == ("caption", "5 frames", "videoblip2/1")
    assert len(told) == 3


def test_a_stream_refuses_before_it_begins_and_tells_what_fails_later(http):
    assert http.post("/caption_stream", files={"video_features": b"x"}).status_code == 400
    ((kind, error),) = events(http.post("/caption_stream", files=features(first=POISON)).text)
    assert (kind, error["status"]) == ("error", 500)
    assert BUG_TEXT not in error["error"]


def test_the_api_is_described_with_examples(http):
    described = http.get("/docs.json").json()
    assert {"/caption", "/captions", "/ask", "/caption_stream", "/model"} <= set(described["paths"])
    caption = described["paths"]["/caption"]["post"]
    assert list(caption["requestBody"]["content"]) == ["multipart/form-data"]
    assert {"200", "400", "429", "503", "504"} <= set(caption["responses"])
    assert "422" not in caption["responses"]
    schemas = described["components"]["schemas"]
    assert schemas["Answer"]["examples"][0]["model_version"] == "videoblip2/3"
    form = caption["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]
    assert {"video", "video_features", "audio_features", "features", "num_beams", "max_new_tokens", "seed"} <= set(
        schemas[form]["properties"]
    )
    assert schemas[form]["properties"]["video"]["description"].startswith("a media file")


def test_bentomls_own_pages_stay_and_what_is_unknown_is_404(http):
    assert "text/html" in http.get("/").headers["content-type"]
    assert http.get("/nothing").status_code == 404
    assert http.get("/caption").status_code == 405


def test_file_fields_of_each_route(service):
    """What the guard knows is what the description says: text in none of these fields is passed on."""
    api = sys.modules["serving.api"]
    fields = api.file_fields(sys.modules["serving.service"].API)
    assert set(fields) == {"/caption", "/captions", "/ask", "/caption_stream"}
    assert fields == described_file_fields(service.openapi_spec.asdict())
    assert [(kind.__name__, options) for kind, options in service.middlewares] == [("Guard", {"endpoints": fields})]


def described_file_fields(described):
    """Path → fields that hold bytes, by the OpenAPI description."""
    schemas, found = described["components"]["schemas"], {}
    for path, methods in described["paths"].items():
        for content in methods.get("post", {}).get("requestBody", {}).get("content", {}).values():
            form = schemas[content["schema"]["$ref"].rpartition("/")[2]]["properties"]
            files = (name for name, field in form.items() if re.search("binary|octet-stream", json.dumps(field)))
            found[path] = frozenset(files)
    return found


def counted(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("path", ["/caption", "/captions", "/ask", "/caption_stream"])
@pytest.mark.parametrize("field", ["video", "video_features", "audio_features", "features"])
def test_no_address_in_a_file_field_is_passed_on(http, path, field):
    answer = http.post(path, data={field: "http://127.0.0.1:9/v.mp4"}, files={"other": b""})
    assert (answer.status_code, answer.json()["error"].split(";")[0]) == (
        400,
        f"{field}: takes a file, not text or an address",
    )
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
    http.post("/captions", files=[("video_features", b"x"), ("video_features", npy(item()[0]))])
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


def test_a_bug_is_logged_once_with_its_trace(running, monkeypatch):
    _, http = running
    handler = sys.modules["serving.observe"].log.handlers[0]
    text = io.StringIO()
    monkeypatch.setattr(handler, "stream", text)
    http.post("/caption", files={"video": ("a.mp4", b"bug")})
    assert text.getvalue().count(BUG_TEXT + '"') == 1


def test_probes_answer_and_readyz_says_no_until_the_model_is_warm(start):
    registry = Registry()
    registry.may_load.clear()
    with start(registry) as client:
        assert [client.get(path).status_code for path in ("/livez", "/readyz")] == [200, 503]
        early = client.post("/caption", files=features())
        assert (early.status_code, early.headers["Retry-After"]) == (503, "5")
        assert "it is being loaded" in early.json()["error"]
        registry.may_load.set()
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/caption", files=features()).status_code == 200


def test_a_full_house_is_429_with_retry_after_and_waiting_is_bounded(start):
    registry = Registry()
    with start(registry, MAX_REQUESTS="2", TIMEOUT_SECONDS="1.5") as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        registry.captioner.go_on.clear()
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post("/caption", files=features()))) for _ in "ab"
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: counted("vb2_requests_inside") == 2)
        full = client.post("/captions", files=features())
        assert full.status_code == 429
        assert int(full.headers["Retry-After"]) >= 1
        assert [client.get(path).status_code for path in ("/livez", "/readyz")] == [200, 200]
        for thread in threads:
            thread.join(30)
        assert [answer.status_code for answer in answers] == [504, 504]
        assert "no answer within 1.5 s" in answers[0].json()["error"]
        registry.captioner.go_on.set()
        eventually(lambda: client.post("/caption", files=features()).status_code == 200)


def test_more_items_at_once_than_the_queue_holds_is_413(start):
    registry = Registry()
    with start(registry, MAX_WAITING="2") as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        answer = client.post("/captions", files=[("video_features", npy(item()[0]))] * 3)
        assert (answer.status_code, answer.json()["error"]) == (413, "3 items at once; send at most 2")


def test_a_promotion_under_load_fails_nothing_and_every_answer_says_its_version(start):
    registry = Registry()
    with start(registry) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        answers, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                answers.append(client.post("/caption", files=features()))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for version in ("videoblip2/2", "videoblip2/1"):
                registry.promote(version)
                eventually(lambda version=version: client.get("/model").json()["model_version"] == version)
                count = len(answers)
                eventually(lambda count=count: len(answers) > count + 6)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["model_version"] for answer in answers} == {"videoblip2/1", "videoblip2/2"}
        assert answers[-1].json()["model_version"] == "videoblip2/1"


def test_a_shadow_is_compared_and_never_answers(start):
    registry = Registry()
    challenger = FakeCaptioner("videoblip2/9")
    champion = registry.find
    registry.find = lambda model: FoundModel(Path("9"), "videoblip2/9") if "challenger" in model else champion(model)
    registry.load = lambda found, model, device: challenger if "challenger" in model else registry.captioner
    with start(registry, SHADOW="models:/videoblip2@challenger") as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        eventually(lambda: client.post("/caption", files=features()).json()["model_version"] == "videoblip2/1")
        shadow = eventually(lambda: (s := client.get("/model").json()["shadow"])["compared"] and s)
    assert (shadow["champion"], shadow["challenger"], shadow["same"] >= 1) == ("videoblip2/1", "videoblip2/9", True)


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
        assert "every decoder is at work" in refused.json()["error"]
        assert client.post("/caption", files=features()).status_code == 200
        decoders.go_on.set()
        thread.join(30)
        assert sorted(one.get("status", 200) for one in answers[0].json()["results"]) == [200, 429, 429]


def test_a_key_closes_every_route_but_the_probes(start):
    with start(Registry(), API_KEY="k") as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/livez").status_code == 200
        paths = {"/caption", "/captions", "/ask", "/caption_stream"}
        assert {client.post(path, files=features()).status_code for path in paths} == {401}
        assert {client.get(path).status_code for path in ("/model", "/docs.json", "/")} == {401}
        assert client.get("/model", headers={"Authorization": "Bearer k"}).status_code == 200


def test_a_swap_of_the_model_is_seen(start):
    registry = Registry()
    with start(registry) as client:
        for version in ("videoblip2/1", "videoblip2/2"):
            registry.promote(version)
            eventually(lambda version=version: counted("vb2_model", version=version) == 1)
        assert counted("vb2_model", version="videoblip2/1") == 0
        assert client.get("/model").json()["model_version"] == "videoblip2/2"


def test_a_wrong_setting_ends_the_start_with_one_line_that_names_it(service, monkeypatch):
    for name in ("VB2_MAX_BATCH", "VB2_MAX_REQUESTS", "VB2_DECODERS"):
        monkeypatch.setenv(name, "x")
        with pytest.raises(BentoMLException, match=f"{name}=x: input should be a valid integer"):
            service.inner.check_model()
        monkeypatch.delenv(name)


def test_without_a_champion_the_start_fails_with_one_line_that_says_how_to_make_one(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VB2_")}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "BENTOML_HOME": str(tmp_path)}
    code = "from bentoml_cli.cli import cli; cli()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "no MLflow store there" in done.stderr
    assert "`vb2 demo`" in done.stderr
