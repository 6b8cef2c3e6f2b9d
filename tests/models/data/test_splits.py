from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.events import UserSequence
from models.data.splits import global_time, hold_out_items, leave_one_out
from models.errors import DataError


def sequence(user_id: str, items: str, times: tuple[int, ...] | None = None) -> UserSequence:
    return UserSequence(user_id, tuple(items), ("click",) * len(items), times or tuple(range(len(items))))


logs = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abcdefgh")), min_size=1, max_size=12),
    min_size=1,
    max_size=8,
).map(
    lambda users: [
        sequence(f"user-{number}", "".join(item for _, item in events), tuple(time for time, _ in events))
        for number, events in enumerate(sorted(user) for user in users)
    ]
)


# Leave-one-out


def test_the_last_event_tests_the_one_before_validates_and_neither_is_trained_on() -> None:
    split = leave_one_out([sequence("u", "abcd"), sequence("v", "xy"), sequence("w", "z")])
    assert [s.items for s in split.train] == [("a", "b"), ("x", "y"), ("z",)]
    assert [s.items for s in split.validation.contexts] == [("a", "b")]
    assert split.validation.targets == ("c",)
    assert [s.items for s in split.test.contexts] == [("a", "b", "c")]
    assert split.test.targets == ("d",)


def test_a_target_may_be_an_item_of_its_context() -> None:
    split = leave_one_out([sequence("u", "aaa")])
    assert (split.validation.targets, split.test.targets) == (("a",), ("a",))


def test_a_log_with_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(DataError, match="three events or more"):
        leave_one_out([sequence("u", "ab")])


# By time


def test_two_points_in_time_split_all_users() -> None:
    u = sequence("u", "abcd", (1, 2, 5, 8))
    v = sequence("v", "efgh", (3, 4, 6, 7))
    # Eight events: the quantiles 0.5 and 0.75 are the events at 5 and at 7.
    split = global_time([u, v], timed=True, validation_from=0.5, test_from=0.75)
    assert [s.items for s in split.train] == [("a", "b"), ("e", "f")]
    assert [s.items for s in split.validation.contexts] == [("a", "b"), ("e", "f")]
    assert split.validation.targets == ("c", "g")
    assert [s.items for s in split.test.contexts] == [("a", "b", "c"), ("e", "f", "g")]
    assert split.test.targets == ("d", "h")


def test_who_comes_after_a_point_or_leaves_before_it_is_not_judged_there() -> None:
    steady = sequence("steady", "abcdefghij", tuple(range(0, 100, 10)))
    gone = sequence("gone", "xy", (1, 2))
    late = sequence("late", "z", (95,))
    between = sequence("between", "pq", (75, 96))
    # Fifteen events; at 0.7 and 0.9 stand the eleventh and the fourteenth: 75 and 95.
    split = global_time([steady, gone, late, between], timed=True, validation_from=0.7, test_from=0.9)
    assert [s.user_id for s in split.train] == ["steady", "gone"]
    assert [s.user_id for s in split.validation.contexts] == ["steady"]
    assert split.validation.targets == ("i",)
    # What came between the points is known when the second one is reached.
    assert [(s.user_id, s.items) for s in split.test.contexts] == [("between", ("p",))]
    assert split.test.targets == ("q",)


def test_by_default_the_last_fifth_judges_half_of_it_each() -> None:
    log = [sequence("u", "abcdefghij"), sequence("v", "abcdefghij")]
    split = global_time(log, timed=True)
    assert [len(s) for s in split.train] == [8, 8]
    assert split.validation.targets == ("i", "i")
    assert split.test.targets == ("j", "j")


def test_a_log_without_times_or_with_quantiles_out_of_order_or_too_few_events_is_refused() -> None:
    log = [sequence("u", "abcdefghij")]
    with pytest.raises(DataError, match=r"has no times.*leave-one-out"):
        global_time(log, timed=False)
    for first, second in ((0.9, 0.8), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5)):
        with pytest.raises(DataError, match="0 < validation_from < test_from < 1"):
            global_time(log, timed=True, validation_from=first, test_from=second)
    with pytest.raises(DataError, match="no event to split"):
        global_time([], timed=True)
    # Everything happens at once: nothing lies before a point.
    with pytest.raises(DataError, match="nothing to train on"):
        global_time([sequence("u", "abc", (5, 5, 5))], timed=True)
    with pytest.raises(DataError, match="nothing to validate with"):
        global_time([sequence("u", "abcd", (1, 2, 3, 3))], timed=True)


