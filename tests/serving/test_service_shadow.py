"""The challenger beside the champion: asked the same, compared, never answered, never in the way."""

import asyncio
import json
import logging
from types import SimpleNamespace

import pytest
from serving_fakes import POISON, FakeCaptioner, eventually_async, item

from serving.batching import Batcher, Job
from serving.engine import Shadow, overlap
from serving.following import Follower
from serving.messages import Ask, Options
from videoblip2.config import Decoding


def run(scenario, challenger, path=None, **options):
    """Run `scenario(batcher, shadow)` with a challenger in place."""

    async def main():
        batcher = Batcher(**options)
        follower = Follower("models:/videoblip2@challenger")
        follower.current = challenger
        shadow = Shadow(follower, batcher, path)
        try:
            return await asyncio.wait_for(scenario(batcher, shadow), 60)
        finally:
            await batcher.stop()

    return asyncio.run(main())


async def answered(batcher, shadow, jobs):
    """Let the champion answer, then offer that to the shadow and wait until it is done with it."""
    batcher.submit(jobs)
    results = await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
    shadow.offer(jobs, results)
    await eventually_async(lambda: not shadow._tasks)


def test_both_captions_are_logged_and_compared(tmp_path, caplog):
    champion, challenger = FakeCaptioner(), FakeCaptioner(version="videoblip2/2")
    challenger.caption = lambda items, *args, **options: [SimpleNamespace(text="5 frames", score=-0.5) for _ in items]

    async def scenario(batcher, shadow):
        ask = Ask(request_id="r1")
        await answered(batcher, shadow, [Job(item(4), champion, ask), Job(item(5), champion, ask)])
        return shadow.comparison

    with caplog.at_level(logging.INFO, "videoblip2.serving"):
        total = run(scenario, challenger, tmp_path / "shadow.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "shadow.jsonl").read_text().splitlines()]
    assert [(row["champion_caption"], row["challenger_caption"], row["overlap"]) for row in rows] == [
        ("4 frames", "5 frames", 0.3333),
        ("5 frames", "5 frames", 1.0),
    ]
    assert {row["request"] for row in rows} == {"r1"}
    assert len(caplog.records) == 2
    assert (total.compared, total.same) == (2, 1)
    assert (total.champion, total.challenger) == ("videoblip2/1", "videoblip2/2")
    assert (total.overlap, total.champion_score, total.challenger_score) == pytest.approx((0.66665, -0.25, -0.5))


def test_the_challenger_is_asked_exactly_what_the_champion_was():
    champion, challenger = FakeCaptioner(), FakeCaptioner()

    async def scenario(batcher, shadow):
        asked = Job(item(), champion, Ask(Options(max_new_tokens=9, seed=5), "question: who? answer:"))
        await answered(batcher, shadow, [asked])

    run(scenario, challenger)
    assert champion.calls[0]["seeds"] == [5]
    assert challenger.calls == champion.calls


def test_each_decodes_as_it_does_itself_and_both_with_the_options_of_the_request():
    champion, challenger = FakeCaptioner(), FakeCaptioner()
    challenger.model.decoding = Decoding(3, 5)

    async def scenario(batcher, shadow):
        for options in (Options(), Options(max_new_tokens=9, explain=True)):
            await answered(batcher, shadow, [Job(item(), champion, Ask(options))])

    run(scenario, challenger)
    assert [call["decoding"] for call in champion.calls] == [Decoding(), Decoding(max_new_tokens=9)]
    assert [call["decoding"] for call in challenger.calls] == [Decoding(3, 5), Decoding(3, 9)]


def test_a_failing_challenger_is_counted_and_no_more():
    champion, challenger = FakeCaptioner(), FakeCaptioner()
    challenger.caption = lambda items, *args, **options: 1 / 0

    async def scenario(batcher, shadow):
        await answered(batcher, shadow, [Job(item(), champion)])
        return shadow.comparison

    assert (run(scenario, challenger).failed, run(scenario, challenger).compared) == (1, 0)


def test_what_the_champion_failed_on_is_not_offered():
    champion, challenger = FakeCaptioner(), FakeCaptioner()

    async def scenario(batcher, shadow):
        await answered(batcher, shadow, [Job(item(first=POISON), champion)])

    run(scenario, challenger)
    assert challenger.calls == []


@pytest.mark.parametrize("challenger", [None, FakeCaptioner(encoders="others")], ids=["not loaded", "other encoders"])
def test_a_challenger_that_cannot_take_the_features_is_passed_by(challenger):
    async def scenario(batcher, shadow):
        await answered(batcher, shadow, [Job(item(), FakeCaptioner())])
        return shadow.comparison.dropped

    assert run(scenario, challenger) == 1


def test_a_full_lane_drops_and_counts():
    champion, challenger = FakeCaptioner(), FakeCaptioner()

    async def scenario(batcher, shadow):
        jobs = [Job(item(), champion)]
        batcher.submit(jobs)
        results = [await jobs[0].future]
        champion.go_on.clear()
        champion.started.clear()
        batcher.submit([Job(item(), champion)])
        await eventually_async(champion.started.is_set)
        for _ in range(5):
            shadow.offer(jobs, results)
        champion.go_on.set()
        await eventually_async(lambda: not shadow._tasks)
        return shadow.comparison

    total = run(scenario, challenger, max_waiting=3)
    assert (total.compared, total.dropped) == (3, 2)


def test_numbers_start_over_with_another_version():
    async def scenario(batcher, shadow):
        for version in ("videoblip2/1", "videoblip2/3"):
            await answered(batcher, shadow, [Job(item(), FakeCaptioner(version=version))])
        return shadow.comparison

    total = run(scenario, FakeCaptioner(version="videoblip2/2"))
    assert (total.champion, total.compared) == ("videoblip2/3", 1)


@pytest.mark.parametrize(("one", "other", "share"), [("a b", "b a", 1.0), ("a b", "c", 0.0), ("", "", 1.0)])
def test_overlap(one, other, share):
    assert overlap(one, other) == share
