import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec
import numpy as np
import pytest
import stamina

from export.pooling import write_pooling_bundle
from models.bundle import Bundle, Golden
from models.spec import WindowRule
from streams.contracts.frame import Frame, Source, encode_frame
from streams.contracts.recommendation import Recommendation, decode_recommendation
from streams.errors import (
    AuthenticationFailed,
    DeliveryFailed,
    EncoderFailed,
    LogGap,
    StateRefused,
    StoreLostTail,
    StoreUnavailable,
)
from streams.interest.encode import Encoder
from streams.interest.engine import Engine
from streams.services.applier import Received
from streams.store.memory import MemoryStore
from streams.store.protocol import Reading, Swap, SwapResult, Watermark
from tests.streams.services.workbench import (
    CLICKS,
    DEAD_LETTERS,
    NOW_MS,
    RECOMMENDATIONS,
    VIEWS,
    InteractionsLog,
    Letter,
    PoisonedEncoder,
    RawEvent,
    RecordingOutbox,
    Worker,
    engine_of,
    pack,
    settings_of,
    windows_of,
)

_Result = TypeVar("_Result")


@pytest.fixture(autouse=True)
def _without_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=10, cap=True):
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_pooling_bundle(
        tmp_path_factory.mktemp("applier") / "bundle",
        [f"i{number}" for number in range(20)],
        dim=4,
        window=WindowRule(max=4, keep=2),
    )


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return engine_of(bundle)


class HookedStore(MemoryStore):
    """A store to which something may happen: a hook runs before or after each call of a name, and may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Callable[[], None]] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self.swaps: list[Sequence[Swap]] = []

    def _hooked(self, name: str, call: Callable[[], _Result]) -> _Result:
        self.before.get(name, _nothing)()
        result = call()
        self.after.get(name, _nothing)()
        return result

    def read_watermarks(self, partitions: Sequence[int]) -> Mapping[int, Watermark | None]:
        return self._hooked("read_watermarks", lambda: MemoryStore.read_watermarks(self, partitions))

    def read_rows(self, users: Mapping[int, Sequence[str]]) -> Mapping[int, Reading]:
        return self._hooked("read_rows", lambda: MemoryStore.read_rows(self, users))

    def swap(self, swaps: Sequence[Swap]) -> Sequence[SwapResult]:
        self.swaps.append(swaps)
        return self._hooked("swap", lambda: MemoryStore.swap(self, swaps))


def _nothing() -> None:
    pass


def once(action: Callable[[], None]) -> Callable[[], None]:
    """The action the first time, nothing afterwards."""
    left = [action]
    return lambda: left.pop()() if left else None


def failing(error: Exception, times: int = 1) -> Callable[[], None]:
    """Raises so many times, then no more."""
    left = [error] * times

    def fail() -> None:
        if left:
            raise left.pop()

    return fail


class HookedOutbox(RecordingOutbox):
    """An outbox whose flush may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.before_flush: Callable[[], None] = _nothing

    def flush(self) -> None:
        self.before_flush()
        super().flush()


class Killed(BaseException):
    """The process is gone."""


class Bench:
    """One partition unless said otherwise, a store, an outbox, and workers on them."""

    def __init__(self, engine: Engine, partitions: int = 1) -> None:
        self.engine = engine
        self.log = InteractionsLog(partitions)
        self.store = HookedStore()
        self.outbox = HookedOutbox()

    def worker(self, *, batch_users: int = 512, engine: Engine | None = None) -> Worker:
        """A worker that has taken every partition over."""
        worker = Worker(self.log, self.store, engine or self.engine, self.outbox, settings_of(batch_users))
        worker.assign()
        return worker

    def watermark(self, partition: int = 0) -> Watermark | None:
        return self.store.read_watermarks([partition])[partition]

    def offset(self, partition: int = 0) -> int | None:
        watermark = self.watermark(partition)
        return None if watermark is None else watermark.offset

    def items_of(self, user: str) -> list[str]:
        return [item for _, _, item, _ in windows_of(self.store)[user]]

    def recommendations(self) -> list[Recommendation]:
        return [decode_recommendation(letter.value or b"") for letter in self.outbox.recommendations()]


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return Bench(engine)


def click(user: str, item: str, offset: int, *, event_id: str | None = None, seconds: int | None = None) -> RawEvent:
    """A click; its time rises with its offset unless given."""
    return RawEvent(user, item, offset, NOW_MS + 1000 * (offset if seconds is None else seconds), event_id)


def offsets(frames: Sequence[Received]) -> list[tuple[int, int]]:
    return [(received.partition, received.offset) for received in frames]


# The way that it should go


def test_frames_become_rows_recommendations_and_a_watermark(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 10), click("ben", "i2", 11))
    bench.log.append_events(click("anna", "i3", 12))
    worker = bench.worker()
    assert offsets(worker.drain()) == [(0, 0), (0, 1)]
    assert windows_of(bench.store) == {
        "anna": [(NOW_MS + 10_000, "clicks-0-10", "i1", "click"), (NOW_MS + 12_000, "clicks-0-12", "i3", "click")],
        "ben": [(NOW_MS + 11_000, "clicks-0-11", "i2", "click")],
    }
    assert bench.watermark() == Watermark(1, "id-of-interactions", 1, {CLICKS: 12})
    assert worker.events() == {"applied": 3}
    assert worker.health.ready().ok


