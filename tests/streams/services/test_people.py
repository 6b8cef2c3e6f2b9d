"""What people ask for in the log, as one worker and another apply it."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import stamina
import structlog

from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from streams.contracts.erasure import Erasure, Erasures, user_digest
from streams.contracts.event import ERASE
from streams.errors import StoreUnavailable
from streams.interest.engine import Engine
from streams.store.memory import MemoryErasures, MemoryStore
from tests.streams.services.workbench import (
    NOW_MS,
    VIEWS,
    InteractionsLog,
    RawEvent,
    RecordingOutbox,
    Worker,
    engine_of,
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
        self.outbox = RecordingOutbox()

    def worker(self, erasures: MemoryErasures | None = None) -> Worker:
        worker = Worker(self.log, self.store, self.engine, self.outbox, erasures=erasures or self.erasures)
        worker.assign(rebuild=True)
        return worker

    def fill_other(self) -> None:
        """The other generation has applied the log so far."""
        worker = Worker(self.log, self.other, self.engine, RecordingOutbox(), erasures=MemoryErasures())
        worker.assign(rebuild=True)
        worker.drain()

    def items(self) -> dict[str, list[str]]:
        return {user: [item for _, _, item, _ in window] for user, window in windows_of(self.store).items()}


def erase(user: str, offset: int, time_ms: int) -> RawEvent:
    return RawEvent(user, "", offset, time_ms, type=ERASE)


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
