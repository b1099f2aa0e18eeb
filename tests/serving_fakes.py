"""A captioner that needs no network, decoders that decode nothing, and a way to wait for something with a bound."""

import asyncio
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from serving.decoders import BUSY
from serving.messages import Refusal
from videoblip2.config import GREEDY, InputError
from videoblip2.modality import ExplainedWord
from videoblip2.provenance import Provenance

POISON = 666.0  # as the first number of an item: the whole call fails with it
NAN = 999.0  # the network's answer is NaN
BUG_TEXT = "a secret of the inside"


class FakeCaptioner:
    """Captions say how many frames an item has, in which batch it was, and what it was asked."""

    settings, clap = SimpleNamespace(fps=1.0), SimpleNamespace(rate=48_000)
    never_asked, provenance = False, Provenance()

    def __init__(self, version="videoblip2/1", encoders="same", width=24):
        self.version, self.encoders_name, self.width = version, encoders, width
        self.batches, self.calls = [], []
        self.model = SimpleNamespace(decoding=GREEDY)
        self.go_on = threading.Event()
        self.go_on.set()
        self.started = threading.Event()

    def caption(self, items, prompt, decoding, seeds=None, watch=None):
        self.started.set()
        assert self.go_on.wait(30)
        self.batches.append(len(items))
        self.calls.append({"prompt": prompt, "seeds": seeds, "decoding": decoding})
        if any(item["video"][0, 0] == POISON for item in items):
            raise RuntimeError(BUG_TEXT)
        if watch:
            watch(["a"] * len(items))
            watch(["a red"] * len(items))
        scores = [float("nan") if item["video"][0, 0] == NAN else -0.25 for item in items]
        texts = [f"{len(item['video'])} frames" for item in items]
        return [SimpleNamespace(text=text, score=score) for text, score in zip(texts, scores, strict=True)]

    def explain(self, items, captions, prompts):
        return [tuple(ExplainedWord(word, 0.0, 1.5) for word in caption.split()) for caption in captions]

    def cut(self, item):
        self.check(item)
        return {name: array[:: max(1, len(array) // 256)] for name, array in item.items()}

    def check(self, item):
        video = item["video"]
        if video.ndim != 2 or video.shape[1] != self.width or not len(video):
            raise InputError(f"video features of shape {list(video.shape)}; this model takes [N,{self.width}]")
        if not np.isfinite(video).all():
            raise InputError("video features contain NaN or infinity; extract them again")

    def attention(self, item, prompt):
        self.check(item)
        video, windows = np.arange(1.0, len(item["video"]) + 1), len(item.get("audio", ()))
        return {"video": video / video.sum(), "audio": np.full(windows, 1 / max(1, windows))}

    clip = SimpleNamespace(rows=1)

    def timeline(self, item, frames=None):
        return len(item["video"]) / self.settings.fps, 1.0

    @property
    def media_encoders(self):
        return self

    @property
    def every_frame(self):
        return self

    def prepare(self, frames, sound_after):
        prepared = SimpleNamespace(pixels=list(frames))
        assert sound_after() is None
        return prepared

    def encode(self, videos):
        if any(video.pixels == [b"bug"] for video in videos):
            raise RuntimeError(BUG_TEXT)
        return [item(3) for _ in videos]


class FakeDecoders:
    """In the place of the pool of processes, which has tests of its own: a file's content is its only frame."""

    def __init__(self, settings):
        self.settings = settings
        self.go_on = threading.Event()
        self.go_on.set()

    def start(self):
        pass

    stop = start

    @contextmanager
    def decode(self, path, fps, rate):
        assert self.go_on.wait(30)
        content = path.read_bytes()
        if content == b"text":
            raise InputError("the uploaded file: no video in it; send an mp4, avi or webm file")
        if content == b"busy":
            raise Refusal(429, BUSY, self.settings.retry_after)
        yield iter([content]), lambda: None


def item(frames=4, first=0.5, windows=0):
    video = np.full((frames, 24), 0.5, "float32")
    video[0, 0] = first
    return {"video": video, "audio": np.zeros((windows, 12), "float32")}


def eventually(condition, seconds=30):
    """Poll until `condition()` is true and return its value; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.005)
    return value


async def eventually_async(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "never came true"
        await asyncio.sleep(0.005)
    return value
