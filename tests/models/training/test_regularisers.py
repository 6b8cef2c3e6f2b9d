import math

import pytest
import torch

from models.data.events import UserSequence
from models.networks import build_network
from models.networks.network import Loss, Network, TrainingData
from models.training.regularisers import Regulariser
from models.vocabulary import Vocabulary

ITEMS = ["a", "b", "c", "d"]


def data() -> TrainingData:
    # a four times, b twice, c once, d never.
    items = ("a", "a", "a", "a", "b", "b", "c")
    sequence = UserSequence("u", items, ("click",) * 7, tuple(range(7)))
    return TrainingData((sequence,), Vocabulary(ITEMS), ("click",), {})


def network() -> Network:
    torch.manual_seed(0)
    return build_network("sasrec", {"items": 4, "types": 1, "max_length": 8, "dim": 2, "heads": 1})


def test_without_weights_nothing_is_added_and_nothing_is_learned() -> None:
    regulariser = Regulariser(network(), data(), 0.0, 0.0)
    assert regulariser(Loss(torch.ones(()), 1, torch.ones(3, 2))).item() == 0.0
    assert not list(regulariser.parameters())


def test_diversity_is_minus_the_entropy_of_the_mean_exposure() -> None:
    net = network()
    with torch.no_grad():
        net.item_table()[:] = torch.tensor([[0.0, 0.0], [99.0, 0.0], [0.0, 99.0], [-99.0, -99.0], [-99.0, -99.0]])
    regulariser = Regulariser(net, data(), 2.0, 0.0)
    one_item = torch.tensor([[1.0, 0.0]])
    all_alike = torch.zeros(1, 2)
    assert regulariser(Loss(torch.ones(()), 1, one_item)).item() == pytest.approx(0.0, abs=1e-6)
    assert regulariser(Loss(torch.ones(()), 1, all_alike)).item() == pytest.approx(-2.0 * math.log(4), rel=1e-6)


def test_the_adversary_learns_popularity_while_the_items_learn_to_hide_it() -> None:
    net = network()
    regulariser = Regulariser(net, data(), 0.0, 1.0)
    table, weight = net.item_table(), next(regulariser.adversary.parameters())
    value = regulariser(Loss(torch.ones(()), 1))
    of_table, of_weight = torch.autograd.grad(value, (table, weight))
    # One small step of descent on each: the items' makes the adversary's error larger, its own smaller.
    before = value.item()
    with torch.no_grad():
        table.sub_(of_table, alpha=0.1)
    assert regulariser(Loss(torch.ones(()), 1)).item() > before
    with torch.no_grad():
        table.add_(of_table, alpha=0.1)
        weight.sub_(of_weight, alpha=0.01)
    assert regulariser(Loss(torch.ones(()), 1)).item() < before
