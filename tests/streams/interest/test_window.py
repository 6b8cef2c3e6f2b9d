from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.spec import WindowRule
from streams.contracts.frame import Frame, Source
from streams.interest.window import (
    EMPTY_STATE,
    Arrival,
    InvalidState,
    UserState,
    advance_window,
    decode_state,
    encode_state,
)
from tests.streams.interest.window_oracle import WindowOracle

SOURCE = Source("clicks", "id", 0)
NO_FRAME = Frame(1, [], [], [], [], [], [], [], [], [], {})


def arrival(event_id: str, time_ms: int, *, item: str | None = None, named: bool = True, offset: int = 0) -> Arrival:
    """An event whose item is named after it unless given."""
    return Arrival(time_ms, event_id, item or f"item-{event_id}", "click", named, SOURCE, offset, time_ms, NO_FRAME, 0)


def advanced(
    arrivals: Sequence[Arrival], rule: WindowRule, memory: int = 0, state: UserState = EMPTY_STATE
) -> UserState:
    return advance_window(state, arrivals, rule, memory).state


SLIDING = WindowRule(max=3, keep=3)
CUTTING = WindowRule(max=4, keep=2)


def test_events_in_order_slide_through_the_window() -> None:
    state = advanced([arrival("a", 1), arrival("b", 2), arrival("c", 3)], SLIDING)
    assert (state.ids, state.times, state.truncated) == (["a", "b", "c"], [1, 2, 3], False)
    state = advanced([arrival("d", 4)], SLIDING, state=state)
    assert state == UserState(1, ["item-b", "item-c", "item-d"], ["click"] * 3, [2, 3, 4], ["b", "c", "d"], True, b"")


def test_a_window_that_would_exceed_max_is_cut_to_its_newest_keep() -> None:
    state = advanced([arrival(name, time) for time, name in enumerate("abcd")], CUTTING)
    assert (state.ids, state.truncated) == (["a", "b", "c", "d"], False)
    state = advanced([arrival("e", 4)], CUTTING, state=state)
    assert (state.ids, state.truncated) == (["d", "e"], True)
    # Between two cuts positions never shift: that is what lets a model keep what it computed.
    state = advanced([arrival("f", 5), arrival("g", 6)], CUTTING, state=state)
    assert state.ids == ["d", "e", "f", "g"]


def test_an_event_that_comes_late_goes_where_it_belongs() -> None:
    state = advanced([arrival("a", 10), arrival("c", 30), arrival("b", 20)], SLIDING)
    assert (state.ids, state.times, state.items) == (["a", "b", "c"], [10, 20, 30], ["item-a", "item-b", "item-c"])


def test_events_of_one_moment_are_ordered_by_their_ids() -> None:
    arrivals = [arrival("b", 5), arrival("a", 5), arrival("c", 4), arrival("A", 5)]
    assert advanced(arrivals, WindowRule(9, 9)).ids == ["c", "A", "a", "b"]


def test_an_event_older_than_a_full_window_is_late() -> None:
    state = advanced([arrival(name, time) for time, name in enumerate("bcd", start=10)], SLIDING)
    advance = advance_window(state, [arrival("a", 9)], SLIDING, 0)
    assert (advance.late, advance.applied, advance.state) == (1, [], state)


def test_an_event_older_than_what_was_cut_is_late_although_there_is_room() -> None:
    # d and e are left of a to e: a window that took x in before d would show it where a, b and c had been.
    state = advanced([arrival(name, time) for time, name in enumerate("abcde")], CUTTING)
    assert len(state) == 2
    advance = advance_window(state, [arrival("x", 2)], CUTTING, 0)
    assert (advance.late, advance.state.ids) == (1, ["d", "e"])


def test_an_event_older_than_all_of_a_window_with_room_is_taken() -> None:
    state = advanced([arrival("b", 10)], SLIDING)
    assert advanced([arrival("a", 1)], SLIDING, state=state).ids == ["a", "b"]


