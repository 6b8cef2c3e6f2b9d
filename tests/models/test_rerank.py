from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from models import rerank
from models.ranking import Ranking, rank_items, unit_vectors
from models.rerank import (
    ItemTopics,
    item_topics,
    rerank_calibrated,
    rerank_dpp,
    rerank_mmr,
    topic_distribution,
)
from models.spec import IntArray, ItemMetadata, Vectors
from models.vocabulary import Vocabulary

Doubles = NDArray[np.float64]
Rerank = Callable[[Ranking, int, float], Ranking]

# Items 1 and 2 are the same, item 3 is at right angles to both, item 4 is opposite.
UNIT = np.array([[0, 0], [1, 0], [1, 0], [0, 1], [-1, 0]], np.float32)


def pool_of(rows: list[list[int]], scores: list[list[float]]) -> Ranking:
    return Ranking(np.array(rows, np.int64), np.array(scores, np.float32))


THREE = pool_of([[1, 2, 3]], [[10.0, 9.0, 0.0]])  # relevance 1, 0.9 and 0


def test_mmr_takes_what_is_unlike_the_list_once_diversity_outweighs_relevance() -> None:
    # After item 1: item 2 is worth 0.9 (1 - d) - d, item 3 is worth 0: the balance is at d = 9/19.
    assert rerank_mmr(THREE, UNIT, 2, 0.47).rows.tolist() == [[1, 2]]
    assert rerank_mmr(THREE, UNIT, 2, 0.48).rows.tolist() == [[1, 3]]
    # The opposite of item 1 is worth more than what has nothing to do with it.
    assert rerank_mmr(pool_of([[1, 2, 3, 4]], [[3, 2, 1, 0]]), UNIT, 3, 1.0).rows.tolist() == [[1, 4, 3]]


def test_dpp_takes_what_spans_more_once_diversity_outweighs_relevance() -> None:
    # After item 1 with similarities (1 + cosine) / 2: item 3 adds 1 - 0.25, item 2 adds nothing, counted as 1e-6: the
    # balance is at 0.9 (1 - d) - 13.8 d = -0.288 d, d = 0.0624.
    assert rerank_dpp(THREE, UNIT, 2, 0.06).rows.tolist() == [[1, 2]]
    assert rerank_dpp(THREE, UNIT, 2, 0.065).rows.tolist() == [[1, 3]]


def test_a_list_in_proportion_to_the_window_is_the_calibrated_one() -> None:
    # Items 1 to 8 are about topic 1, items 9 and 10 about topic 2, as are a quarter of the window.
    topics = ItemTopics(("action", "drama"), np.array([[0], *[[1]] * 8, [2], [2]]))
    pool = pool_of([list(range(1, 11))], [list(range(10, 0, -1))])
    windows = np.array([[8, 7, 6, 10]])
    assert rerank_calibrated(pool, windows, topics, 8, 0.0).rows.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    calibrated = rerank_calibrated(pool, windows, topics, 8, 0.99).rows[0].tolist()
    assert sorted(calibrated) == [1, 2, 3, 4, 5, 6, 9, 10]


def relevance_of(pool: Ranking, user: int) -> dict[int, float]:
    found = {
        row: score for row, score in zip(pool.rows[user].tolist(), pool.scores[user].tolist(), strict=True) if row > 0
    }
    low, high = min(found.values()), max(found.values())
    return {row: (score - low) / (high - low) for row, score in found.items()}


def redundancy(unit_items: Vectors, listed: list[int], row: int) -> float:
    """The definition of Carbonell and Goldstein."""
    unit = unit_items.astype(np.float64)
    return -max((float(unit[row] @ unit[other]) for other in listed), default=0.0)


def log_volume(unit_items: Vectors, rows: list[int]) -> float:
    """The logarithm of the determinant, by LU decomposition."""
    unit = unit_items.astype(np.float64)[rows]
    return float(np.linalg.slogdet((1 + unit @ unit.T) / 2)[1])


def shares(topics: ItemTopics, rows: list[int]) -> Doubles:
    """How topics are distributed over items, every item of the same weight."""
    found = np.zeros(len(topics.names))
    for row in rows:
        of_item = [topic - 1 for topic in topics.rows[row].tolist() if topic]
        for topic in of_item:
            found[topic] += 1 / len(of_item) / len(rows)
    return found


def divergence(wanted: Doubles, listed: Doubles, smoothing: float) -> float:
    """Steck's calibration: KL(p || (1 - a) q + a p)."""
    mixed = (1 - smoothing) * listed + smoothing * wanted
    return sum(float(p * np.log(p / q)) for p, q in zip(wanted, mixed, strict=True) if p > 0)


