from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.pooling import write_pooling_bundle
from models.bundle import Bundle
from models.spec import IntArray, Vectors, WindowRule
from models.windows import WindowInputs
from streams.errors import EncoderFailed, UsageError
from streams.interest.encode import Encoder
from streams.interest.explain import explain_list

ITEMS = [f"i{number}" for number in range(12)]
LONGEST = 6


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("explain") / "bundle"
    return write_pooling_bundle(path, ITEMS, dim=2, window=WindowRule(LONGEST, LONGEST))


@pytest.fixture(scope="module")
def bundle(pooling: Bundle) -> Bundle:
    """Item n has the vector (n + 1, 10): round numbers, to work out by hand."""
    vectors = np.array([[0, 0], *([number + 1, 10] for number in range(len(ITEMS)))], np.float32)
    return replace(pooling, item_vectors=vectors)


@dataclass
class Clicks:
    items: Sequence[str]
    types: Sequence[str]
    times: Sequence[int]


def clicks(*items: str, times: Sequence[int] | None = None, types: Sequence[str] | None = None) -> Clicks:
    count = len(items)
    return Clicks(items, types or ["click"] * count, times or [1000 * place for place in range(count)])


class Sees:
    """Encodes by a function of a window's rows, types and ages, each without padding; keeps what it was asked."""

    def __init__(self, vector_of: Callable[[IntArray, IntArray, Vectors], Sequence[float] | Vectors]) -> None:
        self.vector_of = vector_of
        self.asked: list[WindowInputs] = []

    def __call__(self, inputs: WindowInputs) -> Vectors:
        self.asked.append(inputs)
        vectors = []
        for place, length in enumerate(inputs.lengths.tolist()):
            parts = (inputs.items[place, :length], inputs.types[place, :length], inputs.ages[place, :length])
            vectors.append(self.vector_of(*parts))
        return np.array(vectors, np.float32)


def sum_of_rows(rows: IntArray, types: IntArray, ages: Vectors) -> list[float]:
    return [float(rows.sum()), 0.0]


def sum_of_types(rows: IntArray, types: IntArray, ages: Vectors) -> list[float]:
    return [float(types.sum()), 0.0]


def sum_of_ages(rows: IntArray, types: IntArray, ages: Vectors) -> list[float]:
    return [float(ages.sum()), 0.0]


def newest_row(rows: IntArray, types: IntArray, ages: Vectors) -> list[float]:
    return [float(rows[-1]) if len(rows) else 0.0, 0.0]


def test_of_a_mean_each_event_contributes_what_the_mean_of_the_others_lacks(pooling: Bundle) -> None:
    vectors = pooling.item_vectors.astype(np.float64)
    a, b, c, target, other = (vectors[1 + number] for number in (0, 3, 7, 5, 9))
    found = explain_list(pooling, Encoder(pooling, "cpu").encode, clicks("i0", "i3", "i7"), ["i5", "i9"])
    mean = (a + b + c) / 3
    assert found.scores == pytest.approx([mean @ target, mean @ other], abs=1e-5)
    for place, item in enumerate((target, other)):
        expected = [(mean - (b + c) / 2) @ item, (mean - (a + c) / 2) @ item, (mean - (a + b) / 2) @ item]
        assert found.contributions[place] == pytest.approx(expected, abs=1e-5)


def test_of_a_sum_each_event_contributes_its_own_part_of_the_score(bundle: Bundle) -> None:
    # Rows are numbers plus one: the vector is (2 + 5, 0), the score of i2, whose vector is (3, 10), is 21.
    found = explain_list(bundle, Sees(sum_of_rows), clicks("i1", "i4"), ["i2", "i0"])
    assert found.scores.tolist() == [21, 7]
    assert found.contributions.tolist() == [[6, 15], [2, 5]]
    assert found.read.tolist() == [True, True]


def test_ages_are_counted_from_the_newest_event_that_remains(bundle: Bundle) -> None:
    # Ages 4, 3, 0 s. Without the oldest 3, 0; without the middle one 4, 0; without the newest 1, 0. i0 is (1, 10).
    found = explain_list(bundle, Sees(sum_of_ages), clicks("i1", "i2", "i3", times=[0, 1000, 4000]), ["i0"])
    assert found.scores.tolist() == [7]
    assert found.contributions.tolist() == [[4, 3, 6]]


def test_the_types_of_the_remaining_events_stay_with_them(bundle: Bundle) -> None:
    # click is type 1, view 2, any other 3.
    window = clicks("i1", "i2", "i3", types=["view", "click", "wish"])
    found = explain_list(bundle, Sees(sum_of_types), window, ["i0"])
    assert found.scores.tolist() == [6]
    assert found.contributions.tolist() == [[2, 1, 3]]


def test_an_event_may_lower_a_score_and_an_event_that_is_not_looked_at_does_nothing(bundle: Bundle) -> None:
    # Only the newest event counts: it is row 2, and without it the one before, row 9.
    found = explain_list(bundle, Sees(newest_row), clicks("i5", "i8", "i1"), ["i0"])
    assert found.scores.tolist() == [2]
    assert found.contributions.tolist() == [[0, 0, -7]]


