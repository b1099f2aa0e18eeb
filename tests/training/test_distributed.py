"""Several processes train as one does: the same losses and weights, one set of files, and none waits for one that died.

The processes are forked from this one, so that torch is imported once; each case of a list is trained in turn.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from forked import processes
from safetensors.torch import load_file, save_file
from tiny_training import Remember, teach, workspace
from tiny_world import make_world, tiny_config

from videoblip2.captioner import Captioner
from videoblip2.cli import main
from videoblip2.config import to_yaml
from videoblip2.training import stage
from videoblip2.training.ce import ce_step
from videoblip2.training.distributed import World
from videoblip2.training.evaluation import evaluate_model
from videoblip2.training.loop import Training, train
from videoblip2.training.rollout import build_reward
from videoblip2.training.scst import scst_step
from videoblip2.training.state import read_saved
from videoblip2.training.workspace import start_copy

STEPS = {"ce": 20, "scst": 10}
COMMON = (
    "train.batch_size=5",
    "train.log_every=1",
    "train.validate_every=5",
    "train.dropout=false",
    "optim.lr=0.0005",
)
QUICK = {
    "ce": ("ce", "train.accumulate=3", "data.captions_per_video=2"),
    "scst": ("scst", "train.accumulate=3", "scst.reuse=2", "scst.baseline=batch_mean"),
}
FEW = {name: (*case, "train.steps=4", "train.validate_every=4") for name, case in QUICK.items()}
PAIRED = {
    "ce whole": ("ce",),
    "ce smoothed": ("ce", "train.label_smoothing=0.1"),
    **{  # each value with each of the others once
        f"scst {baseline} {parts} {reuse}": (
            *("scst", f"scst.baseline={baseline}", f"train.accumulate={parts}", f"scst.reuse={reuse}"),
        )
        for number, baseline in enumerate(("greedy", "leave_one_out", "batch_mean", "none"))
        for parts, reuse in (((1, 1), (3, 2)), ((1, 2), (3, 1)))[number % 2]
    },
    "scst terms": ("scst", "scst.kl_weight=0.1", "scst.cross_entropy_weight=0.5", "scst.entropy_weight=0.1"),
    "scst reward": ("scst", "scst.reward.repetition=0.5", "scst.mask_unended=true"),
}

SOME = {  # four processes on two cores take their time
    name: PAIRED[name]
    for name in (
        "ce whole",
        *(f"scst {kind}" for kind in ("greedy 3 2", "leave_one_out 1 2", "batch_mean 3 2", "none 3 1", "terms")),
    )
}


@pytest.fixture
def model(tiny_model, tokenizers):
    return teach(tiny_model, tokenizers)


def trained(model, tokenizers, case, world, folder):
    """Train a case; write its weights and points to files."""
    kind, *options = case
    work = workspace(model, tokenizers, *COMMON, f"train.steps={STEPS[kind]}", *options)
    work.world = world
    step = partial(ce_step, work)
    if kind == "scst":
        step = partial(scst_step, work, build_reward(work), start=start_copy(work))
    tracker = Remember()
    train(Training(work, step, lambda best: None, tracker, validate_first=kind == "scst"))
    folder.mkdir(parents=True)
    save_file({name: weight.detach() for name, weight in work.model.trainable().items()}, folder / "weights")
    points = [point for point in tracker.points if point[0].startswith(("train/", "val/"))]
    (folder / "points").write_text(json.dumps(points))


def same(found, expected, name):
    """Each tensor to 1e-5 of its norm. A key's bias moves no output (softmax ignores it): its gradient is rounding."""
    for key, weight in expected.items():
        if not key.endswith("key.bias"):
            assert (found[key] - weight).norm() <= 1e-5 * weight.norm() + 1e-8, (name, key)


def check(cases_of, model, tokenizers, tmp_path):
    """cases_of: number of processes → cases."""

    def train_all(cases, world):
        for name, case in cases.items():
            trained(model, tokenizers, case, world, tmp_path / name / f"{world.size}-{world.rank}")

    for count, cases in cases_of.items():
        assert processes(count, partial(train_all, cases), 100 * len(cases)) == [0] * count
    train_all({name: case for cases in cases_of.values() for name, case in cases.items()}, World())
    for count, name in ((count, name) for count, cases in cases_of.items() for name in cases):
        alone = tmp_path / name / "1-0"
        expected, points = load_file(alone / "weights"), json.loads((alone / "points").read_text())
        for rank in range(count):
            same(load_file(tmp_path / name / f"{count}-{rank}" / "weights"), expected, name)
        found = json.loads((tmp_path / name / f"{count}-0" / "points").read_text())
        assert [point[:2] for point in found] == [point[:2] for point in points]
        for (what, step, value), (*_, one) in zip(points, found, strict=True):
            if what not in ("train/grad_norm", "train/log_prob_gap"):
                assert one == pytest.approx(value, rel=1e-5, abs=1e-6), (name, what, step)


def test_two_processes_train_as_one(model, tokenizers, tmp_path):
    check({2: FEW}, model, tokenizers, tmp_path)