def test_several_events_of_a_user_in_a_batch_give_one_recommendation_of_the_newest(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 10), click("ben", "i2", 11), click("anna", "i3", 12))
    bench.worker().drain()
    assert [(found.user_id, found.trigger.offset) for found in bench.recommendations()] == [("anna", 12), ("ben", 11)]
    assert [letter.key for letter in bench.outbox.recommendations()] == ["anna", "ben"]
    anna = bench.store.read_user("anna")
    assert anna is not None
    assert anna.row.recommendations == bench.outbox.recommendations()[0].value


def test_recommendations_are_acknowledged_before_rows_are_written(bench: Bench) -> None:
    delivered: list[int] = []
    bench.log.append_events(click("anna", "i1", 10), click("ben", "i2", 11))
    worker = bench.worker()
    bench.store.before["swap"] = lambda: delivered.append(len(bench.outbox.delivered))
    worker.drain()
    assert delivered == [2]


def test_all_partitions_are_swapped_in_one_call_each_from_its_own_watermark(engine: Engine) -> None:
    bench = Bench(engine, partitions=3)
    bench.log.append_events(click("anna", "i1", 1), click("carl", "i2", 2), click("dora", "i3", 3))
    bench.log.append_events(click("anna", "i4", 4))
    worker = bench.worker()
    worker.drain()
    assert [(swap.partition, swap.expected, swap.watermark.offset) for swap in bench.store.swaps[1]] == [
        (0, -1, 1),
        (1, -1, 0),
        (2, -1, 0),
    ]
    assert len(bench.store.swaps) == 2
    bench.log.append_events(click("carl", "i5", 5))
    worker.drain()
    assert [(swap.partition, swap.expected, swap.watermark.offset) for swap in bench.store.swaps[2]] == [(1, 0, 1)]


def test_only_marks_that_moved_are_written(bench: Bench) -> None:
    view = RawEvent("anna", "i2", 7, source=VIEWS, type="view")
    bench.log.append_events(click("anna", "i1", 10), view)
    worker = bench.worker()
    worker.drain()
    bench.log.append_events(click("anna", "i3", 11))
    worker.drain()
    swaps = bench.store.swaps[1:]
    assert [dict(swap.watermark.marks) for (swap,) in swaps] == [{CLICKS: 10, VIEWS: 7}, {CLICKS: 11}]
    assert bench.watermark() == Watermark(1, "id-of-interactions", 1, {CLICKS: 11, VIEWS: 7})


def test_a_frame_that_changes_nothing_moves_the_watermark_and_sends_nothing(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 10, event_id="a"))
    bench.log.append_events(click("anna", "i1", 11, event_id="a"))
    worker = bench.worker()
    worker.fetch(0, 1)
    worker.apply()
    worker.fetch(0, 1)
    assert offsets(worker.apply()) == [(0, 1)]
    assert bench.offset() == 1
    assert len(bench.outbox.recommendations()) == 1
    assert worker.events() == {"applied": 1, "repeat": 1}


def test_events_are_counted_by_their_outcome(bench: Bench) -> None:
    events = [click("anna", f"i{number}", number, seconds=100 + number) for number in range(5)]
    bench.log.append_events(*events)
    bench.log.append_events(
        *events[3:], click("anna", "i9", 5, seconds=1), click("anna", "i8", 6, event_id="a", seconds=200),
        click("anna", "i8", 7, event_id="a", seconds=201),
    )  # fmt: skip
    worker = bench.worker()
    worker.drain()
    assert worker.events() == {"applied": 6, "resent": 2, "late": 1, "repeat": 1}
    assert worker.count("frames_total") == 2
    assert worker.count("recommendations_total") == worker.count("users_total") == 1
    assert worker.count("event_to_vector_seconds_count") == 6


def test_between_vectors_of_two_models_there_is_no_drift(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 10))
    bench.worker().drain()
    row = bench.store._rows["anna"]
    bench.store._rows["anna"] = replace(row, model="an older one")
    bench.log.append_events(click("anna", "i2", 11))
    bench.log.append_events(click("anna", "i3", 12))
    worker = bench.worker()
    worker.fetch(0, 1)
    worker.apply()
    worker.drain()
    drifts = [found.vector.drift for found in bench.recommendations()]
    assert drifts[:2] == [None, None]
    assert drifts[2] is not None


# Frames that come again


def test_a_frame_at_or_below_the_watermark_is_acknowledged_and_changes_nothing(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 10))
    bench.log.append_events(click("anna", "i2", 11))
    worker = bench.worker()
    worker.drain()
    before = len(bench.outbox.delivered), len(bench.store.swaps)
    worker.backlog = bench.log.read(0, 0)
    assert offsets(worker.apply()) == [(0, 0), (0, 1)]
    assert (len(bench.outbox.delivered), len(bench.store.swaps)) == before
    assert bench.items_of("anna") == ["i1", "i2"]