def test_the_whole_window_and_each_shortened_one_are_encoded_in_one_batch(bundle: Bundle) -> None:
    encode = Sees(sum_of_rows)
    explain_list(bundle, encode, clicks("i0", "i1", "i2"), ["i5"])
    (inputs,) = encode.asked
    assert inputs.items.tolist() == [[1, 2, 3], [2, 3, 0], [1, 3, 0], [1, 2, 0]]
    assert inputs.lengths.tolist() == [3, 2, 2, 2]


def test_events_of_unknown_items_contribute_nothing_and_are_marked(bundle: Bundle) -> None:
    found = explain_list(bundle, Sees(sum_of_rows), clicks("new", "i1", "newer", "i4", "newest"), ["i0"])
    assert found.contributions.tolist() == [[0, 2, 0, 5, 0]]
    assert found.read.tolist() == [False, True, False, True, False]


def test_events_older_than_the_model_looks_back_contribute_nothing_and_do_not_come_back(bundle: Bundle) -> None:
    # Eight events for a window of six. Without one of the six, five are left: i1 must not take its place.
    found = explain_list(bundle, Sees(sum_of_rows), clicks(*(f"i{number}" for number in range(8))), ["i0"])
    assert found.scores.tolist() == [3 + 4 + 5 + 6 + 7 + 8]
    assert found.contributions.tolist() == [[0, 0, 3, 4, 5, 6, 7, 8]]
    assert found.read.tolist() == [False, False, True, True, True, True, True, True]


def test_the_only_event_is_compared_with_the_empty_window(pooling: Bundle) -> None:
    # The mean of nothing is the zero vector, so the whole score is its contribution.
    found = explain_list(pooling, Encoder(pooling, "cpu").encode, clicks("i4"), ["i2"])
    score = float(pooling.item_vectors[5].astype(np.float64) @ pooling.item_vectors[3])
    assert found.scores == pytest.approx([score], abs=1e-6)
    assert found.contributions == pytest.approx(np.array([[score]]), abs=1e-6)


@pytest.mark.parametrize("items", [(), ("new", "newer")])
def test_without_a_known_item_there_is_nothing_that_contributes(bundle: Bundle, items: tuple[str, ...]) -> None:
    found = explain_list(bundle, Sees(sum_of_rows), clicks(*items), ["i0", "i1"])
    assert found.contributions.tolist() == [[0.0] * len(items)] * 2
    assert not found.read.any()


def test_no_item_needs_no_explanation(bundle: Bundle) -> None:
    found = explain_list(bundle, Sees(sum_of_rows), clicks("i0", "i1"), [])
    assert (found.scores.shape, found.contributions.shape) == ((0,), (0, 2))


def test_a_models_own_scorer_takes_the_place_of_the_dot_product(bundle: Bundle) -> None:
    def product(vectors: Vectors, rows: IntArray) -> Vectors:
        assert rows.shape == (len(vectors), 2)
        scores: Vectors = (vectors[:, :1] + 1) * rows.astype(np.float32)
        return scores

    # Vectors (2 + 5, 0), (5, 0), (2, 0); i2 is row 3 and i0 row 1.
    found = explain_list(bundle, Sees(sum_of_rows), clicks("i1", "i4"), ["i2", "i0"], product)
    assert found.scores.tolist() == [24, 8]
    assert found.contributions.tolist() == [[24 - 18, 24 - 9], [8 - 6, 8 - 3]]


def test_an_item_that_the_model_does_not_know_is_refused_by_name(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"item 'new' is not among the 12 items of the model pooling"):
        explain_list(bundle, Sees(sum_of_rows), clicks("i0"), ["i1", "new"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_an_error(bundle: Bundle, bad: float) -> None:
    def fails_without_the_first(rows: IntArray, types: IntArray, ages: Vectors) -> list[float]:
        return [1.0 if 1 in rows else bad, 0.0]

    with pytest.raises(EncoderFailed, match="NaN or infinity"):
        explain_list(bundle, Sees(fails_without_the_first), clicks("i0", "i1"), ["i2"])


@given(window=st.lists(st.sampled_from(["new", *ITEMS]), max_size=9), target=st.sampled_from(ITEMS))
def test_of_a_sum_the_contributions_add_up_to_the_score_and_an_item_has_the_same_wherever_it_is(
    bundle: Bundle, window: list[str], target: str
) -> None:
    found = explain_list(bundle, Sees(sum_of_rows), clicks(*window), [target])
    assert found.contributions.sum() == found.scores[0]  # whole numbers: exact
    for place in np.flatnonzero(found.read):
        assert found.contributions[0, place] == bundle.vocabulary.rows[window[place]] * (ITEMS.index(target) + 1)


@given(
    window=st.lists(st.sampled_from(ITEMS), min_size=2, max_size=LONGEST),
    target=st.sampled_from(ITEMS),
)
def test_of_a_mean_what_some_events_raise_the_others_lower(pooling: Bundle, window: list[str], target: str) -> None:
    def mean(rows: IntArray, types: IntArray, ages: Vectors) -> Vectors:
        vector: Vectors = pooling.item_vectors[rows].mean(axis=0)
        return vector

    found = explain_list(pooling, Sees(mean), clicks(*window), [target])
    assert found.contributions.sum() == pytest.approx(0, abs=1e-4)
