import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.ranking import closest_in_window, rank_candidates, rank_items, unit_vectors
from models.spec import IntArray, Vectors

NO_SEEN = np.zeros((1, 1), np.int64)


def vectors(rows: list[list[float]]) -> Vectors:
    return np.array(rows, np.float32)


def test_the_best_unseen_items_come_first() -> None:
    # Scores of the user (1, 2): item 1 has 1, item 2 has 2, item 3 has 3.
    items = vectors([[0, 0], [1, 0], [0, 1], [1, 1]])
    ranking = rank_items(vectors([[1, 2]]), items, NO_SEEN, k=2)
    assert ranking.rows.tolist() == [[3, 2]]
    assert ranking.scores.tolist() == [[3.0, 2.0]]
    ranking = rank_items(vectors([[1, 2]]), items, np.array([[3, 0]]), k=2)
    assert ranking.rows.tolist() == [[2, 1]]


def test_equal_scores_are_in_the_order_of_their_rows() -> None:
    # Also where the tie goes over the end of the list: 50 items of equal score, and a list of 3.
    items = np.ones((51, 2), np.float32)
    assert rank_items(vectors([[1, 0]]), items, NO_SEEN, k=3).rows.tolist() == [[1, 2, 3]]
    assert rank_items(vectors([[1, 0]]), items, np.array([[2]]), k=3).rows.tolist() == [[1, 3, 4]]


def test_items_without_a_vector_of_their_own_tie_and_are_taken_in_order() -> None:
    items = np.zeros((40, 2), np.float32)
    items[20] = (1, 0)
    items[30] = (-1, 0)
    assert rank_items(vectors([[1, 0]]), items, NO_SEEN, k=4).rows.tolist() == [[20, 1, 2, 3]]


def test_a_list_longer_than_the_catalogue_is_filled_with_minus_one() -> None:
    items = vectors([[0], [1], [2]])
    ranking = rank_items(vectors([[1]]), items, NO_SEEN, k=5)
    assert ranking.rows.tolist() == [[2, 1, -1, -1, -1]]
    assert ranking.scores.tolist() == [[2.0, 1.0, -np.inf, -np.inf, -np.inf]]


def test_someone_who_has_seen_everything_gets_nothing() -> None:
    ranking = rank_items(vectors([[1]]), vectors([[0], [1], [2]]), np.array([[1, 2]]), k=2)
    assert ranking.rows.tolist() == [[-1, -1]]


def test_padding_is_never_recommended_although_it_scores_best() -> None:
    assert rank_items(vectors([[-1]]), vectors([[0], [1], [2]]), NO_SEEN, k=3).rows.tolist() == [[1, 2, -1]]


def test_no_users_give_an_empty_ranking() -> None:
    ranking = rank_items(np.zeros((0, 2), np.float32), np.zeros((4, 2), np.float32), np.zeros((0, 1), np.int64), k=3)
    assert ranking.rows.shape == (0, 3)


def test_vectors_of_different_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="user vectors have 2 dimensions, item vectors 3"):
        rank_items(np.zeros((1, 2), np.float32), np.zeros((4, 3), np.float32), NO_SEEN, k=3)


