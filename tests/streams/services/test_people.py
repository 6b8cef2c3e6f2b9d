"""What people ask for in the log, as one worker and another apply it."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import msgspec
import pytest
import stamina
import structlog
from hypothesis import given
from hypothesis import strategies as st

from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from streams.contracts.erasure import Erasure, Erasures, user_digest
from streams.contracts.event import ERASE, IDENTIFY
from streams.contracts.frame import Source, decode_frame
from streams.contracts.recommendation import decode_recommendation
from streams.errors import StoreUnavailable
from streams.interest.engine import Engine
from streams.interest.window import EMPTY_STATE, Arrival, advance_window
from streams.services.arrivals import Identified
from streams.services.handovers import Handover, handed_over
from streams.store.memory import MemoryErasures, MemoryStore
from tests.streams.services.workbench import (
    NOW_MS,
    VIEWS,
    InteractionsLog,
    RawEvent,
    RecordingOutbox,
    Worker,
    engine_of,
    pack,
    settings_of,
    windows_of,
)


@pytest.fixture(autouse=True)
def _without_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=10, cap=True):
        yield


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("people") / "bundle"
    return engine_of(write_pooling_bundle(path, [f"i{n}" for n in range(20)], dim=4, window=WindowRule(max=6, keep=4)))


class Killed(BaseException):
    """The process is gone."""


class World:
    """A log, a served generation, another one, and what was recorded of erasures."""

    def __init__(self, engine: Engine, partitions: int = 1) -> None:
        self.engine = engine
        self.log = InteractionsLog(partitions)
        self.store, self.other = MemoryStore(), MemoryStore()
        self.erasures = MemoryErasures([self.store, self.other])
        self.outbox = RecordingOutbox(self.log)

    def worker(self, erasures: MemoryErasures | None = None) -> Worker:
        worker = Worker(self.log, self.store, self.engine, self.outbox, erasures=erasures or self.erasures)
        worker.assign(rebuild=True)
        return worker

    def fill_other(self) -> None:
        """The other generation has applied the log so far."""
        worker = Worker(self.log, self.other, self.engine, RecordingOutbox(), erasures=MemoryErasures())
        worker.assign(rebuild=True)
        worker.drain()

    def drain(self) -> Worker:
        """One worker applies the log to its end, handovers that it sends included."""
        worker = self.worker()
        drain(worker)
        return worker

    def handovers(self) -> list[tuple[int, list[tuple[str, str]]]]:
        """The frames that were sent to the log: to which partition, and each event's user and item."""
        return [
            (letter.partition, [(event[4], event[5]) for event in _columns(letter.value or b"")])
            for letter in self.outbox.delivered
            if letter.topic == self.log.topic.name
        ]

    def items(self) -> dict[str, list[str]]:
        return {user: [item for _, _, item, _ in window] for user, window in windows_of(self.store).items()}


def drain(worker: Worker) -> None:
    """Apply the log to its end, handovers that come meanwhile included."""
    while worker.drain():
        pass


def erase(user: str, offset: int, time_ms: int) -> RawEvent:
    return RawEvent(user, "", offset, time_ms, type=ERASE)


def identify(anonymous: str, user: str, offset: int, time_ms: int) -> RawEvent:
    return RawEvent(anonymous, user, offset, time_ms, type=IDENTIFY)


def _columns(raw: bytes) -> Iterator[tuple[Any, ...]]:
    version, sources, source, *columns, _ = msgspec.msgpack.decode(raw)
    for row, index in enumerate(source):
        yield (version, sources[index], *(column[row] for column in columns))


def test_a_window_ends_at_its_users_erasure_and_what_comes_after_begins_a_new_one(engine: Engine) -> None:
    world = World(engine)
    worker = world.worker()
    world.log.append_events(RawEvent("ana", "i1", 0), RawEvent("bea", "i2", 1))
    worker.drain()
    assert world.items() == {"ana": ["i1"], "bea": ["i2"]}
    world.log.append_events(erase("ana", 2, NOW_MS + 10))
    worker.drain()
    assert world.items() == {"bea": ["i2"]}
    world.log.append_events(RawEvent("ana", "i3", 3, NOW_MS + 20))
    worker.drain()
    assert world.items() == {"ana": ["i3"], "bea": ["i2"]}
    assert worker.events() == {"applied": 3, "control": 1}


