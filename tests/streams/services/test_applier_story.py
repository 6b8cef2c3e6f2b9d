"""Random lives of a pipeline: workers killed at any call, faults that pass, re-sends, stale workers, a store that goes back.

Whatever happens, at the end every event counts exactly once: the windows are those of a plain-Python oracle that reads
the log of frames from its beginning and counts each raw event the first time that it sees it. Users are erased, and turn
out to be others: what is handed over must be the oracle's window at that place of the log, once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Literal, NoReturn, TypeVar

import msgspec
import pytest
import stamina
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from export.pooling import write_pooling_bundle
from models.bundle import Bundle
from models.spec import WindowRule
from streams.contracts.dead_letter import Headers
from streams.contracts.erasure import Erasure, Erasures
from streams.contracts.event import ERASE, IDENTIFY
from streams.contracts.frame import Source, partition_of
from streams.contracts.recommendation import decode_recommendation
from streams.errors import DeliveryFailed, LogGap, StateRefused, StoreLostTail, StoreUnavailable
from streams.interest.engine import Engine, StageSeconds, UserEvents, UserRow, UserUpdate, UserWindow
from streams.interest.window import Advance, Arrival
from streams.services.applier import Received
from streams.store.memory import MemoryErasures, MemoryStore
from streams.store.protocol import Reading, Swap, SwapResult, Watermark
from tests.streams.interest.window_oracle import WindowOracle
from tests.streams.services.workbench import (
    CLICKS,
    MEMORY,
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

RULE = WindowRule(max=4, keep=2)
PARTITIONS = 3
USERS = ["anna", "ben", "carl", "dora", "eve", "finn"]  # two in each partition
SOURCES = (CLICKS, VIEWS)

INTERACTIONS = [Source("interactions", "id-of-interactions", partition) for partition in range(PARTITIONS)]

Call = Literal["set_partitions", "read_watermarks", "read_rows", "evolve", "send", "flush", "record", "forget", "swap"]
Fault = Literal["kill before", "kill after", "fail before", "fail after", "overtaken"]
_Result = TypeVar("_Result")


class Killed(BaseException):
    """The process is gone: nothing may catch this on its way out."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    bundle: Bundle = write_pooling_bundle(
        tmp_path_factory.mktemp("story") / "bundle", [f"i{number}" for number in range(12)], dim=4, window=RULE
    )
    return engine_of(bundle)


@pytest.fixture(autouse=True)
def _without_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=30, cap=True):
        yield


class Faults:
    """What befalls the calls of one worker to its surroundings, in this order; afterwards nothing does."""

    def __init__(self, overtake: Callable[[], None] = lambda: None) -> None:
        self.coming: list[tuple[Call, Fault]] = []
        self._overtake = overtake

    def around(self, name: Call, call: Callable[[], _Result], error: Callable[[], Exception] | None) -> _Result:
        """Make a call and let its fault befall it; one that can't fail in passing is made undisturbed instead."""
        fault = self.coming.pop(0)[1] if self.coming and self.coming[0][0] == name else None
        if fault == "overtaken":
            self._overtake()
        if fault == "kill before":
            raise Killed
        if fault == "fail before" and error is not None:
            raise error()
        result = call()
        if fault == "kill after":
            raise Killed
        if fault == "fail after" and error is not None:
            raise error()
        return result


def _store_away() -> Exception:
    return StoreUnavailable("Redis is away")


def _broker_away() -> Exception:
    return DeliveryFailed("Kafka is away")


class FaultyStore:
    """The shared store as one worker sees it."""

    def __init__(self, world: "World", faults: Faults) -> None:
        self.generation = world.store.generation
        self._world = world
        self._faults = faults

    def set_partitions(self, partitions: int) -> int:
        return self._faults.around("set_partitions", lambda: self._world.store.set_partitions(partitions), _store_away)

    def read_watermarks(self, partitions: Sequence[int]) -> Mapping[int, Watermark | None]:
        return self._faults.around(
            "read_watermarks", lambda: self._world.store.read_watermarks(partitions), _store_away
        )

    def read_rows(self, users: Mapping[int, Sequence[str]]) -> Mapping[int, Reading]:
        return self._faults.around("read_rows", lambda: self._world.store.read_rows(users), _store_away)

    def swap(self, swaps: Sequence[Swap]) -> Sequence[SwapResult]:
        delivered = {letter.value for letter in self._world.outbox.recommendations()}
        for swap in swaps:
            for row in swap.rows.values():
                assert row.recommendations in delivered, "a row may not be written before its recommendation is acked"
        # Each partition on its own, so that a fault falls between two of them.
        return [self._faults.around("swap", partial(self._swap_one, one), _store_away) for one in swaps]

    def _swap_one(self, swap: Swap) -> SwapResult:
        return self._world.store.swap([swap])[0]

    def partitions(self) -> int | None:
        return self._world.store.partitions()

    def replace_watermark(self, partition: int, expected: Watermark | None, new: Watermark) -> NoReturn:
        raise AssertionError("only a person replaces watermarks")

    def read_user(self, user_id: str) -> NoReturn:
        raise AssertionError("a worker reads rows by partition")

    def read_users(self, user_ids: Sequence[str]) -> NoReturn:
        raise AssertionError("a worker reads rows by partition")

    def scan_users(self) -> NoReturn:
        raise AssertionError("a worker reads rows by partition")


