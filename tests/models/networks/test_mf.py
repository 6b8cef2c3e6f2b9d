from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.data.events import UserSequence
from models.errors import BundleError
from models.networks import build_network
from models.networks.mf import MatrixFactorization
from models.networks.network import TrainingData
from models.vocabulary import Vocabulary
from tests.models.networks.circle import (
    CHANCE_NDCG,
    check_round_trip,
    check_windows,
    train_a_moment,
)

Doubles = npt.NDArray[np.float64]

USERS, ITEMS = 40, 30
REGULARISATION, UNOBSERVED = 0.02, 0.3


def log() -> tuple[TrainingData, Doubles]:
    """A random log, and how often each user has each item; user 3 has nothing known, and nobody has the last item."""
    rng = np.random.default_rng(0)
    counts = np.zeros((USERS, ITEMS))
    sequences = []
    for user in range(USERS):
        rows = rng.integers(0, ITEMS - 1, rng.integers(1, 25)) if user != 3 else np.zeros(0, np.int64)
        np.add.at(counts[user], rows, 1)
        items = tuple(f"i{row}" for row in rows) or ("gone",)
        sequences.append(UserSequence(f"u{user}", items, ("click",) * len(items), tuple(range(len(items)))))
    vocabulary = Vocabulary([f"i{row}" for row in range(ITEMS)])
    return TrainingData(tuple(sequences), vocabulary, ("click",), {}), counts


def build(**settings: object) -> MatrixFactorization:
    torch.manual_seed(3)
    given = {"dim": 6, "regularisation": REGULARISATION, "unobserved": UNOBSERVED, **settings}
    network = build_network("mf", {"items": ITEMS, "types": 1, "max_length": 50, **given})
    assert isinstance(network, MatrixFactorization)
    return network


def least_squares(fixed: Doubles, weights: Doubles) -> Doubles:
    """The objective as equations, each by the root of its weight: events score 1, every pair 0, factors are 0."""
    dim = fixed.shape[1]
    rows = [
        np.sqrt(weights)[:, None] * fixed,
        np.sqrt(UNOBSERVED) * fixed,
        np.sqrt(REGULARISATION * (weights.sum() + UNOBSERVED * len(fixed))) * np.eye(dim),
    ]
    right = np.concatenate((np.sqrt(weights), np.zeros(len(fixed) + dim)))
    solution: Doubles = np.linalg.lstsq(np.concatenate(rows), right, rcond=None)[0]
    return solution


def test_every_sweep_minimises_the_objective_for_users_then_for_items() -> None:
    data, counts = log()
    network = build(sweeps=2)
    items = network.factors[1:].double().numpy()
    for _ in range(2):
        users = np.stack([least_squares(items, row) for row in counts])
        items = np.stack([least_squares(users, column) for column in counts.T])
    network.prepare(data)
    found = network.item_table()[1:].double().numpy()
    # The factors themselves are in another basis.
    np.testing.assert_allclose(found @ found.T, items @ items.T, atol=1e-4)
    assert not found[-1].any()


@pytest.mark.parametrize("recency", [1.0, 0.8])
def test_a_window_is_folded_in_by_the_same_objective(recency: float) -> None:
    network = build(recency=recency)
    network.prepare(log()[0])
    items = network.item_table()[1:].double().numpy()
    rng = np.random.default_rng(1)
    for length in (1, 2, 7, 50):
        rows = rng.integers(0, ITEMS, length)
        weights = np.zeros(ITEMS)
        np.add.at(weights, rows, recency ** np.arange(length)[::-1])
        expected = least_squares(items, weights)
        window = torch.from_numpy(rows + 1)[None]
        with torch.inference_mode():
            vector = network(window, window.clamp_max(1), window * 0.0, torch.tensor([length]))[0].numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-4)
        assert np.argsort(-items @ vector)[:10].tolist() == np.argsort(-items @ expected)[:10].tolist()


def test_the_start_is_the_seeds_and_the_fit_is_repeatable() -> None:
    data, _ = log()
    first, second = build(), build()
    first.prepare(data)
    second.prepare(data)
    assert torch.equal(first.item_table(), second.item_table())


def test_it_recommends_what_the_same_users_have_and_is_kept(tmp_path: Path) -> None:
    trained = train_a_moment("mf", dim=16)
    assert trained.ndcg() > CHANCE_NDCG + 0.3
    check_windows(trained.network)
    check_round_trip(trained, tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("dim", 0, "dim, sweeps and steps must be at least 1"),
        ("sweeps", 0, "dim, sweeps and steps must be at least 1"),
        ("steps", 0, "dim, sweeps and steps must be at least 1"),
        ("regularisation", 0.0, "regularisation and unobserved must be above 0"),
        ("unobserved", float("nan"), "regularisation and unobserved must be above 0"),
        ("recency", 0.0, "recency must be above 0 and at most 1"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(setting: str, value: float, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build(**{setting: value})