def test_within_one_batch_only_what_comes_after_the_newest_erasure_counts(engine: Engine) -> None:
    world = World(engine)
    world.log.append_events(RawEvent("ana", "i1", 0))
    worker = world.worker()
    worker.drain()
    world.log.append_events(
        RawEvent("ana", "i2", 1, NOW_MS + 1),
        erase("ana", 2, NOW_MS + 2),
        RawEvent("ana", "i3", 3, NOW_MS + 3),
        erase("ana", 4, NOW_MS + 4),
        RawEvent("ana", "i4", 5, NOW_MS + 5),
        RawEvent("bea", "i5", 6, NOW_MS + 6),
        erase("bea", 7, NOW_MS + 7),
    )
    worker.drain()
    assert world.items() == {"ana": ["i4"]}
    assert worker.events() == {"applied": 2, "erased": 3, "control": 3}
    (recommended,) = [letter.key for letter in world.outbox.recommendations()[1:]]
    assert recommended == "ana"


def test_an_erasure_that_ingest_sent_again_is_dropped_and_one_that_an_app_sends_again_counts_again(
    engine: Engine,
) -> None:
    world = World(engine)
    worker = world.worker()
    world.log.append_events(erase("ana", 0, NOW_MS), RawEvent("ana", "i1", 1, NOW_MS + 1))
    world.log.append_events(erase("ana", 0, NOW_MS))
    worker.drain()
    assert world.items() == {"ana": ["i1"]}
    world.log.append_events(erase("ana", 2, NOW_MS + 2))
    worker.drain()
    assert world.items() == {}
    assert worker.events() == {"applied": 1, "resent": 1, "control": 2}


def test_an_event_of_before_that_ingest_reads_after_the_erasure_does_not_come_back(engine: Engine) -> None:
    world = World(engine)
    worker = world.worker()
    world.log.append_events(erase("ana", 0, NOW_MS))
    worker.drain()
    world.log.append_events(
        RawEvent("ana", "i1", 0, NOW_MS - 5, source=VIEWS),
        RawEvent("ana", "i2", 1, NOW_MS, source=VIEWS),
        RawEvent("ana", "i3", 2, NOW_MS + 1, source=VIEWS),
        RawEvent("bea", "i4", 3, NOW_MS - 5, source=VIEWS),
    )
    worker.drain()
    assert world.items() == {"ana": ["i3"], "bea": ["i4"]}
    assert worker.events() == {"applied": 2, "erased": 2, "control": 1}


def test_a_worker_that_comes_later_knows_what_was_recorded(engine: Engine) -> None:
    world = World(engine)
    world.log.append_events(RawEvent("ana", "i1", 0), erase("ana", 1, NOW_MS + 5))
    world.worker().drain()
    world.log.append_events(RawEvent("ana", "i2", 0, NOW_MS + 3, source=VIEWS))
    world.worker().drain()
    assert world.items() == {}


def test_an_erasure_that_was_recorded_by_hand_still_ends_the_window_when_it_comes_in_the_log(engine: Engine) -> None:
    world = World(engine)
    world.log.append_events(RawEvent("ana", "i1", 0, NOW_MS + 3))
    worker = world.worker()
    worker.drain()
    asked = Erasures()
    asked.add("ana", NOW_MS + 5)
    world.erasures.record(asked)
    world.log.append_events(RawEvent("ana", "i2", 1, NOW_MS + 4), erase("ana", 2, NOW_MS + 5))
    worker.drain()
    assert world.items() == {}


def test_a_generation_that_has_not_come_to_the_erasure_loses_the_row_and_one_that_has_keeps_what_came_after(
    engine: Engine,
) -> None:
    world = World(engine)
    world.log.append_events(RawEvent("ana", "i1", 0), RawEvent("bea", "i2", 1))
    world.fill_other()
    world.log.append_events(erase("ana", 2, NOW_MS + 1))
    world.worker().drain()
    assert world.other.read_user("ana") is None
    assert world.other.read_user("bea") is not None
    # The served one was behind: it comes to the erasure when the other has long gone on.
    later = World(engine)
    later.log.append_events(RawEvent("ana", "i1", 0), erase("ana", 1, NOW_MS + 1), RawEvent("ana", "i2", 2, NOW_MS + 2))
    later.fill_other()
    later.worker().drain()
    assert [item for _, _, item, _ in windows_of(later.other)["ana"]] == ["i2"]


