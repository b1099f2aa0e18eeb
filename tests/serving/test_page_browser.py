"""The page in headless Chromium with a real service behind it, once directly and once behind a proxy under a prefix."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import uvicorn
from serving_app import ROOT, ServiceAppFactory

from videoblip2.features.media import write_video
from videoblip2.provenance import TOY, Provenance

pytest_plugins = ["serving_app"]
pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium or chromedriver here; apt-get install chromium chromium-driver"
)
KEY = "a-key"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "video7.mp4"
    pictures = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), dtype=np.uint8)
    write_video(path, pictures, 8, np.sin(np.arange(96_000) / 20).astype("float32"), 48_000)
    return path


@pytest.fixture(scope="module")
def port(tmp_path_factory, tokenizers, clip, service, toy_encoders):
    """A service of a small random model with toy encoders, a challenger, a key, and references of the clip."""
    folder = tmp_path_factory.mktemp("served")
    make_model(folder, tokenizers, toy_encoders)
    said = [{"video_id": clip.stem, "category": 0, "captions": [f"caption {number}" for number in range(8)]}]
    (folder / "test.json").write_text(json.dumps(said))
    settings = {"MODEL": folder / "model", "SHADOW": folder / "model", "REFERENCES": folder / "test.json"}
    settings |= {"DECODERS": 1, "API_KEY": KEY, "TRUST_PROXY": "true", "MAX_UPLOAD_MB": 1}
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        for name, value in settings.items():
            patch.setenv(f"VB2_{name}", str(value))
        app = ServiceAppFactory(service, is_main=True, enable_metrics=False)()  # metrics can be made once a process
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        port = listening.getsockname()[1]
        until(lambda: ready(port), 60)
        yield port
        server.should_exit = True
        thread.join()


def make_model(folder, tokenizers, encoders):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from serving_world import small_model
    finally:
        sys.path.pop(0)
    from videoblip2.model.checkpoint import Checkpoint, save_checkpoint

    named = zip(("clip", "clap"), encoders, strict=True)
    features = {kind: {"name": e.identity.name, "fingerprint": e.identity.fingerprint} for kind, e in named}
    features["settings"] = {"fps": 2, "max_frames": None, "window_seconds": 1}
    checkpoint = Checkpoint(
        small_model(tokenizers, 0),
        tokenizers,
        {},
        {},
        Provenance.model_validate({"features": features, "descriptions": [TOY], "kinds": ["captions", "answers"]}),
    )
    save_checkpoint(folder / "model", checkpoint)


def ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture
def proxy(port):
    """A proxy that serves the service under /videos/ and rewrites Host; its port."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            headers = {**self.headers, "Host": "inner.example", "X-Forwarded-Prefix": "/videos"}
            headers |= {"X-Forwarded-Host": self.headers["Host"], "X-Forwarded-Proto": "http"}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with closing(http.client.HTTPConnection("127.0.0.1", port)) as inner:
                inner.request(self.command, self.path, body, headers)
                answer = inner.getresponse()
                content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name not in ("content-length", "transfer-encoding", "date", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@contextmanager
def chromium():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1180,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER, log_output=subprocess.DEVNULL))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(port):
    with chromium() as driver:
        driver.get(f"http://user:{KEY}@127.0.0.1:{port}/")
        yield driver


def until(condition, seconds=20):
    """The value of `condition()` once it is true."""
    from selenium.common.exceptions import StaleElementReferenceException

    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except StaleElementReferenceException:
            pass
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.02)


def shows(page, css, *words):
    """Wait until the element at `css` shows all words."""

    def text():
        return " ".join(element.text for element in page.find_elements("css selector", css))

    try:
        until(lambda: all(word in text() for word in words))
    except AssertionError:
        raise AssertionError(f"{css}: never {words}, but {text()!r}") from None


def press(page, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(*keys).perform()


def focused(page):
    return page.execute_script("return document.activeElement.id || document.activeElement.tagName")


def tab_to(page, name, most=20):
    from selenium.webdriver import Keys

    for _ in range(most):
        if focused(page) == name:
            return
        press(page, Keys.TAB)
    raise AssertionError(f"{name} cannot be reached with the Tab key")


def drop(page, name, size=0, text=""):
    """Drop a file of this name on the page, as a pointer does."""
    page.execute_script(
        "const files = new DataTransfer(); const [name, text, size] = arguments;"
        "files.items.add(new File([text || new Uint8Array(size)], name));"
        "document.getElementById('drop').dispatchEvent("
        "new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true}))",
        name,
        text,
        size,
    )


def no_problem(page):
    """Nothing was asked of another host, and the browser complains of nothing: no script error, no policy violation."""
    hosts = set()
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = message["params"]["request"]["url"]
            if address.startswith(("http:", "https:", "ws:", "wss:")):
                hosts.add(address.split("/")[2].rpartition("@")[2].partition(":")[0])
    assert hosts <= {"127.0.0.1"}
    wrong = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in wrong if "Failed to load resource" not in message] == []