# --- ends that one process comes to


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizers):
    return make_world(tmp_path_factory.mktemp("world"), tokenizers)


def command(folder, world, *words, spoil=None):
    """`vb2 ce` in processes whose standard error is a file; `spoil(rank)` runs in each first."""
    (folder / "ce.yaml").write_text(to_yaml(tiny_config(world, folder / "runs", "run.name=x", "run.tracking=false")))

    def target(world):
        with open(folder / "errors", "a") as errors:
            os.dup2(errors.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.argv = ["vb2", "ce", str(folder / "ce.yaml"), *words]
        if spoil:
            spoil(world.rank)
        main()

    return target


def in_step(number, act, who=1):
    """Before the update of step `number`, process `who` acts."""

    def spoil(rank):

        def step(work, batch, at):
            for part in training_step(work, batch, at):
                yield act(part) if rank == who and at == number else part

        stage.ce_step = step

    return spoil


training_step = stage.ce_step


def spoiled(part):
    return replace(part, loss=part.loss * float("nan"))


def raises(part):
    raise RuntimeError("no memory is left")


def killed(part):
    os.kill(os.getpid(), signal.SIGKILL)


def terminated(part):
    os.kill(os.getpid(), signal.SIGTERM)
    return part


def undecoded(rank):
    def say(*_):
        raise RuntimeError("no caption")

    if rank == 1:
        Captioner.in_batches = say


ENDS = {
    "kill": (in_step(5, killed), [1, -9], "error: another of the 2 processes has ended ", 5),
    "nan": (in_step(5, spoiled), [1, 1], "error: step 5: the loss is nan on videos ", 5),
    "sigterm": (in_step(5, terminated), [143, 143], "stopped; ", 6),
    "error": (in_step(5, raises), [1, 1], "error: RuntimeError: no memory is left", 5),
    "decoding": (undecoded, [1, 1], "error: RuntimeError: no caption", 4),
}


def resumed(words, processes_after, world, folder):
    """The weights after the training has resumed."""
    assert processes(processes_after, command(folder, world, "train.resume=auto", *words)) == [0] * processes_after
    return load_file(folder / "runs" / "x" / "best" / "model.safetensors")


@pytest.mark.parametrize("end", [*ENDS][:2] + [pytest.param(end, marks=pytest.mark.slow) for end in [*ENDS][2:]])
def test_all_processes_end_when_one_does(end, world, tmp_path):
    """One line says why, and the state is that of the last whole step."""
    spoil, codes, line, step = ENDS[end]
    began = time.monotonic()
    assert processes(2, command(tmp_path, world, spoil=spoil)) == codes
    assert time.monotonic() - began < 60
    lines = [text for text in (tmp_path / "errors").read_text().splitlines() if text.startswith(("error", "stopped"))]
    assert lines[0].startswith(line), lines
    assert [text for text in lines if text.startswith("error")] == ([] if end == "sigterm" else lines[:1])
    assert read_saved(tmp_path / "runs" / "x" / "state").step == step


def test_a_stopped_training_resumes_bit_for_bit_with_dropout(world, whole, tmp_path):
    assert processes(2, command(tmp_path, world, spoil=ENDS["sigterm"][0])) == [143, 143]
    found = resumed((), 2, world, tmp_path)
    assert all(torch.equal(found[name], weight) for name, weight in whole.weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2, 1), (2, 4)])
def test_a_stopped_training_resumes_on_another_number_of_processes(counts, world, tmp_path):
    options = "train.dropout=false", "train.batch_size=4", "optim.lr=0.001"
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert processes(1, command(tmp_path / "whole", world, *options)) == [0]
    before, after = counts
    stop = in_step(5, terminated, before - 1)
    assert processes(before, command(tmp_path / "parts", world, *options, spoil=stop)) == [143] * before
    found, whole = resumed(options, after, world, tmp_path / "parts"), tmp_path / "whole" / "runs" / "x" / "best"
    same(found, load_file(whole / "model.safetensors"), "resumed")


def test_an_evaluation_is_shared_and_merged(world, whole, tmp_path):
    """Captions of all videos once, in their order, written by one process."""
    rows = []
    for count in (1, 2):
        out = tmp_path / f"{count}.jsonl"

        def evaluation(_, out=out):
            evaluate_model(str(whole.folder), "val", ["run.tracking=false"], out, metrics=("CIDEr",))

        assert processes(count, evaluation) == [0] * count
        rows.append(out.read_text())
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 2


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The weights of a training on two processes, with dropout, that nothing ended."""
    folder = tmp_path_factory.mktemp("whole")
    assert processes(2, command(folder, world)) == [0, 0]
    checkpoint = folder / "runs" / "x" / "best"
    return SimpleNamespace(folder=checkpoint, weights=load_file(checkpoint / "model.safetensors"))


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes(model, tokenizers, tmp_path):
    check({2: QUICK | PAIRED, 4: QUICK | SOME}, model, tokenizers, tmp_path)
