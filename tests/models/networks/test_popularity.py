from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.events import UserSequence
from models.errors import BundleError
from models.networks import build_network
from models.networks.network import TrainingData
from models.spec import Vectors
from models.vocabulary import Vocabulary
from tests.models.networks.circle import check_round_trip, check_windows, train_a_moment

NAMES = ("popularity", "recent-popularity")
DAY_MS = 86_400_000
CLICKS = ("click",) * 3
# Three clicks of "old" two days before the newest event of all, two of "new" with it; nobody touched "none".
OLD = UserSequence("u1", ("old", "old", "old"), CLICKS, (0, 0, 0))
NEW = UserSequence("u2", ("gone", "new", "new"), CLICKS, (DAY_MS, 2 * DAY_MS, 2 * DAY_MS))
UNTIMED_NEW = UserSequence("u2", ("gone", "new", "new"), CLICKS, (0, 1, 2))


def item_scores(name: str, *sequences: UserSequence, **settings: object) -> Vectors:
    vocabulary = Vocabulary(["old", "new", "none"])
    network = build_network(name, {"items": 3, "types": 1, "max_length": 4, **settings})
    network.prepare(TrainingData(sequences, vocabulary, ("click",), {}))
    scores: Vectors = network.item_table().numpy()
    assert scores.shape == (4, 1)
    return scores[:, 0]


def test_an_item_scores_the_logarithm_of_its_count() -> None:
    np.testing.assert_allclose(item_scores("popularity", OLD, NEW), np.log([1, 4, 3, 1]), rtol=1e-6)


def test_an_event_counts_half_after_a_half_life() -> None:
    # Two days are two half-lives of one day: 3 / 4 against 2.
    scores = item_scores("recent-popularity", OLD, NEW, half_life_days=1.0)
    np.testing.assert_allclose(scores, np.log([1, 1.75, 3, 1]), rtol=1e-6)


def test_without_times_recent_popularity_is_popularity() -> None:
    for sequences in ((OLD, UNTIMED_NEW), (OLD,), ()):
        recent = item_scores("recent-popularity", *sequences, half_life_days=1.0)
        np.testing.assert_allclose(recent, item_scores("popularity", *sequences), atol=1e-6)


def test_everyone_with_an_event_has_the_same_vector() -> None:
    network = build_network("popularity", {"items": 3, "types": 1, "max_length": 4})
    items = torch.tensor([[1, 2], [3, 0], [0, 0]])
    vectors = network(items, items.clamp_max(1), items * 0.0, torch.tensor([2, 1, 0]))
    assert vectors.tolist() == [[1.0], [1.0], [0.0]]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_kept_like_every_other(name: str, tmp_path: Path) -> None:
    trained = train_a_moment(name)
    check_windows(trained.network)
    check_round_trip(trained, tmp_path)


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("nan")])
def test_a_half_life_that_is_none_is_refused(half_life: float) -> None:
    with pytest.raises(BundleError, match="half_life_days must be above 0"):
        item_scores("recent-popularity", half_life_days=half_life)
