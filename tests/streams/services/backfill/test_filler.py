"""Filling a partition gives what live workers gave, wherever it is cut, and wherever it dies."""

import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from export.pooling import write_pooling_bundle
from models.bundle import Bundle, read_bundle
from models.spec import WindowRule
from streams.contracts.erasure import Erasures
from streams.contracts.event import ERASE, IDENTIFY
from streams.contracts.frame import InvalidFrame, Source
from streams.contracts.generation import Progress
from streams.contracts.recommendation import Recommendation, decode_recommendation
from streams.interest.encode import Encoder
from streams.interest.engine import Engine, UserRow
from streams.interest.window import decode_state
from streams.log.topics import Message
from streams.services.arrivals import Intake, add_arrivals
from streams.services.backfill.events import SourceEvent
from streams.services.backfill.filler import Lists, PartitionFiller
from streams.store.memory import MemoryErasures, MemoryStore
from streams.store.protocol import ErasureStore, Watermark
from streams.store.redis.filling import FilledWindow
from tests.streams.services.workbench import (
    CLICKS,
    MEMORY,
    NOW_MS,
    VIEWS,
    InteractionsLog,
    PoisonedEncoder,
    RawEvent,
    RecordingOutbox,
    Worker,
    engine_of,
    windows_of,
)

ITEMS = [f"item-{number}" for number in range(12)]
RULE = WindowRule(max=6, keep=4)
NO_CRASH = 10**9


class Crash(BaseException):
    """The process is gone."""


class MemoryFilling:
    """A store of one partition on dictionaries, whose process dies at a write: before it, or after a part of it."""

    def __init__(self) -> None:
        self.windows: dict[str, FilledWindow] = {}
        self.rows: dict[str, UserRow] = {}
        self.waiting: set[str] = set()
        self.progress = Progress(0)
        self.watermark: Watermark | None = None
        self.writes_to_crash = NO_CRASH
        self.erasures: ErasureStore = MemoryErasures()

    def read_windows(self, partition: int, users: Sequence[str]) -> list[FilledWindow | None]:
        return [self.windows.get(user) for user in users]

    def write_windows(self, partition: int, expected: int | None, windows: Mapping[str, FilledWindow]) -> None:
        self._check(expected)
        for user, window in windows.items():
            self._write()
            self.windows[user] = window
            self.waiting.add(user)

    def end_windows(self, partition: int, expected: int | None, users: Sequence[str]) -> None:
        self._check(expected)
        for user in users:
            self._write()
            self.windows.pop(user, None)
            self.rows.pop(user, None)
            self.waiting.discard(user)

    def write_rows(self, partition: int, expected: int | None, rows: Mapping[str, UserRow]) -> None:
        self._check(expected)
        for user, row in rows.items():
            self._write()
            self.rows[user] = row
            self.windows[user] = FilledWindow(row.state, None, row.vector, row.model)
            self.waiting.discard(user)

    def unencoded(self, partition: int, count: int) -> list[str]:
        return sorted(self.waiting)[:count]

    def leave_out(self, partition: int, users: Sequence[str]) -> None:
        self.waiting -= set(users)

    def checkpoint(
        self, partition: int, expected: int | None, progress: Progress, watermark: Watermark | None = None
    ) -> None:
        self._check(expected)
        self._write()
        self.progress = progress
        self.watermark = watermark or self.watermark

    def read_watermark(self, partition: int) -> Watermark | None:
        return self.watermark

    def _check(self, expected: int | None) -> None:
        assert expected == (None if self.watermark is None else self.watermark.offset)

    def _write(self) -> None:
        self.writes_to_crash -= 1
        if self.writes_to_crash < 0:
            raise Crash


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("model") / "bundle"
    write_pooling_bundle(path, ITEMS, dim=8, window=RULE)
    return read_bundle(path)


