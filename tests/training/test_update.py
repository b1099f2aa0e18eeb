"""Learning rates: groups, warm-up, cosine."""

import itertools

import pytest
import torch
from torch import nn

from videoblip2.config import OptimConfig
from videoblip2.training.update import build_optimizer, decays, kind_of, schedule, set_learning_rate


def test_schedule_warms_up_and_comes_down():
    rates = [schedule(step, 100, 10, 0.1) for step in range(100)]
    assert rates[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert schedule(54, 99, 10, 0.0) == pytest.approx(0.5)  # half way between 10 and 98


def test_schedule_without_warmup_starts_at_the_top():
    assert schedule(0, 10, 0, 0.1) == 1.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("video_branch.qformer.encoder.layer.0.attention.attention.query.weight", "qformer"),
        ("video_branch.query_tokens", "projection"),
        ("proj_audio.weight", "projection"),
        ("language_model.encoder.block.0.layer.0.SelfAttention.q.lora_A.default.weight", "lora"),
        ("language_model.lm_head.weight", "lora"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def test_groups_have_their_own_peak_and_only_matrices_decay():
    parameters = {
        "video_branch.qformer.a.weight": nn.Parameter(torch.ones(2, 2)),
        "video_branch.qformer.a.bias": nn.Parameter(torch.ones(2)),
        "proj_video.weight": nn.Parameter(torch.ones(2, 2)),
        "video_branch.query_tokens": nn.Parameter(torch.ones(1, 2, 2)),
        "x.lora_B.default.weight": nn.Parameter(torch.ones(2, 2)),
    }
    config = OptimConfig(lr=1e-2, lr_scale_lora=0.5, lr_scale_projections=2, warmup_steps=0, weight_decay=0.3)
    optimizer = build_optimizer(parameters, config)
    assert set_learning_rate(optimizer, 0, 10, config) == pytest.approx(1e-2)
    by_id = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(by_id) == len(parameters)
    for name, parameter in parameters.items():
        group = by_id[id(parameter)]
        scale = {"qformer": 1, "projection": 2, "lora": 0.5}[kind_of(name)]
        assert group["lr"] == pytest.approx(1e-2 * scale)
        assert group["weight_decay"] == (0.3 if decays(name, parameter) else 0)
    assert not decays("video_branch.query_tokens", parameters["video_branch.query_tokens"])
