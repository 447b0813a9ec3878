"""Dropout by random bytes."""

import pytest
import torch

from valle.modules.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
def test_entries_go_at_the_rate_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(300, 333, dtype=dtype)  # no multiple of eight bytes
    y = Dropout(p)(x)
    assert y.dtype == dtype
    assert abs((y == 0).float().mean().item() - p) < 0.005 + 1 / 256
    kept = y[y != 0].double()
    assert kept.unique().numel() == 1
    assert abs(y.double().mean().item() - 1) < 0.02


def test_gradient_passes_where_the_value_did():
    x = torch.randn(50, 7, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, y / x).detach())


def test_draws_are_independent_and_come_from_the_global_generator():
    dropout, x = Dropout(0.5), torch.ones(4, 1000)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x))
    assert 0.4 < (first == second).float().mean() < 0.6
    assert 0.4 < (first[0] == first[1]).float().mean() < 0.6


def test_nothing_goes_in_eval_mode_or_at_rate_zero():
    x = torch.randn(5, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
