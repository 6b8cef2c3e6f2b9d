from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.vocabulary import Vocabulary
from models.windows import window_inputs


@dataclass(frozen=True)
class Events:
    items: list[str]
    types: list[str]
    times: list[int]


VOCABULARY = Vocabulary(["a", "b"])
TYPES = ("click", "view")
NOTHING = Events([], [], [])


def test_the_example_of_the_docstring_holds() -> None:
    windows = [
        Events(["a", "x", "b"], ["click", "click", "wish"], [1000, 2000, 4500]),
        Events(["b"], ["view"], [9000]),
    ]
    inputs = window_inputs(windows, VOCABULARY, TYPES, max_length=50)
    assert inputs.items.tolist() == [[1, 2], [2, 0]]
    assert inputs.types.tolist() == [[1, 3], [2, 0]]
    assert inputs.ages.tolist() == [[3.5, 0.0], [0.0, 0.0]]
    assert inputs.lengths.tolist() == [2, 1]
    assert [array.dtype.name for array in inputs.as_feed().values()] == ["int64", "int64", "float32", "int64"]


def test_only_the_newest_known_events_are_kept() -> None:
    window = Events(["a", "b", "x", "b", "a", "x"], ["view"] * 5 + ["click"], [0, 1000, 2000, 3000, 4000, 9000])
    inputs = window_inputs([NOTHING, window, NOTHING], VOCABULARY, TYPES, max_length=2)
    assert inputs.items.tolist() == [[0, 0], [2, 1], [0, 0]]
    # The newest event that is kept is the "a" at 4000: the unknown one at 9000 might as well not have happened.
    assert inputs.ages.tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    assert inputs.lengths.tolist() == [0, 2, 0]


def test_a_window_without_a_known_item_has_length_0_and_still_a_column() -> None:
    inputs = window_inputs([Events(["x"], ["click"], [1]), NOTHING], VOCABULARY, TYPES, max_length=5)
    assert inputs.items.tolist() == [[0], [0]]
    assert inputs.lengths.tolist() == [0, 0]


def test_no_windows_make_an_empty_batch() -> None:
    inputs = window_inputs([], VOCABULARY, TYPES, max_length=5)
    assert inputs.items.shape == (0, 1)
    assert len(inputs) == 0


def test_ages_are_exact_to_the_millisecond_although_epoch_times_are_large() -> None:
    now = 1_767_225_600_123
    inputs = window_inputs([Events(["a", "b"], ["click"] * 2, [now - 1, now])], VOCABULARY, TYPES, max_length=5)
    assert inputs.ages[0, 0] == np.float32(0.001)


@pytest.mark.parametrize("broken", [Events(["a", "b"], ["click"], [1, 2]), Events(["a", "b"], ["click"] * 2, [1])])
def test_sequences_of_different_lengths_are_refused(broken: Events) -> None:
    with pytest.raises(ValueError, match="as many types and times as items"):
        window_inputs([broken], VOCABULARY, TYPES, max_length=5)


def test_a_window_must_hold_something() -> None:
    with pytest.raises(ValueError, match="max_length must be at least 1, not 0"):
        window_inputs([NOTHING], VOCABULARY, TYPES, max_length=0)


EVENT = st.tuples(st.sampled_from("abxy"), st.sampled_from(["click", "view", "wish"]), st.integers(0, 10**9))


@given(st.lists(st.lists(EVENT, max_size=8), max_size=6), st.integers(1, 6))
def test_every_row_is_what_one_window_alone_gives_event_by_event(
    batch: list[list[tuple[str, str, int]]], max_length: int
) -> None:
    ordered = [sorted(events, key=lambda event: event[2]) for events in batch]
    windows = [Events([e[0] for e in events], [e[1] for e in events], [e[2] for e in events]) for events in ordered]
    inputs = window_inputs(windows, VOCABULARY, TYPES, max_length)
    width = inputs.items.shape[1]
    for row, events in enumerate(ordered):
        known = [event for event in events if event[0] in "ab"][-max_length:]
        padding = width - len(known)
        assert inputs.lengths[row] == len(known)
        assert inputs.items[row].tolist() == [{"a": 1, "b": 2}[e[0]] for e in known] + [0] * padding
        assert inputs.types[row].tolist() == [{"click": 1, "view": 2, "wish": 3}[e[1]] for e in known] + [0] * padding
        ages = [(known[-1][2] - e[2]) / 1000 for e in known] + [0.0] * padding
        assert inputs.ages[row].tolist() == pytest.approx(ages, rel=1e-6)
