import pytest
import torch

from models.networks.dropout import PooledDropout


def test_outside_training_nothing_changes() -> None:
    x = torch.randn(3, 4)
    assert PooledDropout(0.5).eval()(x) is x
    assert PooledDropout(0.0)(x) is x


def test_the_rate_is_dropped_and_the_rest_scaled_so_that_the_mean_stays() -> None:
    torch.manual_seed(0)
    dropped = PooledDropout(0.3)(torch.ones(400, 500))
    assert sorted({round(value, 5) for value in dropped.unique().tolist()}) == [0.0, round(1 / 0.7, 5)]
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)


def test_two_uses_drop_different_entries_and_a_seed_repeats_them_from_the_next_epoch_on() -> None:
    dropout, x = PooledDropout(0.5), torch.ones(100)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    dropout.train()
    assert torch.equal(dropout(x), first)


def test_what_is_larger_than_the_pool_is_dropped_too() -> None:
    torch.manual_seed(0)
    dropped = PooledDropout(0.5)(torch.ones(1_500, 2_000))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_gradient_flows_through_what_is_kept() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, requires_grad=True)
    dropped = PooledDropout(0.5)(x)
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, dropped.detach())
