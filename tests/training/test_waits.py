"""How often the host waits for its device: each time it asks a tensor for a number.

Counted on a CPU, where asking costs nothing, with the intervals of a GPU.
"""

from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
import torch
from tiny_training import Remember, teach, workspace
from torch.utils._python_dispatch import TorchDispatchMode

from videoblip2.model import decode
from videoblip2.model.decode import stepper
from videoblip2.training.ce import ce_step
from videoblip2.training.loop import Training, train
from videoblip2.training.rollout import build_reward
from videoblip2.training.scst import scst_step
from videoblip2.training.update import MicroBatch

#: Operations whose result's size or value the host must know.
ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount")
#: transformers asks of each mask whether anything is padding: two of each Q-Former, the encoder's and the decoder's.
MASKS = 6


class Waits(TorchDispatchMode):
    """Counts them inside the block, by name."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen, self.patch = Counter(), monkeypatch

    def __enter__(self):
        for name in ("cpu", "tolist", "numpy"):
            self.patch.setattr(torch.Tensor, name, self.counting(name, getattr(torch.Tensor, name)))
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.undo()
        return super().__exit__(*error)

    def counting(self, name, method):
        def counted(tensor, *args, **options):
            self.seen[name] += 1
            return method(tensor, *args, **options)

        return counted

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(part is not None and part.dtype == torch.bool for part in args[1])
        self.seen[name] += name in ASKING or by_mask
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """Counts with a look every fourth token, as on a GPU."""
    monkeypatch.setitem(stepper.STEPS_BETWEEN_LOOKS, "cpu", 4)
    with pytest.MonkeyPatch.context() as patch:
        yield Waits(patch)


FORMS = {
    "greedy": lambda model, *encoded: decode.greedy(model.text, *encoded, 12),
    "greedy and samples": lambda model, *encoded: decode.greedy_and_sample(
        model.text, *encoded, 12, decode.Sampling(3, generator=torch.Generator().manual_seed(0))
    ),
    "beams": lambda model, *encoded: decode.beam(model.text, *encoded, 12, 3)[0],
}


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compile"])
@pytest.mark.parametrize("form", FORMS)
def test_decoding_looks_every_few_tokens_and_nowhere_else(tiny_model, make_batch, waits, form, compiled):
    tiny_model.compiled_decoding = compiled
    with torch.no_grad():
        encoded = tiny_model.encode(**make_batch().inputs)
        expected = FORMS[form](tiny_model, *encoded)
        with waits:
            found = FORMS[form](tiny_model, *encoded)
    captions, same = (found, expected) if isinstance(found, tuple) else ([found], [expected])
    assert captions[0].ids.shape[1] == 12, "long enough"
    assert all(torch.equal(one.ids, other.ids) for one, other in zip(captions, same, strict=True))
    once = {"greedy": 0, "greedy and samples": 2, "beams": 1}[form]  # the longest caption of each result
    assert waits.seen.total() == 12 // 4 + once, waits.seen


def training(stage, model, tokenizers, *options):
    work = workspace(model, tokenizers, "train.log_every=6", "train.validate_every=6", "train.save_every=6", *options)
    step = partial(ce_step, work) if stage == "ce" else partial(scst_step, work, build_reward(work))
    tracker = Remember()
    made = Training(work, step, lambda best: None, tracker)
    work.batches = [work.batches(number) for number in range(6)].__getitem__  # made before
    return made, tracker


def points(tracker):
    return [point for point in tracker.points if point[0].startswith("train/")]


@pytest.mark.parametrize("stage", ["ce", "scst"])
def test_steps_leave_their_metrics_on_the_device_until_they_are_logged(stage, tiny_model, tokenizers, waits):
    model = teach(tiny_model, tokenizers)
    expected, there = training(stage, model, tokenizers)
    train(expected)
    made, tracker = training(stage, model, tokenizers)
    made.at_once = False
    counts = []

    def take(batch, step, take_step=made.take_step):
        counts.append(waits.seen.total())
        yield from take_step(batch, step)

    made.take_step = take
    with waits:
        train(made)
    assert points(tracker) == points(there)
    each = {later - earlier for earlier, later in pairwise(counts)}
    if stage == "ce":
        assert each == {MASKS}, waits.seen
    else:  # 3 looks; then all at once captions, what ended, what is finite, rewards, the table; the gap of both passes
        assert max(each) <= MASKS + 3 + 15, waits.seen


@pytest.mark.parametrize("where", ["loss", "gradient norm"])
def test_what_is_not_finite_is_found_later_and_moves_nothing(where, tiny_model, tokenizers):
    """In step 2, looked at after step 5: the weights are those of step 2's beginning."""
    made, _ = training("ce", teach(tiny_model, tokenizers), tokenizers)
    made.at_once, before = False, {}

    def spoiled(batch, step, take_step=made.take_step):
        for part in take_step(batch, step):
            if step == 2:
                before.update({name: weight.detach().clone() for name, weight in made.trainable.items()})
                loss = part.loss * float("nan") if where == "loss" else (part.loss - part.loss.detach()).sqrt() * 0
                yield MicroBatch(loss, part.metrics, part.video_ids)
            else:
                yield part

    made.take_step = spoiled
    with pytest.raises(FloatingPointError, match=f"step 2: the {where} is nan on videos video"):
        train(made)
    for name, weight in made.trainable.items():
        assert torch.equal(weight, before[name]), name