def test_a_frame_that_stands_twice_in_the_backlog_counts_once(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 10))
    worker = bench.worker()
    worker.backlog = [*bench.log.read(0, 0), *bench.log.read(0, 0)]
    assert offsets(worker.apply()) == [(0, 0), (0, 0)]
    assert bench.items_of("anna") == ["i1"]


def test_what_ingest_sent_twice_is_dropped_although_the_frame_is_another(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 10), click("anna", "i2", 11))
    # Ingest was killed before it committed: it packs the same two again, and one more with them.
    bench.log.append_events(click("anna", "i1", 10), click("anna", "i2", 11), click("anna", "i3", 12))
    worker = bench.worker()
    worker.drain()
    assert bench.items_of("anna") == ["i1", "i2", "i3"]
    assert worker.events() == {"applied": 3, "resent": 2}


def test_resent_events_are_known_after_a_restart(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 10))
    bench.worker().drain()
    bench.log.append_events(click("anna", "i1", 10))
    worker = bench.worker()
    worker.drain()
    assert worker.events() == {"resent": 1}
    assert bench.items_of("anna") == ["i1"]


def test_an_equal_offset_of_another_source_is_another_event(bench: Bench) -> None:
    other = Source("clicks", "id-of-clicks", 1)
    recreated = Source("clicks", "id-of-the-new-clicks", 0)
    bench.log.append_events(
        *[RawEvent("anna", f"i{number}", 10, NOW_MS + number, source=source)
          for number, source in enumerate([CLICKS, other, recreated, VIEWS])]
    )  # fmt: skip
    bench.worker().drain()
    assert bench.items_of("anna") == ["i0", "i1", "i2", "i3"]


# Crashes


def killed() -> None:
    raise Killed


def test_a_crash_before_the_swap_repeats_the_same_lists_under_the_same_ids(engine: Engine) -> None:
    whole, broken = Bench(engine), Bench(engine)
    for bench in (whole, broken):
        bench.log.append_events(click("anna", "i1", 10), click("ben", "i2", 11))
        bench.log.append_events(click("anna", "i3", 12))
    whole.worker().drain()

    worker = broken.worker()
    broken.store.before["swap"] = once(killed)
    with pytest.raises(Killed):
        worker.drain()
    assert broken.offset() == -1
    assert windows_of(broken.store) == {}
    worker = broken.worker()
    assert worker.next_offsets == {0: 0}
    worker.drain()

    assert windows_of(broken.store) == windows_of(whole.store)
    assert broken.watermark() == whole.watermark()
    first, second = broken.recommendations()[:2], broken.recommendations()[2:]
    for sent, again, expected in zip(first, second, whole.recommendations(), strict=True):
        assert sent.recommendation_id == again.recommendation_id == expected.recommendation_id
        assert sent.items == again.items == expected.items


def test_a_crash_after_the_swap_repeats_nothing(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 10))
    worker = bench.worker()
    bench.store.after["swap"] = once(killed)
    with pytest.raises(Killed):
        worker.drain()
    worker = bench.worker()
    assert worker.next_offsets == {0: 1}
    worker.drain()
    assert len(bench.recommendations()) == 1
    assert bench.items_of("anna") == ["i1"]


def test_a_replay_in_other_batches_gives_an_id_to_one_list_only(engine: Engine) -> None:
    bench = Bench(engine)
    for offset in range(6):
        bench.log.append_events(click("anna", f"i{offset}", 2 * offset), click("ben", f"i{offset + 6}", 2 * offset + 1))
    worker = bench.worker()
    bench.store.before["swap"] = once(killed)
    with pytest.raises(Killed):
        worker.drain()
    worker = bench.worker()
    while worker.fetch(0, 1):
        worker.apply()
    found = bench.recommendations()
    assert len(found) == 2 + 12
    by_id = {one.recommendation_id: one for one in found}
    assert len(by_id) == 12
    assert all(by_id[one.recommendation_id].items == one.items for one in found)


# Other workers


def test_frames_that_another_worker_applied_between_read_and_swap_are_skipped(bench: Bench) -> None:
    for offset in range(3):
        bench.log.append_events(click("anna", f"i{offset}", offset))

    def other_worker_takes_two() -> None:
        other = Worker(bench.log, bench.store, bench.engine, RecordingOutbox())
        other.assign()
        other.fetch(0, 2)
        other.apply()

    worker = bench.worker()
    bench.store.before["swap"] = once(other_worker_takes_two)
    worker.fetch(0)
    assert worker.apply() == []
    assert bench.offset() == 1
    assert offsets(worker.apply()) == [(0, 0), (0, 1), (0, 2)]
    assert bench.items_of("anna") == ["i0", "i1", "i2"]
    assert worker.events() == {"applied": 1}
    assert worker.count("stale_swaps_total") == 1


