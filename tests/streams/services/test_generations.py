"""How two generations compare, and which is fit to be served: figures worked out by hand."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from streams.contracts.frame import FRAME_VERSION, Frame, Source
from streams.contracts.generation import Generation, Plan, Request, Serving
from streams.contracts.recommendation import (
    ModelName,
    Recommendation,
    RecommendedItem,
    Trigger,
    VectorSummary,
    encode_recommendation,
)
from streams.errors import UsageError
from streams.interest.engine import UserRow
from streams.interest.window import STATE_VERSION, UserState, encode_state
from streams.log.topics import Extent, Partition, Topic
from streams.services.generations import (
    Comparison,
    Filled,
    Limits,
    NotFit,
    check_whole,
    compare,
    failings,
    find_record,
    status_of,
    users_to_come,
)
from streams.store.memory import MemoryStore
from streams.store.protocol import Swap, Watermark

TOPIC = Topic("interactions", "id-1", 2)
EXTENTS = {Partition("interactions", 0): Extent(0, 10), Partition("interactions", 1): Extent(0, 5)}
WHOLE = Filled({0: Watermark(9, "id-1", 2), 1: Watermark(4, "id-1", 2)}, None, 0, claimed=False)
PLAN = Plan(Request("interactions"), 2, 1, "id-1", "m2", 1)


def row(vector: Sequence[float], items: Sequence[str], window: Sequence[str]) -> UserRow:
    listed = [RecommendedItem(item, rank, 1.0, []) for rank, item in enumerate(items, start=1)]
    recommendation = Recommendation(
        "id", "user", 1, "live", "personal", Trigger("e", "click", "i", 1, "t", 0, 0), ModelName("m", "v"),
        VectorSummary(len(vector), None), listed,
    )  # fmt: skip
    count = len(window)
    state = UserState(
        STATE_VERSION, list(window), ["click"] * count, list(range(count)), list(window), truncated=False, recent=b""
    )
    return UserRow(
        np.array(vector, "<f4").tobytes(), encode_recommendation(recommendation), encode_state(state), "v", 1
    )


def store_of(name: str, rows: Mapping[str, UserRow]) -> MemoryStore:
    store = MemoryStore(name)
    store.set_partitions(1)
    store.swap([Swap(0, None, Watermark(0, "id", 1), rows)])
    return store


def test_a_comparison_counts_what_is_missing_and_measures_what_is_on_both_sides() -> None:
    here = store_of(
        "g1",
        {
            "ana": row((1, 0), ("a", "b", "c", "d"), ("x", "y")),
            "bea": row((1, 0), ("a", "b", "c", "d"), ("x",)),
            "cem": row((1, 1), ("a",), ("x",)),
        },
    )
    there = store_of(
        "g2",
        {
            "ana": row((2, 0), ("b", "a", "c", "e"), ("x", "y")),  # the same direction, three of four items
            "bea": row((0, 3), ("e", "f", "g", "d"), ("y",)),  # a right angle, one of four items, another window
            "dan": row((1, 1), ("a",), ("x",)),
            "eve": row((1, 1), ("a",), ("x",)),
        },
    )
    found = compare(here, there, users=100, samples=1)
    assert (found.here, found.there) == ("g1", "g2")
    assert (found.users_here, found.users_there) == (3, 4)
    assert (found.moving, found.missing_there, found.missing_here) == (0, 1, 2)
    assert (found.compared, found.differing_windows) == (2, 1)
    assert found.list_overlap == pytest.approx((0.75 + 0.25) / 2)
    assert found.distances is not None
    assert found.distances.max == pytest.approx(1.0)
    assert found.distances.p50 == pytest.approx(0.5)
    (sample,) = found.samples
    assert (sample.user_id, sample.same_window, sample.here, sample.there) == (
        "ana", True, ["a", "b", "c", "d"], ["b", "a", "c", "e"],
    )  # fmt: skip


def test_users_with_events_that_one_side_lacks_are_left_out_of_the_comparison() -> None:
    still = row((1, 0), ("a", "b"), ("x",))
    here = store_of("g1", {"ana": still, "bea": row((0, 1), ("c", "d"), ("x", "y")), "new": still, "lost": still})
    there = store_of("g2", {"ana": still, "bea": still, "soon": still, "gone": still})
    moving = {"bea", "new", "soon", "somebody who was not looked at"}
    found = compare(here, there, users=100, samples=5, moving=lambda: moving)
    assert (found.users_here, found.users_there, found.moving) == (4, 4, 3)
    assert (found.missing_there, found.missing_here) == (1, 1)
    assert (found.compared, found.differing_windows, found.list_overlap) == (1, 0, 1.0)
    assert found.distances is not None
    assert found.distances.max == 0.0
    assert [sample.user_id for sample in found.samples] == ["ana"]


def test_a_frame_brings_events_to_those_whose_raw_offsets_are_beyond_the_marks() -> None:
    clicks, views = Source("clicks", "c", 0), Source("views", "v", 0)
    frame = Frame(
        FRAME_VERSION, [clicks, views], [0, 0, 1], [6, 7, 3], [1, 1, 1], ["ana", "bea", "cem"], ["x"] * 3, ["click"] * 3,
        [1, 2, 3], [None] * 3, {},
    )  # fmt: skip
    assert users_to_come(frame, 5, None) == {"ana", "bea", "cem"}
    assert users_to_come(frame, 5, Watermark(4, "id-1", 2)) == {"ana", "bea", "cem"}
    assert users_to_come(frame, 5, Watermark(4, "id-1", 2, {clicks: 6})) == {"bea", "cem"}
    assert users_to_come(frame, 5, Watermark(4, "id-1", 2, {clicks: 9, views: 3})) == set()
    assert users_to_come(frame, 5, Watermark(5, "id-1", 2)) == set()


def test_where_one_side_lacks_too_many_frames_nobody_is_left_out() -> None:
    here, there = store_of("g1", {"ana": row((1, 0), ("a",), ("x",))}), store_of("g2", {})
    found = compare(here, there, users=100, samples=0, moving=lambda: None)
    assert (found.moving, found.missing_there) == (None, 1)


def test_vectors_of_different_lengths_have_no_distance_and_windows_are_compared_all_the_same() -> None:
    found = compare(
        store_of("g1", {"ana": row((1, 0), ("a",), ("x",))}),
        store_of("g2", {"ana": row((1, 0, 0), ("a",), ("x",))}),
        users=10,
        samples=0,
    )
    assert found.distances is None
    assert (found.compared, found.differing_windows, found.list_overlap) == (1, 0, 1.0)


def test_a_comparison_looks_at_no_more_users_than_asked_for() -> None:
    rows = {f"user-{number}": row((1, 0), ("a",), ("x",)) for number in range(30)}
    found = compare(store_of("g1", rows), store_of("g2", rows), users=7, samples=3)
    assert (found.users_here, found.users_there, found.compared, len(found.samples)) == (7, 7, 7, 3)


def test_a_generation_that_is_filled_whole_lacks_what_came_since() -> None:
    assert check_whole("g2", WHOLE, TOPIC, EXTENTS) == 0
    behind = replace_watermarks({0: Watermark(6, "id-1", 2), 1: Watermark(-1, "id-1", 2)})
    assert check_whole("g2", behind, TOPIC, EXTENTS) == 3 + 5


def replace_watermarks(watermarks: Mapping[int, Watermark | None]) -> Filled:
    return Filled(watermarks, None, 0, claimed=False)


@pytest.mark.parametrize(
    ("filled", "says"),
    [
        (Filled(WHOLE.watermarks, None, 0, claimed=True), "a backfill is writing generation g2 right now"),
        (Filled(WHOLE.watermarks, PLAN, 0, claimed=False), "the backfill of generation g2 is not done"),
        (Filled(WHOLE.watermarks, None, 3, claimed=False), "3 users of generation g2 have no vector yet"),
        (
            replace_watermarks({0: Watermark(9, "id-1", 2), 1: None}),
            "no watermark of interactions partition 1, and of others it has: part of it is lost. Fill a new one",
        ),
        (
            replace_watermarks({0: None, 1: None}),
            "no watermark of interactions partition 0: it was never filled; `driftline backfill --generation g2 --exec",
        ),
        (replace_watermarks({0: Watermark(9, "id-2", 2), 1: Watermark(4, "id-1", 2)}), "another interactions"),
        (replace_watermarks({0: Watermark(10, "id-1", 2), 1: Watermark(4, "id-1", 2)}), "another interactions"),
    ],
)
def test_a_generation_that_live_workers_could_not_go_on_from_is_refused(filled: Filled, says: str) -> None:
    with pytest.raises(NotFit, match=says):
        check_whole("g2", filled, TOPIC, EXTENTS)


def test_a_generation_that_is_not_filled_yet_names_the_command_that_goes_on_with_it() -> None:
    plan = Plan(Request("files", ("logs/a day.jsonl",), default_type="view"), 2, 1, "id-1", "m2", 1)
    with pytest.raises(NotFit) as caught:
        check_whole("g2", Filled({}, plan, 0, claimed=False), TOPIC, EXTENTS)
    assert "`driftline backfill --generation g2 'logs/a day.jsonl' --type view --execute` goes on with it" in str(
        caught.value
    )


def test_a_generation_whose_next_frames_retention_deleted_is_refused() -> None:
    extents = {**EXTENTS, Partition("interactions", 1): Extent(7, 9)}
    with pytest.raises(NotFit, match="retention deleted what is between"):
        check_whole("g2", WHOLE, TOPIC, extents)


GOOD = Comparison("g1", "g2", 1000, 1000, 0, 10, 0, 990, 9, None, 0.5, [])


def test_limits_that_are_just_kept_are_kept() -> None:
    assert failings(10_000, GOOD, Limits(min_overlap=0.5)) == []


def test_every_limit_that_is_not_kept_is_named_with_its_figures() -> None:
    bad = Comparison("g1", "g2", 1000, 1000, 0, 11, 0, 989, 10, None, 0.5, [])
    found = failings(201, bad, Limits(max_lag=200, min_overlap=0.51))
    assert [each.split(",")[0] for each in found] == [
        "it lacks 201 frames",
        "11 of 1",
        "10 of 989 users have another window in it (1.0%",
        "lists have 50.0% of their items in common",
    ]


def test_the_state_of_a_generation_is_what_it_is_to_readers() -> None:
    serving = Serving("g2", "m2", "g1", "m1", 5)
    record = Generation("g1", "name", "m1", "space", "/bundle", 1, "live")
    assert status_of(record, serving, WHOLE, EXTENTS).state == "previous"
    assert status_of(replace_name(record, "g2"), serving, WHOLE, EXTENTS).state == "live"
    assert status_of(replace_name(record, "g3"), serving, WHOLE, EXTENTS).state == "ready"
    filling = Filled({0: Watermark(3, "id-1", 2), 1: None}, PLAN, 7, claimed=True)
    found = status_of(replace_name(record, "g3"), serving, filling, EXTENTS)
    assert (found.state, found.lag, found.unencoded, found.claimed) == ("filling", None, 7, True)


def replace_name(record: Generation, name: str) -> Generation:
    return Generation(
        name, record.model_name, record.model, record.space, record.bundle, record.created_ms, record.origin
    )


def test_a_generation_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    record = Generation("g1", "name", "m1", "space", "/bundle", 1, "live")
    with pytest.raises(UsageError, match="no generation g9; there are: g1"):
        find_record([record], "g9")
