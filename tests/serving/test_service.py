"""The service over HTTP, as BentoML serves it, with captioners that need no network."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bentoml.exceptions import BentoMLException
from safetensors.numpy import save
from serving_app import ROOT, Registry, counted, features, npy
from serving_fakes import BUG_TEXT, NAN, POISON, FakeCaptioner, eventually, item

from videoblip2 import __version__
from videoblip2.config import Decoding
from videoblip2.predict import FoundModel
from videoblip2.provenance import Provenance

pytest_plugins = ["serving_app"]


def events(text):
    pairs = [block.split("\n", 1) for block in text.strip().split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in pairs]


@pytest.mark.parametrize(
    ("files", "caption"),
    [
        ({"video": ("video.mp4", b"video")}, "3 frames"),
        (features(5), "5 frames"),
        ({**features(5), "audio_features": npy(np.zeros((2, 12), "float32"))}, "5 frames"),
        ({"features": save({"video": item(6)["video"], "audio": np.zeros((2, 12), "float16")})}, "6 frames"),
    ],
    ids=["media", "npy", "npy with sound", "safetensors"],
)
def test_every_kind_of_input_gets_a_caption_with_version_and_timings(http, files, caption):
    answer = http.post("/caption", files=files)
    assert answer.status_code == 200
    body = answer.json()
    timings = body.pop("timings")
    assert bool(body.pop("clip")) is ("video" in files)
    assert set(timings) == {"features", "queue", "model"}
    assert body.pop("seconds") + 0.001 >= sum(timings.values()) > 0  # each is rounded
    assert body == {"caption": caption, "score": -0.25, "model_version": "videoblip2/1", "batch": 1, "words": None}


@pytest.mark.parametrize(
    "name",
    [
        "映" * 43 + ".mp4",
        "x" * 900 + ".MP4",
        "clip.gif",
        "no suffix",
        "",
        ".",
        "..\\..\\a;b=c.mkv",
        '"quoted" name.webm',
        "a\tb\x00.mov",
        "👩‍🚀é\u202e4pm.mp4",
        "clip.mp4 (1)",
    ],
)
def test_any_file_name_is_fine(http, name):
    parts = [f'--b\r\nContent-Disposition: form-data; name="video"; filename="{name}"\r\n\r\nvideo\r\n--b--\r\n']
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = http.post("/caption", content=parts[0].encode(), headers=headers)
    assert (answer.status_code, answer.json().get("caption")) == (200, "3 frames"), answer.text


def test_options_reach_the_model(running):
    registry, http = running
    options = {"num_beams": 3, "max_new_tokens": 9, "length_penalty": 0.5}
    assert http.post("/caption", files=features(), data={**options, "prompt": "a film of"}).status_code == 200
    called = {"prompt": ["a film of"], "seeds": None, "decoding": Decoding(**options)}
    assert registry.captioner.calls[-1] == called
    http.post("/caption", files=features(), data={"seed": 7, "temperature": 0.5})
    assert registry.captioner.calls[-1]["seeds"] == [7]
    assert registry.captioner.calls[-1]["decoding"] == Decoding(temperature=0.5, sampled=True)
    http.post("/caption", files=features(), data={"seed": 7, "consensus": 5, "num_beams": 3})
    assert registry.captioner.calls[-1]["decoding"] == Decoding(3, consensus=5)
    assert registry.captioner.calls[-1]["seeds"] == [7]
    http.post("/ask", files=features(), data={"question": " who sings? "})
    assert registry.captioner.calls[-1]["prompt"] == ["question: who sings? answer:"]


def in_time(answer):
    return [(part["start"], part["end"], part["caption"]) for part in answer.json()["segments"]]


def test_segments_are_captioned_as_one_submission_and_equal_neighbours_are_one(running):
    registry, http = running
    options = {"segments": "2"}
    answer = http.post("/caption", files=features(9), data=options)
    assert in_time(answer) == [(0, 8, "2 frames"), (8, 9, "1 frames")]
    assert answer.json()["segments"][0]["score"] == -0.25 and answer.json()["model_version"] == "videoblip2/1"
    http.post("/ask", files=features(4), data={**options, "question": "who?"})
    assert registry.captioner.calls[-1]["prompt"] == ["question: who? answer:"] * 2
    shots = item(6)["video"]
    shots[4:] = -shots[4:]
    answer = http.post("/caption", files={"video_features": npy(shots)}, data={"segments": "scenes"})
    assert in_time(answer) == [(0, 3.5, "4 frames"), (3.5, 6, "2 frames")]


def test_segments_of_a_file_are_made_of_every_frame_and_it_is_decoded_once(running, monkeypatch):
    registry, http = running
    captioner, chosen = registry.captioner, []
    every = SimpleNamespace(
        settings=captioner.settings,
        clap=captioner.clap,
        prepare=lambda *a: chosen.append("all") or captioner.prepare(*a),
    )
    monkeypatch.setattr(type(captioner), "every_frame", every)
    limit = {"features": {"settings": {"fps": 1, "max_frames": 2}}}
    monkeypatch.setattr(type(captioner), "provenance", Provenance.model_validate(limit))
    whole = http.post("/caption", files={"video": ("v.mp4", b"video")}).json()["clip"]
    assert (
        chosen == [] and http.post("/caption", data={"segments": 1}, files={"clip": (None, whole)}).status_code == 410
    )
    answer = http.post("/caption", files={"video": ("v.mp4", b"video")}, data={"segments": 1})
    assert (in_time(answer), chosen) == ([(0, 3, "1 frames")], ["all"])
    again = {"clip": (None, answer.json()["clip"])}
    assert in_time(http.post("/caption", files=again, data={"segments": 3})) == [(0, 3, "3 frames")]
    assert (http.post("/caption", files=again).status_code, chosen) == (410, ["all"])


def test_each_word_is_explained_to_who_asks(http):
    owed = [["2", 0.0, 1.5], ["frames", 0.0, 1.5]]
    asked = {"files": features(2), "data": {"explain": "true"}}
    assert http.post("/caption", **asked).json()["words"] == owed
    assert http.post("/captions", **asked).json()["results"][0]["words"] == owed
    assert http.post("/ask", files=features(2), data={"explain": 1, "question": "who?"}).json()["words"] == owed
    assert events(http.post("/caption_stream", **asked).text)[-1][1]["words"] == owed
    (part,) = http.post("/caption", files=features(4), data={"explain": 1, "segments": 2}).json()["segments"]
    assert part["words"] == owed
    assert http.post("/caption", files=features(2)).json()["words"] is None


def test_many_items_where_the_bad_ones_fail_in_their_places(http):
    files = [
        ("video", ("a.mp4", b"video")),
        ("video", ("b.mp4", b"text")),
        ("video_features", npy(item(5)["video"])),
        ("video_features", npy(np.ones((4, 25), "float32"))),
        ("video_features", npy(item(first=POISON)["video"])),
        ("video_features", npy(item(first=NAN)["video"])),
        ("features", save({"a.video": item(7)["video"], "b.video": item(8)["video"]})),
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
        (500, "internal error"),
        (400, "the network returns NaN for these features"),
        "7 frames",
        "8 frames",
        (400, "features: not a safetensors file (Error while deserializing: header too small)"),
    ]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({}, "no video in the request"),
        ({"files": {"video": (None, "/etc/hostname")}}, "video: must be a file, not text or an address"),
        ({"files": {"video": (None, "http://x/v.mp4")}}, "video: must be a file, not text or an address"),
        ({"files": {**features(), "seed": (None, "9" * 9000)}}, "seed='9999"),
        ({"files": {**features(), "prompt": (None, "x" * 70_000)}}, "the form cannot be read (Part exceeded"),
        (
            {"files": [*features().items(), *[("prompt", (None, "x"))] * 300]},
            "the form cannot be read (Too many fields",
        ),
        ({"files": {"video": ("a.mp4", b"text")}}, "the uploaded file: no video in it; send an mp4, avi or webm file"),
        ({"files": {"video_features": b"x"}}, "video_features: not a complete .npy file (EOF: reading magic string"),
        ({"files": {"video_features": npy(np.full((2, 24), np.nan))}}, "video features contain NaN or infinity"),
        ({"files": features(first=NAN)}, "the network returns NaN for these features"),
        ({"files": {**features(), "video": ("a.mp4", b"video")}}, "more than one video in the request"),
        ({"files": {"audio_features": npy(item()["video"])}}, "no video in the request"),
        (
            {"files": {"features": save({"a.video": item()["video"], "b.video": item()["video"]})}},
            "2 items in `features`",
        ),
        ({"files": features(), "data": {"num_beams": 99}}, "num_beams='99': input should be less than or equal to 10"),
        ({"files": features(), "data": {"temperature": "nan"}}, "temperature='nan': input should be a finite number"),
        (
            {"files": features(), "data": {"seed": 1, "num_beams": 2}},
            "num_beams=2: beam search takes no samples and no seed",
        ),
        ({"files": features(), "data": {"prompt": "x" * 301}}, "prompt='xxxx"),
        ({"files": features(), "data": {"segments": "nan"}}, "segments='nan': input should be a finite number"),
        (
            {"files": features(), "data": {"segments": "-1"}},
            "segments='-1': input should be greater than 0 or input should be 'scenes'",
        ),
        ({"files": features(), "data": {"segments": "1e308"}}, "segments='1e308': input should be less than or equal"),
        ({"files": features(), "data": {"segments": 2}, "url": "/captions"}, "unknown field 'segments'"),
        (
            {"files": features(), "data": {"question": " \t "}, "url": "/ask"},
            "question=' \\t ': string should have at least",
        ),
        ({"files": features(), "params": {"num_beams": 2}}, "'num_beams' in the address; send it as a field"),
        ({"files": features(), "data": {"num_beams": [2, 3]}}, "'num_beams' is in the form 2 times; send it once"),
        (
            {"files": [*features().items(), *features().items()]},
            "'video_features' is in the form 2 times; send it once; /captions takes many",
        ),
        ({"files": features(), "data": {"beams": 2}}, "unknown field 'beams'; known: audio_features, clip, "),
        (
            {"content": b"--", "headers": {"Content-Type": "multipart/form-data"}},
            "the form has no boundary in its Content-Type",
        ),
        (
            {"content": b"--a\r\nx", "headers": {"Content-Type": "multipart/form-data; boundary=a"}},
            "the form ends before its last boundary",
        ),
    ],
)
def test_a_wrong_request_is_400_with_one_line_that_says_why(http, request_, reason):
    answer = http.post(**{"url": "/caption"} | request_)
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
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
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
    assert (described["info"]["title"], described["info"]["version"]) == ("VideoBLIP2", __version__)
    assert "captions, answers and attention" in described["info"]["description"]
    assert "bentoml" not in json.dumps(described).lower() and "badge" not in json.dumps(described)
    assert described["servers"] == [{"url": "."}]  # relative, as the page's addresses are
    assert {"/caption", "/captions", "/ask", "/caption_stream", "/model"} <= set(described["paths"])
    caption = described["paths"]["/caption"]["post"]
    assert list(caption["requestBody"]["content"]) == ["multipart/form-data"]
    assert {"200", "400", "429", "503", "504"} <= set(caption["responses"])
    assert "422" not in caption["responses"]
    schemas = described["components"]["schemas"]
    assert schemas["Answer"]["properties"]["model_version"]["examples"] == ["videoblip2/3"]
    form = caption["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]
    assert {"video", "video_features", "audio_features", "features", "num_beams", "max_new_tokens", "seed"} <= set(
        schemas[form]["properties"]
    )
    assert schemas[form]["properties"]["video"]["description"].startswith("a media file")


def test_bentomls_own_pages_stay_and_what_is_unknown_is_404(http):
    assert "text/html" in http.get("/").headers["content-type"]
    assert http.get("/nothing").status_code == 404
    assert http.get("/caption").status_code == 405


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
        answer = client.post("/captions", files=[("video_features", npy(item()["video"]))] * 3)
        assert (answer.status_code, answer.json()["error"]) == (413, "3 items at once; send at most 2")
        answer = client.post("/caption", files=features(3), data={"segments": "1e-300"})
        told = "segments=1e-300: makes 3 segments, more than 2; ask for longer ones"
        assert (answer.status_code, answer.json()["error"]) == (413, told)


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
    registry.load = lambda found, model, *rest: challenger if "challenger" in model else registry.captioner
    with start(registry, SHADOW="models:/videoblip2@challenger") as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        eventually(lambda: client.post("/caption", files=features()).json()["model_version"] == "videoblip2/1")
        shadow = eventually(lambda: (s := client.get("/model").json()["shadow"])["compared"] and s)
    assert (shadow["champion"], shadow["challenger"], shadow["same"] >= 1) == ("videoblip2/1", "videoblip2/9", True)


def test_a_wrong_setting_ends_the_start_with_one_line_that_names_it(service, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name in ("VB2_MAX_BATCH", "VB2_MAX_REQUESTS", "VB2_DECODERS"):
        monkeypatch.setenv(name, "x")
        with pytest.raises(BentoMLException, match=f"{name}=.x.: input should be a valid integer"):
            service.inner.check_model()
        monkeypatch.delenv(name)
    monkeypatch.setenv("VB2_MODEL", "models:/nobody/1")
    with pytest.raises(BentoMLException, match="no MLflow store there"):
        service.inner.check_model()


@pytest.mark.slow
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
