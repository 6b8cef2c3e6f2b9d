import numpy as np
import pytest
import torch
from torch import Tensor

from export.golden import random_inputs
from models.errors import BundleError
from models.networks import build_network
from models.networks.sasrec import SasRec, SasRecConfig
from models.windows import WindowInputs

CONFIG = SasRecConfig(items=20, types=2, max_length=12, dim=8, blocks=2, heads=2, dropout=0.5)


@pytest.fixture
def network() -> SasRec:
    torch.manual_seed(1)
    network = SasRec(CONFIG).eval()
    with torch.no_grad():
        # Small initial weights would hide a wrong dependence behind the tolerance, and the biases start at 0.
        for parameter in network.parameters():
            parameter.normal_(std=0.5)
        network.events.items.weight[0] = 0.0
        network.events.types.weight[0] = 0.0
    return network


def tensors(inputs: WindowInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    items, types, ages, lengths = (torch.from_numpy(array) for array in inputs.as_feed().values())
    return items, types, ages, lengths


def windows(*lengths: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tensors(random_inputs(np.array(lengths), CONFIG.items, CONFIG.types, np.random.default_rng(5)))


def test_no_event_depends_on_a_later_one(network: SasRec) -> None:
    items, types, ages, _ = windows(10, 10, 10)
    before = network.at_every_event(items, types, ages)
    items, types, ages = items.clone(), types.clone(), ages.clone()
    items[:, 6:] = 21 - items[:, 6:]
    types[:, 6:] = 3
    ages[:, :6] += 86_400.0 * 40  # the later events happen 40 days later
    after = network.at_every_event(items, types, ages)
    torch.testing.assert_close(after[:, :6], before[:, :6], atol=1e-5, rtol=0)
    assert (after[:, 6] - before[:, 6]).abs().max() > 0.1


def test_the_served_vector_is_the_one_trained_at_the_last_event(network: SasRec) -> None:
    items, types, ages, lengths = windows(1, 5, 12, 7)
    every = network.at_every_event(items, types, ages)
    served = network(items, types, ages, lengths)
    torch.testing.assert_close(served, every[torch.arange(4), lengths - 1], atol=1e-5, rtol=0)


def test_padding_changes_nothing(network: SasRec) -> None:
    items, types, ages, lengths = windows(4)
    alone = network(items, types, ages, lengths)
    padded = network(*(torch.nn.functional.pad(each, (0, 8)) for each in (items, types, ages)), lengths)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


def test_a_window_without_events_gives_zeros_beside_any_other(network: SasRec) -> None:
    vectors = network(*windows(0, 3))
    assert vectors[0].abs().max() == 0
    assert vectors[1].abs().max() > 0
    assert network(*windows(0)).abs().max() == 0


def test_order_types_and_gaps_all_matter(network: SasRec) -> None:
    items, types, ages, lengths = windows(6)
    vector = network(items, types, ages, lengths)
    # Exchange the first two: last and window content stay the same.
    swapped = items[:, [1, 0, 2, 3, 4, 5]]
    for changed in (
        network(swapped, types, ages, lengths),
        network(items, 4 - types, ages, lengths),
        network(items, types, ages * 1_000, lengths),
    ):
        assert (changed - vector).abs().max() > 1e-2


def test_training_never_moves_the_vector_of_padding() -> None:
    torch.manual_seed(0)
    network = SasRec(CONFIG).train()
    items, types, ages, lengths = windows(3, 9)
    network(items, types, ages, lengths).sum().backward()
    assert network.events.items.weight.grad is not None
    assert network.item_table()[0].abs().max() == 0
    assert network.events.items.weight.grad[0].abs().max() == 0


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gpt", {}, "no model 'gpt'; this version knows popularity, "),
        ("sasrec", {"items": 3}, "missing required field"),
        ("sasrec", {"items": 3, "types": 1, "max_length": 4, "dim": 9, "heads": 2}, "dim must be a multiple of heads"),
        ("sasrec", {"items": 3, "types": 1, "max_length": 4, "dropout": 1.0}, "dropout must be"),
    ],
)
def test_a_network_that_cannot_be_built_is_named(name: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_network(name, config)
