"""Whose window an event of a raw topic or a file ends up in."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from streams.contracts.erasure import Erasures
from streams.contracts.event import ERASE, IDENTIFY
from streams.services.backfill.controls import Controls
from streams.services.backfill.events import SourceEvent

NOW_MS = 1_767_225_600_000


def events_of(*asked: tuple[str, str, str] | tuple[str, str, str, int]) -> list[SourceEvent]:
    """Events (type, user, item) one second after another, or at the second that is given."""
    return [
        SourceEvent(
            user, item, kind, NOW_MS, f"c-0-{ordinal}", False, "c", "id", 0, ordinal, ordinal,
            NOW_MS + 1000 * (at[0] if at else ordinal),
        )
        for ordinal, (kind, user, item, *at) in enumerate(asked)
    ]  # fmt: skip


def windows(events: Sequence[SourceEvent], recorded: Mapping[str, int] | None = None) -> dict[str, list[int]]:
    """The ordinals of the events in each user's window.

    Args:
        recorded: The seconds at which users were erased, as live workers recorded them.
    """
    erasures = Erasures()
    for user, at in (recorded or {}).items():
        erasures.add(user, NOW_MS + 1000 * at)
    controls = Controls(erasures)
    controls.add(events)
    found: dict[str, list[int]] = defaultdict(list)
    for event in events:
        settled = controls.settle(event)
        if settled is not None:
            found[settled.user_id].append(settled.ordinal)
    return dict(found)


def test_an_anonymous_users_events_are_the_users_up_to_the_identify() -> None:
    events = events_of(
        ("click", "device", "a"), ("click", "ana", "b"), (IDENTIFY, "device", "ana"), ("click", "device", "c")
    )
    assert windows(events) == {"ana": [0, 1], "device": [3]}


def test_a_window_that_is_handed_on_goes_with_all_that_was_handed_to_it() -> None:
    events = events_of(
        ("click", "a", "1"),
        (IDENTIFY, "a", "b"),
        ("click", "a", "2"),
        (IDENTIFY, "b", "c"),
        (IDENTIFY, "a", "b"),
    )
    assert windows(events) == {"c": [0], "b": [2]}


def test_two_users_who_are_each_other_end_with_each_others_events() -> None:
    events = events_of(("click", "a", "1"), ("click", "b", "2"), (IDENTIFY, "a", "b"), (IDENTIFY, "b", "a"))
    assert windows(events) == {"a": [0, 1]}


def test_whoever_is_the_user_already_stays_it() -> None:
    assert windows(events_of(("click", "ana", "a"), (IDENTIFY, "ana", "ana"))) == {"ana": [0]}


def test_what_was_erased_before_it_was_handed_over_is_nobodys() -> None:
    events = events_of(
        ("click", "device", "a"), (ERASE, "device", ""), ("click", "device", "b"), (IDENTIFY, "device", "ana")
    )
    assert windows(events) == {"ana": [2]}


def test_what_is_handed_over_after_the_user_was_erased_is_theirs() -> None:
    events = events_of(("click", "device", "a"), ("click", "ana", "b"), (ERASE, "ana", ""), (IDENTIFY, "device", "ana"))
    assert windows(events) == {"ana": [0]}


def test_what_was_handed_over_is_erased_with_the_user() -> None:
    events = events_of(("click", "device", "a"), (IDENTIFY, "device", "ana"), (ERASE, "ana", ""))
    assert windows(events) == {}
    assert windows(events[:2], {"ana": 1}) == {}
    assert windows(events[:2], {"ana": 0}) == {"ana": [0]}


def test_what_came_before_an_erasure_is_left_out_wherever_it_lies() -> None:
    events = events_of((ERASE, "ana", "", 5), ("click", "ana", "a", 5), ("click", "ana", "b", 6))
    assert windows(events) == {"ana": [2]}
    # So is an identify.
    events = events_of((ERASE, "device", "", 5), ("click", "device", "a", 6), (IDENTIFY, "device", "ana", 4))
    assert windows(events) == {"device": [1]}


def test_the_erasures_of_the_source_are_told() -> None:
    controls = Controls(Erasures())
    controls.add(events_of((ERASE, "ana", "", 3), (ERASE, "ana", "", 2), ("click", "bea", "a")))
    assert dict(controls.erased.items()) == dict(_erased(ana=3).items())


def _erased(**seconds: int) -> Erasures:
    erasures = Erasures()
    for user, at in seconds.items():
        erasures.add(user, NOW_MS + 1000 * at)
    return erasures


_users = st.sampled_from("abcd")
_seconds = st.integers(0, 12)
_asked = st.one_of(
    st.tuples(st.just("click"), _users, st.just("item"), _seconds),
    st.tuples(st.just(ERASE), _users, st.just(""), _seconds),
    st.tuples(st.just(IDENTIFY), _users, _users, _seconds),
)


@given(st.lists(_asked, max_size=12), st.dictionaries(_users, _seconds, max_size=2))
def test_it_is_as_if_windows_were_handed_over_one_after_the_other(
    asked: list[tuple[str, str, str, int]], recorded: dict[str, int]
) -> None:
    # Each window holds (ordinal, the users whose it was and when it came to them).
    held: dict[str, list[tuple[int, tuple[tuple[str, int], ...]]]] = defaultdict(list)
    erased = dict(recorded)
    for ordinal, (kind, user, item, at) in zip(count(), asked, strict=False):
        if kind == ERASE:
            erased[user] = max(at, erased.get(user, at))
            held[user] = []
        elif at <= erased.get(user, -1):
            continue
        elif kind == IDENTIFY and user != item:
            held[item] += [(number, (*whose, (item, at))) for number, whose in held.pop(user, [])]
        elif kind == "click":
            held[user].append((ordinal, ((user, at),)))
    expected = {
        user: sorted(number for number, whose in window if all(at > erased.get(one, -1) for one, at in whose))
        for user, window in held.items()
    }
    assert windows(events_of(*asked), recorded) == {user: window for user, window in expected.items() if window}