def busy_log(seed: int, *, people: bool = False) -> InteractionsLog:
    """Frames of nine users with repeats, late events, events that ingest sent again, and a frame that is none.

    Args:
        people: Some of the users ask to be erased, some turn out to be others.
    """
    rng = random.Random(seed)
    log = InteractionsLog()
    offsets = {CLICKS: 0, VIEWS: 0}
    sent: list[RawEvent] = []
    for _ in range(rng.randint(5, 25)):
        events: list[RawEvent] = []
        for _ in range(rng.randint(1, 8)):
            source = rng.choice((CLICKS, VIEWS))
            offsets[source] += 1
            time_ms = NOW_MS + len(sent) * 1000 - rng.choice((0, 0, 0, 5_000, 60_000))
            event_id = rng.choice((None, f"id-{rng.randrange(30)}"))
            user = f"user-{min(rng.randrange(9), rng.randrange(9))}"
            event = RawEvent(user, rng.choice(ITEMS), offsets[source], time_ms, event_id, source)
            if people and rng.random() < 0.1:
                event = event._replace(type=ERASE, item="")
            elif people and rng.random() < 0.1:
                event = event._replace(type=IDENTIFY, item=f"user-{rng.randrange(9)}")
            events.append(event)
            sent.append(event)
        if rng.random() < 0.2:
            events += sent[-rng.randint(1, 6) :]  # ingest died between send and commit
        log.append_events(*events)
        if rng.random() < 0.1:
            log.append(0, b"no frame")
    return log


def live(log: InteractionsLog, engine: Engine) -> tuple[MemoryStore, Worker]:
    store = MemoryStore()
    worker = Worker(log, store, engine, RecordingOutbox(log))
    worker.assign()
    while worker.drain():
        pass  # what is handed over comes in the log
    return store, worker


def filler_of(
    store: MemoryFilling,
    engine: Engine,
    cache_bytes: int,
    *,
    seal: Watermark | None = None,
    lists: Lists | None = None,
    applied: int | None = None,
) -> PartitionFiller:
    return PartitionFiller(
        store,
        engine,
        0,
        topic_id="id-of-interactions",
        partitions=1,
        rule=RULE,
        memory=MEMORY,
        progress=store.progress,
        cache_bytes=cache_bytes,
        seal=seal,
        lists=lists,
        erasures=store.erasures,
        applied=applied,
    )


def fill(
    log: InteractionsLog,
    store: MemoryFilling,
    engine: Engine,
    cache_bytes: int,
    frames: int,
    lists: Lists | None = None,
) -> None:
    """From where the store's progress is to the end, some frames at a time."""
    filler = filler_of(store, engine, cache_bytes, lists=lists)
    messages = [
        Message("interactions", 0, received.offset, NOW_MS, None, received.raw, ())
        for received in log.read(0, store.progress.next)
    ]
    for first in range(0, len(messages), frames):
        filler.add(messages[first : first + frames])
    filler.finish()


def records_of(log: InteractionsLog, rng: random.Random) -> list[SourceEvent | None]:
    """The events of a log as another source would hold them, each once, with records between them that are none."""
    marks: dict[Source, int] = {}
    records: list[SourceEvent | None] = []
    for received in log.read(0, 0):
        frame = received.decoded()
        if isinstance(frame, InvalidFrame):
            continue
        # One frame at a time, to have the events of all users in the order of the log again.
        intake = Intake()
        add_arrivals(frame, received.offset, marks, Erasures(), intake)
        of_frame = sorted(
            ((event.index, user, event) for user, events in intake.arrivals.items() for event in events),
            key=lambda found: found[0],
        )
        for _, user, event in of_frame:
            while rng.random() < 0.1:
                records.append(None)
            source = event.source
            records.append(
                SourceEvent(
                    user, event.item_id, event.type, event.time_ms, event.event_id, event.named,
                    source.topic, source.topic_id, source.partition, event.offset, len(records),
                    event.appended_ms,
                )
            )  # fmt: skip
    return records


def fill_from(
    records: Sequence[SourceEvent | None],
    store: MemoryFilling,
    engine: Engine,
    cache_bytes: int,
    count: int,
    start: int,
    seal: Watermark,
) -> None:
    """From a record that is not after the store's progress to the end, some records at a time."""
    filler = filler_of(store, engine, cache_bytes, seal=seal)
    for first in range(start, len(records), count):
        some = records[first : first + count]
        bad = [first + place for place, record in enumerate(some) if record is None]
        filler.add_events([record for record in some if record is not None], first + len(some), bad)
    filler.finish()


