"""Applying frames: the correctness protocol, without Kafka's consumer or Faust around it.

Everything that is queued is taken at once, over all partitions, up to a number of users. Then:

1. read the rows of its users, and the watermarks after them
2. encode: advance every window, compute the vectors, rank the items
3. produce the windows that `$identify` hands over to other users (`streams.services.handovers`), then the
   recommendations, and wait for the broker's acknowledgement
4. record who was erased, and remove their rows from every other generation that has not come to the erasure itself
5. compare-and-swap rows and watermark in the store, once a partition, all in one round trip
6. give the frames back, for the caller to acknowledge

A crash before 5 leaves the old state: the frames are read again and the same recommendations go out again, under the
same ids, and the same handovers, which are dropped where they go. A crash after it leaves the new state: the frames are
below the watermark and are skipped.

4 comes before 5, for a frame below the watermark is looked at by nobody again: what it asks for is done by then. Done
twice it is the same: of a user's erasures the latest counts, and a row that is gone stays gone. Nor can a stale worker
take away what came after: a generation whose watermark is past the erasure keeps its row.

Whoever is assigned a partition without a watermark gives it one that lies before the log's first frame, by the same
compare-and-swap, before it applies any. So a generation that is left has one everywhere, and can be gone back to or filled
on: a partition of which nothing was applied yet is told from one that was lost. It claims no frame, so a crash before or
after it is harmless, and a stale worker's is refused where another has begun.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from time import perf_counter, time
from typing import Final, Protocol, TypeVar

import msgspec
import numpy as np
import stamina
import structlog

from streams.contracts.dead_letter import DeadLetter, Headers
from streams.contracts.erasure import Erasures
from streams.contracts.frame import (
    MAX_FRAME_USERS,
    Frame,
    InvalidFrame,
    Source,
    decode_frame,
    encode_frame,
    events_of,
)
from streams.contracts.recommendation import decode_recommendation
from streams.errors import (
    DeliveryFailed,
    DriftlineError,
    LogGap,
    StateRefused,
    StoreLostTail,
    StoreUnavailable,
)
from streams.interest.engine import StageSeconds, UserEvents, UserRow, UserUpdate, UserWindow
from streams.interest.window import Advance, Arrival, InvalidState, decode_state
from streams.log.topics import Extent, Partition, Topic
from streams.observe.health import Health
from streams.observe.metrics import EvolveMetrics
from streams.services.arrivals import Intake, add_arrivals
from streams.services.handovers import Handover, handover_frames
from streams.services.poison import one_by_one_if_need_be
from streams.settings import Settings
from streams.store.protocol import ErasureStore, Reading, StateStore, Swap, UserRecord, Watermark

_logger = structlog.get_logger("driftline.evolve")

# librdkafka has tried each for a minute by then; a restart makes a new producer.
_PRODUCE_ATTEMPTS: Final = 3
_Result = TypeVar("_Result")


class Outbox(Protocol):
    """Where recommendations and dead letters go; `streams.log.producer.Producer` is one."""

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: Headers = (),
    ) -> None:
        """Hand over a message; ``partition`` -1: by the key."""

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged; raises `DeliveryFailed`."""


class EngineLike(Protocol):
    """What the applier needs of `streams.interest.engine.Engine`."""

    def evolve(self, users: Sequence[UserEvents], now_ms: int, seconds: StageSeconds | None = None) -> list[UserUpdate]:
        """Advance, encode, rank."""

    def advance(self, user: UserEvents) -> Advance[Arrival]:
        """Advance alone."""

    @property
    def model_name(self) -> str:
        """What people call the model."""

    @property
    def model_version(self) -> str:
        """The version of the model, as rows carry it."""

    def encode(self, windows: Sequence[UserWindow], now_ms: int) -> list[UserRow]:
        """Encode windows as they are."""

    def verify(self) -> None:
        """Raise `EncoderFailed` if the model does not work any more."""


@dataclass(slots=True)
class Received:
    """A frame as it came from `interactions`, and what its reader needs to acknowledge it."""

    partition: int
    offset: int
    raw: bytes
    token: object = None
    frame: Frame | InvalidFrame | None = None

    def decoded(self) -> Frame | InvalidFrame:
        """The frame, decoded once; the error where it is none."""
        if self.frame is None:
            try:
                self.frame = decode_frame(self.raw)
            except InvalidFrame as error:
                self.frame = error
        return self.frame