class FaultyOutbox:
    """The shared topics as one worker's producer sees them: what it hands over may arrive before it knows."""

    def __init__(self, world: "World", faults: Faults) -> None:
        self._world = world
        self._faults = faults
        self._own = RecordingOutbox()

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: Headers = (),
    ) -> None:
        self._faults.around("send", lambda: self._own.send(topic, value, key, partition, headers), None)

    def flush(self) -> None:
        self._faults.around("flush", self._deliver, _broker_away)

    def _deliver(self) -> None:
        self._own.flush()
        for letter in self._own.delivered:
            if letter.topic == self._world.log.topic.name:
                self._world.take_handover(letter.partition, letter.value or b"")
        self._world.outbox.delivered += self._own.delivered
        self._own.delivered = []


class FaultyErasures:
    """What is recorded of erasures as one worker sees it."""

    def __init__(self, world: "World", faults: Faults) -> None:
        self._world = world
        self._faults = faults

    def read(self) -> Erasures:
        return self._world.erasures.read()

    def read_of(self, users: Sequence[str]) -> NoReturn:
        raise AssertionError("only a backfill looks for some")

    def record(self, erasures: Erasures) -> None:
        self._faults.around("record", lambda: self._world.erasures.record(erasures), _store_away)

    def forget(self, erasures: Sequence[Erasure], topic_id: str, partitions: int) -> None:
        self._faults.around("forget", lambda: self._world.erasures.forget(erasures, topic_id, partitions), _store_away)


class FaultyEngine:
    """The real engine; a process may be killed around its work."""

    def __init__(self, engine: Engine, faults: Faults) -> None:
        self._engine = engine
        self._faults = faults

    def evolve(self, users: Sequence[UserEvents], now_ms: int, seconds: StageSeconds | None = None) -> list[UserUpdate]:
        return self._faults.around("evolve", lambda: self._engine.evolve(users, now_ms, seconds), None)

    def advance(self, user: UserEvents) -> Advance[Arrival]:
        return self._engine.advance(user)

    def encode(self, windows: Sequence[UserWindow], now_ms: int) -> list[UserRow]:
        return self._engine.encode(windows, now_ms)

    @property
    def model_name(self) -> str:
        return self._engine.model_name

    @property
    def model_version(self) -> str:
        return self._engine.model_version

    def verify(self) -> None:
        self._engine.verify()


class IngestWorker:
    """Ingest by its protocol: frames of a batch in rounds of one a partition, commit after all; a restart reads again."""

    def __init__(self, world: "World", source: Source) -> None:
        self._world = world
        self._source = source
        self.position = world.raw_committed[source]
        self._rounds: list[dict[int, tuple[bytes, list[RawEvent]]]] = []

    def take_batch(self, count: int, frame_events: int) -> None:
        """Read events and pack them; nothing is sent yet."""
        batch = self._world.raw[self._source][self.position : self.position + count]
        self.position += len(batch)
        by_partition: dict[int, list[tuple[bytes, list[RawEvent]]]] = {}
        for partition, frames in pack(batch, PARTITIONS, frame_events).items():
            mine = [one for one in batch if partition_of(one.user, PARTITIONS) == partition]
            by_partition[partition] = [
                (raw, mine[number * frame_events : (number + 1) * frame_events]) for number, raw in enumerate(frames)
            ]
        while any(by_partition.values()):
            self._rounds.append({partition: frames.pop(0) for partition, frames in by_partition.items() if frames})

    def send_round(self, only: set[int] | None = None) -> None:
        """Send one frame a partition; ``only``: it is killed while these were on their way."""
        for partition, (raw, events) in self._rounds.pop(0).items():
            if only is None or partition in only:
                self._world.log.append(partition, raw)
                self._world.framed[partition].append(events)

    @property
    def has_unsent(self) -> bool:
        return bool(self._rounds)

    def commit(self) -> None:
        """Record how far it is; a stale worker may well move it back."""
        self._world.raw_committed[self._source] = self.position