def test_a_frame_that_was_read_under_two_assignments_is_not_done_with_before_it_is_applied(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i0", 0))
    bench.log.append_events(click("anna", "i1", 1))
    worker = bench.worker()
    worker.fetch(0)
    worker.assign()
    worker.fetch(0)

    def other_worker_takes_one() -> None:
        other = Worker(bench.log, bench.store, bench.engine, RecordingOutbox())
        other.assign()
        other.fetch(0, 1)
        other.apply()

    bench.store.before["read_rows"] = once(other_worker_takes_one)
    assert worker.apply() == []
    assert offsets(worker.apply()) == [(0, 0), (0, 0), (0, 1), (0, 1)]
    assert bench.items_of("anna") == ["i0", "i1"]


def test_a_watermark_that_moved_before_the_reading_costs_no_encoding(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 1))
    worker = bench.worker()
    bench.worker().drain()
    sent = len(bench.outbox.delivered)
    worker.fetch(0)
    assert worker.apply() == []
    assert len(bench.outbox.delivered) == sent
    assert offsets(worker.apply()) == [(0, 0)]


def test_a_stale_worker_does_not_hold_up_its_other_partitions(engine: Engine) -> None:
    bench = Bench(engine, partitions=3)
    bench.log.append_events(click("anna", "i1", 1), click("carl", "i2", 2))
    worker = bench.worker()
    other = Worker(bench.log, bench.store, bench.engine, RecordingOutbox())
    other.assign([0])
    other.drain()
    for partition in range(3):
        worker.fetch(partition)
    assert offsets(worker.apply()) == [(1, 0)]
    assert offsets(worker.apply()) == [(0, 0)]
    assert (bench.items_of("anna"), bench.items_of("carl")) == (["i1"], ["i2"])


@pytest.mark.parametrize("call", ["read_rows", "swap"])
@pytest.mark.parametrize("rest", [0, None])
def test_a_watermark_that_went_back_ends_the_process(bench: Bench, call: str, rest: int | None) -> None:
    for offset in range(3):
        bench.log.append_events(click("anna", f"i{offset}", offset))
    worker = bench.worker()
    worker.fetch(0, 2)
    worker.apply()

    def lose_the_tail() -> None:
        bench.store._watermarks.clear()
        if rest is not None:
            bench.store._watermarks[0] = Watermark(rest, "id-of-interactions", 1)

    bench.store.before[call] = once(lose_the_tail)
    worker.fetch(0)
    with pytest.raises(StoreLostTail) as caught:
        worker.apply()
    shown = "gone" if rest is None else str(rest)
    assert f"interactions partition 0 is {shown}, this worker had applied 1" in str(caught.value)
    assert "A restart reads the log again" in str(caught.value)


@pytest.mark.parametrize("rest", [0, None])
def test_a_watermark_that_went_back_is_noticed_although_no_frames_come(bench: Bench, rest: int | None) -> None:
    applied(bench, 3)
    worker = bench.worker()
    worker.applier.check_tail()
    bench.store._watermarks.clear()
    if rest is not None:
        bench.store._watermarks[0] = Watermark(rest, "id-of-interactions", 1)
    with pytest.raises(StoreLostTail, match="this worker had applied 2"):
        worker.applier.check_tail()


def test_a_watermark_that_another_worker_moved_on_is_no_lost_tail(engine: Engine) -> None:
    bench = Bench(engine, partitions=3)
    bench.log.append_events(click("anna", "i1", 1))
    worker, other = bench.worker(), bench.worker()
    worker.applier.check_tail()
    other.drain()
    worker.applier.check_tail()
    worker.drain()
    assert bench.items_of("anna") == ["i1"]


def test_a_watermark_that_was_adopted_for_another_topic_meanwhile_is_refused(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 1))
    bench.log.append_events(click("anna", "i2", 2))
    worker = bench.worker()
    worker.fetch(0, 1)
    worker.apply()
    bench.store._watermarks[0] = Watermark(0, "id-of-a-new-one", 1)
    worker.fetch(0)
    with pytest.raises(StateRefused, match="belongs to another topic than the one that this worker reads"):
        worker.apply()


def test_a_gap_in_the_log_ends_the_process_before_anything_is_written(bench: Bench) -> None:
    for offset in range(3):
        bench.log.append_events(click("anna", f"i{offset}", offset))
    worker = bench.worker()
    worker.backlog = [*bench.log.read(0, 0, 1), *bench.log.read(0, 2)]
    with pytest.raises(LogGap) as caught:
        worker.apply()
    assert "interactions partition 0: expected offset 1, got 2" in str(caught.value)
    assert bench.offset() == -1
    assert bench.outbox.sent == bench.outbox.delivered == []


def test_frames_of_a_partition_that_is_no_longer_ours_are_neither_applied_nor_acknowledged(engine: Engine) -> None:
    bench = Bench(engine, partitions=3)
    bench.log.append_events(click("anna", "i1", 1), click("carl", "i2", 2))
    worker = bench.worker()
    for partition in range(3):
        worker.fetch(partition)
    worker.assign([1])
    assert offsets(worker.apply()) == [(1, 0)]
    assert worker.backlog == []
    assert bench.offset(0) == -1


# Taking partitions over


def test_reading_starts_after_the_watermark_whatever_kafka_says(bench: Bench) -> None:
    for offset in range(4):
        bench.log.append_events(click("anna", f"i{offset}", offset))
    worker = bench.worker()
    worker.fetch(0, 2)
    worker.apply()
    for committed in (0, 1, 2, 4):
        bench.log.commit(0, committed)
        assert bench.worker().next_offsets == {0: 2}


