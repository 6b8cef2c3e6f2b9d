"""What the oracle takes for the same list."""

import pytest

from tests.integration.oracle import check_same_list

LIST = [("a", 0.9), ("b", 0.5), ("c", 0.5 - 1e-7), ("d", 0.1)]


@pytest.mark.parametrize(
    "other",
    [
        LIST,
        [("a", 0.9), ("c", 0.5), ("b", 0.5), ("d", 0.1)],  # equal to within rounding
        [("a", 0.9), ("b", 0.5), ("c", 0.5), ("e", 0.1 + 1e-7)],  # another one that ties for the last place
    ],
)
def test_items_whose_scores_tie_may_change_places(other: list[tuple[str, float]]) -> None:
    check_same_list("ana", *([{"item_id": item, "score": score} for item, score in each] for each in (LIST, other)))


@pytest.mark.parametrize(
    "other",
    [
        LIST[:3],
        [("b", 0.9), ("a", 0.5), ("c", 0.5), ("d", 0.1)],
        [("a", 0.9), ("e", 0.5), ("c", 0.5), ("d", 0.1)],  # nobody knows it, and it is not last
        [("a", 0.9), ("b", 0.5), ("c", 0.5), ("d", 0.11)],
    ],
)
def test_any_other_difference_is_found(other: list[tuple[str, float]]) -> None:
    with pytest.raises(AssertionError, match="two lists of ana"):
        check_same_list("ana", *([{"item_id": item, "score": score} for item, score in each] for each in (LIST, other)))