class World:
    """Everything that outlives a process."""

    def __init__(self, engine: Engine, raw: Mapping[Source, list[RawEvent]]) -> None:
        self.engine = engine
        self.raw = raw
        self.raw_committed = dict.fromkeys(raw, 0)
        self.log = InteractionsLog(PARTITIONS)
        # Beside the bytes of each frame what was put into it, so that the oracle needs no decoder.
        self.framed: dict[int, list[list[RawEvent]]] = {partition: [] for partition in range(PARTITIONS)}
        self.store = MemoryStore()
        # Another generation, which nobody applies anything to: once it had everybody.
        self.other = MemoryStore()
        self.other.set_partitions(PARTITIONS)
        for partition in range(PARTITIONS):
            rows = {
                user: UserRow(b"", b"", b"", "", 0) for user in USERS if partition_of(user, PARTITIONS) == partition
            }
            self.other.swap([Swap(partition, None, Watermark(-1, self.log.topic.topic_id, PARTITIONS), rows)])
        self.erasures = MemoryErasures([self.other])
        self.outbox = RecordingOutbox()
        self.went_back = False

    def take_handover(self, partition: int, raw: bytes) -> None:
        """A worker's frame arrives in the log; taken apart by hand for the oracle."""
        self.log.append(partition, raw)
        _, sources, _, offsets, times_ms, users, items, types, event_times, ids, extra = msgspec.msgpack.decode(raw)
        assert len(sources) == 1
        assert not extra
        columns = zip(users, items, offsets, event_times, ids, types, times_ms, strict=True)
        self.framed[partition].append(
            [
                RawEvent(user, item, offset, time_ms, event_id, Source(*sources[0]), kind, appended_ms)
                for user, item, offset, time_ms, event_id, kind, appended_ms in columns
            ]
        )

    def start_worker(self, faults: Faults, partitions: Sequence[int], batch_users: int) -> Worker:
        worker = Worker(
            self.log,
            FaultyStore(self, faults),
            FaultyEngine(self.engine, faults),
            FaultyOutbox(self, faults),
            settings_of(batch_users),
            FaultyErasures(self, faults),
        )
        try:
            worker.assign(partitions)
        except StateRefused:
            # Right where the store was emptied under committed offsets; a person then rebuilds.
            assert self.went_back
            worker.assign(partitions, rebuild=True)
        return worker

    def check_acknowledged(self, done: Sequence[Received]) -> None:
        """What a worker is done with is in the store."""
        if self.went_back:
            return  # it was, before the store lost it
        for received in done:
            watermark = self.store.read_watermarks([received.partition])[received.partition]
            assert watermark is not None
            assert received.offset <= watermark.offset


def check_outcome(world: World) -> None:
    windows: dict[str, list[tuple[int, str, str, str]]] = {}
    counted: Counter[tuple[Source, int]] = Counter()
    expected: dict[int, list[list[tuple[str, int, str, str, str]]]] = {}
    for partition in range(PARTITIONS):
        oracle = PartitionOracle()
        for events in world.framed[partition]:
            oracle.take_frame(events)
        counted += oracle.counted
        expected[partition] = oracle.handed_over
        assert not windows.keys() & oracle.windows.keys()
        windows |= {user: one.window for user, one in oracle.windows.items() if one.window}
        assert {user for user in USERS if world.other.read_user(user)}.isdisjoint(oracle.erased_ms)
    # The log itself is whole: each raw event went to one partition.
    raw = {place: count for place, count in counted.items() if place[0] in SOURCES}
    assert raw == {(one.source, one.offset): 1 for events in world.raw.values() for one in events}
    assert windows_of(world.store) == windows
    for partition, handovers in expected.items():
        check_handovers(world, INTERACTIONS[partition], handovers)


