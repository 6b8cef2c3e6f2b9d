"""What every state store must do, whatever is under it: inherit `StoreContract` and give a fixture named `store`."""

from collections.abc import Mapping, Sequence

import pytest

from streams.contracts.erasure import Erasure, Erasures
from streams.contracts.frame import Source, partition_of
from streams.interest.engine import UserRow
from streams.store.protocol import ErasureStore, StateStore, StoredRow, Swap, SwapResult, UserRecord, Watermark

CLICKS = Source("clicks", "id-of-clicks", 0)
VIEWS = Source("views", "id-of-views", 3)
PARTITIONS = 8
TOPIC_ID = "id-of-interactions"


def row(number: int) -> UserRow:
    """A row whose every field differs from every other row's; not all bytes are text."""
    return UserRow(
        b"\x00\xff\x00\xfe" + bytes([number]), b'{"list":%d}' % number, b"\xc1" + bytes([number]), "m1", number
    )


def swap(
    partition: int,
    expected: int | None,
    offset: int,
    rows: Mapping[str, UserRow] | None = None,
    marks: Mapping[Source, int] | None = None,
    topic_id: str = TOPIC_ID,
    ended: Sequence[str] = (),
) -> Swap:
    return Swap(partition, expected, Watermark(offset, topic_id, PARTITIONS, marks or {}), rows or {}, ended)


def stored(written: UserRow) -> StoredRow:
    return StoredRow(written.state, written.vector, written.model)


def swapped(offset: int) -> SwapResult:
    return SwapResult(swapped=True, offset=offset)


def refused(offset: int | None) -> SwapResult:
    return SwapResult(swapped=False, offset=offset)