def test_without_a_watermark_reading_starts_where_the_log_does(bench: Bench) -> None:
    for offset in range(3):
        bench.log.append_events(click("anna", f"i{offset}", offset))
    bench.log.starts[0] = 2  # retention took the first two before anyone read
    worker = bench.worker()
    assert worker.next_offsets == {0: 2}
    worker.drain()
    assert bench.items_of("anna") == ["i2"]


def test_a_group_that_has_committed_only_its_start_may_go_on_without_a_watermark(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i0", 0))
    bench.log.commit(0, 0)
    assert bench.worker().next_offsets == {0: 0}


def test_a_partition_that_is_taken_over_for_the_first_time_gets_a_watermark_before_its_first_frame(
    engine: Engine,
) -> None:
    bench = Bench(engine, partitions=3)
    bench.log.append_events(click("anna", "i0", 0))
    bench.log.append_events(click("anna", "i1", 1))
    bench.log.starts[0] = 1  # retention took the first one before anyone read
    worker = bench.worker()
    assert worker.next_offsets == {0: 1, 1: 0, 2: 0}
    assert [bench.watermark(partition) for partition in range(3)] == [
        Watermark(offset, "id-of-interactions", 3) for offset in (0, -1, -1)
    ]
    worker.drain()
    assert bench.items_of("anna") == ["i1"]
    assert [bench.offset(partition) for partition in range(3)] == [1, -1, -1]


def test_where_another_worker_has_begun_meanwhile_its_watermark_stays(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i0", 0))

    def another_begins() -> None:
        bench.worker().drain()

    bench.store.before["swap"] = once(another_begins)
    worker = bench.worker()
    assert bench.watermark() == Watermark(0, "id-of-interactions", 1, {CLICKS: 0})
    bench.log.append_events(click("anna", "i1", 1))
    assert offsets(worker.drain()) == [(0, 0), (0, 1)]
    assert bench.items_of("anna") == ["i0", "i1"]
    assert worker.events() == {"applied": 1}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_around_the_first_watermark_leaves_it_to_the_next_worker(bench: Bench, moment: str) -> None:
    bench.log.append_events(click("anna", "i0", 0))
    getattr(bench.store, moment)["swap"] = once(killed)
    with pytest.raises(Killed):
        bench.worker()
    worker = bench.worker()
    assert (worker.next_offsets, bench.offset()) == ({0: 0}, -1)
    worker.drain()
    assert bench.items_of("anna") == ["i0"]


def test_a_first_watermark_whose_answer_was_lost_is_found_written(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i0", 0))
    bench.store.after["swap"] = failing(StoreUnavailable("the connection broke"))
    worker = bench.worker()
    worker.drain()
    assert (bench.offset(), worker.count("stale_swaps_total")) == (0, 0)


def test_a_store_that_is_refused_gets_no_first_watermarks(engine: Engine) -> None:
    bench = Bench(engine, partitions=2)
    bench.log.commit(1, 7)
    with pytest.raises(StateRefused, match="no watermark for interactions partition 1"):
        bench.worker()
    assert [bench.watermark(partition) for partition in range(2)] == [None, None]


def test_a_topic_made_anew_is_seen_although_nothing_was_ever_applied(bench: Bench) -> None:
    bench.worker()
    assert "StateRefused: topic interactions was deleted and made anew" in refusal(bench, InteractionsLog(1, "id-2"))


def test_the_next_offsets_follow_what_was_applied(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i0", 0))
    worker = bench.worker()
    assert worker.applier.next_offsets() == {0: 0}
    worker.drain()
    assert worker.applier.next_offsets() == {0: 1}


def refusal(bench: Bench, log: InteractionsLog | None = None) -> str:
    worker = Worker(log or bench.log, bench.store, bench.engine, bench.outbox)
    with pytest.raises((StateRefused, LogGap)) as caught:
        worker.assign()
    return f"{type(caught.value).__name__}: {caught.value}"


def applied(bench: Bench, frames: int) -> None:
    for offset in range(frames):
        bench.log.append_events(click("anna", f"i{offset}", offset))
    bench.worker().drain()


def test_an_emptied_store_under_committed_offsets_is_refused(bench: Bench) -> None:
    applied(bench, 3)
    bench.store = HookedStore()
    message = refusal(bench)
    assert message.startswith("StateRefused: the store has no watermark for interactions partition 0, but group")
    assert "driftline-evolve has committed offset 3" in message
    assert "Point redis.url and redis.generation at the right one" in message
    assert "`driftline evolve --rebuild`" in message


def test_a_person_may_have_an_emptied_store_rebuilt(bench: Bench) -> None:
    applied(bench, 3)
    before = windows_of(bench.store)
    bench.store = HookedStore()
    worker = Worker(bench.log, bench.store, bench.engine, bench.outbox)
    assert worker.assign(rebuild=True) == {0: 0}
    worker.drain()
    assert windows_of(bench.store) == before


def test_a_watermark_past_the_end_of_the_log_is_refused(bench: Bench) -> None:
    applied(bench, 3)
    del bench.log.frames[0][2:]
    message = refusal(bench)
    assert message.startswith("StateRefused: the store's watermark of interactions partition 0 is 2, but its log ends")
    assert "ends at 2" in message
    assert "this store belongs to another cluster" in message
    assert "run `driftline topics adopt interactions`" in message


def test_a_recreated_topic_is_refused_by_its_id_even_when_the_offsets_fit(bench: Bench) -> None:
    applied(bench, 3)
    recreated = InteractionsLog(1, topic_id="id-of-a-new-one")
    recreated.frames = bench.log.frames
    message = refusal(bench, recreated)
    assert message.startswith("StateRefused: topic interactions was deleted and made anew")
    assert "belongs to id id-of-interactions, the topic is id-of-a-new-one" in message
    assert "run `driftline topics adopt interactions`" in message


def test_frames_that_retention_deleted_before_they_were_applied_are_a_gap(bench: Bench) -> None:
    applied(bench, 2)
    for offset in range(2, 6):
        bench.log.append_events(click("anna", f"i{offset}", offset))
    bench.log.starts[0] = 5
    message = refusal(bench)
    assert message.startswith("LogGap: interactions partition 0: the store has applied up to offset 1")
    assert "the log now starts at 5: retention deleted 3 frames" in message
    bench.log.starts[0] = 2
    assert bench.worker().next_offsets == {0: 2}


def test_another_number_of_partitions_is_refused(bench: Bench) -> None:
    applied(bench, 1)
    message = refusal(bench, InteractionsLog(4))
    assert message.startswith("StateRefused: topic interactions has 4 partitions, the store was filled with 1")
    assert "set redis.key_prefix to a new name" in message


def test_an_adopted_topic_is_read_from_its_beginning(bench: Bench) -> None:
    applied(bench, 2)
    bench.log = InteractionsLog(1, topic_id="id-of-a-new-one")
    bench.log.append_events(click("anna", "i9", 2))
    # What `driftline topics adopt` writes.
    assert bench.store.replace_watermark(0, bench.watermark(), Watermark(-1, "id-of-a-new-one", 1, {CLICKS: 1}))
    worker = bench.worker()
    assert worker.next_offsets == {0: 0}
    worker.drain()
    assert bench.items_of("anna") == ["i0", "i1", "i9"]


# Faults that pass


@pytest.mark.parametrize("call", ["read_watermarks", "read_rows", "swap"])
def test_a_store_that_is_away_for_a_while_costs_nothing_but_time(bench: Bench, call: str) -> None:
    bench.log.append_events(click("anna", "i1", 1))
    ready: list[tuple[bool, tuple[str, ...]]] = []
    away = failing(StoreUnavailable("Redis is away"), times=3)

    def look_and_fail() -> None:
        verdict = worker.health.ready()
        ready.append((verdict.ok, verdict.reasons))
        away()

    worker = Worker(bench.log, bench.store, bench.engine, bench.outbox)
    bench.store.before[call] = look_and_fail
    worker.assign()
    worker.drain()
    # Swapped is twice: when it takes over, and when it applies.
    assert ready == [(True, ())] + [(False, ("Redis is away",))] * 3 + [(True, ())] * (call == "swap")
    assert worker.health.ready().ok
    operation = "store_swap" if call == "swap" else "store_read"
    assert worker.count("retries_total", operation=operation) == 3
    assert bench.items_of("anna") == ["i1"]
    assert len(bench.recommendations()) == 1


def test_a_swap_whose_answer_was_lost_is_found_done(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 1))
    worker = bench.worker()
    bench.store.after["swap"] = failing(StoreUnavailable("the connection broke"))
    worker.fetch(0)
    assert offsets(worker.apply()) == [(0, 0)]
    assert worker.events() == {"applied": 1}
    assert worker.count("stale_swaps_total") == 0


def test_a_broker_that_is_away_for_a_while_gets_the_same_recommendations(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 1))
    worker = bench.worker()
    bench.outbox.before_flush = failing(DeliveryFailed("Kafka is away"), times=2)
    worker.drain()
    # All of the batch is sent again each time: which of it had arrived is unknown.
    assert len({letter.value for letter in bench.outbox.recommendations()}) == 1
    assert worker.count("retries_total", operation="produce") == 2
    assert worker.health.ready().ok


def test_a_broker_that_stays_away_ends_the_process_before_anything_is_written(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 1))
    worker = bench.worker()
    bench.outbox.before_flush = failing(DeliveryFailed("Kafka is away"), times=3)
    with pytest.raises(DeliveryFailed):
        worker.drain()
    assert bench.offset() == -1
    assert not worker.health.ready().ok


@pytest.mark.parametrize("call", ["read_rows", "swap"])
def test_what_does_not_pass_is_not_tried_again(bench: Bench, call: str) -> None:
    bench.log.append_events(click("anna", "i1", 1))
    worker = bench.worker()
    bench.store.before[call] = failing(AuthenticationFailed("wrong password"), times=1)
    with pytest.raises(AuthenticationFailed):
        worker.drain()


# Poison


class BreaksError(Exception):
    """What a library below may raise."""


def poisoned(bundle: Bundle, *items: str) -> Engine:
    rows = {bundle.vocabulary.rows[item] for item in items}
    encoder = PoisonedEncoder(Encoder(bundle, "cpu"), rows, lambda: BreaksError("no such shape"))
    return engine_of(bundle, encoder)


def header(letter: Letter, name: str) -> str:
    return (dict(letter.headers)[f"__streams.errors.{name}"] or b"").decode()


def test_a_poisonous_event_is_found_and_buried_and_everyone_else_is_served(bundle: Bundle, bench: Bench) -> None:
    names = [f"u{number}" for number in range(40)]
    bench.log.append_events(*[click(user, "i1", offset) for offset, user in enumerate(names)])
    bench.log.append_events(
        click("u17", "i2", 100, event_id="fine"),
        RawEvent("u17", "i5", 101, NOW_MS + 101_000, "poison"),
        click("u17", "i3", 102),
        click("u18", "i3", 103),
    )
    worker = bench.worker(engine=poisoned(bundle, "i5"))
    assert offsets(worker.drain()) == [(0, 0), (0, 1)]
    assert bench.items_of("u17") == ["i1", "i2", "i3"]
    assert all(bench.items_of(user) == ["i1"] for user in names if user not in ("u17", "u18"))
    assert bench.items_of("u18") == ["i1", "i3"]
    (letter,) = bench.outbox.dead_letters()
    assert json.loads(letter.value or b"") == {
        "user_id": "u17", "item_id": "i5", "type": "click", "event_id": "poison", "event_time": NOW_MS + 101_000,
    }  # fmt: skip
    assert letter.key == b"u17"
    assert header(letter, "exception") == "poison"
    assert header(letter, "message") == "the model fails on this event: BreaksError('no such shape')"
    assert (header(letter, "topic"), header(letter, "partition"), header(letter, "offset")) == ("clicks", "0", "101")
    assert header(letter, "stage") == "encode"
    assert worker.events() == {"applied": 43, "dead_lettered": 1}
    assert worker.dead_letters() == {"poison": 1}
    assert len(bench.recommendations()) == 40


def test_a_user_of_nothing_but_poison_gets_no_row_and_the_log_goes_on(bundle: Bundle, bench: Bench) -> None:
    bench.log.append_events(click("anna", "i5", 1), click("anna", "i6", 2))
    worker = bench.worker(engine=poisoned(bundle, "i5", "i6"))
    worker.drain()
    assert bench.store.read_user("anna") is None
    assert bench.offset() == 0
    assert [header(letter, "offset") for letter in bench.outbox.dead_letters()] == ["1", "2"]
    # A buried event is behind the marks too: ingest's re-send of it is no news.
    bench.log.append_events(click("anna", "i5", 1))
    worker.drain()
    assert len(bench.outbox.dead_letters()) == 2


def test_a_failure_that_does_not_repeat_buries_nothing(bundle: Bundle, bench: Bench) -> None:
    encoder = PoisonedEncoder(Encoder(bundle, "cpu"), {1}, lambda: BreaksError("out of memory"), calls=2)
    engine = engine_of(bundle, encoder)
    bench.log.append_events(*[click(f"u{number}", "i0", number) for number in range(4)])
    worker = bench.worker(engine=engine)
    worker.drain()
    assert bench.outbox.dead_letters() == []
    assert worker.events() == {"applied": 4}


def test_a_model_that_fails_on_everything_ends_the_process_and_buries_nothing(bundle: Bundle, bench: Bench) -> None:
    golden = bundle.golden
    wrong = replace(bundle, golden=Golden(golden.inputs, golden.vectors + np.float32(1), golden.top))
    encoder = PoisonedEncoder(
        _Unverified(Encoder(bundle, "cpu"), wrong), set(range(21)), lambda: BreaksError("device lost")
    )
    bench.log.append_events(click("anna", "i1", 1), click("ben", "i2", 2))
    worker = bench.worker(engine=engine_of(bundle, encoder))
    with pytest.raises(EncoderFailed):
        worker.drain()
    assert bench.outbox.sent == bench.outbox.delivered == []
    assert bench.offset() == -1


class _Unverified:
    """An encoder whose golden sample no longer holds."""

    def __init__(self, inner: Encoder, wrong: Bundle) -> None:
        self._wrong = wrong
        self.encode = inner.encode
        self.encode_posterior = inner.encode_posterior

    def verify(self) -> None:
        Encoder(self._wrong, "cpu")


def test_a_row_that_cannot_be_read_is_refused_by_name_and_not_taken_for_poison(bench: Bench) -> None:
    bench.log.append_events(*[click(f"u{number}", "i1", number) for number in range(5)])
    bench.worker().drain()
    bench.store._rows["u3"] = replace(bench.store._rows["u3"], state=b"\xc1 not ours")
    bench.log.append_events(*[click(f"u{number}", "i2", 10 + number) for number in range(5)])
    worker = bench.worker()
    with pytest.raises(StateRefused) as caught:
        worker.drain()
    assert "the row of user 'u3' in the store can't be read" in str(caught.value)
    assert "upgrade, or delete that key" in str(caught.value)
    assert bench.outbox.dead_letters() == []
    assert bench.offset() == 0


@pytest.mark.parametrize("raw", [b"", b"\xffnot a frame", b'{"user_id":"anna"}'])
def test_bytes_that_are_no_frame_are_buried_as_they_came(bench: Bench, raw: bytes) -> None:
    bench.log.append_events(click("anna", "i1", 1))
    bench.log.append(0, raw)
    bench.log.append_events(click("anna", "i2", 2))
    worker = bench.worker()
    assert offsets(worker.drain()) == [(0, 0), (0, 1), (0, 2)]
    assert bench.items_of("anna") == ["i1", "i2"]
    (letter,) = bench.outbox.dead_letters()
    assert (letter.topic, letter.value, letter.key) == (DEAD_LETTERS, raw, None)
    assert (header(letter, "exception"), header(letter, "stage")) == ("invalid_frame", "frame")
    assert (header(letter, "topic"), header(letter, "partition"), header(letter, "offset")) == (
        "interactions",
        "0",
        "1",
    )
    assert header(letter, "message")
    assert worker.dead_letters() == {"invalid_frame": 1}


def test_a_frame_of_a_newer_version_is_buried_whole(bench: Bench) -> None:
    newer = msgspec.structs.replace(Frame(1, [], [], [], [], [], [], [], [], [], {}), version=2)
    bench.log.append(0, encode_frame(newer))
    worker = bench.worker()
    worker.drain()
    (letter,) = bench.outbox.dead_letters()
    assert letter.value == encode_frame(newer)
    assert header(letter, "message") == "frame version 2, this worker reads version 1"
    assert bench.offset() == 0


# Bounds


def test_a_batch_ends_after_the_frame_that_reaches_its_users(bench: Bench) -> None:
    for number in range(5):
        bench.log.append_events(
            click(f"u{2 * number}", "i1", 2 * number), click(f"u{2 * number + 1}", "i1", 2 * number + 1)
        )
    worker = bench.worker(batch_users=3)
    worker.fetch(0)
    assert [offsets(worker.apply()) for _ in range(3)] == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]