class Interrupted(MemoryErasures):
    """The worker dies at one of the calls: before it, or when it is done."""

    def __init__(self, inner: MemoryErasures, call: str, *, done: bool) -> None:
        super().__init__(inner.generations)
        self._inner, self._call, self._done = inner, call, done

    def read(self) -> Erasures:
        return self._inner.read()

    def record(self, erasures: Erasures) -> None:
        self._around("record", lambda: self._inner.record(erasures))

    def forget(self, erasures: Sequence[Erasure], topic_id: str, partitions: int) -> None:
        self._around("forget", lambda: self._inner.forget(erasures, topic_id, partitions))

    def _around(self, name: str, call: Callable[[], None]) -> None:
        if name != self._call or self._done:
            call()
        if name == self._call:
            raise Killed


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("call", ["record", "forget"])
def test_a_worker_that_dies_around_an_erasure_leaves_it_to_the_next_one(engine: Engine, call: str, done: bool) -> None:
    world = World(engine)
    world.log.append_events(RawEvent("ana", "i1", 0), RawEvent("bea", "i2", 1))
    world.fill_other()
    world.worker().drain()
    world.log.append_events(RawEvent("ana", "i3", 2), erase("ana", 3, NOW_MS + 1), RawEvent("ana", "i4", 4, NOW_MS + 2))
    with pytest.raises(Killed):
        world.worker(Interrupted(world.erasures, call, done=done)).drain()
    world.worker().drain()
    assert world.items() == {"ana": ["i4"], "bea": ["i2"]}
    assert world.other.read_user("ana") is None
    assert world.erasures.read().erased_ms("ana") == NOW_MS + 1


def test_a_store_that_is_away_for_a_moment_does_not_keep_an_erasure_from_being_recorded(engine: Engine) -> None:
    class Away(MemoryErasures):
        failures = 2

        def record(self, erasures: Erasures) -> None:
            if self.failures:
                self.failures -= 1
                raise StoreUnavailable("Redis is away")
            super().record(erasures)

    world = World(engine)
    erasures = Away([world.other])
    world.log.append_events(erase("ana", 0, NOW_MS))
    worker = world.worker(erasures)
    worker.drain()
    assert erasures.read().erased_ms("ana") == NOW_MS
    assert worker.count("retries_total", operation="store_swap") == 2


def test_what_is_logged_of_an_erasure_is_the_digest_and_not_the_id(engine: Engine) -> None:
    world = World(engine)
    world.log.append_events(RawEvent("anastasia", "i1", 0), erase("anastasia", 1, NOW_MS + 1))
    with structlog.testing.capture_logs() as logs:
        world.worker().drain()
    assert {
        "event": "erased",
        "user_digest": user_digest("anastasia"),
        "erased_ms": NOW_MS + 1,
        "log_level": "info",
    } in logs
    assert "anastasia" not in str(logs)


# Identify. Of three partitions the first has ana and eve, the second cleo, the third ben, dora and gus.


def test_an_anonymous_window_becomes_part_of_the_users_in_time_order(engine: Engine) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(
        RawEvent("ben", "i1", 0, NOW_MS + 1),
        RawEvent("ana", "i2", 1, NOW_MS + 2),
        RawEvent("ben", "i3", 2, NOW_MS + 3, event_id="e3"),
        RawEvent("ana", "i4", 3, NOW_MS + 4),
    )
    world.drain()
    world.log.append_events(identify("ben", "ana", 4, NOW_MS + 5))
    worker = world.drain()
    assert world.items() == {"ana": ["i1", "i2", "i3", "i4"]}
    assert windows_of(world.store)["ana"][0] == (NOW_MS + 1, "clicks-0-0", "i1", "click")
    newest = decode_recommendation(world.outbox.recommendations()[-1].value or b"")
    assert (newest.user_id, newest.trigger.item_id, newest.trigger.topic) == ("ana", "i3", "interactions")
    assert worker.events() == {"applied": 2, "control": 1}
    assert worker.count("handed_over_events_total") == 2
    # What the device does now begins a new window, and what the app sends again is dropped where it lies.
    world.log.append_events(RawEvent("ben", "i5", 5, NOW_MS + 6), RawEvent("ana", "i3", 6, NOW_MS + 7, event_id="e3"))
    assert world.drain().events() == {"applied": 1, "repeat": 1}
    assert world.items() == {"ana": ["i1", "i2", "i3", "i4"], "ben": ["i5"]}


