"""The loop: what it logs and keeps, how it stops, and that a training resumes exactly where it was."""

import os
import signal
from functools import partial

import pytest
import torch
from tiny_training import Remember, teach, workspace

from videoblip2.tracking.tracker import sigterm_raises
from videoblip2.training.ce import ce_step
from videoblip2.training.interruptions import signals_wait
from videoblip2.training.loop import Training, train
from videoblip2.training.rollout import BandMonitor, build_reward
from videoblip2.training.scst import scst_step
from videoblip2.training.state import StateFile, read_saved
from videoblip2.training.update import MicroBatch
from videoblip2.training.workspace import start_copy

SCST = (
    *("scst.kl_weight=0.1", "scst.reuse=2", "scst.samples=2", "scst.reward.repetition=0.1"),
    *("train.accumulate=2", "decode.max_new_tokens=6"),
)


class Stop(Exception):
    """Stands for whatever kills a process."""


@pytest.fixture
def model(tiny_model, tokenizers):
    return teach(tiny_model, tokenizers)


def training(stage, model, tokenizers, *options):
    """A workspace, its step function and its bands; CE trains with dropout."""
    work = workspace(model, tokenizers, *options)
    if stage == "ce":
        return work, partial(ce_step, work), None
    bands = BandMonitor(work.config.scst.watch, work.all_references)
    return work, partial(scst_step, work, build_reward(work), start=start_copy(work)), bands


def stopping(take_step, stop, error=Stop):
    """The step function, but in step number `stop` it raises after its gradients were made."""

    def step_or_stop(batch, step):
        yield from take_step(batch, step)
        if step == stop:
            raise error

    return step_or_stop


def options_of(stage):
    return SCST if stage == "scst" else ()


def weights(work):
    return {name: parameter.detach().clone() for name, parameter in work.model.trainable().items()}


def run(stage, model, tokenizers, tracker, state=None, resume=False, stop=None, error=Stop, options=()):
    work, take_step, bands = training(stage, model, tokenizers, *options_of(stage), *options)
    step_function = take_step if stop is None else stopping(take_step, stop, error)
    kept = []
    setting = Training(
        work,
        step_function,
        kept.append,
        tracker,
        validate_first=stage == "scst",
        state_file=state,
        resume=resume,
        bands=bands,
    )
    best = train(setting)
    return weights(work), best, kept


@pytest.mark.parametrize("stage", ["ce", "scst"])
def test_stopped_at_any_step_and_resumed_equals_uninterrupted_bit_for_bit(stage, model, tokenizers, tmp_path):
    whole = Remember()
    expected, best, _ = run(stage, model, tokenizers, whole)
    assert not all(torch.equal(expected[name], parameter) for name, parameter in model.trainable().items())
    for stop in (2, 3, 5) if stage == "ce" else (3,):  # saved at 2 and 4: right after, a step later, at the end
        state, parts = StateFile(tmp_path / f"{stage}{stop}"), Remember()
        with pytest.raises(Stop):
            run(stage, model, tokenizers, parts, state, stop=stop)
        assert read_saved(state.folder).step == stop // 2 * 2
        torch.manual_seed(99)  # a new process has other random states
        found, again, _ = run(stage, model, tokenizers, parts, state, resume=True)
        assert again == best
        for name, parameter in expected.items():
            assert torch.equal(found[name], parameter), name
        assert unique(parts.points) == unique(whole.points)


def unique(points):
    """Points but for speed and machine, each once: a resumed training repeats some, which the tracker leaves out."""
    return sorted({point for point in points if not point[0].startswith(("time/", "sys/"))})


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_saves_the_last_whole_step(error, model, tokenizers, tmp_path):
    """In step 3 (the fourth) by a signal; nothing is saved before, since saves are far apart."""
    expected, _, _ = run("ce", model, tokenizers, Remember())
    state, number = StateFile(tmp_path), signal.SIGINT if error is KeyboardInterrupt else signal.SIGTERM
    work, take_step, _ = training("ce", model, tokenizers, "train.save_every=100")

    def signalled(batch, step):
        if step == 3:
            os.kill(os.getpid(), number)
        yield from take_step(batch, step)

    before = signal.getsignal(number)
    with pytest.raises(error), sigterm_raises():
        train(Training(work, signalled, lambda best: None, Remember(), state_file=state))
    assert signal.getsignal(number) is before
    assert read_saved(tmp_path).step == 4
    found, _, _ = run("ce", model, tokenizers, Remember(), state, resume=True, options=("train.save_every=100",))
    for name, parameter in expected.items():
        assert torch.equal(found[name], parameter), name


def test_a_second_signal_does_not_wait():
    reached = False
    with pytest.raises(KeyboardInterrupt), signals_wait():
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not stopped")
    assert reached


def test_a_validation_that_was_cut_off_is_made_up_for(model, tokenizers, tmp_path):
    """Interrupted while the best was being kept: the resumed training validates this step first."""
    state, tracker = StateFile(tmp_path), Remember()
    work, take_step, _ = training("ce", model, tokenizers)

    def cut_off(best):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Training(work, take_step, cut_off, tracker, state_file=state))
    saved = read_saved(tmp_path)
    assert (saved.step, saved.validated) == (3, -1)
    _, best, kept = run("ce", model, tokenizers, tracker, state, resume=True)
    assert kept[0].step == 3
    assert best == run("ce", model, tokenizers, Remember())[1]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_names_videos_and_keeps_the_last_good(where, model, tokenizers):
    work, take_step, _ = training("ce", model, tokenizers)
    kept, at_step_4, ids = [], {}, work.batches(4).video_ids

    def spoiled(batch, step):
        for part in take_step(batch, step):
            if step != 4:
                yield part
                continue
            at_step_4.update(weights(work))
            spoil = float("nan") if where == "loss" else SpoiledGradient.apply(part.loss)
            loss = part.loss * spoil if where == "loss" else spoil
            yield MicroBatch(loss, part.metrics, part.video_ids)

    with pytest.raises(FloatingPointError, match=f"step 4: the {where}.* on videos {', '.join(ids)};"):
        train(Training(work, spoiled, kept.append, Remember()))
    assert [best.step for best in kept] == [3]
    for name, parameter in weights(work).items():
        assert torch.equal(parameter, at_step_4[name]), name


class SpoiledGradient(torch.autograd.Function):
    """A finite loss with a gradient that is not."""

    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("inf")


def test_samples_are_tabled_at_validations_and_bands_watched(model, tokenizers, capsys):
    """A band that cannot be kept (captions ten times as long as the references) is warned of once, and counted."""
    tracker = Remember()
    run("scst", model, tokenizers, tracker, options=("scst.watch.length=[10,20]",))
    names, tables = zip(*tracker.tables, strict=True)
    assert set(names) == {"samples"}
    assert [rows[0]["step"] for rows in tables] == [3, 6]
    assert {"video_id", "sampled", "reward", "greedy", "greedy_reward", "step"} == set(tables[0][0])
    lines = [line for line in capsys.readouterr().err.splitlines() if "length" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: step 2: length is ")
    assert tracker.tags["warning.2.length"] in lines[0]
    outside = [(step, value) for name, step, value in tracker.points if name == "train/outside_bands"]
    assert [step for step, _ in outside] == [2, 4, 6]
    assert all(value >= 1 for _, value in outside)
    wanted = {
        "reward",
        "ended",
        "length",
        "bad_endings",
        "distinct_2",
        "repetition",
        "zero_advantage",
        "log_prob_gap",
        "kl",
    }
    assert {f"train/{name}" for name in wanted} <= {name for name, *_ in tracker.points}
