"""Cross-entropy against its definition."""

from types import SimpleNamespace

import torch

from videoblip2.config import parse_config
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


def test_a_step_teaches_several_captions_a_video(tiny_model, make_batch):
    captions = ["a red circle moves left", "the star is quiet", "a dog barks at a man", "a blue square jumps"]
    batch = make_batch(captions=captions)
    work = SimpleNamespace(model=tiny_model, config=parse_config({}))
    optimizer = torch.optim.AdamW(tiny_model.trainable().values(), lr=1e-2)
    losses = []
    for step in range(40):
        loss, metrics = ce_step(work, batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]
