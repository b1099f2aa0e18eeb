"""The queue in front of the encoders: what shares a pass, what fails alone, how much may wait, and how it ends."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from serving.batching import Clip, EncodingQueue
from videoblip2.features.media_features import Encoders as MediaEncoders
from videoblip2.toy.networks import TOY_SETTINGS

POISON = "poison"
BOUND = 30  # seconds


class Encoders:
    """A clip's features hold its name; `go_on` holds the first pass back."""

    def __init__(self):
        self.passes = []
        self.go_on, self.started = threading.Event(), threading.Event()

    @property
    def media_encoders(self):
        return self

    def encode(self, videos):
        self.started.set()
        assert self.go_on.wait(BOUND)
        self.passes.append([video.name for video in videos])
        if any(video.name == POISON for video in videos):
            raise RuntimeError(POISON)
        return [video.name for video in videos]


def clip(served, name, frames=1):
    return Clip(SimpleNamespace(name=name, pixels=[0] * frames), served)


async def started(served):
    assert await asyncio.to_thread(served.started.wait, BOUND)


async def encode_behind_a_first(served, clips, **options):
    """All `clips` wait while a first one is being encoded; what each of them got."""
    queue = EncodingQueue(**options)
    await queue.enter(clip(served, "first"))
    await started(served)
    entered = [asyncio.create_task(queue.enter(one)) for one in clips]
    await asyncio.sleep(0)
    served.go_on.set()
    await asyncio.gather(*entered)
    try:
        return await asyncio.wait_for(asyncio.gather(*(one.future for one in clips), return_exceptions=True), BOUND)
    finally:
        await queue.stop()


@pytest.fixture
def served():
    return Encoders()


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, BOUND))


def test_clips_that_wait_share_a_pass_and_each_gets_its_own_features(served):
    async def scenario():
        return await encode_behind_a_first(served, [clip(served, name) for name in "abc"])

    assert run(scenario()) == ["a", "b", "c"]
    assert served.passes == [["first"], ["a", "b", "c"]]


def test_a_pass_is_bounded_in_frames_keeps_the_order_and_takes_a_longer_clip_alone(served):
    async def scenario():
        sizes = {"a": 3, "b": 1, "c": 1, "d": 9, "e": 2}
        return await encode_behind_a_first(
            served, [clip(served, name, frames) for name, frames in sizes.items()], batch_frames=4
        )

    assert run(scenario()) == list("abcde")
    assert served.passes[1:] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_clips_of_two_models_do_not_share_a_pass(served):
    other = Encoders()
    other.go_on.set()

    async def scenario():
        return await encode_behind_a_first(served, [clip(served, "a"), clip(other, "b"), clip(served, "c")])

    assert run(scenario()) == ["a", "b", "c"]
    assert (served.passes, other.passes) == ([["first"], ["a"], ["c"]], [["b"]])


def test_a_clip_that_the_encoders_fail_on_fails_alone(served):
    async def scenario():
        return await encode_behind_a_first(served, [clip(served, name) for name in ("a", "b", POISON, "c")])

    *_, poisoned, last = results = run(scenario())
    assert results[:2] == ["a", "b"] and last == "c"
    assert isinstance(poisoned, RuntimeError)


def test_a_clip_that_is_given_up_is_not_encoded_and_makes_room(served):
    async def scenario():
        queue = EncodingQueue(batch_frames=2)
        await queue.enter(clip(served, "first", 2))
        await started(served)
        left = clip(served, "left", 2)
        await queue.enter(left)
        late = clip(served, "late", 2)
        entering = asyncio.create_task(queue.enter(late))
        await asyncio.sleep(0)
        assert not entering.done()  # 4 frames are inside, and no more may be
        left.future.cancel()
        await entering
        served.go_on.set()
        await late.future
        await queue.stop()

    run(scenario())
    assert served.passes == [["first"], ["late"]]


def test_stopping_cancels_what_is_encoded_and_what_waits(served):
    async def scenario():
        queue = EncodingQueue()
        clips = [clip(served, "a"), clip(served, "b")]
        await queue.enter(clips[0])
        await started(served)
        await queue.enter(clips[1])
        await queue.stop()
        served.go_on.set()
        return [one.future.cancelled() for one in clips]

    assert run(scenario()) == [True, True]


def test_encoders_that_were_idle_take_the_next_clip(served):
    served.go_on.set()

    async def scenario():
        queue = EncodingQueue()
        for name in "ab":
            one = clip(served, name)
            await queue.enter(one)
            assert await one.future == name
        await queue.stop()

    run(scenario())
    assert served.passes == [["a"], ["b"]]


def test_features_of_a_shared_pass_equal_those_of_a_clip_alone(toy_encoders):
    encoders = MediaEncoders(*toy_encoders, TOY_SETTINGS)
    rng = np.random.default_rng(0)

    def prepared(frames, seconds):
        sound = rng.normal(size=int(seconds * 48_000)).astype("float32") if seconds else None
        pictures = rng.integers(0, 256, (frames, 72, 64, 3), dtype=np.uint8)
        return encoders.prepare(pictures, lambda: sound)

    videos = [prepared(*size) for size in ((5, 1.4), (1, 0), (9, 2))]
    captioner = Encoders()
    captioner.encode = lambda many: (
        captioner.started.set()
        or ((captioner.go_on.wait(BOUND) and captioner.passes.append(len(many))) or encoders.encode(many))
    )
    served = captioner

    async def scenario():
        queue = EncodingQueue()
        await queue.enter(Clip(videos[0], served))
        await started(served)
        clips = [Clip(video, served) for video in videos]
        for one in clips:
            await queue.enter(one)
        captioner.go_on.set()
        together = await asyncio.gather(*(one.future for one in clips))
        await queue.stop()
        return together

    together = run(scenario())
    assert captioner.passes == [1, 3]
    for video, features in zip(videos, together, strict=True):
        for name, alone in encoders.encode([video])[0].items():
            assert features[name].shape == alone.shape
            np.testing.assert_allclose(features[name], alone, rtol=1e-4, atol=1e-4)
