"""The engine on a real network, loaded from a checkpoint folder as the service loads it."""

import asyncio

import numpy as np
import pytest
from serving_fakes import eventually_async

from serving.batching import Job
from serving.engine import Engine
from serving.messages import Answer, Ask, Options, Refusal
from serving.service_settings import Settings
from videoblip2.captioner import Captioner
from videoblip2.config import GREEDY
from videoblip2.model.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture
def captioner(tiny_model, tokenizers):
    return Captioner(tiny_model, tokenizers)


def run(scenario, captioner, tmp_path, **settings):
    """Run `scenario(engine)` with an engine that serves the captioner's checkpoint."""
    folder = save_checkpoint(tmp_path / "best", Checkpoint(captioner.model, captioner.tokenizers))

    async def main():
        engine = Engine(Settings(model=str(folder), device="cpu", **settings))
        assert engine.follower.current is None
        with pytest.raises(Refusal, match="it is being loaded"):
            engine.served()
        engine.start()
        try:
            await eventually_async(lambda: engine.follower.current, 60)
            return await asyncio.wait_for(scenario(engine), 60)
        finally:
            await engine.stop()

    return asyncio.run(main())


def item(frames, windows, seed):
    rng = np.random.default_rng(seed)
    sizes = {"video": (frames, 24), "audio": (windows, 12)}
    return {name: rng.normal(size=size).astype("float32") for name, size in sizes.items()}


ITEMS = [item(2, 0, 1), item(7, 3, 2), item(4, 1, 3)]
OPTIONS = {
    "greedy": Options(max_new_tokens=10),
    "beams": Options(num_beams=3, max_new_tokens=10, length_penalty=0.5),
    "sampled": Options(max_new_tokens=10, temperature=1.5, seed=4),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_answers_are_those_of_the_captioner_alone(captioner, tmp_path, kind):

    async def scenario(engine):
        return await engine.answer(ITEMS, engine.served(), Ask(OPTIONS[kind], "a dog barks at a man"))

    answers = run(scenario, captioner, tmp_path)
    for one, answer in zip(ITEMS, answers, strict=True):
        (alone,) = captioner.caption([one], "a dog barks at a man", OPTIONS[kind].decoding(GREEDY), [4])
        assert (answer.caption, answer.model_version, answer.batch) == (alone.text, "best", 3)
        assert answer.score == pytest.approx(alone.score, abs=1e-4)


def test_bad_items_fail_in_their_places_beside_good_ones(captioner, tmp_path):
    huge, wide = {"video": np.full((3, 24), 3e38, "float32")}, {"video": np.ones((3, 25), "float32")}
    items = [ITEMS[0], wide, huge, Refusal(400, "no use"), ITEMS[1]]

    async def scenario(engine):
        return await engine.answer(items, engine.served(), Ask())

    first, wrong, overflowing, refused, last = run(scenario, captioner, tmp_path)
    assert isinstance(first, Answer)
    assert isinstance(last, Answer)
    assert (wrong.status, wrong.reason) == (
        400,
        "video features of shape [3, 25]; this model takes [N,24], N at least 1",
    )
    assert (overflowing.status, refused.reason) == (400, "no use")


def test_a_listener_hears_what_becomes_the_caption(captioner, tmp_path):
    heard = []

    async def scenario(engine):
        job = engine.job(ITEMS[1], engine.served(), Ask(Options(max_new_tokens=10)))
        assert isinstance(job, Job)
        job.listener = heard.append
        engine.batcher.submit([job])
        return await job.future

    done = run(scenario, captioner, tmp_path)
    assert heard[-1] == done.text
    assert len(heard) > 2


def test_the_deadline_is_a_504_with_retry_after(captioner, tmp_path):
    async def scenario(engine):
        with pytest.raises(Refusal, match=r"no answer within 0.01 s") as refusal:
            async with engine.deadline():
                await asyncio.Event().wait()
        return refusal.value

    refusal = run(scenario, captioner, tmp_path, timeout_seconds=0.01)
    assert (refusal.status, refusal.headers) == (504, {"Retry-After": "1"})


def test_the_state_names_model_and_version(captioner, tmp_path):
    async def scenario(engine):
        return engine.state()

    state = run(scenario, captioner, tmp_path)
    assert (state.model, state.model_version, state.waiting, state.trouble) == (str(tmp_path / "best"), "best", 0, "")


def test_a_bento_does_not_tell_where_its_model_lies(captioner, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.engine.baked_model", lambda: str(tmp_path / "best"))

    async def scenario(engine):
        return engine.state()

    assert run(scenario, captioner, tmp_path).model == "baked into this Bento"


def test_a_long_item_waits_as_what_the_model_reads_of_it(captioner, tmp_path):
    most = captioner.model.config.max_positions
    long = np.random.default_rng(0).normal(size=(40 * most, 24)).astype("float32")

    async def scenario(engine):
        job = engine.job({"video": long}, engine.served(), Ask())
        broken = np.where(np.arange(len(long))[:, None] == 1, np.nan, long)
        bad = engine.job({"video": broken}, engine.served(), Ask())
        return job, bad, (await engine.answer([{"video": long}], engine.served(), Ask()))[0]

    job, bad, answer = run(scenario, captioner, tmp_path)
    assert len(job.item["video"]) == most and job.item["video"].base is None
    assert isinstance(bad, Refusal) and "NaN" in bad.reason
    assert answer.caption == captioner.caption([{"video": long}])[0].text


def test_a_model_that_does_not_load_is_said_without_paths(tmp_path):
    async def main():
        engine = Engine(Settings(model=str(tmp_path)))
        engine.start()
        try:
            await eventually_async(lambda: engine.follower.trouble, 60)
            with pytest.raises(Refusal, match="it does not load; see the server's log") as refusal:
                engine.served()
            return refusal.value
        finally:
            await engine.stop()

    refusal = asyncio.run(main())
    assert (refusal.status, refusal.headers) == (503, {"Retry-After": "5"})
    assert str(tmp_path) not in refusal.reason