def best_by_sorting_everything(
    users: Vectors, items: Vectors, seen: IntArray, k: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Every score by a loop over the dimensions, and one stable sort over all items."""
    rows, scores = [], []
    for user, seen_by_user in zip(users.tolist(), seen.tolist(), strict=True):
        scored = [
            (-sum(a * b for a, b in zip(user, item, strict=True)), row)
            for row, item in enumerate(items.tolist())
            if row != 0 and row not in seen_by_user
        ]
        best = sorted(scored)[:k]
        rows.append([row for _, row in best] + [-1] * (k - len(best)))
        scores.append([-score for score, _ in best] + [-np.inf] * (k - len(best)))
    return rows, scores


# Whole numbers are exact in float32, and small ones tie often.
SMALL = st.integers(-2, 2).map(float)


@given(st.data(), st.integers(0, 5), st.integers(1, 12), st.integers(1, 3), st.integers(1, 15))
def test_a_ranking_is_what_sorting_every_score_gives(
    data: st.DataObject, users: int, items: int, dim: int, k: int
) -> None:
    user_vectors = data.draw(hnp.arrays(np.float32, (users, dim), elements=SMALL))
    item_vectors = data.draw(hnp.arrays(np.float32, (items + 1, dim), elements=SMALL))
    item_vectors[0] = 0
    seen = data.draw(hnp.arrays(np.int64, (users, 4), elements=st.integers(0, items)))
    ranking = rank_items(user_vectors, item_vectors, seen, k)
    rows, scores = best_by_sorting_everything(user_vectors, item_vectors, seen, k)
    assert ranking.rows.tolist() == rows
    assert ranking.scores.tolist() == scores


def test_many_users_are_ranked_as_each_alone() -> None:
    # More than one block of users, and a last block that is not full.
    rng = np.random.default_rng(5)
    users = rng.integers(-3, 4, (150, 4)).astype(np.float32)
    items = rng.integers(-3, 4, (200, 4)).astype(np.float32)
    items[0] = 0
    seen = rng.integers(0, 200, (150, 6))
    together = rank_items(users, items, seen, k=10)
    rows, scores = best_by_sorting_everything(users, items, seen, 10)
    assert together.rows.tolist() == rows
    assert together.scores.tolist() == scores


def by_distance_to_three(users: Vectors, candidates: IntArray) -> Vectors:
    """A scorer that likes item 3 best, then 2 and 4, and padding better than any item."""
    scores: Vectors = np.where(candidates == 0, 100.0, -np.abs(candidates - 3.0)).astype(np.float32)
    return scores


def test_candidates_are_retrieved_by_dot_product_and_ordered_by_the_scorer() -> None:
    # Dot products fall from item 5 to item 1: three candidates are items 5, 4 and 3.
    items = vectors([[0], [1], [2], [3], [4], [5]])
    ranking = rank_candidates(vectors([[1]]), items, NO_SEEN, by_distance_to_three, candidates=3, k=2)
    assert ranking.rows.tolist() == [[3, 4]]
    assert ranking.scores.tolist() == [[0.0, -1.0]]
    # What was seen is no candidate; equal scores are in the order of their rows.
    ranking = rank_candidates(vectors([[1]]), items, np.array([[3]]), by_distance_to_three, candidates=3, k=3)
    assert ranking.rows.tolist() == [[2, 4, 5]]


def test_padding_is_never_kept_however_well_it_scores() -> None:
    items = vectors([[0], [1], [2], [3]])
    ranking = rank_candidates(vectors([[1]]), items, np.array([[2]]), by_distance_to_three, candidates=5, k=4)
    assert ranking.rows.tolist() == [[3, 1, -1, -1]]
    assert ranking.scores.tolist() == [[0.0, -2.0, -np.inf, -np.inf]]


def test_the_scorer_is_given_the_users_vectors_and_rows_of_items_or_padding() -> None:
    given: list[tuple[Vectors, IntArray]] = []

    def score(users: Vectors, candidates: IntArray) -> Vectors:
        given.append((users, candidates))
        return np.zeros(candidates.shape, np.float32)

    users = vectors([[1], [-1]])
    rank_candidates(users, vectors([[0], [1], [2]]), np.array([[0], [1]]), score, candidates=3, k=1)
    ((found, candidates),) = given
    assert found is users
    assert candidates.tolist() == [[2, 1, 0], [2, 0, 0]]


def test_more_items_than_candidates_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="3 items cannot be kept of 2 candidates"):
        rank_candidates(vectors([[1]]), vectors([[0], [1]]), NO_SEEN, by_distance_to_three, candidates=2, k=3)


def test_unit_vectors_have_length_1_and_zeros_stay_zeros() -> None:
    assert unit_vectors(vectors([[0, 0], [3, 4], [0, -2]])) == pytest.approx(vectors([[0, 0], [0.6, 0.8], [0, -1]]))


UNIT = vectors([[0, 0], [1, 0], [0.8, 0.6], [0, 1], [-1, 0]])


def test_the_reasons_are_the_items_of_the_window_that_point_the_same_way() -> None:
    # Cosines to item 1 = (1, 0): item 2 has 0.8, item 3 has 0, item 4 has -1.
    window = np.array([[4, 3, 2]])
    assert closest_in_window(np.array([[1]]), window, UNIT, count=2).tolist() == [[[2, 3]]]
    assert closest_in_window(np.array([[1, 3]]), window, UNIT, count=1).tolist() == [[[2], [3]]]


def test_an_item_that_stands_twice_in_the_window_is_one_reason() -> None:
    window = np.array([[2, 3, 2, 0]])
    assert closest_in_window(np.array([[1]]), window, UNIT, count=3).tolist() == [[[2, 3, 0]]]


def test_padding_is_no_reason_and_what_is_not_recommended_has_none() -> None:
    # Padding would be closer to item 1 than item 4 is.
    assert closest_in_window(np.array([[1, -1]]), np.array([[4, 0]]), UNIT, 2).tolist() == [[[4, 0], [0, 0]]]
    assert closest_in_window(np.array([[1]]), np.array([[0, 0]]), UNIT, 2).tolist() == [[[0, 0]]]


def test_no_reasons_may_be_asked_for() -> None:
    assert closest_in_window(np.array([[1, 2]]), np.array([[3]]), UNIT, count=0).shape == (1, 2, 0)