def test_events_of_the_same_users_do_not_fill_a_batch(bench: Bench) -> None:
    for number in range(10):
        bench.log.append_events(click("anna", "i1", number))
    worker = bench.worker(batch_users=2)
    worker.fetch(0)
    assert len(worker.apply()) == 10


def test_one_swap_holds_at_most_256_users_cut_at_the_border_of_a_frame(bench: Bench) -> None:
    sizes = [100, 100, 100, 56, 100]
    names = [f"u{number}" for number in range(sum(sizes))]
    start = 0
    for size in sizes:
        bench.log.append_events(
            *[click(user, "i1", offset) for offset, user in enumerate(names[start : start + size], start)]
        )
        start += size
    worker = bench.worker(batch_users=4096)
    worker.fetch(0)
    batches = []
    while worker.backlog:
        batches.append(len(worker.apply()))
    assert batches == [2, 3]
    assert [len(swap.rows) for (swap,) in bench.store.swaps[1:]] == [200, 256]
    assert len(windows_of(bench.store)) == 456


def test_users_that_two_frames_share_count_once_towards_the_256(bench: Bench) -> None:
    names = [f"u{number}" for number in range(256)]
    for start in (0, 1000):
        bench.log.append_events(*[click(user, "i1", start + offset) for offset, user in enumerate(names)])
    worker = bench.worker(batch_users=4096)
    worker.fetch(0)
    assert len(worker.apply()) == 2


