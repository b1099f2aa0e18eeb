"""The queue in front of the model: what goes together, what fails alone, what never hangs."""

import asyncio

import numpy as np
import pytest
from serving_fakes import NAN, POISON, FakeCaptioner, eventually_async, item

from serving import batching
from serving.batching import Batcher, Job, length_group
from serving.messages import Ask, Options, Refusal


def run(scenario, **options):
    """Run `scenario(batcher)` with a started batcher."""

    async def main():
        batcher = Batcher(**options)
        try:
            return await asyncio.wait_for(scenario(batcher), 60)
        finally:
            await batcher.stop()

    return asyncio.run(main())


async def while_busy(batcher, model, jobs, background=False):
    """Queue `jobs` while a first batch is with the model, then let it go on; the results in order."""
    model.go_on.clear()
    first = Job(item(), model)
    batcher.submit([first])
    await eventually_async(model.started.is_set)
    batcher.submit(jobs, background)
    model.go_on.set()
    return await asyncio.gather(first.future, *(job.future for job in jobs), return_exceptions=True)


def test_a_single_request_waits_for_no_other():
    model = FakeCaptioner()

    async def scenario(batcher):
        job = Job(item(7), model)
        batcher.submit([job])
        await job.future
        return job

    job = run(scenario)
    assert (job.future.result().text, job.batch) == ("7 frames", 1)
    assert job.queue_seconds < 5 and job.model_seconds > 0


def test_what_waits_becomes_one_batch_and_everyone_gets_his_own_caption():
    model = FakeCaptioner()

    async def scenario(batcher):
        return await while_busy(batcher, model, [Job(item(n), model) for n in range(1, 11)])

    done = run(scenario, max_batch=8)
    assert [one.text for one in done[1:]] == [f"{n} frames" for n in range(1, 11)]
    assert model.batches == [1, 8, 2]


def test_a_batch_shares_model_options_and_length_but_not_prompt_and_seed():
    old, new = FakeCaptioner(), FakeCaptioner(version="videoblip2/2")

    async def scenario(batcher):
        jobs = [
            Job(item(), old, Ask(prompt="one")),
            Job(item(300), old),
            Job(item(), new),
            Job(item(), old, Ask(Options(num_beams=3))),
            Job(item(), old, Ask(Options(seed=1))),
            Job(item(5), old, Ask(prompt="two")),
            Job(item(), old, Ask(Options(seed=2))),
        ]
        return await while_busy(batcher, old, jobs)

    run(scenario)
    assert old.batches == [1, 2, 1, 1, 2]
    assert new.batches == [1]
    assert old.calls[1]["prompt"] == ["one", "two"]
    assert [call["seeds"] for call in old.calls] == [None, None, None, None, [1, 2]]


def test_who_wants_no_explanation_waits_for_none_and_explanations_are_made_few_at_a_time():
    model, explained = FakeCaptioner(), []
    model.explain = lambda items, captions, prompts: explained.append(len(items)) or [()] * len(items)

    async def scenario(batcher):
        return await while_busy(batcher, model, [Job(item(), model, Ask(Options(explain=n > 1))) for n in range(12)])

    run(scenario)
    assert (model.batches, explained) == ([1, 2, 10], [8, 2])


def test_a_request_of_many_items_keeps_the_others_waiting_for_one_batch_only():
    model, many = FakeCaptioner(), Ask(prompt="many")

    async def scenario(batcher):
        jobs = [*(Job(item(), model, many) for _ in range(6)), Job(item(), model, Ask(prompt="one"))]
        return await while_busy(batcher, model, jobs)

    assert len(run(scenario, max_batch=2)) == 8
    assert [call["prompt"] for call in model.calls[1:]] == [["many"] * 2, ["one", "many"], ["many"] * 2, ["many"]]


def test_beams_count_as_rows():
    model = FakeCaptioner()

    async def scenario(batcher):
        return await while_busy(batcher, model, [Job(item(), model, Ask(Options(num_beams=4))) for _ in range(5)])

    run(scenario, max_batch=8)
    assert model.batches == [1, 2, 2, 1]


@pytest.mark.parametrize("bad", [(0,), (3, 11), tuple(range(6))])
def test_a_poisoned_item_fails_alone(bad):
    model = FakeCaptioner()

    async def scenario(batcher):
        jobs = [Job(item(n + 1, POISON if n in bad else 0.5), model) for n in range(12)]
        return await while_busy(batcher, model, jobs)

    for n, result in enumerate(run(scenario)[1:]):
        if n in bad:
            assert isinstance(result, RuntimeError)
        else:
            assert result.text == f"{n + 1} frames"


