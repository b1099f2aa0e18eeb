"""The page in a real browser, headless, with a real service behind it: a clip, a question, a file that is no video."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import free_port, running, wait_until

from videoblip2.features.codecs import write_video
from videoblip2.provenance import Provenance
from videoblip2.toy.world import write_toy_world

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("gradio", reason="gradio is not installed (extra ui)")
pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium or chromedriver here; apt-get install chromium chromium-driver"
)
REAL = ROOT.parent / "shared" / "data" / "msrvtt" / "videos"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A real clip where there is one, else a drawn one; its references."""
    real = sorted(REAL.glob("*.mp4")) if REAL.is_dir() else []
    if real:
        return real[0]
    folder = tmp_path_factory.mktemp("toy")
    write_toy_world(folder, 12, 0, write_video)
    return sorted((folder / "videos").glob("*.mp4"))[0]


@pytest.fixture(scope="module")
def port(tmp_path_factory, tokenizers, clip):
    """A service of a small random model with toy encoders; a setting tells what people said of the clip."""
    folder = tmp_path_factory.mktemp("served")
    make_model(folder, tokenizers)
    said = [{"video_id": clip.stem, "category": 0, "captions": ["somebody does something"]}]
    (folder / "test.json").write_text(json.dumps(said))
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VB2_")}
    environment |= {"VB2_MODEL": str(folder / "model"), "VB2_REFERENCES": str(folder / "test.json")}
    environment |= {"BENTOML_HOME": str(folder / "bento"), "VB2_SHADOW": str(folder / "model"), "VB2_DECODERS": "1"}
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        options = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": log}
        with running(command, **options) as process:
            wait_until(lambda: ready(port), process, 300)
            yield port


def make_model(folder, tokenizers):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from serving_world import small_model
    finally:
        sys.path.pop(0)
    from videoblip2.features.encoders import load_clap, load_clip
    from videoblip2.model.checkpoint import Checkpoint, save_checkpoint
    from videoblip2.toy.encoders import build_toy_clap, build_toy_clip

    build_toy_clip(folder / "clip", 0)
    build_toy_clap(folder / "clap", 0)
    clip, clap = load_clip(folder / "clip"), load_clap(folder / "clap")
    features = {kind: {"name": e.name, "fingerprint": e.fingerprint} for kind, e in (("clip", clip), ("clap", clap))}
    features["settings"] = {"fps": 2, "max_frames": None, "window_seconds": 1}
    checkpoint = Checkpoint(
        small_model(tokenizers, 0), tokenizers, {}, {}, Provenance.model_validate({"features": features})
    )
    save_checkpoint(folder / "model", checkpoint)


def ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextmanager
def chromium():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1180,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER, log_output=subprocess.DEVNULL))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(port):
    with chromium() as driver:
        driver.get(f"http://127.0.0.1:{port}/")
        yield driver


def until(driver, css, *words, seconds=90):
    """The text of the element at `css`, once it holds all words."""
    from selenium.common.exceptions import StaleElementReferenceException

    deadline, text = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            text = " ".join(element.text for element in driver.find_elements("css selector", css))
        except StaleElementReferenceException:
            continue
        if all(word in text for word in words):
            return text
        time.sleep(0.1)
    raise AssertionError(f"{css}: never {words}, but {text!r}")


def drop(driver, path):
    """Choose a file, where there is room for one."""
    deadline = time.monotonic() + 60
    while not (inputs := driver.find_elements("css selector", "#vb2-clip input[type=file]")):
        assert time.monotonic() < deadline, "no place for a file"
        time.sleep(0.1)
    inputs[0].send_keys(str(path))


def test_a_clip_plays_and_is_captioned_and_asked_about(page, clip, tmp_path):
    until(page, "header", "VideoBLIP2")
    drop(page, clip)
    until(page, "#vb2-said", "Champion", "Challenger", "reading the clip")
    until(page, "#vb2-known", "somebody does something")
    until(page, "#vb2-look", "What mattered for the caption", "Picture", "Sound")
    assert page.find_elements("css selector", "#vb2-look svg.vb2-picture rect")
    wait_until_true(lambda: page.execute_script("return document.querySelector('#vb2-clip video').duration > 0.5"))
    page.execute_script("document.querySelector('#vb2-clip video').currentTime = 0.5")
    left = "return document.querySelector('.vb2-now').style.left"
    wait_until_true(lambda: float((page.execute_script(left) or "0%").rstrip("%")) > 0)

    box = page.find_element("css selector", "#vb2-question textarea, #vb2-question input")
    box.send_keys("what moves?")
    page.find_element("css selector", "#vb2-question button").click()
    until(page, "#vb2-answer", "what moves?", "reading the clip")
    until(page, "#vb2-look", "“what moves?”")

    page.find_element("css selector", "#vb2-clip button[aria-label=Clear]").click()
    until(page, "#vb2-said", "The caption will stand here")
    (tmp_path / "notes.mp4").write_text("dear diary")
    drop(page, tmp_path / "notes.mp4")
    told = until(page, "#vb2-said", "That did not work", "the uploaded file")
    assert "Traceback" not in told
    assert str(tmp_path) not in told
    assert asked_of(page) <= {"127.0.0.1"}


def wait_until_true(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.1)


def asked_of(driver):
    """Every host that the browser asked for something, for the page."""
    hosts = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = message["params"]["request"]["url"]
            if address.startswith(("http:", "https:", "ws:", "wss:")):
                hosts.add(address.split("/")[2].partition(":")[0])
    return hosts
