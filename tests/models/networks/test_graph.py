import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.events import UserSequence
from models.errors import BundleError
from models.networks import build_network
from models.networks.graph import Graph, GraphNetwork, LightGcn, Ngcf
from models.networks.network import Batch, TrainingData
from models.spec import Vectors
from models.vocabulary import Vocabulary
from tests.models.networks.circle import (
    CHANCE_NDCG,
    Trained,
    check_round_trip,
    check_windows,
    train_a_moment,
)

NAMES = ("lightgcn", "ngcf")
# Three users and four items, of which nobody touched the last.
TOUCHED = (("a", "b"), ("b", "c", "b"), ("b",))
ADJACENCY = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]], np.float64)
# 1 / sqrt(degree of user · degree of item): users touched 2, 2 and 1 items, a and c have 1 user, b has 3.
EDGES = ADJACENCY / np.sqrt(np.array([[2], [2], [1]]) * np.array([[1, 3, 1, 1]]))


def data_of(touched: Sequence[Sequence[str]] = TOUCHED) -> TrainingData:
    sequences = tuple(
        UserSequence(f"u{user}", tuple(items), ("click",) * len(items), tuple(range(len(items))))
        for user, items in enumerate(touched)
    )
    return TrainingData(sequences, Vocabulary(["a", "b", "c", "d"]), ("click",), {})


def prepared(name: str, **settings: object) -> GraphNetwork:
    torch.manual_seed(4)
    config = {"items": 4, "types": 1, "max_length": 5, "dim": 6, "layers": 2, "dropout": 0.0, **settings}
    network = build_network(name, config)
    assert isinstance(network, GraphNetwork)
    network.prepare(data_of())
    return network.eval()


def fold_in(network: GraphNetwork, rows: Sequence[int]) -> Vectors:
    items = torch.tensor([rows])
    with torch.inference_mode():
        vectors: Vectors = network(items, items.clamp_max(1), items * 0.0, torch.tensor([len(rows)]))[0].numpy()
    return vectors


def arrays(network: GraphNetwork) -> dict[str, Vectors]:
    return {name: parameter.detach().double().numpy() for name, parameter in network.named_parameters()}


def scale_of(network: GraphNetwork) -> float:
    return math.exp(network.log_scale.item())


def leaky(x: Vectors) -> Vectors:
    result: Vectors = np.where(x > 0, x, 0.2 * x)
    return result


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest) -> Trained:
    return train_a_moment(request.param, dim=16, epochs=20, learning_rate=0.05)


def test_it_learns_what_belongs_together(trained: Trained) -> None:
    assert trained.ndcg() > CHANCE_NDCG + 0.4


def test_windows_are_encoded_alone_and_nothing_gives_nothing(trained: Trained) -> None:
    check_windows(trained.network)


def test_a_checkpoint_keeps_it_without_the_graph(trained: Trained, tmp_path: Path) -> None:
    check_round_trip(trained, tmp_path)


def test_lightgcn_is_the_mean_of_what_propagates() -> None:
    network = prepared("lightgcn", recency=False)
    first = arrays(network)["items.weight"][1:]
    second = EDGES.T @ (EDGES @ first)
    third = EDGES.T @ (EDGES @ second)
    table = (first + second + third) / 3
    np.testing.assert_allclose(network.item_table()[1:].detach(), table, atol=1e-6)
    # a has one user and b three; the window is a user with two items.
    expected = scale_of(network) * (table[0] / np.sqrt(2 * 1) + table[1] / np.sqrt(2 * 3))
    np.testing.assert_allclose(fold_in(network, [1, 2]), expected, atol=1e-5)
    # An item without a training event counts as one with a single user.
    expected = scale_of(network) * table[3]
    np.testing.assert_allclose(fold_in(network, [4]), expected, atol=1e-5)