def test_when_a_frame_is_held_back_the_later_ones_of_its_partition_are_too(engine: Engine) -> None:
    bench = Bench(engine, partitions=3)
    many = [f"u{number}" for number in range(3000)]
    in_first = [user for user in many if next(iter(pack([click(user, "i", 0)], 3))) == 0]
    bench.log.append_events(*[click(user, "i1", offset) for offset, user in enumerate(in_first[:200])])
    bench.log.append_events(*[click(user, "i1", 1000 + offset) for offset, user in enumerate(in_first[200:400])])
    bench.log.append_events(click(in_first[0], "i2", 2000))  # would fit, but comes after one that does not
    bench.log.append_events(click("carl", "i2", 2001))
    worker = bench.worker(batch_users=4096)
    worker.fetch(0)
    worker.fetch(1)
    assert offsets(worker.apply()) == [(0, 0), (1, 0)]
    assert offsets(worker.apply()) == [(0, 1), (0, 2)]


def test_an_empty_backlog_is_no_work(bench: Bench) -> None:
    worker = bench.worker()
    bench.store.swaps.clear()
    assert worker.apply() == []
    assert bench.store.swaps == []


def test_recommendations_and_dead_letters_go_to_the_topics_of_the_settings(bench: Bench) -> None:
    bench.log.append_events(click("anna", "i1", 1))
    bench.log.append(0, b"no frame")
    bench.worker().drain()
    assert sorted({letter.topic for letter in bench.outbox.delivered}) == [DEAD_LETTERS, RECOMMENDATIONS]
