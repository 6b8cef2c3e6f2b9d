from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.events import UserSequence
from models.errors import BundleError
from models.networks import build_network
from models.networks.itemknn import ItemKnn, ItemKnnConfig
from models.networks.network import TrainingData
from models.spec import Vectors
from models.vocabulary import Vocabulary
from tests.models.networks.circle import (
    CHANCE_NDCG,
    ITEMS,
    MAX_LENGTH,
    check_export,
    check_round_trip,
    check_windows,
    circle,
    train_a_moment,
)

# Users of a: 3, of b: 3, of c: 1; of a and b: 2, of a and c: 1, of b and c: none. d has none.
TOUCHED = (("a", "b", "a"), ("b", "a"), ("a", "c"), ("b", "gone"))


def prepared(**settings: object) -> ItemKnn:
    sequences = tuple(
        UserSequence(f"u{user}", items, ("click",) * len(items), tuple(range(len(items))))
        for user, items in enumerate(TOUCHED)
    )
    network = build_network("itemknn", {"items": 4, "types": 1, "max_length": 4, **settings})
    assert isinstance(network, ItemKnn)
    network.prepare(TrainingData(sequences, Vocabulary(["a", "b", "c", "d"]), ("click",), {}))
    return network


def scores(network: ItemKnn, *rows: int) -> Vectors:
    items = torch.tensor([rows])
    with torch.inference_mode():
        vector = network(items, items.clamp_max(1), items * 0.0, torch.tensor([len(rows)]))
        found: Vectors = (vector @ network.item_table().T)[0].numpy()
    return found


@pytest.mark.parametrize(("shrinkage", "to_b", "to_c"), [(0.0, 2 / 3, 1 / 3**0.5), (1.0, 2 / 4, 1 / (3**0.5 + 1))])
def test_similarity_is_the_cosine_of_the_users_scaled_to_sum_to_1(shrinkage: float, to_b: float, to_c: float) -> None:
    network = prepared(shrinkage=shrinkage)
    expected = np.array([0, 0, to_b, to_c, 0]) / (to_b + to_c)
    np.testing.assert_allclose(scores(network, 1), expected, atol=1e-6)
    np.testing.assert_allclose(scores(network, 2), [0, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(scores(network, 4), np.zeros(5))
    assert network.kept_energy == 1.0


def test_only_the_nearest_neighbours_are_kept() -> None:
    np.testing.assert_allclose(scores(prepared(neighbours=1), 1), [0, 0, 1, 0, 0], atol=1e-6)


def test_a_window_adds_up_its_events_newer_ones_with_more_weight() -> None:
    # c, two events before the last, and b, both nearest to a alone; then b again.
    np.testing.assert_allclose(scores(prepared(recency=0.5), 3, 2, 2), [0, 0.25 + 0.5 + 1, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("dim", [1, 5, 29])
def test_fewer_dimensions_give_the_best_approximation_of_their_rank(dim: int) -> None:
    data, _ = circle()
    config = {"items": ITEMS, "types": 2, "max_length": MAX_LENGTH, "neighbours": 3}
    exact, reduced = (build_network("itemknn", {**config, **more}) for more in ({}, {"dim": dim}))
    assert isinstance(exact, ItemKnn)
    assert isinstance(reduced, ItemKnn)
    exact.prepare(data)
    reduced.prepare(data)
    assert reduced.item_table().shape == (ITEMS + 1, dim)
    left, values, right = np.linalg.svd(exact.similarities[1:].double().numpy())
    # The best of a rank is one matrix only where the next singular value is smaller; its error is so in any case.
    approximation = (reduced.similarities @ reduced.item_table().T)[1:, 1:].double().numpy()
    error = np.linalg.norm(approximation - left @ np.diag(values) @ right)
    np.testing.assert_allclose(error, np.sqrt(np.square(values[dim:]).sum()), atol=1e-5)
    energy = np.square(values[:dim]).sum() / np.square(values).sum()
    np.testing.assert_allclose(reduced.kept_energy, energy, rtol=1e-5)


def test_nothing_in_common_has_no_factors() -> None:
    network = build_network("itemknn", {"items": 4, "types": 1, "max_length": 4, "dim": 2})
    alone = UserSequence("u", ("a", "a"), ("click",) * 2, (0, 1))
    network.prepare(TrainingData((alone,), Vocabulary(["a", "b", "c", "d"]), ("click",), {}))
    assert not network.item_table().any()


@pytest.mark.parametrize(
    ("items", "dim", "expected"),
    [(4_096, None, 4_096), (4_097, None, 512), (9_000, 64, 64), (9_000, 9_000, 9_000), (50, 64, 50)],
)
def test_few_items_are_served_exactly_and_many_factorised(items: int, dim: int | None, expected: int) -> None:
    assert ItemKnnConfig(items=items, types=1, max_length=9, dim=dim).width == expected


@pytest.mark.parametrize("dim", [None, 12])
def test_it_recommends_what_the_same_users_have_exported_and_kept_too(dim: int | None, tmp_path: Path) -> None:
    trained = train_a_moment("itemknn", dim=dim)
    assert trained.ndcg() > CHANCE_NDCG + 0.3
    check_windows(trained.network)
    check_export(trained)
    check_round_trip(trained, tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("dim", 0, "neighbours and dim must be at least 1"),
        ("neighbours", 0, "neighbours and dim must be at least 1"),
        ("shrinkage", -1.0, "shrinkage must be at least 0"),
        ("recency", 0.0, "recency must be above 0 and at most 1"),
        ("recency", 1.1, "recency must be above 0 and at most 1"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(setting: str, value: float, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_network("itemknn", {"items": 4, "types": 1, "max_length": 4, setting: value})
