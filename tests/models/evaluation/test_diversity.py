import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.diversity import (
    entropy,
    gini,
    list_distance,
    list_topic_distance,
    measure_diversity,
    miscalibration,
    novelty,
    popularity_lift,
)
from models.rerank import item_topics
from models.spec import ItemMetadata
from models.vocabulary import Vocabulary
from tests.models.evaluation.toys import recommender

EXPOSURES = st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any)


def counts(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_entropy_by_hand() -> None:
    assert entropy(counts(5, 5, 5, 5)) == 2.0
    assert str(entropy(counts(7, 0, 0, 0))) == "0.0"
    # 1/2 · 1 + 2 · 1/4 · 2
    assert entropy(counts(2, 1, 1, 0)) == 1.5


def test_gini_by_hand() -> None:
    assert gini(counts(3, 3, 3)) == 0.0
    assert gini(counts(0, 0, 0, 8)) == 0.75
    # Mean absolute difference of all 9 ordered pairs of (1, 2, 6) is 20/9, over twice the mean of 3.
    assert gini(counts(6, 1, 2)) == pytest.approx(20 / 9 / 6)
    assert gini(counts(0, 0)) == 0.0


@given(EXPOSURES)
def test_gini_is_half_the_relative_mean_difference(exposure: list[int]) -> None:
    differences = [abs(one - other) for one in exposure for other in exposure]
    expected = sum(differences) / len(exposure) ** 2 / (2 * sum(exposure) / len(exposure))
    assert gini(counts(*exposure)) == pytest.approx(expected, abs=1e-12)


@given(EXPOSURES)
def test_entropy_lies_between_one_item_and_all_alike(exposure: list[int]) -> None:
    assert -1e-9 <= entropy(counts(*exposure)) <= math.log2(len(exposure)) + 1e-9


def test_novelty_by_hand() -> None:
    # (2 + 1) / (4 + 4) of an item, (0 + 1) / 8 of another, shown three times and once.
    assert novelty(counts(3, 0, 1, 0), counts(2, 1, 0, 1)) == pytest.approx((3 * -math.log2(3 / 8) + 3.0) / 4)


def test_the_distance_in_lists_by_hand() -> None:
    vectors = np.array([[0, 0], [2, 0], [0, 3], [-1, 0], [5, 0]], np.float32)
    # 1 and 2 stand at right angles; 1, 3 and 4: distances 2, 0, 2; one item alone is no list.
    lists = np.array([[1, 2, -1], [1, 3, 4], [2, -1, -1]])
    assert list_distance(lists, vectors) == pytest.approx((1.0 + 4 / 3) / 2)
    assert list_distance(lists[2:], vectors) is None


TOPICS = {
    "a": ItemMetadata("a", ("x", "y")),
    "b": ItemMetadata("b", ("y",)),
    "c": ItemMetadata("c", ("z",)),
    "d": ItemMetadata("d"),
}
NUMBERED = item_topics(TOPICS, Vocabulary("abcd"))


def test_the_distance_of_topics_by_hand() -> None:
    # a and b share one of two topics, c none with either; d has no topics and does not count.
    lists = np.array([[1, 2, -1, -1], [1, 2, 3, 4], [3, 4, -1, -1]])
    assert list_topic_distance(lists, NUMBERED) == pytest.approx((1 / 2 + (1 / 2 + 1 + 1) / 3) / 2)
    assert list_topic_distance(lists[2:], NUMBERED) is None


def test_miscalibration_by_hand() -> None:
    # Window a, c: x 1/4, y 1/4, z 1/2. List b: y 1. With 0.99 q + 0.01 p: x 0.0025, y 0.9925, z 0.005.
    windows, lists = np.array([[1, 3, 0], [4, 0, 0]]), np.array([[2, -1], [2, -1]])
    expected = 0.25 * math.log(0.25 / 0.0025) + 0.25 * math.log(0.25 / 0.9925) + 0.5 * math.log(0.5 / 0.005)
    # The second window has no topics and does not count.
    assert miscalibration(lists, windows, NUMBERED) == pytest.approx(expected)
    assert miscalibration(lists[1:], windows[1:], NUMBERED) is None
    same = np.array([[1, 3]])
    assert miscalibration(same, same, NUMBERED) == pytest.approx(0.0)


def test_popularity_lift_by_hand() -> None:
    # Twenty items, two a decile: the first two have 10 of 20 interactions and 30 of 40 recommendations.
    popularity = counts(2, *[0] * 17, 8, 10)
    exposure = counts(10, *[0] * 17, 10, 20)
    deciles = popularity_lift(exposure, popularity)
    assert [decile.decile for decile in deciles] == list(range(1, 11))
    assert (deciles[0].interactions, deciles[0].recommendations) == (0.9, 0.75)
    assert deciles[0].lift == pytest.approx(0.75 / 0.9)
    assert (deciles[1].interactions, deciles[1].recommendations, deciles[1].lift) == (0.1, 0.25, 2.5)
    assert all((decile.interactions, decile.recommendations, decile.lift) == (0, 0, None) for decile in deciles[2:])


def test_a_report_is_made_of_the_lists_alone() -> None:
    model = recommender("abcd", metadata=TOPICS)
    found = measure_diversity(model, np.array([[1, 2], [1, 3]]), np.array([[3, 0], [2, 0]]), {"a": 3, "b": 1})
    assert found.coverage == 0.75
    assert found.entropy_bits == 1.5
    assert found.topic_distance == pytest.approx((1 / 2 + 1) / 2)
    assert found.distance == pytest.approx(list_distance(np.array([[1, 2], [1, 3]]), model.item_vectors))
    assert sum(decile.recommendations for decile in found.deciles) == pytest.approx(1.0)
    without = measure_diversity(recommender("abcd"), np.array([[1, 2]]), np.array([[3]]), {})
    assert (without.topic_distance, without.miscalibration_nats) == (None, None)
