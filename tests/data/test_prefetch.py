"""Batches made ahead: the same ones, in time, without hiding an error or holding anything up."""

import threading
from functools import partial

import pytest
import torch
from tiny_training import Remember, workspace

from videoblip2.data.batches import ahead
from videoblip2.training.ce import ce_step
from videoblip2.training.loop import Training, train

DEADLINE = 20  # seconds


@pytest.fixture
def prefetch():
    """Iterators over batches that are closed at the end."""
    opened = []

    def make(*arguments):
        opened.append(ahead(*arguments))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize("depth", [0, 2, 20])
def test_each_step_gets_its_batch_made_once_in_order(prefetch, depth):
    made = []

    def batches(step):
        made.append(step)
        return step * 10

    assert list(prefetch(batches, range(3, 10), depth)) == [step * 10 for step in range(3, 10)]
    assert made == list(range(3, 10))


def test_the_next_batches_are_made_while_a_step_computes(prefetch):
    made = {step: threading.Event() for step in range(9)}
    batches = prefetch(lambda step: made[step].set(), range(9), 2)
    next(batches)
    assert made[1].wait(DEADLINE) and made[2].wait(DEADLINE)
    next(batches)
    assert made[3].wait(DEADLINE)
    assert not made[4].is_set()  # no further, whatever the memory


def test_without_depth_a_batch_is_made_when_it_is_asked_for(prefetch):
    made = []
    batches = prefetch(lambda step: made.append((step, threading.current_thread())), range(4, 9), 0)
    next(batches)
    assert made == [(4, threading.current_thread())]


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_at_its_own_step(prefetch, depth):
    def batches(step):
        if step == 2:
            raise RuntimeError("video features of video7: OSError: gone")
        return step

    made = prefetch(batches, range(5), depth)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(RuntimeError, match="video7"):
        next(made)


def test_closing_waits_for_the_batch_in_the_making_and_ends_the_thread():
    begun, go_on, made = threading.Event(), threading.Event(), []

    def batches(step):
        if step == 1:
            begun.set()
            go_on.wait(DEADLINE)
        made.append(step)

    taken = ahead(batches, range(9), 2)
    next(taken)
    assert begun.wait(DEADLINE)
    closer = threading.Thread(target=taken.close)
    closer.start()
    assert made == [0]
    go_on.set()
    closer.join(DEADLINE)
    assert made == [0, 1] and not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


class Broken:
    """Features of which one video's cannot be read."""

    def __init__(self, source, video_id, error):
        self._source, self._video_id, self._error = source, video_id, error

    def features(self, video_id):
        if video_id == self._video_id:
            raise self._error
        return self._source.features(video_id)


def test_training_stops_with_the_video_whose_features_failed(tiny_model, tokenizers):
    work = workspace(tiny_model, tokenizers)
    last = work.batches(5).video_ids[0]
    work = workspace(tiny_model, tokenizers)
    work.store = Broken(work.store, last, OSError("Input/output error"))
    with pytest.raises(RuntimeError, match=rf"features of {last}: OSError: Input/output error"):
        train(Training(work, partial(ce_step, work), lambda best: None, Remember()))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_training_takes_the_batches_of_its_steps_and_says_how_long_it_waited(tiny_model, tokenizers):
    work, tracker, taken = workspace(tiny_model, tokenizers), Remember(), []

    def take_step(batch, step):
        taken.append((step, batch))
        yield from ce_step(work, batch, step)

    train(Training(work, take_step, lambda best: None, tracker))
    fresh = workspace(tiny_model, tokenizers).batches
    assert [step for step, _ in taken] == list(range(6))
    for step, batch in taken:
        expected = fresh(step)
        assert batch.video_ids == expected.video_ids
        assert torch.equal(batch.features["video"], expected.features["video"]) and torch.equal(
            batch.labels, expected.labels
        )
    waited = {step: value for name, step, value in tracker.points if name == "time/data_seconds"}
    whole = {step: value for name, step, value in tracker.points if name == "time/step_seconds"}
    assert waited.keys() == whole.keys() == {2, 4, 6}
    assert all(0 <= waited[step] <= whole[step] for step in waited)