def check_equal(store: MemoryFilling, expected: MemoryStore, watermark: Watermark | None = None) -> None:
    records = {record.user_id: record.row for record in expected.scan_users()}
    assert records.keys() == store.rows.keys()
    for user, row in records.items():
        found = store.rows[user]
        assert found.state == row.state, user
        vectors = [np.frombuffer(each.vector, "<f4") for each in (found, row)]
        np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
        lists = [decode_recommendation(each.recommendations) for each in (found, row)]
        named = [[(item.item_id, item.because) for item in each.items] for each in lists]
        assert named[0] == named[1], user
        scores = [[item.score or 0.0 for item in each.items] for each in lists]
        # In which batch a window is encoded moves the last digit.
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert lists[0].trigger == lists[1].trigger, user
        assert lists[0].recommendation_id == lists[1].recommendation_id, user  # the same generation here
    assert store.watermark == (watermark or expected.read_watermarks([0])[0])
    assert not store.waiting
    assert store.progress.is_done


@pytest.mark.parametrize("people", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_filling_gives_what_live_workers_gave(bundle: Bundle, seed: int, people: bool) -> None:
    log, engine, rng = busy_log(seed, people=people), engine_of(bundle), random.Random(seed)
    expected, worker = live(log, engine)
    store = MemoryFilling()
    if rng.random() < 0.5:
        store.erasures = worker.erasures  # what the live worker recorded, else nothing but the log
    fill(log, store, engine, cache_bytes=rng.choice((0, 2_000, 10**9)), frames=rng.randint(1, 10))
    check_equal(store, expected)
    if people:
        return  # whether an event counts before its user is erased depends on where a batch ends
    counted = worker.events()
    progress = store.progress
    assert progress.repeats == counted.get("repeat", 0)
    assert progress.late == counted.get("late", 0)
    assert progress.events == sum(counted.get(outcome, 0) for outcome in ("applied", "repeat", "late"))
    assert progress.bad == worker.dead_letters().get("invalid_frame", 0)


@pytest.mark.parametrize("people", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_a_filler_that_dies_again_and_again_comes_to_the_same(bundle: Bundle, seed: int, people: bool) -> None:
    log, engine, rng = busy_log(seed, people=people), engine_of(bundle), random.Random(seed)
    expected, _ = live(log, engine)
    store = MemoryFilling()
    deaths = 0
    while not store.progress.is_done:
        # Sooner or later it gets to the end.
        store.writes_to_crash = rng.randint(0, 8 + deaths)
        try:
            fill(log, store, engine, cache_bytes=rng.choice((0, 0, 3_000)), frames=rng.randint(1, 5))
        except Crash:
            deaths += 1
    assert deaths
    check_equal(store, expected)


SEAL = Watermark(41, "id-of-interactions", 1, {CLICKS: 7})


@pytest.mark.parametrize("seed", range(20))
def test_events_of_another_source_give_what_their_frames_give(bundle: Bundle, seed: int) -> None:
    log, engine, rng = busy_log(seed), engine_of(bundle), random.Random(seed)
    expected, worker = live(log, engine)
    records = records_of(log, rng)
    store = MemoryFilling()
    fill_from(records, store, engine, rng.choice((0, 2_000, 10**9)), rng.randint(1, 30), 0, SEAL)
    check_equal(store, expected, SEAL)
    counted = worker.events()
    assert store.progress.events == sum(counted.get(outcome, 0) for outcome in ("applied", "repeat", "late"))
    assert (store.progress.next, store.progress.bad) == (len(records), records.count(None))


@pytest.mark.parametrize("seed", range(40))
def test_a_filler_of_events_that_dies_again_and_again_comes_to_the_same(bundle: Bundle, seed: int) -> None:
    log, engine, rng = busy_log(seed), engine_of(bundle), random.Random(seed)
    expected, _ = live(log, engine)
    records = records_of(log, rng)
    store = MemoryFilling()
    deaths = 0
    while not store.progress.is_done:
        store.writes_to_crash = rng.randint(0, 8 + deaths)
        # Another partition of the share may be behind: what this one has already comes again.
        start = rng.choice((store.progress.next, rng.randint(0, store.progress.next)))
        try:
            fill_from(records, store, engine, rng.choice((0, 0, 3_000)), rng.randint(1, 20), start, SEAL)
        except Crash:
            deaths += 1
        # Live workers must not begin before it is whole.
        assert (store.watermark is None) is not store.progress.is_done
    assert deaths
    check_equal(store, expected, SEAL)
    assert store.progress.bad == records.count(None)


class KeptLists:
    """Lists that were sent."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.sent: list[tuple[str, Recommendation]] = []

    def send(self, lists: Mapping[str, bytes]) -> None:
        self.sent += [(user, decode_recommendation(raw)) for user, raw in lists.items()]


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_a_list_is_sent_once_a_user_has_had_so_many_events_since_the_last(bundle: Bundle, cache_bytes: int) -> None:
    log, engine = InteractionsLog(), engine_of(bundle)
    # Offsets 1 to 8 are ana's, each in a frame with one of bea's, of which only the first three are no repeats.
    for number in range(1, 9):
        log.append_events(
            RawEvent("ana", ITEMS[number], number, NOW_MS + number),
            RawEvent("bea", "item-1", number, NOW_MS + number, f"id-{min(number, 3)}", VIEWS),
        )
    one_by_one, by_fours = KeptLists(3), KeptLists(3)
    for lists, frames in ((one_by_one, 1), (by_fours, 4)):
        fill(log, MemoryFilling(), engine, cache_bytes, frames, lists)
    sent = [(user, found.trigger.offset) for user, found in one_by_one.sent]
    assert sent == [("ana", 3), ("bea", 3), ("ana", 6)]
    assert [(user, found.trigger.offset) for user, found in by_fours.sent] == [("ana", 4), ("bea", 3), ("ana", 8)]
    # Ana's window holds at most six and was not cut yet: after six events the list leaves out six of twelve items.
    _, last = one_by_one.sent[-1]
    assert not {item.item_id for item in last.items} & {ITEMS[number] for number in range(1, 7)}


def test_a_list_is_not_forgotten_when_the_filler_dies(bundle: Bundle) -> None:
    log, engine = InteractionsLog(), engine_of(bundle)
    for number in range(1, 5):
        log.append_events(RawEvent("ana", ITEMS[number], number, NOW_MS + number))
    store, lists = MemoryFilling(), KeptLists(3)
    # Two events are written, with the progress after them; the third is not.
    store.writes_to_crash = 4
    with pytest.raises(Crash):
        fill(log, store, engine, 0, 1, lists)
    assert (store.progress.next, [found.trigger.offset for _, found in lists.sent]) == (2, [3])
    store.writes_to_crash = NO_CRASH
    fill(log, store, engine, 0, 1, lists)
    # At least once, and after a crash again under the same id.
    assert [found.trigger.offset for _, found in lists.sent] == [3, 3]
    assert len({found.recommendation_id for _, found in lists.sent}) == 1


def test_a_filled_partition_is_filled_on_when_the_log_has_grown(bundle: Bundle) -> None:
    log, engine = busy_log(3), engine_of(bundle)
    store = MemoryFilling()
    fill(log, store, engine, cache_bytes=10**9, frames=4)
    log.append_events(RawEvent("user-0", "item-3", 900, NOW_MS + 10**8), RawEvent("new", "item-4", 901, NOW_MS + 10**8))
    store.progress = Progress(store.progress.next)
    fill(log, store, engine, cache_bytes=10**9, frames=4)
    check_equal(store, live(log, engine)[0])
    # The distance is to the vector before, as it would be live.
    assert decode_recommendation(store.rows["user-0"].recommendations).vector.drift is not None
    assert decode_recommendation(store.rows["new"].recommendations).vector.drift is None


def test_an_event_that_breaks_the_model_is_left_out_and_the_others_count(bundle: Bundle) -> None:
    encoder = PoisonedEncoder(Encoder(bundle, "cpu"), {ITEMS.index("item-7") + 1}, lambda: ValueError("no"))
    engine = engine_of(bundle, encoder)
    log = InteractionsLog()
    log.append_events(
        RawEvent("ana", "item-1", 1, NOW_MS),
        RawEvent("ana", "item-7", 2, NOW_MS + 1),
        RawEvent("ana", "item-2", 3, NOW_MS + 2),
        RawEvent("bea", "item-3", 4, NOW_MS + 3),
    )
    store = MemoryFilling()
    fill(log, store, engine, cache_bytes=10**9, frames=1)
    expected = live(log, engine)[0]
    assert {user: row.state for user, row in store.rows.items()} == {
        record.user_id: record.row.state for record in expected.scan_users()
    }
    assert [item for _, _, item, _ in windows_of(expected)["ana"]] == ["item-1", "item-2"]


@pytest.mark.parametrize("kind", [ERASE, IDENTIFY])
def test_what_only_live_workers_do_is_left_to_them_with_all_that_follows(bundle: Bundle, kind: str) -> None:
    engine, log = engine_of(bundle), InteractionsLog()
    asked = RawEvent("ana", "bea" if kind == IDENTIFY else "", 2, NOW_MS + 2, type=kind)
    log.append_events(RawEvent("ana", "item-1", 1, NOW_MS + 1))
    log.append_events(asked)
    log.append_events(RawEvent("ana", "item-3", 3, NOW_MS + 3))
    log.append_events(asked._replace(offset=4, time_ms=NOW_MS + 4))
    log.append_events(RawEvent("ana", "item-5", 5, NOW_MS + 5))
    messages = [Message("interactions", 0, number, NOW_MS, None, raw, ()) for number, raw in enumerate(log.frames[0])]
    # Live workers have applied the first two frames: the ones after them, up to the next that asks for something.
    store = MemoryFilling()
    filler = filler_of(store, engine, cache_bytes=10**9, applied=2)
    assert not filler.add(messages)
    filler.finish()
    assert store.progress.next == 3
    assert store.watermark is not None
    assert store.watermark.offset == 2
    assert {user: decode_state(row.state).items for user, row in store.rows.items()} == {"ana": ["item-3"]}
    # They have come further: so does the next round.
    store.progress = Progress(store.progress.next)
    filler = filler_of(store, engine, cache_bytes=10**9, applied=5)
    assert filler.add(messages[3:])
    filler.finish()
    assert {user: decode_state(row.state).items for user, row in store.rows.items()} == {"ana": ["item-5"]}


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_a_filler_that_is_stopped_between_any_two_batches_of_its_encoding_is_gone_on_with_to_the_same(
    bundle: Bundle, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.services.backfill.filler.MAX_FRAME_USERS", 2)
    log, engine = busy_log(7), engine_of(bundle)
    expected, _ = live(log, engine)
    messages = [Message("interactions", 0, number, NOW_MS, None, raw, ()) for number, raw in enumerate(log.frames[0])]
    users = len(list(expected.scan_users()))
    assert users > 4
    store = MemoryFilling()
    encoded = []
    while not store.progress.is_done:
        filler = filler_of(store, engine, cache_bytes)
        if store.progress.next < len(messages):
            filler.add(messages[store.progress.next :])
        answers = iter([False, True])  # one batch, and no more
        filler.finish(lambda answers=answers: next(answers))  # type: ignore[misc]
        encoded.append(len(store.rows))
    assert encoded == [*range(2, users, 2), users]
    check_equal(store, expected)


@pytest.mark.parametrize("at", ["flush", "finish"])
def test_whoever_is_erased_while_the_partition_is_filled_is_not_in_it(bundle: Bundle, at: str) -> None:
    engine, log = engine_of(bundle), InteractionsLog()
    log.append_events(RawEvent("ana", "item-1", 1), RawEvent("bea", "item-2", 2))
    store = MemoryFilling()
    filler = filler_of(store, engine, cache_bytes=10**9)
    filler.add([Message("interactions", 0, 0, NOW_MS, None, log.frames[0][0], ())])
    if at == "finish":
        filler.flush()
    asked = Erasures()
    asked.add("ana", NOW_MS + 1)
    store.erasures.record(asked)
    filler.finish()
    assert list(store.rows) == ["bea"]
    assert list(store.windows) == ["bea"]
    assert not store.waiting


def test_events_that_came_before_a_recorded_erasure_are_left_out(bundle: Bundle) -> None:
    def event(ordinal: int, user: str) -> SourceEvent:
        time_ms = NOW_MS + ordinal
        return SourceEvent(
            user, f"item-{ordinal}", "click", time_ms, f"c-0-{ordinal}", False, "c", "id", 0, ordinal, ordinal, time_ms
        )

    store = MemoryFilling()
    asked = Erasures()
    asked.add("bea", NOW_MS + 1)
    store.erasures.record(asked)
    filler = filler_of(store, engine_of(bundle), cache_bytes=0)
    filler.add_events([event(0, "ana"), event(1, "bea"), event(2, "bea")], 3)
    filler.finish()
    windows = {user: decode_state(row.state).items for user, row in store.rows.items()}
    assert windows == {"ana": ["item-0"], "bea": ["item-2"]}