@dataclass(slots=True)
class _Position:
    """What this worker knows of a partition.

    Attributes:
        applied: The watermark that it applied last; None: there was none.
        next_offset: What it expects next.
        marks: As in the watermark.
        delivered_from: After a move to a generation that is behind: where the frames that its reader delivers go on; those
            before it are read again beside.
        awaits_seek: The reader was sent back. Frames beyond ``next_offset`` were read before, and will come again.
    """

    applied: int | None
    next_offset: int
    marks: dict[Source, int]
    delivered_from: int = 0
    awaits_seek: bool = False


@dataclass(slots=True)
class _Part:
    """One partition's share of a batch."""

    frames: list[Received] = field(default_factory=list)
    copies: list[Received] = field(default_factory=list)
    intake: Intake = field(default_factory=Intake)
    marks: dict[Source, int] = field(default_factory=dict)
    letters: list[DeadLetter] = field(default_factory=list)
    updates: list[UserUpdate] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    handed: Counter[str] = field(default_factory=Counter)  # what became of events in windows that were handed over

    @property
    def arrivals(self) -> dict[str, list[Arrival]]:
        """Events by user."""
        return self.intake.arrivals

    def rows(self) -> dict[str, UserRow]:
        """New rows by user."""
        return {update.user_id: update.row for update in self.updates if update.row is not None}