def test_within_one_batch_the_events_before_an_identify_are_handed_over_and_those_after_it_stay(engine: Engine) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(RawEvent("ben", "i1", 0, NOW_MS))
    world.drain()
    world.log.append_events(
        RawEvent("ben", "i2", 1, NOW_MS + 1),
        identify("ben", "ana", 2, NOW_MS + 2),
        RawEvent("ben", "i3", 3, NOW_MS + 3),
        identify("ben", "cleo", 4, NOW_MS + 4),
        RawEvent("ben", "i4", 5, NOW_MS + 5),
    )
    worker = world.drain()
    assert world.items() == {"ana": ["i1", "i2"], "cleo": ["i3"], "ben": ["i4"]}
    # i2, i3 and i4 by themselves, and three events once more where they were handed to.
    assert worker.events() == {"applied": 6, "control": 2}
    assert worker.count("handed_over_events_total") == 3


def test_an_identify_of_a_user_of_the_same_partition_goes_through_the_log_too(engine: Engine) -> None:
    world = World(engine)
    world.log.append_events(
        RawEvent("ben", "i1", 0), RawEvent("ana", "i2", 1, NOW_MS + 1), identify("ben", "ana", 2, NOW_MS + 2)
    )
    world.drain()
    assert world.items() == {"ana": ["i1", "i2"]}


def test_an_identify_of_a_user_as_the_same_one_asks_for_nothing(engine: Engine) -> None:
    world = World(engine)
    world.log.append_events(RawEvent("ana", "i1", 0), identify("ana", "ana", 1, NOW_MS + 1))
    assert world.drain().events() == {"applied": 1, "control": 1}
    assert world.items() == {"ana": ["i1"]}
    assert world.handovers() == []


def test_an_identify_that_comes_twice_hands_over_what_there_is_each_time(engine: Engine) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(RawEvent("ben", "i1", 0), identify("ben", "ana", 1, NOW_MS + 1))
    world.log.append_events(identify("ben", "ana", 2, NOW_MS + 2))
    world.drain()
    assert world.handovers() == [(0, [("ana", "i1")])]
    world.log.append_events(RawEvent("ben", "i2", 3, NOW_MS + 3), identify("ben", "ana", 4, NOW_MS + 4))
    world.drain()
    assert world.items() == {"ana": ["i1", "i2"]}


def test_a_chain_of_identifies_ends_at_the_last_user(engine: Engine) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(RawEvent("ben", "i1", 0), identify("ben", "ana", 1, NOW_MS + 1))
    world.drain()
    world.log.append_events(identify("ana", "cleo", 2, NOW_MS + 2))
    world.drain()
    assert world.items() == {"cleo": ["i1"]}


def test_a_window_is_handed_over_in_frames_no_larger_than_those_of_ingest(engine: Engine) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(*(RawEvent("ben", f"i{n}", n, NOW_MS + n) for n in range(5)))
    world.log.append_events(identify("ben", "ana", 5, NOW_MS + 5))
    settings = settings_of()
    bounds = settings.ingest.model_copy(update={"frame_events": 2})
    worker = Worker(
        world.log, world.store, engine, world.outbox, settings.model_copy(update={"ingest": bounds}), world.erasures
    )
    worker.assign()
    drain(worker)
    assert [len(events) for _, events in world.handovers()] == [2, 2, 1]
    assert world.items() == {"ana": ["i0", "i1", "i2", "i3", "i4"]}


def test_a_window_is_not_handed_to_somebody_who_was_erased_after_the_identify(engine: Engine) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(RawEvent("ben", "i1", 0), identify("ben", "ana", 1, NOW_MS + 1))
    # The erasure overtakes the handover, as it may in another partition.
    world.log.append_events(erase("ana", 2, NOW_MS + 2))
    world.drain()
    assert world.items() == {}


def test_a_late_identify_moves_nothing_of_after_the_anonymous_users_erasure(engine: Engine) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(erase("ben", 0, NOW_MS + 5), RawEvent("ben", "i1", 1, NOW_MS + 6))
    world.log.append_events(identify("ben", "ana", 2, NOW_MS + 4))
    assert world.drain().events() == {"applied": 1, "erased": 1, "control": 1}
    assert world.items() == {"ben": ["i1"]}


