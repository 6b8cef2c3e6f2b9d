import math

import pytest
import torch
from torch.nn import functional

from models.losses import unseen_cross_entropy
from models.networks.network import seen_so_far

TABLE = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
E = math.e


def loss(seen: list[int], target: int) -> float:
    return unseen_cross_entropy(torch.tensor([[1.0]]), TABLE, torch.tensor([target]), torch.tensor([seen])).item()


def test_an_item_is_seen_from_its_event_on() -> None:
    assert seen_so_far(torch.tensor([[2, 1, 0]])).tolist() == [[[2, 0, 0], [2, 1, 0], [2, 1, 0]]]


def test_the_loss_is_the_softmax_over_unseen_items_worked_out_by_hand() -> None:
    assert loss([0, 0], 2) == pytest.approx(-math.log(E**2 / (E + E**2 + E**3)), rel=1e-5)
    assert loss([3, 0], 2) == pytest.approx(-math.log(E**2 / (E + E**2)), rel=1e-5)
    assert loss([3, 3], 2) == pytest.approx(-math.log(E**2 / (E + E**2)), rel=1e-5)


def test_a_target_that_was_seen_stays_a_candidate() -> None:
    assert loss([1, 2, 3], 2) == pytest.approx(0.0)


def test_the_loss_of_nothing_is_zero() -> None:
    nothing = torch.zeros((0, 2), dtype=torch.int64)
    assert unseen_cross_entropy(torch.zeros((0, 1)), TABLE, nothing[:, 0], nothing).item() == 0.0


@pytest.mark.parametrize("events", [1, 7, 2_500])
def test_value_and_gradients_are_those_of_autograd_through_a_masked_softmax(events: int) -> None:
    """2,500 events take three blocks, the last of them not full."""
    random = torch.Generator().manual_seed(events)
    vectors = torch.randn(events, 5, generator=random, dtype=torch.float64, requires_grad=True)
    table = torch.randn(40, 5, generator=random, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 40, (events,), generator=random)
    seen = torch.randint(0, 40, (events, 6), generator=random)

    scores = vectors @ table.T
    excluded = torch.zeros(events, 40, dtype=torch.bool)
    for event in range(events):
        excluded[event, seen[event]] = True
        excluded[event, 0] = True
        excluded[event, targets[event]] = False
    expected = functional.cross_entropy(scores.masked_fill(excluded, float("-inf")), targets)
    expected_gradients = torch.autograd.grad(3.0 * expected, (vectors, table))

    found = unseen_cross_entropy(vectors, table, targets, seen)
    gradients = torch.autograd.grad(3.0 * found, (vectors, table))

    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