def check_greedy(reranked: Ranking, pool: Ranking, worth: Callable[[int, list[int], int], float]) -> None:
    """Every item is the best that could follow those before it, by an objective computed anew for every candidate."""
    for user, rows in enumerate(reranked.rows.tolist()):
        left = [row for row in pool.rows[user].tolist() if row > 0]
        listed: list[int] = []
        for row in rows:
            if not left:
                assert row == -1
                continue
            worths = {candidate: worth(user, listed, candidate) for candidate in left}
            assert worths[row] >= max(worths.values()) - 1e-5
            listed.append(row)
            left.remove(row)


def random_pool(rng: np.random.Generator, users: int, size: int, dim: int) -> tuple[Ranking, Vectors]:
    items = rng.standard_normal((40, dim)).astype(np.float32)
    items[0] = 0
    pool = rank_items(rng.standard_normal((users, dim)).astype(np.float32), items, np.zeros((users, 1), np.int64), size)
    # The last user has few candidates.
    pool.rows[-1, 3:] = -1
    pool.scores[-1, 3:] = -np.inf
    return pool, unit_vectors(items)


@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_mmr_follows_its_definition(seed: int, diversity: float) -> None:
    pool, unit = random_pool(np.random.default_rng(seed), 12, 12, 5)
    relevance = [relevance_of(pool, user) for user in range(12)]
    check_greedy(
        rerank_mmr(pool, unit, 6, diversity),
        pool,
        lambda user, listed, row: (1 - diversity) * relevance[user][row] + diversity * redundancy(unit, listed, row),
    )