def test_a_clip_is_captioned_and_asked_about_with_the_keyboard_alone(page, clip):
    from selenium.webdriver import Keys

    shows(page, "#model", "model")
    shows(page, "#warning", "Trained on the toy world only")
    tab_to(page, "file")
    page.find_element("id", "file").send_keys(str(clip))
    until(lambda: focused(page) == "another")
    shows(page, "#caption", "Champion", "queue")
    shows(page, "#challenger", "runs in shadow")
    shows(page, "#references", "caption 4", "Show all 8")
    shows(page, "#attention", "While captioning", "Picture", "Sound")
    assert page.find_element("id", "captions").get_attribute("aria-live") == "polite"
    until(lambda: page.find_element("id", "captions").get_attribute("aria-busy") == "false")

    tab_to(page, "question")
    press(page, "what <b>moves</b>?", Keys.ENTER)
    shows(page, "#answers", "what <b>moves</b>?", "queue")
    shows(page, "#attention-about", "While answering “what <b>moves</b>?”")
    tab_to(page, "svg")
    press(page, Keys.END, Keys.ARROW_LEFT)
    told = page.execute_script("return document.activeElement.getAttribute('aria-valuetext')")
    assert "of the attention; an equal share is" in told
    assert page.find_element("id", "tip").text == told
    until(lambda: page.execute_script("return document.getElementById('player').currentTime > 0.5"))
    until(lambda: page.execute_script("return parseFloat(document.getElementById('now').style.left) > 10"))
    no_problem(page)


def test_a_word_that_needs_the_sound_is_told_in_color_and_in_words(page, clip):
    shows(page, "#model", "model")
    page.execute_script("const was = captioned; captioned = (about, said) => { window.said = said; was(about, said); }")
    page.find_element("id", "file").send_keys(str(clip))
    shows(page, "#attention", "While captioning")
    assert page.execute_script("return said.words.map(([word]) => word).join(' ') === said.caption")
    page.execute_script(
        "const words = [['a', 0, 0.1], ['dog', 0.1, 2], ['barks', 2.4, -1], ['loudly', 0.9, 0.8]];"
        "captioned(clip, {caption: 'a dog barks loudly', words, model_version: 'model', seconds: 1, clip: clip.token,"
        " timings: {queue: 0, model: 1}})"
    )
    shows(page, "#caption .said", "a dog barks loudly")
    shows(page, "#owed", "needs the picture: dog, loudly", "needs the sound: barks, loudly")
    barks = page.find_element("css selector", "#caption .said .sound")
    assert barks.get_attribute("title") == "11 times less likely without the sound"
    assert barks.value_of_css_property("text-decoration-style") == "wavy"
    assert "0.36" in barks.value_of_css_property("background-color")


def test_a_long_clip_is_captioned_over_time(page, tmp_path):
    shades = np.repeat(np.uint8([0, 255, 90, 200]), 9)[:, None, None, None]
    write_video(tmp_path / "film.mp4", np.broadcast_to(shades, (36, 64, 64, 3)), 1, None, 48_000)
    keep = "const make = URL.createObjectURL; URL.createObjectURL = (blob) => make.call(URL, window.kept = blob)"
    page.execute_script(keep)
    page.find_element("id", "file").send_keys(str(tmp_path / "film.mp4"))
    shows(page, "#segments li:last-child time", "0:35")
    parts = page.find_elements("css selector", "#segments button")
    assert parts[0].text.startswith("0:00")
    parts[-1].click()
    until(lambda: page.execute_script("return document.getElementById('player').currentTime") > 5)
    until(lambda: parts[-1].get_attribute("aria-current") == "true")
    assert page.find_element("id", "subtitles").get_attribute("download") == "film.vtt"
    said = page.execute_async_script("kept.text().then(arguments[0])")
    assert said.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:10.000\n")
    page.execute_script("document.getElementById('every').value = 'scenes'; showSegments(clip)")
    shows(page, "#segments li:last-child time", "0:35")
    no_problem(page)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ({"name": "notes.mp4", "text": "dear diary"}, "The uploaded file"),
        ({"name": "film.mp4", "size": 2 << 20}, "This file is 2 MB; the service takes at most 1 MB"),
    ],
    ids=["text", "too large"],
)
def test_a_file_that_cannot_be_captioned_is_explained(page, file, reason):
    drop(page, **file)
    shows(page, "#problem", "Something went wrong", reason)
    shows(page, "#drop", "Choose a clip")
    assert not page.find_element("id", "question").is_enabled()
    assert not page.find_element("id", "attention").is_displayed()


def test_a_model_that_never_saw_a_question_is_asked_none(page):
    shows(page, "#ask-note", "Choose a clip first")
    page.execute_script("model = {...model, answers: false}; mayAsk(true)")
    shows(page, "#ask-note", "never trained on questions")
    assert not page.find_element("id", "question").is_enabled()
    page.execute_script("showModel()")
    shows(page, "#ask-note", "Choose a clip first")


def test_an_interrupted_service_is_told_and_can_be_tried_again(page, clip):
    page.execute_cdp_cmd("Network.enable", {})
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **offline})
    page.find_element("id", "file").send_keys(str(clip))
    shows(page, "#problem", "No answer from the service")
    page.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **offline})
    page.find_element("id", "retry").click()
    shows(page, "#caption", "Champion", "queue")
    assert not page.find_element("id", "problem").is_displayed()


def test_the_page_fits_a_phone_and_works_behind_a_proxy_under_a_prefix(page, proxy, clip):
    phone = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    page.get(f"http://user:{KEY}@127.0.0.1:{proxy}/videos/")
    page.find_element("id", "file").send_keys(str(clip))
    shows(page, "#caption", "Champion", "queue")
    page.find_element("id", "question").send_keys("what moves?\n")
    shows(page, "#answers", "queue")
    shows(page, "#attention", "While answering", "Sound")
    assert page.execute_script("return document.documentElement.scrollWidth") == 360
    for name in ("another", "send", "question"):
        assert page.find_element("id", name).rect["height"] >= 36  # a thumb's width
    no_problem(page)
    page.find_element("css selector", "footer a").click()
    until(lambda: "/videos/docs" in page.current_url and "swagger-ui" in page.page_source)