def test_a_tie_in_time_with_the_first_of_a_full_window_is_decided_by_the_id() -> None:
    state = advanced([arrival(name, 10) for name in "bcd"], SLIDING)
    assert advance_window(state, [arrival("a", 10)], SLIDING, 0).late == 1
    assert advanced([arrival("bb", 10)], SLIDING, state=state).ids == ["bb", "c", "d"]


def test_a_repeat_in_the_window_is_dropped_whatever_the_memory() -> None:
    advance = advance_window(EMPTY_STATE, [arrival("a", 1), arrival("b", 2), arrival("a", 3)], SLIDING, 0)
    assert (advance.repeats, advance.state.ids) == (1, ["a", "b"])
    assert [event.event_id for event in advance.applied] == ["a", "b"]


def test_a_repeat_that_has_left_the_window_is_dropped_while_it_is_remembered() -> None:
    rule = WindowRule(1, 1)
    state = advanced([arrival("a", 1), arrival("b", 2), arrival("c", 3)], rule, memory=2)
    assert state.ids == ["c"]
    # b is among the last two ids, a is not; both come again as if they had just happened.
    assert advance_window(state, [arrival("b", 9)], rule, 2).repeats == 1
    assert advanced([arrival("a", 9)], rule, memory=2, state=state).ids == ["a"]


def test_the_memory_holds_the_first_8_bytes_of_blake2b_oldest_first() -> None:
    state = advanced([arrival("b", 2), arrival("a", 1), arrival("c", 3)], WindowRule(9, 9), memory=2)
    digests = [blake2b(name, digest_size=8).digest() for name in (b"a", b"c")]
    assert state.recent == b"".join(digests)


def test_an_id_that_was_derived_is_neither_remembered_nor_looked_up() -> None:
    state = advanced([arrival("clicks-0-1", 1, named=False)], SLIDING, memory=5)
    assert state.recent == b""
    # Ingest's re-sends are told by their offsets, before they come here.
    assert advance_window(state, [arrival("clicks-0-1", 1, named=False)], SLIDING, 5).repeats == 0


def test_bytes_that_straddle_two_remembered_ids_are_no_memory() -> None:
    # The digest of "x", laid across the border of two remembered ones.
    digest = blake2b(b"x", digest_size=8).digest()
    remembered = b"\0\0\0\0" + digest + b"\0\0\0\0"
    state = UserState(1, ["i"], ["click"], [1], ["a"], False, remembered)
    assert advance_window(state, [arrival("x", 2)], SLIDING, 5).repeats == 0
    aligned = UserState(1, ["i"], ["click"], [1], ["a"], False, remembered + digest)
    assert advance_window(aligned, [arrival("x", 2)], SLIDING, 5).repeats == 1


def test_an_event_that_was_dropped_as_late_is_not_remembered() -> None:
    state = advanced([arrival("b", 10)], WindowRule(1, 1), memory=5)
    advance = advance_window(state, [arrival("a", 1), arrival("a", 1)], WindowRule(1, 1), 5)
    assert (advance.late, advance.repeats, advance.state) == (2, 0, state)


class Case(NamedTuple):
    arrivals: list[Arrival]
    rule: WindowRule
    memory: int


@st.composite
def cases(draw: st.DrawFn, *, repeats: bool = True) -> Case:
    most = draw(st.integers(1, 8))
    rule = WindowRule(most, draw(st.integers(1, most)))
    count = draw(st.integers(0, 30))
    names = draw(
        st.lists(st.integers(0, 12), min_size=count, max_size=count) if repeats else st.permutations(range(count))
    )
    arrivals = []
    for offset, name in enumerate(names):
        time_ms = draw(st.integers(0, 15))
        # Two events never share a derived id.
        named = draw(st.booleans()) if repeats else True
        event_id = f"e{name}" if named else f"clicks-0-{offset}"
        arrivals.append(arrival(event_id, time_ms, item=f"i{offset}", named=named, offset=offset))
    return Case(arrivals, rule, draw(st.integers(0, 6)))


