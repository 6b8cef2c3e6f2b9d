import math

import pytest
import torch

from models.losses import seen_items, unseen_cross_entropy

NO, YES = False, True


def test_an_item_is_seen_from_its_event_on() -> None:
    seen = seen_items(torch.tensor([[2, 1, 0]]), table_rows=4)
    assert seen.tolist() == [[[YES, NO, YES, NO], [YES, YES, YES, NO], [YES, YES, YES, NO]]]


def test_the_loss_is_the_softmax_over_unseen_items_worked_out_by_hand() -> None:
    table = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    vectors = torch.tensor([[1.0]])
    target = torch.tensor([2])
    nothing, third = torch.tensor([[YES, NO, NO, NO]]), torch.tensor([[YES, NO, NO, YES]])
    e = math.e
    expected = -math.log(e**2 / (e + e**2 + e**3))
    assert unseen_cross_entropy(vectors, table, target, nothing).item() == pytest.approx(expected, rel=1e-5)
    without_third = -math.log(e**2 / (e + e**2))
    assert unseen_cross_entropy(vectors, table, target, third).item() == pytest.approx(without_third, rel=1e-5)


def test_a_target_that_was_seen_stays_a_candidate() -> None:
    table = torch.tensor([[0.0], [1.0], [2.0]])
    seen = torch.tensor([[YES, YES, YES]])
    loss = unseen_cross_entropy(torch.tensor([[1.0]]), table, torch.tensor([2]), seen)
    assert loss.item() == pytest.approx(0.0)
    assert seen.tolist() == [[YES, YES, YES]]