class PartitionOracle:
    """The log of one partition, event by event.

    Attributes:
        counted: How often each event was taken, by source and offset.
        erased_ms: When each user was erased last.
        handed_over: What each identify must hand over, in order; windows without events left out.
    """

    def __init__(self) -> None:
        self.windows: dict[str, WindowOracle] = {}
        self.counted: Counter[tuple[Source, int]] = Counter()
        self.erased_ms: dict[str, int] = {}
        self.handed_over: list[list[tuple[str, int, str, str, str]]] = []
        self._marks: dict[Source, int] = {}

    def take_frame(self, events: Sequence[RawEvent]) -> None:
        for one in events:
            if self.counted[one.source, one.offset]:
                continue
            if one.source in INTERACTIONS:
                # A handover that was sent again may come when those after it are there, and only then.
                assert one.offset > self._marks.get(one.source, -1), f"{one} is new, and comes too late"
            self._marks[one.source] = one.offset
            self.counted[one.source, one.offset] += 1
            if one.type == ERASE:
                self.windows.pop(one.user, None)
                self.erased_ms[one.user] = max(one.kafka_ms, self.erased_ms.get(one.user, 0))
            elif one.kafka_ms <= self.erased_ms.get(one.user, 0):
                continue
            elif one.type == IDENTIFY:
                if one.user != one.item and one.user in self.windows:
                    self.handed_over.append([(one.item, *entry) for entry in self.windows.pop(one.user).window])
            else:
                window = self.windows.setdefault(one.user, WindowOracle(RULE.keep, RULE.max, MEMORY))
                window.take(one.time_ms, one.id, one.item, one.type, named=one.event_id is not None)


def check_handovers(world: World, source: Source, expected: Sequence[Sequence[tuple[str, int, str, str, str]]]) -> None:
    """What was handed over of one partition, each event once, is what its log says."""
    found: dict[int, tuple[str, int, str, str, str]] = {}
    for frames in world.framed.values():
        for one in (one for events in frames for one in events if one.source == source):
            found.setdefault(one.offset, (one.user, one.time_ms, one.id, one.item, one.type))
    assert [entry for _, entry in sorted(found.items())] == [entry for window in expected for entry in window]


def check_lists(world: World) -> None:
    lists: dict[str, object] = {}
    delivered = set()
    erased = {one.user for events in world.raw.values() for one in events if one.type == ERASE}
    for letter in world.outbox.recommendations():
        assert letter.value is not None
        delivered.add(letter.value)
        found = decode_recommendation(letter.value)
        content = (found.user_id, found.trigger, [(item.item_id, item.because) for item in found.items])
        if world.went_back and found.user_id in erased:
            continue  # applied again, what is older than the erasure is left out from the first
        assert lists.setdefault(found.recommendation_id, content) == content, "one id, two lists"
    for record in world.store.scan_users():
        assert record.row.recommendations in delivered
    assert world.outbox.dead_letters() == []


@st.composite
def raw_logs(draw: st.DrawFn) -> dict[Source, list[RawEvent]]:
    """Two raw topics: few users, few items, few times, some given ids that repeat."""
    logs = {}
    for source in SOURCES:
        rows = draw(
            st.lists(
                st.tuples(
                    st.sampled_from(USERS),
                    st.integers(0, 13).map(lambda number: f"i{number}"),
                    st.integers(0, 20).map(lambda seconds: NOW_MS + 1000 * seconds),
                    st.none() | st.integers(0, 9).map(lambda number: f"e{number}"),
                    st.sampled_from([*["click"] * 8, ERASE, IDENTIFY]),
                    st.sampled_from(USERS),
                ),
                min_size=8,
                max_size=30,
            )
        )
        logs[source] = [
            RawEvent(user, {ERASE: "", IDENTIFY: other}.get(kind, item), offset, time_ms, event_id, source, kind)
            for offset, (user, item, time_ms, event_id, kind, other) in enumerate(rows)
        ]
    return logs


FAULTS: st.SearchStrategy[list[tuple[Call, Fault]]] = st.lists(
    st.tuples(
        # The calls of a batch come most often, and a swap is where it matters most.
        st.sampled_from(
            [
                *("swap", "swap", "flush", "record", "forget", "evolve", "read_rows", "send", "read_watermarks"),
                "set_partitions",
            ]
        ),
        st.sampled_from(["overtaken", "overtaken", "kill before", "kill after", "fail before", "fail after"]),
    ),
    max_size=3,
)
SOME_PARTITIONS = st.sets(st.integers(0, PARTITIONS - 1), min_size=1).map(sorted)


