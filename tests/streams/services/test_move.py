"""A worker goes over to another generation while it runs: nothing is lost there and nothing counts twice."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.pooling import write_pooling_bundle
from models.bundle import Bundle, read_bundle
from models.spec import WindowRule
from streams.contracts.recommendation import decode_recommendation
from streams.errors import LogGap, StateRefused
from streams.interest.encode import Encoder
from streams.interest.engine import Engine, EngineRules
from streams.log.topics import Extent, Partition
from streams.services.applier import Received
from streams.store.memory import MemoryStore
from streams.store.protocol import Watermark
from tests.streams.interest.window_oracle import WindowOracle
from tests.streams.services.workbench import (
    MEMORY,
    NOW_MS,
    InteractionsLog,
    RawEvent,
    RecordingOutbox,
    Worker,
    windows_of,
)

ITEMS = [f"i{number}" for number in range(14)]
RULE = WindowRule(max=7, keep=3)
PARTITIONS = 2
USERS = ("ana", "bea", "cem", "dan")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("model") / "bundle"
    write_pooling_bundle(path, ITEMS, dim=4, window=RULE)
    return read_bundle(path)


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> dict[str, Engine]:
    return {
        name: Engine(bundle, Encoder(bundle, "cpu"), EngineRules(3, True, 1, MEMORY, name))
        for name in ("g1", "g2", "g3")
    }


def some_log(seed: int, frames: int) -> tuple[InteractionsLog, list[list[RawEvent]]]:
    """A log, and the events of every batch that ingest sent into it; some were sent twice."""
    rng = random.Random(seed)
    log = InteractionsLog(PARTITIONS)
    batches: list[list[RawEvent]] = []
    offset = 0
    for _ in range(frames):
        batch = []
        for _ in range(rng.randint(1, 3)):
            batch.append(RawEvent(rng.choice(USERS), rng.choice(ITEMS), offset, NOW_MS + 1000 * rng.randint(0, 30)))
            offset += 1
        if batches and rng.random() < 0.2:
            batch = [*batches[-1], *batch]
        log.append_events(*batch)
        batches.append(batch)
    return log, batches


def expected(batches: Sequence[Sequence[RawEvent]]) -> dict[str, list[tuple[int, str, str, str]]]:
    oracles: dict[str, WindowOracle] = {}
    seen = set()
    for batch in batches:
        for event in batch:
            if event.offset not in seen:
                seen.add(event.offset)
                oracle = oracles.setdefault(event.user, WindowOracle(RULE.keep, RULE.max, MEMORY))
                oracle.take(event.time_ms, event.id, event.item, event.type, named=False)
    return {user: oracle.window for user, oracle in oracles.items()}


def begun(name: str, partitions: int = 1) -> MemoryStore:
    """A generation as a backfill leaves it, here of a log that was empty then: every partition has a watermark."""
    store = MemoryStore(name)
    store.set_partitions(partitions)
    for partition in range(partitions):
        store.replace_watermark(partition, None, Watermark(-1, "id-of-interactions", partitions))
    return store


def filled(log: InteractionsLog, engine: Engine, frames: Sequence[int]) -> MemoryStore:
    """A generation into which so many frames of each partition were filled."""
    store = begun("g2", len(frames))
    worker = Worker(log, store, engine, RecordingOutbox())
    worker.assign()
    for partition, count in enumerate(frames):
        worker.fetch(partition, count)
    while worker.backlog:
        worker.apply()
    log.committed.clear()
    return store


class Moving:
    """A worker as evolve drives it: what a move lacks is read again before anything that was delivered is applied."""

    def __init__(self, log: InteractionsLog, stores: dict[str, MemoryStore], engines: dict[str, Engine]) -> None:
        self.log, self.stores, self.engines = log, stores, engines
        self.outbox = RecordingOutbox()
        self.worker = Worker(log, stores["g1"], engines["g1"], self.outbox)
        self.worker.assign()
        self.again: list[Received] = []
        self.live = "g1"

    def move(self, name: str) -> None:
        behind = self.worker.applier.move(self.stores[name], self.engines[name], self.log.extents)
        self.again = [
            Received(partition.number, received.offset, received.raw)
            for partition, extent in behind.items()
            for received in self.log.read(partition.number, extent.start, extent.end - extent.start)
        ]
        self.live = name

    def apply(self) -> None:
        if self.again:
            some, self.again = self.again[:3], self.again[3:]
            while some:
                _, some = self.worker.applier.apply(some)
        elif self.worker.backlog:
            self.worker.apply()

    def rebalance(self) -> None:
        """Kafka gives it the same partitions again. What was delivered before is still in its queue."""
        self.worker.assign()
        self.again = []

    def finish(self) -> None:
        for partition in range(self.log.topic.partitions):
            self.worker.fetch(partition)
        while self.again or self.worker.backlog:
            self.apply()


@given(
    seed=st.integers(0, 10_000),
    frames=st.integers(1, 12),
    ahead=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    steps=st.lists(st.sampled_from(["fetch 0", "fetch 1", "apply", "apply", "g1", "g2", "rebalance"]), max_size=25),
)
def test_whatever_happens_around_a_move_every_event_counts_once_in_the_generation_moved_to(
    engines: dict[str, Engine], seed: int, frames: int, ahead: tuple[int, int], steps: list[str]
) -> None:
    log, batches = some_log(seed, frames)
    stores = {"g1": MemoryStore("g1"), "g2": filled(log, engines["g2"], ahead)}
    moving = Moving(log, stores, engines)
    for step in steps:
        match step.split():
            case ["fetch", number]:
                moving.worker.fetch(int(number), 2)
            case ["apply"]:
                moving.apply()
            case ["rebalance"]:
                moving.rebalance()
            case [name]:
                moving.move(name)
    moving.finish()
    store = stores[moving.live]
    assert windows_of(store) == expected(batches)
    for partition, watermark in store.read_watermarks(range(PARTITIONS)).items():
        applied = 0 if watermark is None else watermark.offset + 1
        assert applied == len(log.frames[partition])
    # What was left behind is as the log was up to its watermark, and may be gone back to.
    other = "g1" if moving.live == "g2" else "g2"
    moving.move(other)
    moving.finish()
    assert windows_of(stores[other]) == expected(batches)


def one_user_log(frames: int) -> InteractionsLog:
    log = InteractionsLog()
    for number in range(frames):
        log.append_events(RawEvent("ana", ITEMS[number], number, NOW_MS + number))
    return log


def items_of_ana(store: MemoryStore) -> list[str]:
    return [item for _, _, item, _ in windows_of(store)["ana"]]


@pytest.mark.parametrize("rebalances", [1, 2])
def test_what_was_delivered_before_a_rebalance_cut_the_reading_again_short_waits_until_it_comes_again(
    engines: dict[str, Engine], rebalances: int
) -> None:
    stores = {"g1": MemoryStore("g1"), "g2": begun("g2")}
    moving = Moving(one_user_log(5), stores, engines)
    moving.worker.fetch(0, 2)
    moving.worker.apply()
    moving.worker.fetch(0, 2)  # frames 2 and 3 are in the queue
    moving.move("g2")  # which lacks 0 and 1
    for _ in range(rebalances):  # the reader is sent back to 0, behind what is in the queue
        moving.rebalance()
    moving.finish()
    assert items_of_ana(stores["g2"]) == ITEMS[:5]


def test_a_move_right_after_such_a_rebalance_reads_what_is_lacking_then(engines: dict[str, Engine]) -> None:
    log = one_user_log(6)
    stores = {"g1": MemoryStore("g1"), "g2": filled(log, engines["g2"], (2,)), "g3": begun("g3")}
    moving = Moving(log, stores, engines)
    moving.worker.fetch(0, 3)
    moving.worker.apply()
    moving.worker.fetch(0, 2)  # frames 3 and 4 are in the queue
    moving.move("g2")
    moving.rebalance()  # the reader is sent back to 2
    moving.move("g3")  # which lacks 0 and 1 besides
    moving.finish()
    assert items_of_ana(stores["g3"]) == ITEMS[:6]


def test_a_move_in_the_midst_of_reading_again_reads_up_to_what_was_delivered(engines: dict[str, Engine]) -> None:
    stores = {"g1": MemoryStore("g1"), "g2": begun("g2"), "g3": begun("g3")}
    moving = Moving(one_user_log(6), stores, engines)
    moving.worker.fetch(0, 5)
    moving.worker.apply()
    moving.move("g2")
    moving.apply()  # three of five
    moving.move("g3")
    moving.finish()
    assert items_of_ana(stores["g3"]) == ITEMS[:6]


def test_frames_that_the_new_generation_has_are_acknowledged_and_not_applied_again(engines: dict[str, Engine]) -> None:
    log, _ = some_log(1, 6)
    stores = {"g1": MemoryStore("g1"), "g2": filled(log, engines["g2"], (99, 99))}
    moving = Moving(log, stores, engines)
    moving.worker.fetch(0)
    moving.move("g2")
    assert not moving.again
    done = moving.worker.apply()
    assert [received.offset for received in done] == list(range(len(log.frames[0])))
    assert moving.outbox.recommendations() == []


def test_a_generation_whose_partition_never_had_a_frame_is_gone_back_to_and_gets_those_that_came_since(
    engines: dict[str, Engine],
) -> None:
    log = InteractionsLog(PARTITIONS)  # ana's and cem's events lie in 0, dan's in 1
    log.append_events(RawEvent("ana", "i1", 1))
    stores = {"g1": MemoryStore("g1"), "g2": begun("g2", PARTITIONS)}
    moving = Moving(log, stores, engines)
    moving.finish()
    moving.move("g2")
    moving.finish()
    log.append_events(RawEvent("dan", "i2", 2), RawEvent("ana", "i3", 3))
    moving.finish()
    moving.move("g1")
    moving.finish()
    for store in stores.values():
        assert {user: [item for _, _, item, _ in window] for user, window in windows_of(store).items()} == {
            "ana": ["i1", "i3"],
            "dan": ["i2"],
        }


def test_recommendations_after_the_move_are_of_the_new_generation(engines: dict[str, Engine]) -> None:
    log = InteractionsLog()
    log.append_events(RawEvent("ana", "i1", 1))
    stores = {"g1": MemoryStore("g1"), "g2": begun("g2")}
    moving = Moving(log, stores, engines)
    moving.worker.drain()
    moving.move("g2")
    moving.apply()
    ids = [decode_recommendation(letter.value or b"").recommendation_id for letter in moving.outbox.recommendations()]
    assert len(ids) == len(set(ids)) == 2
    assert [found.row.recommendations for found in stores["g2"].scan_users()] == [
        moving.outbox.recommendations()[1].value
    ]


def test_a_generation_of_another_log_is_refused_and_the_worker_goes_on_as_before(engines: dict[str, Engine]) -> None:
    log, batches = some_log(2, 6)
    other = begun("g2", PARTITIONS)
    moving = Moving(log, {"g1": MemoryStore("g1"), "g2": other}, engines)
    moving.worker.fetch(0, 2)
    moving.worker.apply()
    expected_mark = other.read_watermarks([0])[0]
    assert other.replace_watermark(0, expected_mark, Watermark(0, "id-of-another", PARTITIONS))
    with pytest.raises(StateRefused, match="was deleted and made anew"):
        moving.move("g2")
    assert moving.live == "g1"
    moving.finish()
    assert windows_of(moving.stores["g1"]) == expected(batches)


def test_a_generation_that_was_never_filled_is_refused_for_the_store_may_have_been_emptied(
    engines: dict[str, Engine],
) -> None:
    moving = Moving(one_user_log(3), {"g1": MemoryStore("g1"), "g2": MemoryStore("g2")}, engines)
    moving.worker.drain()
    with pytest.raises(StateRefused, match="generation g2 has no watermark of interactions partition 0"):
        moving.move("g2")


def test_a_generation_whose_next_frames_are_gone_is_refused(engines: dict[str, Engine]) -> None:
    log, _ = some_log(3, 8)
    stores = {"g1": MemoryStore("g1"), "g2": filled(log, engines["g2"], (1, 1))}
    moving = Moving(log, stores, engines)
    moving.worker.drain()
    log.starts[0] = 3
    with pytest.raises(LogGap, match="retention deleted 2 frames"):
        moving.move("g2")


def test_extents_to_read_again_are_those_between_the_two_watermarks(engines: dict[str, Engine]) -> None:
    log = InteractionsLog()
    for number in range(5):
        log.append_events(RawEvent("ana", "i1", number, NOW_MS + number))
    two = filled(log, engines["g2"], (2,))
    moving = Moving(log, {"g1": MemoryStore("g1"), "g2": two}, engines)
    moving.worker.fetch(0, 4)
    moving.worker.apply()
    behind = moving.worker.applier.move(two, engines["g2"], log.extents)
    assert behind == {Partition("interactions", 0): Extent(2, 4)}
