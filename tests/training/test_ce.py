"""Cross-entropy against its definition."""

import pytest
import torch
from tiny_training import teach, workspace

from videoblip2.training.ce import ce_step, cross_entropy, token_accuracy

LABELS = torch.tensor([[2, 1, -100], [3, 4, 1]])


def test_mean_over_live_tokens():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5)
    live = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    by_hand = -sum(torch.log_softmax(logits[n, t], -1)[LABELS[n, t]] for n, t in live) / 5
    assert torch.allclose(cross_entropy(logits, LABELS), by_hand)


def test_low_precision_logits_are_judged_in_float32():
    logits = torch.randn(2, 3, 5).to(torch.bfloat16)
    assert cross_entropy(logits, LABELS).dtype == torch.float32


def test_accuracy_counts_live_tokens_only():
    logits = torch.full((2, 3, 5), -1.0)
    for n, t, token in [(0, 0, 2), (0, 1, 0), (1, 0, 3), (1, 1, 4), (1, 2, 1)]:
        logits[n, t, token] = 1.0
    assert float(token_accuracy(logits, LABELS)) == torch.tensor(0.8)


def test_a_step_teaches_several_captions_a_video(tiny_model, tokenizers, make_batch):
    captions = ["a red circle moves left", "the star is quiet", "a dog barks at a man", "a blue square jumps"]
    batch = make_batch(captions=captions)
    work = workspace(tiny_model, tokenizers)
    optimizer = torch.optim.AdamW(work.model.trainable().values(), lr=1e-2)
    losses = []
    for step in range(40):
        (part,) = ce_step(work, batch, step)
        part.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(part.metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_micro_batches_add_up_to_the_batch(tiny_model, tokenizers, make_batch, smoothing):
    """Captions of different lengths, so that a mean of the parts' means would be another loss. Dropout off."""
    captions = [
        "a red circle moves left",
        "a",
        "the star is quiet",
        "a dog",
        "dog",
        "a blue square jumps and beeps play",
    ]
    batch = make_batch(frames=(3, 5, 4), windows=(2, 0, 1), captions=captions)
    found, model = [], teach(tiny_model, tokenizers)
    for count in (1, 2):
        work = workspace(model, tokenizers, f"train.accumulate={count}", f"train.label_smoothing={smoothing}")
        work.model.train = lambda mode=True, model=work.model: model
        parts = list(ce_step(work, batch, 0))
        assert [part.last for part in parts] == [False, True][-count:]
        for part in parts:
            part.loss.backward()
        gradients = {n: p.grad for n, p in work.model.named_parameters() if p.grad is not None}
        found.append((gradients, *(sum(float(p.metrics[n]) for p in parts) for n in ("loss", "token_accuracy"))))
    (whole, *described), (summed, *metrics) = found
    assert metrics == pytest.approx(described, abs=1e-6)
    one, other = (torch.cat([gradient.flatten() for gradient in group.values()]) for group in (whole, summed))
    assert (one - other).norm() < 5e-6 * one.norm()  # float32 sums in another order