def test_an_answer_that_is_nan_is_the_items_own_failure():
    model = FakeCaptioner()

    async def scenario(batcher):
        return await while_busy(batcher, model, [Job(item(), model), Job(item(first=NAN), model)])

    _, good, bad = run(scenario)
    assert good.text == "4 frames"
    assert isinstance(bad, Refusal) and "returns NaN" in bad.reason


def test_a_full_queue_takes_all_or_none_and_says_when_to_come_back():
    model = FakeCaptioner()

    async def scenario(batcher):
        await while_busy(batcher, model, [])
        model.go_on.clear()
        model.started.clear()
        batcher.submit([Job(item(), model)])
        await eventually_async(model.started.is_set)
        waiting = [Job(item(), model) for _ in range(3)]
        batcher.submit(waiting)
        with pytest.raises(Refusal) as full:
            batcher.submit([Job(item(), model), Job(item(), model)])
        assert len(batcher.waiting) == 3
        model.go_on.set()
        await asyncio.gather(*(job.future for job in waiting))
        return full.value.status, int(full.value.headers["Retry-After"])

    status, seconds = run(scenario, max_waiting=4)
    assert status == 429 and 1 <= seconds <= 60


def test_retry_after_grows_with_the_queue_and_the_models_pace():
    async def scenario(batcher):
        batcher._pace = 2.0
        batcher.waiting.extend(Job(item(), FakeCaptioner()) for _ in range(5))
        retry = batcher.retry_after()
        batcher.waiting.clear()
        return retry, batcher.retry_after()

    assert run(scenario) == (10, 1)


def test_who_gave_up_is_not_captioned():
    model = FakeCaptioner()

    async def scenario(batcher):
        model.go_on.clear()
        first, second, third = (Job(item(n), model) for n in (1, 2, 3))
        batcher.submit([first])
        await eventually_async(model.started.is_set)
        batcher.submit([second, third])
        second.future.cancel()
        model.go_on.set()
        return await third.future

    assert run(scenario).text == "3 frames"
    assert model.batches == [1, 1]


def test_shadow_captions_wait_until_nothing_else_does():
    model, challenger = FakeCaptioner(), FakeCaptioner()

    async def scenario(batcher):
        model.go_on.clear()
        batcher.submit([Job(item(), model)])
        await eventually_async(model.started.is_set)
        shadow = Job(item(1), challenger)
        batcher.submit([shadow], background=True)
        jobs = [Job(item(40 * n), model) for n in (1, 2, 4)]
        batcher.submit(jobs)
        order = []
        for name, job in [("shadow", shadow), *((f"job{n}", job) for n, job in enumerate(jobs))]:
            job.future.add_done_callback(lambda _, name=name: order.append(name))
        model.go_on.set()
        await asyncio.gather(shadow.future, *(job.future for job in jobs))
        return order

    assert run(scenario) == ["job0", "job1", "job2", "shadow"]


def test_a_listener_hears_the_caption_grow():
    model, heard = FakeCaptioner(), []

    async def scenario(batcher):
        jobs = [Job(item(), model), Job(item(), model, listener=heard.append)]
        return await while_busy(batcher, model, jobs)

    run(scenario)
    assert heard == ["a", "a red"]


def test_a_stop_leaves_nobody_waiting():
    model = FakeCaptioner()

    async def main():
        batcher = Batcher()
        model.go_on.clear()
        jobs = [Job(item(), model), Job(item(), model)]
        batcher.submit(jobs[:1])
        await eventually_async(model.started.is_set)
        batcher.submit(jobs[1:])
        await batcher.stop()
        model.go_on.set()
        for job in jobs:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(job.future, 30)

    asyncio.run(main())


def test_a_hanging_model_can_be_seen(monkeypatch):
    model = FakeCaptioner()
    monkeypatch.setattr(batching, "HUNG_SECONDS", 0)

    async def scenario(batcher):
        idle = batcher.hangs()
        model.go_on.clear()
        job = Job(item(), model)
        batcher.submit([job])
        await eventually_async(batcher.hangs)
        model.go_on.set()
        await job.future
        return idle, batcher.hangs()

    assert run(scenario) == (False, False)


@pytest.mark.parametrize(("lengths", "same"), [((1, 32), True), ((32, 33), False), ((33, 64), True), ((65, 64), False)])
def test_length_groups(lengths, same):
    groups = {length_group({"video": np.zeros((n, 1)), "audio": np.zeros((0, 1))}) for n in lengths}
    assert (len(groups) == 1) is same