@given(logs)
def test_nothing_that_is_learned_from_or_known_is_later_than_what_it_is_judged_on(log: list[UserSequence]) -> None:
    try:
        split = global_time(log, timed=True, validation_from=0.5, test_from=0.8)
    except DataError:
        return
    whole = {s.user_id: s for s in log}
    learned = max(chain.from_iterable(s.times for s in split.train))
    known_to_test = max(s.times[-1] for s in split.test.contexts)
    for judged, newest in ((split.validation, learned), (split.test, max(learned, known_to_test))):
        for context, target in zip(judged.contexts, judged.targets, strict=True):
            source = whole[context.user_id]
            # A context is the beginning of its user's sequence, and the target is what stands right after it.
            assert source.part(0, len(context)) == context
            assert source.items[len(context)] == target
            assert source.times[len(context)] > newest


# By item


def test_held_out_items_are_nowhere_but_among_the_targets() -> None:
    log = [sequence("u", "abcad"), sequence("v", "bb"), sequence("w", "ca")]
    # Worked out for each item that may be drawn: training sequences by user, then context and target by user.
    expected: dict[str, tuple[dict[str, str], dict[str, tuple[str, str]]]] = {
        "a": ({"u": "bc", "v": "bb", "w": "c"}, {"u": ("bc", "a"), "w": ("c", "a")}),
        "b": ({"u": "a", "w": "ca"}, {"u": ("a", "b")}),
        "c": ({"u": "ab", "v": "bb", "w": "a"}, {"u": ("ab", "c")}),
        "d": ({"u": "abca", "v": "bb", "w": "ca"}, {"u": ("abca", "d")}),
    }
    drawn = set()
    for seed in range(40):
        found = hold_out_items(log, 0.25, seed)
        (item,) = found.items
        kept, judged = expected[item]
        cases = zip(found.judged.contexts, found.judged.targets, strict=True)
        assert {s.user_id: "".join(s.items) for s in found.sequences} == kept
        assert {s.user_id: ("".join(s.items), target) for s, target in cases} == judged
        drawn.add(item)
    assert drawn == set(expected)


def test_a_seed_draws_the_same_share_again() -> None:
    log = [sequence("u", "abcdefghij")]
    for seed in range(5):
        items = hold_out_items(log, 0.3, seed).items
        assert len(items) == 3
        assert hold_out_items(log, 0.3, seed).items == items


@given(logs, st.floats(0.01, 0.99), st.integers(0, 5))
def test_of_whom_is_judged_only_what_came_before_the_target_may_be_learned(
    log: list[UserSequence], share: float, seed: int
) -> None:
    try:
        found = hold_out_items(log, share, seed)
    except DataError:
        return
    held_out = set(found.items)
    whole = {s.user_id: s for s in log}
    assert not held_out & set(chain.from_iterable(s.items for s in found.sequences))
    learned = {s.user_id: s for s in found.sequences}
    for context, target in zip(found.judged.contexts, found.judged.targets, strict=True):
        assert target in held_out
        assert len(context) >= 1
        assert learned[context.user_id] == context
        source = whole[context.user_id]
        last = max(place for place, item in enumerate(source.items) if item in held_out)
        assert source.items[last] == target
        assert list(context.items) == [item for item in source.items[:last] if item not in held_out]


def test_a_share_out_of_range_and_logs_that_leave_nobody_to_judge_are_refused() -> None:
    log = [sequence("u", "abc")]
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(DataError, match="must lie between 0 and 1"):
            hold_out_items(log, share, 0)
    with pytest.raises(DataError, match="1 item is too few"):
        hold_out_items([sequence("u", "aaa")], 0.5, 0)
    with pytest.raises(DataError, match="nobody could be judged"):
        hold_out_items([sequence("u", "a"), sequence("v", "b")], 0.5, 0)