def test_a_handover_that_is_sent_again_or_by_a_stale_worker_is_dropped(engine: Engine) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(RawEvent("ben", "i1", 0), identify("ben", "ana", 1, NOW_MS + 1))
    world.log.append_events(RawEvent("ben", "i2", 2, NOW_MS + 2), identify("ben", "ana", 3, NOW_MS + 3))
    stale = world.worker()
    as_it_knows_it = deepcopy(world.store)
    world.drain()
    handed = len(world.handovers())
    # It read nothing yet; what it sends comes when the first worker is long done.
    stale.applier._store = as_it_knows_it
    stale.drain()
    assert len(world.handovers()) > handed
    assert world.drain().events() == {"resent": 2}
    assert world.items() == {"ana": ["i1", "i2"]}


class InterruptedOutbox(RecordingOutbox):
    """The worker dies when it flushes for the n-th time: before it, or when it is done."""

    def __init__(self, inner: RecordingOutbox, flushes: int, *, done: bool) -> None:
        super().__init__()
        self._inner, self._flushes, self._done = inner, flushes, done

    def flush(self) -> None:
        self._flushes -= 1
        if self._flushes or self._done:
            self._inner.sent = self.sent
            self._inner.flush()
        self.sent = []
        if not self._flushes:
            raise Killed


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("flushes", [1, 2, 3])
def test_a_worker_that_dies_around_a_handover_leaves_it_to_the_next_one(
    engine: Engine, flushes: int, done: bool
) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(RawEvent("ben", "i1", 0), RawEvent("dora", "i2", 1, NOW_MS + 1))
    world.log.append_events(identify("ben", "ana", 2, NOW_MS + 2), identify("dora", "eve", 3, NOW_MS + 3))
    # A handover, its target, and a handover of that: three batches, and five flushes.
    world.log.append_events(RawEvent("gus", "i3", 4, NOW_MS + 4), identify("gus", "ana", 5, NOW_MS + 5))
    dying = Worker(
        world.log, world.store, engine, InterruptedOutbox(world.outbox, flushes, done=done), erasures=world.erasures
    )
    dying.assign()
    with pytest.raises(Killed):
        drain(dying)
    world.drain()
    assert world.items() == {"ana": ["i1", "i3"], "eve": ["i2"]}


def test_an_older_generation_that_comes_to_an_identify_again_takes_the_handover_of_the_log(engine: Engine) -> None:
    world = World(engine, partitions=3)
    world.log.append_events(RawEvent("ben", "i1", 0), identify("ben", "ana", 1, NOW_MS + 1))
    world.drain()
    world.log.append_events(RawEvent("ana", "i2", 2, NOW_MS + 2))
    other = Worker(world.log, world.other, engine, world.outbox, erasures=world.erasures)
    other.assign(rebuild=True)
    drain(other)
    world.drain()
    assert windows_of(world.other) == windows_of(world.store)
    assert world.items() == {"ana": ["i1", "i2"]}


WINDOWS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 7), st.sampled_from(["click", "view"])), min_size=1, max_size=12
)


@given(anonymous=WINDOWS, known=WINDOWS)
def test_two_windows_that_were_not_cut_become_that_of_all_their_events_in_time_order(
    anonymous: list[tuple[int, int, str]], known: list[tuple[int, int, str]]
) -> None:
    rule = WindowRule(max=24, keep=24)
    windows, entries = [], []
    for number, events in enumerate((anonymous, known)):
        source = Source("clicks", "id", number)
        arrivals = []
        for offset, (time, item, kind) in enumerate(events):
            event_id = f"clicks-{number}-{offset}"
            raw = RawEvent("u", f"i{item}", offset, NOW_MS + time, None, source, kind)
            (frame,) = (decode_frame(each) for each in pack([raw], 1)[0])
            arrivals.append(Arrival(raw.time_ms, event_id, raw.item, kind, False, source, offset, NOW_MS, frame, 0))
            entries.append((raw.time_ms, event_id, raw.item, kind))
        windows.append(advance_window(EMPTY_STATE, arrivals, rule, 5).state)
    handover = Handover(Identified("device", "ana", NOW_MS, 7, [], is_whole=False), windows[0])
    handed = handed_over(handover, Source("interactions", "id", 3))
    merged = advance_window(windows[1], handed, rule, 5)
    found = list(zip(merged.state.times, merged.state.ids, merged.state.items, merged.state.types, strict=True))
    assert found == sorted(entries)
    assert len({arrival.offset for arrival in handed}) == len(anonymous)