@pytest.mark.parametrize("diversity", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_dpp_maximises_the_determinant_greedily(seed: int, diversity: float) -> None:
    pool, unit = random_pool(np.random.default_rng(seed), 12, 12, 8)
    relevance = [relevance_of(pool, user) for user in range(12)]
    check_greedy(
        rerank_dpp(pool, unit, 6, diversity),
        pool,
        lambda user, listed, row: (
            (1 - diversity) * sum(relevance[user][other] for other in [*listed, row])
            + diversity * log_volume(unit, [*listed, row])
        ),
    )


@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("smoothing", [0.01, 0.5])
def test_calibration_follows_its_definition(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, diversity: float
) -> None:
    # Steck's 0.01 hardly shows whether it is applied right; a half does.
    assert rerank.SMOOTHING == 0.01
    monkeypatch.setattr(rerank, "SMOOTHING", smoothing)
    rng = np.random.default_rng(0)
    pool, _ = random_pool(rng, 12, 12, 5)
    rows = np.zeros((40, 3), np.int64)
    for row in range(1, 40):  # some items have no topic
        count = int(rng.integers(0, 4))
        rows[row, :count] = rng.choice(np.arange(1, 7), count, replace=False)
    topics = ItemTopics(tuple("abcdef"), rows)
    windows = rng.integers(0, 40, (12, 9))
    relevance = [relevance_of(pool, user) for user in range(12)]
    wanted = [shares(topics, [row for row in window if rows[row].any()]) for window in windows.tolist()]
    check_greedy(
        rerank_calibrated(pool, windows, topics, 6, diversity),
        pool,
        lambda user, listed, row: (
            (1 - diversity) * sum(relevance[user][other] for other in [*listed, row])
            - diversity * divergence(wanted[user], shares(topics, [*listed, row]), smoothing)
        ),
    )


def methods(unit: Vectors, windows: IntArray, topics: ItemTopics) -> dict[str, Rerank]:
    return {
        "mmr": lambda pool, k, diversity: rerank_mmr(pool, unit, k, diversity),
        "dpp": lambda pool, k, diversity: rerank_dpp(pool, unit, k, diversity),
        "calibrated": lambda pool, k, diversity: rerank_calibrated(pool, windows, topics, k, diversity),
    }


@given(
    data=st.data(),
    name=st.sampled_from(["mmr", "dpp", "calibrated"]),
    users=st.integers(0, 4),
    items=st.integers(1, 9),
    size=st.integers(1, 12),
    k=st.integers(1, 12),
    diversity=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_a_list_holds_candidates_of_the_pool_each_once_and_as_many_as_there_are(
    data: st.DataObject, name: str, users: int, items: int, size: int, k: int, diversity: float
) -> None:
    # Whole numbers: vectors and scores are often equal, and vectors zero.
    small = st.integers(-1, 1).map(float)
    user_vectors = data.draw(hnp.arrays(np.float32, (users, 2), elements=small))
    vectors = data.draw(hnp.arrays(np.float32, (items + 1, 2), elements=small))
    vectors[0] = 0
    seen = data.draw(hnp.arrays(np.int64, (users, 3), elements=st.integers(0, items)))
    topic_rows = data.draw(hnp.arrays(np.int64, (items + 1, 1), elements=st.integers(0, 2)))
    topic_rows[0] = 0
    pool = rank_items(user_vectors, vectors, seen, size)
    topics = ItemTopics(("a", "b"), topic_rows)
    before = pool.rows.copy(), pool.scores.copy()
    reranked = methods(unit_vectors(vectors), seen, topics)[name](pool, k, diversity)

    assert reranked.rows.shape == reranked.scores.shape == (users, k)
    assert (reranked.rows.dtype.name, reranked.scores.dtype.name) == ("int64", "float32")
    np.testing.assert_array_equal(pool.rows, before[0])
    np.testing.assert_array_equal(pool.scores, before[1])
    for user in range(users):
        scores = dict(zip(pool.rows[user].tolist(), pool.scores[user].tolist(), strict=True))
        candidates = [row for row in pool.rows[user].tolist() if row > 0]
        found = reranked.rows[user].tolist()
        count = min(k, len(candidates))
        assert len(set(found[:count])) == count
        assert set(found[:count]) <= set(candidates)
        assert not set(found[:count]) & set(seen[user].tolist())
        assert found[count:] == [-1] * (k - count)
        assert reranked.scores[user].tolist() == [scores[row] for row in found[:count]] + [-np.inf] * (k - count)
        if diversity == 0:
            assert found[:count] == candidates[:count]


@pytest.mark.parametrize("name", ["mmr", "dpp", "calibrated"])
def test_many_users_are_reranked_as_each_alone(name: str) -> None:
    # More than one block of users, and a last block that is not full.
    rng = np.random.default_rng(4)
    pool, unit = random_pool(rng, 150, 20, 6)
    windows = rng.integers(0, 40, (150, 5))
    topics = ItemTopics(("a", "b", "c"), np.concatenate([[[0]], rng.integers(0, 4, (39, 1))]))
    together = methods(unit, windows, topics)[name](pool, 8, 0.4)
    for user in range(0, 150, 7):
        one = slice(user, user + 1)
        alone = methods(unit, windows[one], topics)[name](Ranking(pool.rows[one], pool.scores[one]), 8, 0.4)
        assert alone.rows.tolist() == together.rows[one].tolist()


def test_a_dpp_list_longer_than_there_are_dimensions_goes_on_by_relevance() -> None:
    # With 2 dimensions the similarities have rank 3 at most: after items 1, 4 and 2 nothing adds volume.
    angles = np.radians([0, 90, 100, 200, 110, 120])
    unit = np.concatenate([[[0, 0]], np.stack([np.cos(angles), np.sin(angles)], axis=1)]).astype(np.float32)
    pool = pool_of([[1, 2, 3, 4, 5, 6]], [[6, 5, 4, 3, 2, 1]])
    listed = rerank_dpp(pool, unit, 6, 0.5).rows[0].tolist()
    assert set(listed[:3]) == {1, 4, 2}
    assert listed[3:] == [3, 5, 6]


def test_without_topics_in_the_window_a_calibrated_list_is_the_best_items() -> None:
    topics = ItemTopics(("a",), np.array([[0], [1], [0], [1]]))
    pool = pool_of([[2, 1, 3]], [[3, 2, 1]])
    assert rerank_calibrated(pool, np.array([[2, 0]]), topics, 2, 1.0).rows.tolist() == [[2, 1]]


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan")])
def test_a_diversity_outside_its_range_is_refused(diversity: float) -> None:
    with pytest.raises(ValueError, match="diversity is 0 to 1"):
        rerank_mmr(THREE, UNIT, 2, diversity)


def test_topics_are_numbered_by_name_and_an_item_has_each_once() -> None:
    metadata = {
        "b": ItemMetadata("B", ("sport", "art", "sport")),
        "a": ItemMetadata("A", ("sport",)),
        "not in the vocabulary": ItemMetadata("N", ("war",)),
    }
    topics = item_topics(metadata, Vocabulary(["a", "b", "without metadata"]))
    assert topics.names == ("art", "sport")
    assert topics.rows.tolist() == [[0, 0], [2, 0], [2, 1], [0, 0]]
    assert item_topics({}, Vocabulary(["a"])).names == ()


def test_topics_are_distributed_by_event_and_evenly_within_an_item() -> None:
    topics = ItemTopics(("art", "sport"), np.array([[0, 0], [2, 0], [2, 1], [0, 0]]))
    # Item 1 twice, item 2 once, item 3 has none: sport (1 + 1 + 1/2) / 3, art (1/2) / 3.
    windows = np.array([[1, 2, 1, 3, 0], [3, 0, 0, 0, 0], [2, -1, -1, -1, -1]])
    assert topic_distribution(windows, topics) == pytest.approx(np.array([[0, 1 / 6, 5 / 6], [0, 0, 0], [0, 0.5, 0.5]]))