def test_ngcf_transforms_and_multiplies_what_propagates() -> None:
    network = prepared("ngcf", recency=False)
    assert isinstance(network, Ngcf)
    with torch.no_grad():
        for parameter in (*network.sums.parameters(), *network.products.parameters()):
            parameter.normal_(std=0.5)
    network.refresh()
    parts = arrays(network)
    item = parts["items.weight"][1:]
    user = EDGES @ item
    items, users = [item], [user]
    for layer in range(2):
        to_user, to_item = EDGES @ item, EDGES.T @ user
        user, item = (
            leaky(
                (own + message) @ parts[f"sums.{layer}.weight"].T
                + parts[f"sums.{layer}.bias"]
                + (own * message) @ parts[f"products.{layer}.weight"].T
                + parts[f"products.{layer}.bias"]
            )
            for own, message in ((user, to_user), (item, to_item))
        )
        items.append(item)
        users.append(user)
    np.testing.assert_allclose(network.item_table()[1:].detach(), np.concatenate(items, 1), atol=1e-5)
    # A window of what a training user touched folds in to what propagation gives that user.
    scaled = scale_of(network) * np.concatenate(users, 1)
    for user_row, window in enumerate(([1, 2], [2, 3], [2])):
        np.testing.assert_allclose(fold_in(network, window), scaled[user_row], atol=1e-4, rtol=1e-4)


def test_newer_events_weigh_more_by_what_was_learned() -> None:
    network = prepared("lightgcn")
    with torch.no_grad():
        network.recency.copy_(torch.log(torch.tensor([3.0, 1.0, 0.5, 1.0, 1.0])))
    table = network.item_table()[1:].detach().double().numpy()
    # Of c, a, b the newest, b, weighs 3 and c, two events ago, 0.5: together 4.5.
    expected = (0.5 * table[2] + 1.0 * table[0] + 3.0 * table[1] / np.sqrt(3)) / np.sqrt(4.5)
    np.testing.assert_allclose(fold_in(network, [3, 1, 2]), scale_of(network) * expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_every_next_item_given_its_window(name: str) -> None:
    network = prepared(name)
    items = torch.tensor([[1, 2, 3, 4], [3, 2, 0, 0]])
    batch = Batch(items, items.clamp_max(1), items * 0.0, torch.tensor([4, 2]), 0.0)
    table = network.item_table().detach().double().numpy()
    losses = []
    for window, target in (([1], 2), ([1, 2], 3), ([1, 2, 3], 4), ([3], 2)):
        scores = table @ fold_in(network, window).astype(np.float64)
        unseen = [row for row in (1, 2, 3, 4) if row not in window]
        losses.append(np.log(np.exp(scores[unseen]).sum()) - scores[target])
    loss = network.train().loss(batch)
    assert loss.targets == 4
    np.testing.assert_allclose(loss.value.item(), np.mean(losses), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_served_follows_training_only_when_it_is_refreshed(name: str) -> None:
    network = prepared(name)
    before = fold_in(network, [1, 3])
    with torch.no_grad():
        network.items.weight[1:] += 1.0
    np.testing.assert_array_equal(fold_in(network, [1, 3]), before)
    network.refresh()
    assert np.abs(fold_in(network, [1, 3]) - before).max() > 1e-2


def test_in_training_the_item_table_leads_back_to_the_parameters() -> None:
    network = prepared("ngcf").train()
    torch.autograd.backward(network.item_table().sum())
    assert network.items.weight.grad is not None
    assert not network.items.weight.grad[0].any()
    assert network.items.weight.grad[1:].abs().sum() > 0


def test_the_gradient_of_a_propagation_goes_back_along_the_edges() -> None:
    graph = Graph.of([[1, 2], [2, 3], [2]], 4, torch.device("cpu"))
    items = torch.randn(5, 3, requires_grad=True)
    seed = torch.randn(3, 3)
    torch.autograd.backward(graph.users(items), seed)
    assert items.grad is not None
    np.testing.assert_allclose(items.grad[1:], EDGES.T @ seed.double().numpy(), atol=1e-6)
    users = torch.randn(3, 3, requires_grad=True)
    np.testing.assert_allclose(graph.items(users)[1:].detach(), EDGES.T @ users.detach().double().numpy(), atol=1e-6)


def test_a_graph_network_is_not_trained_before_it_has_a_graph() -> None:
    network = build_network("lightgcn", {"items": 4, "types": 1, "max_length": 5})
    assert isinstance(network, LightGcn)
    items = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="must be prepared"):
        network.loss(Batch(items, items, items * 0.0, torch.tensor([2]), 0.0))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layers": 0}, "dim and layers must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"recency": 2}, "Expected `bool`"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_shape_that_cannot_be_is_refused(name: str, setting: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_network(name, {"items": 5, "types": 1, "max_length": 4, **setting})