class StoreContract:
    """Users are put where `partition_of` puts them, so that they can be found again by name."""

    def test_an_empty_store_knows_nothing(self, store: StateStore) -> None:
        assert store.partitions() is None
        assert store.read_watermarks([0, 7]) == {0: None, 7: None}
        assert store.read_user("alice") is None
        assert list(store.scan_users()) == []
        reading = store.read_rows({3: ["alice"]})[3]
        assert (list(reading.rows), reading.offset) == ([StoredRow(None, None, None)], None)

    def test_the_first_number_of_partitions_wins(self, store: StateStore) -> None:
        assert store.set_partitions(8) == 8
        assert store.set_partitions(16) == 8
        assert store.partitions() == 8

    def test_a_swap_writes_rows_and_watermark_together(self, store: StateStore) -> None:
        results = store.swap([swap(3, None, 5, {"alice": row(1), "bob": row(2)}, {CLICKS: 40})])
        assert list(results) == [swapped(5)]
        reading = store.read_rows({3: ["alice", "bob"]})[3]
        assert (list(reading.rows), reading.offset) == ([stored(row(1)), stored(row(2))], 5)
        assert store.read_watermarks([3]) == {3: Watermark(5, TOPIC_ID, PARTITIONS, {CLICKS: 40})}

    def test_a_stale_worker_cannot_overwrite_a_newer_one(self, store: StateStore) -> None:
        store.swap([swap(3, None, 5, {"alice": row(1)}, {CLICKS: 40})])
        store.swap([swap(3, 5, 9, {"alice": row(2)}, {CLICKS: 50})])
        results = store.swap([swap(3, 5, 7, {"alice": row(3), "bob": row(4)}, {CLICKS: 45, VIEWS: 1})])
        assert list(results) == [refused(9)]
        reading = store.read_rows({3: ["alice", "bob"]})[3]
        assert (list(reading.rows), reading.offset) == ([stored(row(2)), StoredRow(None, None, None)], 9)
        assert store.read_watermarks([3]) == {3: Watermark(9, TOPIC_ID, PARTITIONS, {CLICKS: 50})}

    @pytest.mark.parametrize("expected", [-1, 0, 4])
    def test_a_worker_that_knows_a_watermark_cannot_write_where_there_is_none(
        self, store: StateStore, expected: int
    ) -> None:
        assert list(store.swap([swap(3, expected, 5, {"alice": row(1)})])) == [refused(None)]
        assert store.read_watermarks([3]) == {3: None}
        assert store.read_rows({3: ["alice"]})[3].rows == [StoredRow(None, None, None)]

    def test_a_worker_that_knows_no_watermark_cannot_write_where_there_is_one(self, store: StateStore) -> None:
        store.swap([swap(3, None, 0, {"alice": row(1)})])
        assert list(store.swap([swap(3, None, 1, {"alice": row(2)})])) == [refused(0)]
        assert store.read_rows({3: ["alice"]})[3].rows == [stored(row(1))]

    @pytest.mark.parametrize("offset", [-1, 0, 2**62])
    def test_a_watermark_may_be_any_offset(self, store: StateStore, offset: int) -> None:
        # -1 is what an adopted topic starts with, and is not the same as none.
        assert list(store.swap([swap(3, None, offset)])) == [swapped(offset)]
        assert list(store.swap([swap(3, None, offset + 1)])) == [refused(offset)]
        assert list(store.swap([swap(3, offset, offset + 1)])) == [swapped(offset + 1)]

    def test_a_swap_for_another_topic_is_refused_although_the_offset_agrees(self, store: StateStore) -> None:
        store.swap([swap(3, None, 5, {"alice": row(1)}, {CLICKS: 1})])
        results = store.swap([swap(3, 5, 6, {"alice": row(2)}, {CLICKS: 2}, topic_id="id-of-a-new-one")])
        assert list(results) == [refused(5)]
        assert store.read_rows({3: ["alice"]})[3].rows == [stored(row(1))]
        assert store.read_watermarks([3]) == {3: Watermark(5, TOPIC_ID, PARTITIONS, {CLICKS: 1})}

    def test_marks_of_a_swap_are_added_to_those_there_are(self, store: StateStore) -> None:
        recreated = Source("clicks", "id-of-the-new-clicks", 0)
        store.swap([swap(3, None, 5, marks={CLICKS: 40, VIEWS: 7})])
        store.swap([swap(3, 5, 6, marks={CLICKS: 41, recreated: 0})])
        store.swap([swap(3, 6, 7)])
        marks = {CLICKS: 41, VIEWS: 7, recreated: 0}
        assert store.read_watermarks([3]) == {3: Watermark(7, TOPIC_ID, PARTITIONS, marks)}

    def test_a_source_without_a_topic_id_is_read_back(self, store: StateStore) -> None:
        # The embedded Kafka of the demo has no topic ids.
        mark = {Source("clicks", "", 12): 3}
        store.swap([swap(3, None, 5, marks=mark, topic_id="")])
        assert store.read_watermarks([3]) == {3: Watermark(5, "", PARTITIONS, mark)}
        assert list(store.swap([swap(3, 5, 6, topic_id="")])) == [swapped(6)]

    def test_swaps_of_one_call_stand_or_fall_each_on_its_own(self, store: StateStore) -> None:
        store.swap([swap(1, None, 5), swap(2, None, 5)])
        results = store.swap(
            [swap(1, 5, 6, {"a": row(1)}), swap(2, 4, 6, {"b": row(2)}), swap(3, None, 6, {"c": row(3)})]
        )
        assert list(results) == [swapped(6), refused(5), swapped(6)]
        readings = store.read_rows({1: ["a"], 2: ["b"], 3: ["c"]})
        assert {partition: reading.offset for partition, reading in readings.items()} == {1: 6, 2: 5, 3: 6}
        assert readings[1].rows == [stored(row(1))]
        assert readings[2].rows == [StoredRow(None, None, None)]
        assert readings[3].rows == [stored(row(3))]

    def test_swaps_of_one_call_are_made_in_order(self, store: StateStore) -> None:
        results = store.swap([swap(1, None, 5, {"a": row(1)}), swap(1, 5, 6, {"a": row(2)}), swap(1, 5, 7)])
        assert list(results) == [swapped(5), swapped(6), refused(6)]
        assert store.read_rows({1: ["a"]})[1].rows == [stored(row(2))]

    def test_no_swaps_are_no_work(self, store: StateStore) -> None:
        assert list(store.swap([])) == []
        assert store.read_rows({}) == {}
        assert store.read_watermarks([]) == {}

    def test_a_swap_without_rows_moves_the_watermark(self, store: StateStore) -> None:
        # A frame of nothing but repeats.
        assert list(store.swap([swap(3, None, 5)])) == [swapped(5)]
        assert store.read_rows({3: []})[3].offset == 5

    def test_a_swap_removes_rows_together_with_what_it_writes(self, store: StateStore) -> None:
        store.swap([swap(3, None, 5, {"alice": row(1), "bob": row(2), "cleo": row(3)})])
        ended = swap(3, 5, 6, {"bob": row(4)}, {CLICKS: 7}, ended=["alice", "nobody"])
        assert list(store.swap([ended])) == [swapped(6)]
        found = store.read_rows({3: ["alice", "bob", "cleo"]})[3].rows
        assert list(found) == [StoredRow(None, None, None), stored(row(4)), stored(row(3))]
        assert store.read_watermarks([3]) == {3: Watermark(6, TOPIC_ID, PARTITIONS, {CLICKS: 7})}

    def test_a_stale_worker_removes_nothing(self, store: StateStore) -> None:
        store.swap([swap(3, None, 5, {"alice": row(1)})])
        assert list(store.swap([swap(3, 4, 6, ended=["alice"])])) == [refused(5)]
        assert store.read_rows({3: ["alice"]})[3].rows == [stored(row(1))]

    def test_rows_are_read_in_the_order_asked_for(self, store: StateStore) -> None:
        rows = {f"u{number}": row(number) for number in range(5)}
        store.swap([swap(3, None, 5, rows)])
        wanted = ["u3", "nobody", "u0", "u4"]
        found = store.read_rows({3: wanted})[3].rows
        assert list(found) == [stored(row(3)), StoredRow(None, None, None), stored(row(0)), stored(row(4))]

    @pytest.mark.parametrize("user", ["ü", "a b", "{3}", "a:user:b", "*", "\n", "x" * 128, "'\"\\"])
    def test_any_user_id_is_found_again(self, store: StateStore, user: str) -> None:
        store.set_partitions(PARTITIONS)
        partition = partition_of(user, PARTITIONS)
        store.swap([swap(partition, None, 0, {user: row(1)})])
        assert store.read_user(user) == UserRecord(user, partition, row(1))
        assert list(store.scan_users()) == [UserRecord(user, partition, row(1))]

    def test_a_user_is_read_whole(self, store: StateStore) -> None:
        store.set_partitions(PARTITIONS)
        partition = partition_of("alice", PARTITIONS)
        store.swap([swap(partition, None, 0, {"alice": row(1)})])
        store.swap([swap(partition, 0, 1, {"alice": row(2)})])
        assert store.read_user("alice") == UserRecord("alice", partition, row(2))
        assert store.read_user("bob") is None

    def test_a_scan_finds_every_user_of_every_partition_once(self, store: StateStore) -> None:
        store.set_partitions(PARTITIONS)
        # More than a store asks for at once.
        users = {f"user-{number}": row(number % 200) for number in range(1300)}
        by_partition: dict[int, dict[str, UserRow]] = {}
        for user, written in users.items():
            by_partition.setdefault(partition_of(user, PARTITIONS), {})[user] = written
        store.swap([swap(partition, None, 0, rows) for partition, rows in by_partition.items()])
        found = list(store.scan_users())
        assert len(found) == 1300
        assert {record.user_id: record.row for record in found} == users
        assert {record.partition for record in found} == set(by_partition)

    def test_rows_are_refreshed_where_they_are_and_nothing_else_changes(self, store: StateStore) -> None:
        store.set_partitions(PARTITIONS)
        partition = partition_of("alice", PARTITIONS)
        store.swap([swap(partition, None, 5, {"alice": row(1)}, {CLICKS: 40})])
        before = store.read_watermarks([partition])
        rows = {"alice": row(2), "gone": row(3)}
        again = Swap(partition, 5, Watermark(5, TOPIC_ID, PARTITIONS), rows, refreshes=True)
        assert store.swap([again]) == [SwapResult(swapped=True, offset=5)]
        assert [record and record.row for record in store.read_users(["gone", "alice"])] == [None, row(2)]
        assert store.read_watermarks([partition]) == before

    def test_rows_are_not_refreshed_once_the_watermark_moved(self, store: StateStore) -> None:
        store.set_partitions(PARTITIONS)
        partition = partition_of("alice", PARTITIONS)
        store.swap([swap(partition, None, 6, {"alice": row(1)})])
        late = Swap(partition, 5, Watermark(5, TOPIC_ID, PARTITIONS), {"alice": row(2)}, refreshes=True)
        assert store.swap([late]) == [SwapResult(swapped=False, offset=6)]
        assert store.read_user("alice") == UserRecord("alice", partition, row(1))

    def test_a_watermark_is_replaced_whole_if_it_is_as_expected(self, store: StateStore) -> None:
        store.swap([swap(3, None, 5, {"alice": row(1)}, {CLICKS: 40, VIEWS: 7})])
        before = store.read_watermarks([3])[3]
        new = Watermark(-1, "id-of-a-new-one", PARTITIONS, {VIEWS: 7})
        assert store.replace_watermark(3, before, new)
        assert store.read_watermarks([3]) == {3: new}
        assert store.read_rows({3: ["alice"]})[3].rows == [stored(row(1))]

    def test_a_watermark_is_put_where_there_is_none(self, store: StateStore) -> None:
        new = Watermark(4, TOPIC_ID, PARTITIONS, {CLICKS: 3})
        assert store.replace_watermark(3, None, new)
        assert store.read_watermarks([2, 3]) == {2: None, 3: new}

    @pytest.mark.parametrize(
        "expected",
        [
            None,
            Watermark(4, TOPIC_ID, PARTITIONS, {CLICKS: 40}),
            Watermark(5, "other", PARTITIONS, {CLICKS: 40}),
            Watermark(5, TOPIC_ID, PARTITIONS, {CLICKS: 41}),
            Watermark(5, TOPIC_ID, PARTITIONS, {}),
        ],
    )
    def test_a_watermark_that_moved_is_not_replaced(self, store: StateStore, expected: Watermark | None) -> None:
        store.swap([swap(3, None, 5, marks={CLICKS: 40})])
        assert not store.replace_watermark(3, expected, Watermark(0, "new", 1))
        assert store.read_watermarks([3]) == {3: Watermark(5, TOPIC_ID, PARTITIONS, {CLICKS: 40})}


