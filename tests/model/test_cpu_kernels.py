"""Weights laid out for a few rows: the same products, and never those of a weight that has changed since."""

import pytest
import torch
from torch.nn import functional

from videoblip2.model.decode import cpu_kernels

needs_onednn = pytest.mark.skipif(
    not cpu_kernels.layout_pays(torch.zeros(512, 512), cpu_kernels.ROWS),
    reason="this build of torch has no oneDNN layout",
)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(512, 640, generator=torch.Generator().manual_seed(0))


@needs_onednn
@pytest.mark.parametrize("keep", [False, True])
def test_the_product_is_that_of_linear(weight: torch.Tensor, keep: bool) -> None:
    data = torch.randn(7, 640, generator=torch.Generator().manual_seed(1))
    product = cpu_kernels.product(weight, rows=7, keep=keep)
    torch.testing.assert_close(product(data), functional.linear(data, weight), rtol=1e-5, atol=1e-4)


@needs_onednn
def test_a_kept_layout_is_used_again(weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_kernels.product(weight, rows=7, keep=True)
    monkeypatch.setattr(cpu_kernels, "_transposed", lambda weight: pytest.fail("laid out twice"))
    cpu_kernels.product(weight, rows=7, keep=True)


@needs_onednn
@pytest.mark.parametrize("change", ["in place", "through .data", "another tensor in its place"])
def test_a_changed_weight_is_laid_out_again(weight: torch.Tensor, change: str) -> None:
    parameter = torch.nn.Parameter(weight, requires_grad=False)
    data = torch.ones(7, 640)
    cpu_kernels.product(parameter, rows=7, keep=True)
    if change == "in place":
        parameter.mul_(2)
    elif change == "through .data":
        parameter.data.mul_(2)
    else:
        parameter.data = 2 * parameter.data
    product = cpu_kernels.product(parameter, rows=7, keep=True)
    torch.testing.assert_close(product(data), functional.linear(data, parameter), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("weight", "rows"),
    [(torch.zeros(512, 640), 1), (torch.zeros(8, 8), 64), (torch.zeros(512, 640, dtype=torch.bfloat16), 64)],
    ids=["one row", "small", "bfloat16"],
)
def test_the_plain_product_where_a_layout_does_not_pay(weight: torch.Tensor, rows: int) -> None:
    assert not cpu_kernels.layout_pays(weight, rows)
    data = torch.ones(3, weight.shape[1], dtype=weight.dtype)
    assert cpu_kernels.product(weight, rows)(data).shape == (3, len(weight))