class Applier:
    """Applies frames of the partitions that it was given by `assign`. Not thread-safe: one thread calls it.

    Args:
        topic: The `interactions` topic.
    """

    def __init__(
        self,
        settings: Settings,
        topic: Topic,
        store: StateStore,
        engine: EngineLike,
        outbox: Outbox,
        metrics: EvolveMetrics,
        health: Health,
        erasure_store: ErasureStore,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._store = store
        self._engine = engine
        self._outbox = outbox
        self._metrics = metrics
        self._health = health
        self._erasure_store = erasure_store
        # Read at an assignment and added to by what is applied here: `$erase` comes to the partition of its user, so of
        # these partitions no other worker records any. One that a person recorded by hand comes in the log as well.
        self._erasures = Erasures()
        self._positions: dict[int, _Position] = {}

    def assign(
        self,
        partitions: Sequence[int],
        extents: Mapping[Partition, Extent],
        committed: Mapping[Partition, int | None],
        *,
        rebuild: bool = False,
    ) -> dict[int, int]:
        """Take over partitions: read their watermarks, and say at which offset each must be read on.

        Args:
            extents: Where the log of each partition starts and ends.
            committed: The group's offsets in Kafka: only ever evidence that there was a watermark, never a start.
            rebuild: An empty store under committed offsets is meant: apply the whole log again.

        Raises:
            StateRefused: Store and log do not belong together.
        """
        self._erasures = self._retrying("store_read", self._erasure_store.read)
        found = self._positions_in(self._store, partitions, extents)
        for partition, position in found.items():
            key = Partition(self._topic.name, partition)
            if position.applied is None:
                self._check_nothing_lost(key, extents[key], committed.get(key), rebuild=rebuild)
            before = self._positions.get(partition)
            position.awaits_seek = before is not None and (
                before.awaits_seek or before.next_offset < before.delivered_from
            )
        self._begin(found)
        self._positions = found
        return self.next_offsets()

    def _begin(self, positions: Mapping[int, _Position]) -> None:
        """Give each partition that has no watermark one before the first frame of its log."""
        swaps = [
            Swap(
                partition,
                None,
                Watermark(position.next_offset - 1, self._topic.topic_id, self._topic.partitions),
                {},
            )
            for partition, position in positions.items()
            if position.applied is None
        ]
        results = self._retrying("store_swap", lambda: self._store.swap(swaps)) if swaps else []
        for swap, result in zip(swaps, results, strict=True):
            # Where another worker has begun, and is further by now, the first read of rows shows it.
            if result.offset == swap.watermark.offset:
                positions[swap.partition].applied = result.offset

    def move(
        self, store: StateStore, engine: EngineLike, extents: Mapping[Partition, Extent]
    ) -> dict[Partition, Extent]:
        """Go on in another generation, with another model, or both; all or nothing.

        Args:
            extents: Where the log of each assigned partition starts and ends.

        Returns:
            What the generation lacks of the frames that were read already: they are to be read again and applied before
            any other. Frames that it has are skipped by `apply` as ever.

        Raises:
            StateRefused, LogGap: That generation and the log do not belong together; nothing has changed.
        """
        found = self._positions_in(store, list(self._positions), extents)
        behind = {}
        for partition, position in found.items():
            before = self._positions[partition]
            if position.applied is None:
                raise StateRefused(
                    f"generation {store.generation} has no watermark of {self._topic.name} partition {partition}: it was "
                    "never filled, or the store was emptied"
                )
            position.delivered_from = max(before.next_offset, before.delivered_from)
            position.awaits_seek = before.awaits_seek
            if position.next_offset < position.delivered_from:
                behind[Partition(self._topic.name, partition)] = Extent(position.next_offset, position.delivered_from)
        self._store, self._engine, self._positions = store, engine, found
        return behind

    def apply(self, backlog: Sequence[Received]) -> tuple[list[Received], list[Received]]:
        """Apply as much of the backlog as fits one batch.

        Args:
            backlog: Frames in the order in which they were read.

        Returns:
            The frames that are done with, to be acknowledged, and those still to be applied, in order.

        Raises:
            StoreLostTail, LogGap, StateRefused, EncoderFailed: The process must end; nothing was acknowledged.
        """
        done, parts, rest = self._take(backlog)
        if parts:
            # 1. Read.
            readings = self._read(parts)
            for partition in self._moved({p: r.offset for p, r in readings.items()}):
                moved = parts.pop(partition)
                rest = [*moved.frames, *moved.copies, *rest]
            # 2. Encode.
            self._hand_over(parts, readings)
            self._encode(parts, readings)
            # 3. Produce, and wait.
            self._produce_handovers(parts)
            self._produce(parts)
            # 4. Record erasures.
            self._erase(parts)
            # 5. Compare and swap.
            applied = self._swap(parts)
            for partition, part in parts.items():
                if partition in applied:
                    done += part.frames + part.copies
                else:
                    rest = [*part.frames, *part.copies, *rest]
        return done, rest

    def refresh(self, users: Sequence[tuple[int, str]]) -> int:
        """Encode rows that another version wrote; nothing is sent, for nobody's interest moved.

        Args:
            users: Partitions and ids; those of partitions that are another worker's by now are left out.

        Returns:
            How many rows were written. Where the watermark has moved none is: the worker that moved it has the partition.

        Raises:
            EncoderFailed: The process must end.
        """
        mine = [user for partition, user in users if partition in self._positions]
        records = self._retrying("store_read", lambda: self._store.read_users(mine))
        outdated = [record for record in records if record and record.row.model != self._engine.model_version]
        rows: dict[int, dict[str, UserRow]] = {}
        for record, row in zip(outdated, self._encode_again(outdated), strict=True):
            if row is not None:
                rows.setdefault(record.partition, {})[record.user_id] = row
        swaps = [
            Swap(
                partition,
                applied,
                Watermark(applied, self._topic.topic_id, self._topic.partitions),
                of_partition,
                refreshes=True,
            )
            for partition, of_partition in rows.items()
            if (applied := self._positions[partition].applied) is not None
        ]
        results = self._retrying("store_swap", lambda: self._store.swap(swaps)) if swaps else []
        return sum(len(swap.rows) for swap, result in zip(swaps, results, strict=True) if result.swapped)

    def _encode_again(self, records: Sequence[UserRecord]) -> list[UserRow | None]:
        """A row for each; none where it cannot be read, or breaks the model: the next event of the user tells."""

        def encode(some: Sequence[UserRecord]) -> Sequence[UserRow]:
            windows = [
                UserWindow(
                    record.user_id,
                    decode_state(record.row.state),
                    decode_recommendation(record.row.recommendations).trigger,
                    None,
                )
                for record in some
            ]
            return self._engine.encode(windows, _now_ms())

        def alone(record: UserRecord, error: Exception) -> None:
            _logger.error("row not encoded again", user=record.user_id, error=repr(error))

        return one_by_one_if_need_be(records, encode, alone, self._engine.verify)

    def check_tail(self) -> None:
        """See whether the store still has what this worker applied: without new frames nothing else would look.

        Raises:
            StoreLostTail: It has not.
            StoreUnavailable: It does not answer.
        """
        for partition, watermark in self._store.read_watermarks(list(self._positions)).items():
            self._check_kept(partition, None if watermark is None else watermark.offset)

    def next_offsets(self) -> dict[int, int]:
        """The next offset to apply of each assigned partition, for the lag."""
        return {partition: position.next_offset for partition, position in list(self._positions.items())}

    # Taking

    def _take(self, backlog: Sequence[Received]) -> tuple[list[Received], dict[int, _Part], list[Received]]:
        """Choose frames up to the limits: `evolve.batch_users` over all, `MAX_FRAME_USERS` a partition."""
        done: list[Received] = []
        rest: list[Received] = []
        parts: dict[int, _Part] = {}
        ends: dict[int, int] = {}
        held: set[int] = set()  # partitions of which a frame stayed behind: the later ones must too
        users = 0
        for received in backlog:
            position = self._positions.get(received.partition)
            if position is None:
                continue  # read under an earlier assignment; its owner reads it again
            expected = ends.get(received.partition, position.next_offset)
            if received.offset < position.next_offset:
                done.append(received)
                continue
            if received.offset < expected:
                # Read under an earlier assignment too: done with when the first copy is.
                parts[received.partition].copies.append(received)
                continue
            if received.partition in held or users >= self._settings.evolve.batch_users:
                held.add(received.partition)
                rest.append(received)
                continue
            if received.offset > expected:
                if position.awaits_seek:
                    continue
                raise LogGap(
                    f"{self._topic.name} partition {received.partition}: expected offset {expected}, got "
                    f"{received.offset}; the frames between were not read. A restart reads them again; if it ends "
                    "the same way, they are no longer in the log"
                )
            part = parts.get(received.partition) or _Part(marks=dict(position.marks))
            count = len(part.arrivals)
            if not self._add(part, received):
                held.add(received.partition)
                rest.append(received)
                continue
            parts[received.partition] = part
            ends[received.partition] = received.offset + 1
            position.awaits_seek = position.awaits_seek and received.offset < position.delivered_from
            users += len(part.arrivals) - count
        return done, parts, rest

    def _add(self, part: _Part, received: Received) -> bool:
        """Add a frame's new events to a part; False, and nothing added, if it would get too many users."""
        frame = received.decoded()
        if isinstance(frame, InvalidFrame):
            part.frames.append(received)
            part.letters.append(self._frame_letter(received, frame))
            return True
        if part.frames and len(part.arrivals.keys() | set(frame.user)) > MAX_FRAME_USERS:
            return False
        part.frames.append(received)
        add_arrivals(frame, received.offset, part.marks, self._erasures, part.intake)
        return True

    # The steps

    def _read(self, parts: Mapping[int, _Part]) -> Mapping[int, Reading]:
        wanted = {partition: list(part.arrivals) for partition, part in parts.items()}
        started = perf_counter()
        readings = self._retrying("store_read", lambda: self._store.read_rows(wanted))
        self._metrics.store_read_seconds.observe(perf_counter() - started)
        return readings

    def _hand_over(self, parts: Mapping[int, _Part], readings: Mapping[int, Reading]) -> None:
        """Advance the windows that end with a `$identify`, as far as that."""
        for partition, part in parts.items():
            if not part.intake.identified:
                continue
            rows = dict(zip(part.arrivals, readings[partition].rows, strict=True))
            for one in part.intake.identified:
                state = None if one.is_whole else rows[one.anonymous_id].state
                try:
                    advance = self._engine.advance(UserEvents(one.anonymous_id, state, None, one.before))
                except InvalidState as error:
                    raise _unreadable(one.anonymous_id, error) from error
                part.handovers.append(Handover(one, advance.state))
                part.handed.update(applied=len(advance.applied), repeat=advance.repeats, late=advance.late)

    def _encode(self, parts: Mapping[int, _Part], readings: Mapping[int, Reading]) -> None:
        model = self._engine.model_version
        users: list[UserEvents] = []
        owners: list[_Part] = []
        for partition, part in parts.items():
            for (user, arrivals), row in zip(part.arrivals.items(), readings[partition].rows, strict=True):
                has_window = user not in part.intake.ended
                # Between vectors of two models there is no distance.
                vector = row.vector if has_window and row.model == model else None
                users.append(UserEvents(user, row.state if has_window else None, vector, arrivals))
                owners.append(part)
        seconds = StageSeconds()
        self._metrics.batch_users.observe(len(users))
        for owner, update in zip(owners, self._evolve(users, owners, seconds), strict=True):
            if update is not None:
                owner.updates.append(update)
        self._metrics.encode_seconds.observe(seconds.encode)
        self._metrics.rank_seconds.observe(seconds.rank)

    def _evolve(
        self, users: Sequence[UserEvents], owners: Sequence[_Part], seconds: StageSeconds
    ) -> list[UserUpdate | None]:
        """Evolve users; one whose events break the model is left out and the event dead-lettered."""

        def alone(one: tuple[UserEvents, _Part], error: Exception) -> UserUpdate | None:
            user, owner = one
            if isinstance(error, InvalidState):
                raise _unreadable(user.user_id, error) from error
            return self._without_poison(user, owner, error, seconds)

        return one_by_one_if_need_be(
            list(zip(users, owners, strict=True)),
            lambda some: self._engine.evolve([user for user, _ in some], _now_ms(), seconds),
            alone,
            self._engine.verify,
        )

    def _without_poison(
        self, user: UserEvents, owner: _Part, error: Exception, seconds: StageSeconds
    ) -> UserUpdate | None:
        """Find the events of one user that break the model, one by one, and bury them."""
        good: list[Arrival] = []
        update: UserUpdate | None = None
        for arrival in user.arrivals:
            attempt = UserEvents(user.user_id, user.state, user.vector, [*good, arrival])
            try:
                update = self._engine.evolve([attempt], _now_ms(), seconds)[0]
            except DriftlineError:
                raise
            except Exception as cause:  # noqa: BLE001 - as above
                self._engine.verify()
                _logger.error("event dead-lettered", user=user.user_id, event_id=arrival.event_id, error=repr(cause))
                owner.letters.append(self._event_letter(arrival, cause))
            else:
                good.append(arrival)
        if len(good) == len(user.arrivals):
            _logger.warning("a failure did not repeat", user=user.user_id, error=repr(error))
        return update

    def _produce_handovers(self, parts: Mapping[int, _Part]) -> None:
        """Send windows to the partitions of their users, to each one frame at a time: see `streams.services.handovers`."""
        topic, bounds = self._topic, self._settings.ingest
        queues = [
            (target, frames)
            for partition, part in parts.items()
            if part.handovers
            for target, frames in handover_frames(
                part.handovers,
                Source(topic.name, topic.topic_id, partition),
                topic.partitions,
                bounds.frame_events,
                bounds.frame_bytes,
            ).items()
        ]
        targets = [target for target, _ in queues]
        for one_each in zip_longest(*(frames for _, frames in queues)):

            def produce(one_each: Sequence[Frame | None] = one_each) -> None:
                for target, frame in zip(targets, one_each, strict=True):
                    if frame is not None:
                        self._outbox.send(topic.name, encode_frame(frame), partition=target)
                self._outbox.flush()

            self._retrying("produce", produce)

    def _produce(self, parts: Mapping[int, _Part]) -> None:
        topics = self._settings.topics
        started = perf_counter()

        def produce() -> int:
            count = 0
            for part in parts.values():
                for letter in part.letters:
                    self._outbox.send(topics.dead_letters, letter.value, letter.key, headers=letter.all_headers())
                for update in part.updates:
                    if update.row is not None:
                        self._outbox.send(topics.recommendations, update.row.recommendations, update.user_id)
                        count += 1
            self._outbox.flush()
            return count

        self._metrics.recommendations.inc(self._retrying("produce", produce))
        self._metrics.produce_seconds.observe(perf_counter() - started)

    def _erase(self, parts: Mapping[int, _Part]) -> None:
        erasures = [erasure for part in parts.values() for erasure in part.intake.erasures]
        if not erasures:
            return
        found = Erasures()
        for part in parts.values():
            for user, erased_ms in part.intake.erased_ms.items():
                found.add(user, erased_ms)
        topic = self._topic
        self._retrying("store_swap", lambda: self._erasure_store.record(found))
        self._retrying("store_swap", lambda: self._erasure_store.forget(erasures, topic.topic_id, topic.partitions))
        self._erasures.update(found)
        for digest, erased_ms in found.items():
            _logger.info("erased", user_digest=digest, erased_ms=erased_ms)

    def _swap(self, parts: Mapping[int, _Part]) -> set[int]:
        """Write every partition; returns those that are written. The others have moved on and are read again."""
        swaps = []
        for partition, part in parts.items():
            known = self._positions[partition]
            marks = {source: offset for source, offset in part.marks.items() if known.marks.get(source) != offset}
            watermark = Watermark(part.frames[-1].offset, self._topic.topic_id, self._topic.partitions, marks)
            rows = part.rows()
            ended = [user for user in part.intake.ended if user not in rows]
            swaps.append(Swap(partition, known.applied, watermark, rows, ended))
        if not swaps:
            return set()
        started = perf_counter()
        results = self._retrying("store_swap", lambda: self._store.swap(swaps))
        self._metrics.store_swap_seconds.observe(perf_counter() - started)
        applied = set()
        refused = {}
        for swap, result in zip(swaps, results, strict=True):
            # A swap whose answer was lost and that was tried again finds its own watermark.
            if result.swapped or result.offset == swap.watermark.offset:
                part = parts[swap.partition]
                self._go_on(swap.partition, swap.watermark.offset, part.marks)
                applied.add(swap.partition)
                self._count(part)
            elif result.offset == swap.expected:
                raise StateRefused(
                    f"the store's watermark of {self._topic.name} partition {swap.partition} belongs to another topic "
                    f"than the one that this worker reads ({self._topic.topic_id}): it was adopted while the worker "
                    "ran. Start the worker again"
                )
            else:
                refused[swap.partition] = result.offset
        self._moved(refused)
        self._health.progress()
        return applied

    # What can have happened meanwhile

    def _moved(self, offsets: Mapping[int, int | None]) -> list[int]:
        """The partitions whose watermark another worker has moved; this worker then knows the new one.

        Raises:
            StoreLostTail: A watermark is behind what this worker applied.
        """
        moved = []
        for partition, found in offsets.items():
            known = self._positions[partition].applied
            if found == known:
                continue
            self._check_kept(partition, found)
            moved.append(partition)
        if moved:
            self._metrics.stale_swaps.inc(len(moved))
            for partition, watermark in self._retrying(
                "store_read", lambda: self._store.read_watermarks(moved)
            ).items():
                if watermark is not None:
                    self._go_on(partition, watermark.offset, dict(watermark.marks))
        return moved

    def _go_on(self, partition: int, applied: int, marks: dict[Source, int]) -> None:
        self._positions[partition] = replace(
            self._positions[partition], applied=applied, next_offset=applied + 1, marks=marks
        )

    def _check_kept(self, partition: int, found: int | None) -> None:
        known = self._positions[partition].applied
        if known is not None and (found is None or found < known):
            raise StoreLostTail(
                f"the store's watermark of {self._topic.name} partition {partition} is "
                f"{'gone' if found is None else found}, this worker had applied {known}: the store lost its "
                "newest writes. A restart reads the log again from its watermark"
            )

    def _positions_in(
        self, store: StateStore, partitions: Sequence[int], extents: Mapping[Partition, Extent]
    ) -> dict[int, _Position]:
        """Where a store's watermarks say that each partition goes on; at the log's start where there is none."""
        self._check_partition_count(store)
        watermarks = self._retrying("store_read", lambda: store.read_watermarks(partitions))
        positions = {}
        for partition in partitions:
            key = Partition(self._topic.name, partition)
            watermark = watermarks[partition]
            if watermark is None:
                positions[partition] = _Position(None, extents[key].start, {})
            else:
                self._check_belongs(key, extents[key], watermark)
                positions[partition] = _Position(watermark.offset, watermark.offset + 1, dict(watermark.marks))
        return positions

    def _check_partition_count(self, store: StateStore) -> None:
        found = self._retrying("store_read", lambda: store.set_partitions(self._topic.partitions))
        if found != self._topic.partitions:
            raise StateRefused(
                f"topic {self._topic.name} has {self._topic.partitions} partitions, the store was filled with {found}: "
                "users are in other partitions now. Put the topic back as it was, or set redis.key_prefix to a new "
                "name and rebuild with `driftline evolve --rebuild` from a log with the new number"
            )

    def _check_nothing_lost(
        self, partition: Partition, extent: Extent, committed: int | None, *, rebuild: bool
    ) -> None:
        if rebuild or committed is None or committed <= extent.start:
            return
        raise StateRefused(
            f"the store has no watermark for {partition.topic} partition {partition.number}, but group "
            f"{self._settings.evolve.group} has committed offset {committed}: the store was emptied, or this is "
            "another one. Point redis.url and redis.generation at the right one; if it is lost, rebuild every row "
            "from the log with `driftline evolve --rebuild`"
        )

    def _check_belongs(self, partition: Partition, extent: Extent, watermark: Watermark) -> None:
        where = f"{partition.topic} partition {partition.number}"
        adopt = f"stop evolve, run `driftline topics adopt {partition.topic}`, and start it again"
        if watermark.topic_id != self._topic.topic_id:
            raise StateRefused(
                f"topic {partition.topic} was deleted and made anew: the store's watermark belongs to id "
                f"{watermark.topic_id or 'none'}, the topic is {self._topic.topic_id or 'none'}. If the new topic is "
                f"meant, {adopt}"
            )
        if watermark.offset >= extent.end:
            raise StateRefused(
                f"the store's watermark of {where} is {watermark.offset}, but its log ends at {extent.end}: the log "
                f"was cut or made anew, or this store belongs to another cluster. If this log is meant, {adopt}"
            )
        if watermark.offset + 1 < extent.start:
            raise LogGap(
                f"{where}: the store has applied up to offset {watermark.offset}, but the log now starts at "
                f"{extent.start}: retention deleted {extent.start - watermark.offset - 1} frames before they were "
                f"applied. They are lost; to go on without them, {adopt}"
            )

    # Small parts

    def _retrying(self, operation: str, call: Callable[[], _Result]) -> _Result:
        """Try until it works: frames wait, nothing is dropped. Meanwhile the service is not ready, and says why."""
        attempts = _PRODUCE_ATTEMPTS if operation == "produce" else None
        for attempt in stamina.retry_context(
            on=(StoreUnavailable, DeliveryFailed), attempts=attempts, timeout=None, wait_initial=0.1, wait_max=2.0
        ):
            with attempt:
                try:
                    result = call()
                except (StoreUnavailable, DeliveryFailed) as error:
                    self._metrics.retries.labels(operation).inc()
                    self._health.block(operation, str(error))
                    _logger.warning("trying again", operation=operation, attempt=attempt.num, error=str(error))
                    raise
                if attempt.num > 1:
                    self._health.unblock(operation)
        return result

    def _count(self, part: _Part) -> None:
        metrics = self._metrics
        metrics.frames.inc(len(part.frames))
        metrics.users.inc(sum(update.row is not None for update in part.updates))
        now_ms = _now_ms()
        ages = [now_ms - arrival.appended_ms for update in part.updates for arrival in update.applied]
        metrics.event_to_vector_seconds.observe_many(np.array(ages, np.float64) / 1000)
        handed = part.handed
        metrics.handed_over_events.inc(sum(len(handover.state) for handover in part.handovers))
        counts = {
            "applied": len(ages) + handed["applied"],
            "repeat": sum(update.repeats for update in part.updates) + handed["repeat"],
            "late": sum(update.late for update in part.updates) + handed["late"],
            "resent": part.intake.resent,
            "erased": part.intake.erased,
            "control": part.intake.controls,
            "dead_lettered": len(part.letters),
        }
        for outcome, count in counts.items():
            if count:
                metrics.events.labels(outcome).inc(count)
        for letter in part.letters:
            metrics.dead_letters.labels(letter.reason).inc()

    def _frame_letter(self, received: Received, error: InvalidFrame) -> DeadLetter:
        _logger.error("frame dead-lettered", partition=received.partition, offset=received.offset, error=str(error))
        return DeadLetter(
            received.raw,
            None,
            (),
            "invalid_frame",
            str(error),
            self._topic.name,
            received.partition,
            received.offset,
            "frame",
        )

    def _event_letter(self, arrival: Arrival, cause: Exception) -> DeadLetter:
        event = events_of(arrival.frame)[arrival.index]
        return DeadLetter(
            msgspec.json.encode(event),
            str(event["user_id"]).encode(),
            (),
            "poison",
            f"the model fails on this event: {cause!r}",
            arrival.source.topic,
            arrival.source.partition,
            arrival.offset,
            "encode",
            arrival.appended_ms,
        )


def _unreadable(user_id: str, error: InvalidState) -> StateRefused:
    return StateRefused(
        f"the row of user {user_id!r} in the store can't be read: {error}. It was not written by this version; upgrade, "
        "or delete that key (its window then starts anew)"
    )


def _now_ms() -> int:
    return round(time() * 1000)