class ErasureContract:
    """Give fixtures ``erasures``, an empty `ErasureStore`, and ``generations``, two recorded ones of its stores."""

    def test_what_is_recorded_is_read_and_the_latest_time_counts(self, erasures: ErasureStore) -> None:
        assert not erasures.read()
        erasures.record(erased(alice=500, bob=700))
        erasures.record(erased(alice=400, bob=800))
        for found in (erasures.read(), erasures.read_of(["bob", "nobody", "alice"])):
            assert (found.erased_ms("alice"), found.erased_ms("bob"), found.erased_ms("nobody")) == (500, 800, None)
        assert erasures.read_of(["bob"]).erased_ms("alice") is None
        assert not erasures.read_of([])

    def test_the_erased_are_removed_from_each_generation_that_has_not_come_to_it(
        self, erasures: ErasureStore, generations: Sequence[StateStore]
    ) -> None:
        partition = partition_of("alice", PARTITIONS)
        for store, offset in zip(generations, (6, 7), strict=True):
            store.set_partitions(PARTITIONS)
            store.swap([swap(partition, None, offset, {"alice": row(1), "bob": row(2)})])
        # The frame that asked for it is that of offset 7: only the second generation has applied it.
        erasures.forget([Erasure("alice", 500, 7)], TOPIC_ID, PARTITIONS)
        assert [store.read_user("alice") is None for store in generations] == [True, False]
        rows = [store.read_rows({partition: ["bob"]})[partition].rows for store in generations]
        assert rows == [[stored(row(2))]] * 2
        # Offsets of another topic say nothing.
        erasures.forget([Erasure("alice", 500, 7)], "another topic", PARTITIONS)
        assert [store.read_user("alice") for store in generations] == [None, None]

    def test_a_generation_with_another_number_of_partitions_is_searched_by_its_own(
        self, erasures: ErasureStore, generations: Sequence[StateStore]
    ) -> None:
        for store, partitions in zip(generations, (PARTITIONS, 3), strict=True):
            store.set_partitions(partitions)
            store.swap([swap(partition_of("alice", partitions), None, 2, {"alice": row(1)})])
        erasures.forget([Erasure("alice", 500, 7)], TOPIC_ID, PARTITIONS)
        assert [store.read_user("alice") for store in generations] == [None, None]


def erased(**times_ms: int) -> Erasures:
    found = Erasures()
    for user, time_ms in times_ms.items():
        found.add(user, time_ms)
    return found