@given(cases())
def test_windows_are_those_of_an_independent_oracle(case: Case) -> None:
    oracle = WindowOracle(case.rule.keep, case.rule.max, case.memory)
    for event in case.arrivals:
        oracle.take(event.time_ms, event.event_id, event.item_id, event.type, named=event.named)
    advance = advance_window(EMPTY_STATE, case.arrivals, case.rule, case.memory)
    state = advance.state
    assert list(zip(state.times, state.ids, state.items, state.types, strict=True)) == oracle.window
    assert state.truncated == oracle.was_cut
    assert (len(advance.applied), advance.repeats, advance.late) == (oracle.applied, oracle.repeats, oracle.late)
    assert advance.repeats + advance.late + len(advance.applied) == len(case.arrivals)


@given(cases(repeats=False))
def test_the_newest_keep_events_are_in_the_window_whatever_order_they_came_in(case: Case) -> None:
    state = advanced(case.arrivals, case.rule, case.memory)
    newest = sorted((event.time_ms, event.event_id) for event in case.arrivals)
    held = list(zip(state.times, state.ids, strict=True))
    assert held == newest[len(newest) - len(held) :]
    assert min(case.rule.keep, len(newest)) <= len(held) <= case.rule.max


@given(cases(), st.lists(st.integers(0, 30), max_size=6))
def test_however_the_arrivals_are_split_into_batches_the_state_is_the_same(case: Case, borders: list[int]) -> None:
    state = EMPTY_STATE
    applied: list[Arrival] = []
    repeats = late = 0
    edges = [0, *sorted(min(border, len(case.arrivals)) for border in borders), len(case.arrivals)]
    for start, end in pairwise(edges):
        # As between two batches: the state goes to the store and comes back.
        advance = advance_window(decode_state(encode_state(state)), case.arrivals[start:end], case.rule, case.memory)
        state = advance.state
        applied += advance.applied
        repeats += advance.repeats
        late += advance.late
    whole = advance_window(EMPTY_STATE, case.arrivals, case.rule, case.memory)
    assert state == whole.state
    assert (applied, repeats, late) == (whole.applied, whole.repeats, whole.late)


@given(cases(), cases())
def test_the_state_that_is_passed_in_is_left_as_it_was(first: Case, second: Case) -> None:
    state = advanced(first.arrivals, first.rule, first.memory)
    before = encode_state(state)
    advance_window(state, second.arrivals, second.rule, second.memory)
    assert encode_state(state) == before


STATE = UserState(1, ["a", "ü"], ["click", "view"], [5, 1_767_225_600_000], ["e1", "clicks-0-2"], True, b"\x00\xff" * 8)


def test_a_state_is_a_plain_messagepack_array_that_stays_readable() -> None:
    # Rows of an older version are in Redis: what is written must not change under version 1.
    raw = encode_state(STATE)
    assert msgspec.msgpack.decode(raw) == [
        1, ["a", "ü"], ["click", "view"], [5, 1_767_225_600_000], ["e1", "clicks-0-2"], True, b"\x00\xff" * 8,
    ]  # fmt: skip
    assert decode_state(raw) == STATE


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a user's state"),
        (b"{}", "not a user's state"),
        (encode_state(STATE)[:-3], "not a user's state"),
        (b"\x97\x01\x91\xa1\xff", "not a user's state"),
        (b"\x91" * 100_000, "not a user's state"),
        (msgspec.msgpack.encode([2, [], [], [], [], False, b""]), "state version 2, this worker reads version 1"),
    ],
)
def test_bytes_that_are_no_state_are_refused(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidState, match=message):
        decode_state(raw)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_but_invalid_state(raw: bytes) -> None:
    with pytest.raises(InvalidState):
        decode_state(raw)


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_a_state_whose_lists_differ_in_length_is_refused(place: int) -> None:
    fields: list[object] = [1, ["a"], ["click"], [5], ["e1"], False, b""]
    fields[place] = []
    with pytest.raises(InvalidState):
        decode_state(msgspec.msgpack.encode(fields))
