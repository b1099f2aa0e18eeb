"""A captioner that needs no network, and a way to wait for something with a bound."""

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np

from serving.following import Served
from videoblip2.config import InputError

POISON = 666.0  # as the first number of an item: the whole call fails with it
NAN = 999.0  # the network's answer is NaN
BUG_TEXT = "a secret of the inside"


class FakeCaptioner:
    """Captions say how many frames an item has, in which batch it was, and what it was asked."""

    audio_width = 12

    def __init__(self, version="videoblip2/1", encoders="same"):
        self.version, self.encoders_name = version, encoders
        self.batches, self.calls = [], []
        self.go_on = threading.Event()
        self.go_on.set()
        self.started = threading.Event()

    def caption(self, items, prompt, seeds=None, watch=None, **options):
        self.started.set()
        assert self.go_on.wait(30)
        self.batches.append(len(items))
        self.calls.append({"prompt": prompt, "seeds": seeds, **options})
        if any(video[0, 0] == POISON for video, _ in items):
            raise RuntimeError(BUG_TEXT)
        if watch:
            watch(["a"] * len(items))
            watch(["a red"] * len(items))
        scores = [float("nan") if video[0, 0] == NAN else -0.25 for video, _ in items]
        return [SimpleNamespace(text=f"{len(i[0])} frames", score=s) for i, s in zip(items, scores, strict=True)]

    def check(self, item):
        if item[0].ndim != 2 or item[0].shape[1] != 24:
            raise InputError(f"video features of shape {list(item[0].shape)}; this model takes [N,24]")
        if not np.isfinite(item[0]).all():
            raise InputError("video features hold NaN or infinity; extract them again")

    def media_features(self, path):
        content = path.read_bytes()
        if content == b"text":
            raise InputError(f"{path}: no video in it; send an mp4, avi or webm file")
        if content == b"bug":
            raise RuntimeError(BUG_TEXT)
        return item(3)


def item(frames=4, first=0.5, windows=0):
    video = np.full((frames, 24), 0.5, "float32")
    video[0, 0] = first
    return video, np.zeros((windows, 12), "float32")


def served(**options):
    return Served(FakeCaptioner(**options))


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