@pytest.mark.timeout(600)  # so many stories take a busy machine minutes
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(raw=raw_logs(), data=st.data())
def test_every_event_counts_exactly_once_whatever_happens(
    engine: Engine, raw: dict[Source, list[RawEvent]], data: st.DataObject
) -> None:
    world = World(engine, raw)
    ingests = {source: IngestWorker(world, source) for source in SOURCES}
    stale_ingests: list[IngestWorker] = []

    def overtake() -> None:
        """Another worker takes partitions over and applies some frames, while the first is between two calls."""
        other = world.start_worker(Faults(), range(PARTITIONS), 512)
        count = data.draw(st.integers(1, 8))
        for partition in other.next_offsets:
            other.fetch(partition, count)
        if other.backlog:
            other.apply()
            event("worker overtaken")

    faults = [Faults(overtake), Faults(overtake)]
    workers: list[Worker | None] = [None, None]
    snapshots = [deepcopy(world.store)]

    def ingest() -> None:
        source = data.draw(st.sampled_from(SOURCES))
        worker = ingests[source]
        worker.take_batch(data.draw(st.integers(3, 25)), data.draw(st.integers(1, 3)))
        while worker.has_unsent:
            end = data.draw(st.sampled_from(["sent", "sent", "sent", "killed", "stale"]))
            if end == "sent":
                worker.send_round()
                continue
            if end == "killed":
                worker.send_round(only=data.draw(st.sets(st.integers(0, PARTITIONS - 1))))
            else:
                stale_ingests.append(worker)  # paused, not dead: it will send the rest when it wakes up
            note(f"ingest of {source.topic} {end}")
            ingests[source] = IngestWorker(world, source)
            return
        if data.draw(st.booleans()):
            worker.commit()

    def wake_a_stale_ingest() -> None:
        if stale_ingests:
            worker = stale_ingests[0]
            worker.send_round()
            if not worker.has_unsent:
                stale_ingests.pop(0)
                worker.commit()

    def evolve() -> None:
        number = data.draw(st.integers(0, 1))
        faults[number].coming = data.draw(FAULTS)
        try:
            worker = workers[number]
            if worker is None:
                worker = world.start_worker(
                    faults[number], data.draw(SOME_PARTITIONS), data.draw(st.sampled_from([1, 2, 512]))
                )
                workers[number] = worker
            elif data.draw(st.integers(0, 5)) == 0:
                worker.assign(data.draw(SOME_PARTITIONS))
            count = data.draw(st.integers(1, 4))
            for partition in worker.next_offsets:
                worker.fetch(partition, count)
            if worker.backlog:
                world.check_acknowledged(worker.apply())
        except (Killed, DeliveryFailed) as end:
            event(f"worker ended by {type(end).__name__}")
            note(f"worker {number} ended: {end!r}")
            workers[number] = None
        except (StoreLostTail, LogGap, StateRefused) as end:
            if not world.went_back:
                raise  # there is nothing to refuse unless the store lost something
            event(f"worker ended by {type(end).__name__}")
            workers[number] = None

    def snapshot_store() -> None:
        snapshots.append(deepcopy(world.store))

    def take_store_back() -> None:
        world.store = deepcopy(data.draw(st.sampled_from(snapshots)))
        world.went_back = True
        event("store went back")

    steps = {
        "ingest": ingest, "ingest more": ingest, "evolve": evolve, "evolve more": evolve, "evolve still more": evolve,
        "wake a stale ingest": wake_a_stale_ingest,
    }  # fmt: skip
    # In most stories the store keeps what it has, for then more can be asked of the workers.
    if data.draw(st.sampled_from([False, False, False, True])):
        steps |= {"snapshot": snapshot_store, "take the store back": take_store_back}
    ingest()
    for name in data.draw(st.lists(st.sampled_from(sorted(steps)), min_size=8, max_size=40)):
        note(name)
        steps[name]()

    # The storm is over: ingest reads its topics to the end, and one worker after the other does the rest.
    while stale_ingests:
        wake_a_stale_ingest()
    for source in SOURCES:
        last = IngestWorker(world, source)
        last.take_batch(len(raw[source]), 3)
        while last.has_unsent:
            last.send_round()
    last_worker = world.start_worker(Faults(), range(PARTITIONS), 512)
    while last_worker.drain():
        pass  # what it hands over comes in the log
    check_outcome(world)
    check_lists(world)
    if any(one.source in INTERACTIONS for frames in world.framed.values() for events in frames for one in events):
        event("windows handed over")

    # And who comes too late changes nothing.
    before = windows_of(world.store)
    for worker, its_faults in zip(workers, faults, strict=True):
        if worker is not None:
            its_faults.coming = []
            try:
                worker.drain()
            except (StoreLostTail, LogGap, StateRefused):
                assert world.went_back
    world.start_worker(Faults(), range(PARTITIONS), 512).drain()  # handovers that they sent again
    assert windows_of(world.store) == before
