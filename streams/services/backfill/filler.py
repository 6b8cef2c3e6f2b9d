"""Filling one partition of a generation: windows only, and one encoding a user at the end.

Windows are kept in memory and written now and then, when they take up their share of it: first the windows, each with
the place in the source up to which it is advanced, then, in one step, the partition's progress and its watermark. After
a crash some windows are ahead of the progress; what lies between is read again, and what a window already holds is told
by that place.

A place is the offset of a frame in `interactions`, or how many records of another source come before.

A window that ends in the log is removed before any is written, so that what comes after it begins anew; a crash leaves it
out of the store, where the same records end it once more. Whoever is erased while a backfill runs is looked for after each
write: the live worker records an erasure first and removes rows then, so that one of the two sees what the other did.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from time import time
from typing import Final, Protocol, TypeVar

import msgspec
import structlog
from msgspec import Struct

from models.spec import WindowRule
from streams.contracts.erasure import Erasures
from streams.contracts.event import ERASE, IDENTIFY
from streams.contracts.frame import MAX_FRAME_USERS, InvalidFrame, Source, decode_frame
from streams.contracts.generation import Progress
from streams.contracts.recommendation import Trigger
from streams.errors import DriftlineError, StateRefused
from streams.interest.engine import UserRow, UserWindow, trigger_of
from streams.interest.window import (
    EMPTY_STATE,
    InvalidState,
    UserState,
    WindowEvent,
    advance_window,
    decode_state,
    encode_state,
)
from streams.log.topics import Message
from streams.services.arrivals import Intake, add_arrivals
from streams.services.backfill.events import SourceEvent
from streams.services.poison import one_by_one_if_need_be
from streams.store.protocol import ErasureStore, Watermark
from streams.store.redis.filling import FilledWindow

_logger = structlog.get_logger("driftline.backfill")

# What a window takes in memory besides its own bytes: the user's id, the dictionary's entry, the structs.
_WINDOW_OVERHEAD: Final = 500

_Event = TypeVar("_Event", bound=WindowEvent)


class WindowEncoder(Protocol):
    """What the filler needs of `streams.interest.engine.Engine`."""

    @property
    def model_version(self) -> str:
        """The version of the model, as rows carry it."""

    def encode(self, windows: Sequence[UserWindow], now_ms: int) -> list[UserRow]:
        """One row a window."""

    def verify(self) -> None:
        """Raise `EncoderFailed` if the model does not work any more."""


class FillingStore(Protocol):
    """Where windows and rows go; `streams.store.redis.RedisFilling` is one."""

    def read_windows(self, partition: int, users: Sequence[str]) -> list[FilledWindow | None]:
        """The windows of users, in the order asked for."""

    def write_windows(self, partition: int, expected: int | None, windows: Mapping[str, FilledWindow]) -> None:
        """Write windows whose vectors are still to come."""

    def write_rows(self, partition: int, expected: int | None, rows: Mapping[str, UserRow]) -> None:
        """Write encoded rows."""

    def end_windows(self, partition: int, expected: int | None, users: Sequence[str]) -> None:
        """Remove the rows of users."""

    def unencoded(self, partition: int, count: int) -> list[str]:
        """Up to ``count`` users whose vectors are still to come."""

    def leave_out(self, partition: int, users: Sequence[str]) -> None:
        """Forget that users are still to be encoded."""

    def checkpoint(
        self, partition: int, expected: int | None, progress: Progress, watermark: Watermark | None = None
    ) -> None:
        """Record how far a partition is, and move its watermark."""

    def read_watermark(self, partition: int) -> Watermark | None:
        """How far the partition is applied."""


class Lists(Protocol):
    """Where lists go that are sent while a log is replayed."""

    every: int
    """After how many events of a user one is sent."""

    def send(self, lists: Mapping[str, bytes]) -> None:
        """Send lists by user, and wait until they are acknowledged."""


class _Moved(Struct, frozen=True):
    """What moved a window last.

    Attributes:
        trigger: Of the list to come.
        place: Of the last record that the window is advanced by.
        since: Events that entered the window since a list was sent.
    """

    trigger: Trigger
    place: int
    since: int = 0


_moved_decoder = msgspec.json.Decoder(_Moved)


class PartitionFiller:
    """Advances the windows of one partition, and encodes them at the end.

    Args:
        topic_id: Of `interactions`.
        partitions: That users are spread over.
        memory: Event ids remembered a user.
        progress: How far the partition was when this worker claimed it.
        cache_bytes: Windows are written when they take up more.
        erasures: Of whom older events are left out.
        applied: Frames before this offset were applied by live workers; None: that does not matter.
        seal: The watermark to record at the end; None: frames are read, and the watermark goes with them.
        lists: Where to send lists meanwhile; None: none are sent.
    """

    def __init__(
        self,
        store: FillingStore,
        engine: WindowEncoder,
        partition: int,
        *,
        topic_id: str,
        partitions: int,
        rule: WindowRule,
        memory: int,
        progress: Progress,
        cache_bytes: int,
        erasures: ErasureStore,
        applied: int | None = None,
        seal: Watermark | None = None,
        lists: Lists | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._partition = partition
        self._topic_id = topic_id
        self._partitions = partitions
        self._rule = rule
        self._memory = memory
        self._cache_bytes = cache_bytes
        self._erasure_store = erasures
        self._erasures = erasures.read()
        # Live workers have done so, unless they wrote to another store or that one was lost.
        self._unrecorded = Erasures()
        self._applied = applied
        self._seal = seal
        self._lists = lists
        self.progress = progress
        watermark = store.read_watermark(partition)
        self._expected = None if watermark is None else watermark.offset
        self._marks: dict[Source, int] = {} if watermark is None else dict(watermark.marks)
        # Where no event is recorded, all are read again: a window that a crash left behind is made anew, from nothing.
        self._is_empty = watermark is None and not progress.events
        self._windows: dict[str, FilledWindow] = {}
        # Of windows that a crash left ahead of the progress: the place up to which they are advanced.
        self._ahead: dict[str, int] = {}
        # Whose row in the store is of a window that has ended since.
        self._ended: set[str] = set()
        self._bytes = 0

    def add(self, messages: Sequence[Message]) -> bool:
        """Advance the windows by frames that follow those added before.

        Returns:
            Whether all of them were taken. One that asks for what only a live worker does, and none has done so yet (hand a
            window over to another partition, remove a user from other generations), is left to them with all that follow.
        """
        intake = Intake()
        offsets: dict[int, int] = {}
        bad = 0
        end = messages[-1].offset + 1
        for message in messages:
            try:
                frame = decode_frame(message.value or b"")
            except InvalidFrame:
                bad += 1  # dead-lettered when it was live
                continue
            if (
                self._applied is not None
                and message.offset >= self._applied
                and not {ERASE, IDENTIFY}.isdisjoint(frame.type)
            ):
                end = message.offset
                break
            offsets[id(frame)] = message.offset
            add_arrivals(frame, message.offset, self._marks, self._erasures, intake)
        for user, erased_ms in intake.erased_ms.items():
            self._add_erasure(user, erased_ms)
        self._advance(
            intake.arrivals,
            intake.ended,
            lambda arrival: offsets[id(arrival.frame)],
            trigger_of,
            end,
            bad,
        )
        return end > messages[-1].offset

    def add_events(self, events: Sequence[SourceEvent], next_place: int, bad: Sequence[int] = ()) -> None:
        """Advance the windows by events of this partition's users.

        Args:
            events: In order, of the records before ``next_place``, as `Controls.settle` gives them; those before the progress
                are left out, for the partitions of a share are not equally far.
            bad: The ordinals of records that held no event.
        """
        before = self.progress.next
        if next_place <= before:
            return
        arrivals: dict[str, list[SourceEvent]] = defaultdict(list)
        for event in events:
            # Again, for what was recorded since.
            if event.ordinal >= before and not self._erasures.covers(event.user_id, event.appended_ms):
                arrivals[event.user_id].append(event)
        bad_since = sum(ordinal >= before for ordinal in bad)
        self._advance(arrivals, {}, _ordinal, _trigger_of, next_place, bad_since)

    def flush(self) -> dict[str, FilledWindow]:
        """Write every window that moved, and then how far the partition is.

        Returns:
            What was written, and waits for its vector.
        """
        moved = self._moved()
        self._store.end_windows(self._partition, self._expected, list(self._ended))
        self._store.write_windows(self._partition, self._expected, moved)
        for user in self._forget_erased(list(moved)):
            del moved[user]
        if self._unrecorded:
            self._erasure_store.record(self._unrecorded)
            self._unrecorded = Erasures()
        if self._seal is None:
            self._checkpoint(Watermark(self.progress.next - 1, self._topic_id, self._partitions, dict(self._marks)))
        else:
            self._checkpoint()
        self._is_empty = False
        self._windows, self._ahead, self._ended, self._bytes = {}, {}, set(), 0
        return moved

    def finish(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Encode every window that is ahead of its vector, and record that the partition is done.

        Args:
            is_stopped: Asked before each batch: whether to leave the rest, and with it the partition, to whoever goes on.
        """
        moved = self.flush()
        # What is in memory need not be read again; the rest was written earlier.
        in_memory = list(moved)
        for first in range(0, len(in_memory), MAX_FRAME_USERS):
            if is_stopped():
                return
            self._finish_rows({user: moved[user] for user in in_memory[first : first + MAX_FRAME_USERS]})
        while users := self._store.unencoded(self._partition, MAX_FRAME_USERS):
            if is_stopped():
                return
            found = dict(zip(users, self._store.read_windows(self._partition, users), strict=True))
            gone = [user for user, window in found.items() if window is None or window.trigger is None]
            if gone:
                self._store.leave_out(self._partition, gone)  # expired meanwhile, or encoded by a live worker
            self._finish_rows({user: window for user, window in found.items() if window and window.trigger})
        self.progress = msgspec.structs.replace(self.progress, is_done=True)
        self._checkpoint(self._seal)

    def _finish_rows(self, windows: Mapping[str, FilledWindow]) -> None:
        self._store.write_rows(self._partition, self._expected, self._rows(windows))
        self._forget_erased(list(windows))

    def _moved(self) -> dict[str, FilledWindow]:
        """The windows in memory that are ahead of their vectors."""
        return {user: window for user, window in self._windows.items() if window.trigger is not None}

    def _checkpoint(self, watermark: Watermark | None = None) -> None:
        self._store.checkpoint(self._partition, self._expected, self.progress, watermark)
        self._expected = self._expected if watermark is None else watermark.offset

    def _advance(
        self,
        arrivals: Mapping[str, Sequence[_Event]],
        ended: Mapping[str, int],
        place_of: Callable[[_Event], int],
        trigger_of_event: Callable[[_Event], Trigger],
        next_place: int,
        bad: int,
    ) -> None:
        """Advance the windows of some users by all that lies before a place.

        Args:
            arrivals: Events by user; of a user whose window ended, those after its end.
            ended: The places where windows ended last.
        """
        self._read([user for user in arrivals if user not in self._windows and user not in self._ended])
        events = repeats = late = 0
        for user, of_user in arrivals.items():
            ahead = self._ahead.get(user)
            if ended.get(user, -1) > (-1 if ahead is None else ahead):
                self._end(user)
            window = self._windows.get(user)
            new = of_user if ahead is None else [event for event in of_user if place_of(event) > ahead]
            advance = advance_window(self._state(user, window), new, self._rule, self._memory)
            events, repeats, late = events + len(of_user), repeats + advance.repeats, late + advance.late
            if advance.applied:
                since = len(advance.applied) + _since(window) if self._lists else 0
                moved = _Moved(trigger_of_event(advance.applied[-1]), next_place - 1, since)
                self._keep(
                    user, FilledWindow(encode_state(advance.state), msgspec.json.encode(moved), *_encoded(window))
                )
        if self._lists is not None:
            self._send_lists(self._lists, arrivals)
        before = self.progress
        self.progress = Progress(
            next_place, before.events + events, before.repeats + repeats, before.late + late, before.bad + bad
        )
        if self._bytes > self._cache_bytes:
            self.flush()

    def _send_lists(self, lists: Lists, users: Iterable[str]) -> None:
        """Send a list for each of these users who has had enough events since the last one."""
        due = {
            user: window
            for user in users
            if (window := self._windows.get(user)) is not None and _since(window) >= lists.every
        }
        if not due:
            return
        lists.send({user: row.recommendations for user, row in self._rows(due).items()})
        for user, window in due.items():
            moved = msgspec.structs.replace(_moved_decoder.decode(window.trigger or b""), since=0)
            self._keep(user, replace(window, trigger=msgspec.json.encode(moved)))

    def _read(self, users: Sequence[str]) -> None:
        if self._is_empty:
            return
        for user, window in zip(users, self._store.read_windows(self._partition, users), strict=True):
            if window is None:
                continue
            self._keep(user, window)
            if window.trigger is not None:
                place = _moved_decoder.decode(window.trigger).place
                if place >= self.progress.next:
                    self._ahead[user] = place

    def _add_erasure(self, user: str, erased_ms: int) -> None:
        self._erasures.add(user, erased_ms)
        self._unrecorded.add(user, erased_ms)

    def _end(self, user: str) -> None:
        window = self._windows.pop(user, None)
        if window is not None:
            self._bytes -= len(window.state) + _WINDOW_OVERHEAD
        self._ahead.pop(user, None)
        self._ended.add(user)

    def _forget_erased(self, users: Sequence[str]) -> list[str]:
        """Remove those of whom an erasure has been recorded meanwhile: all that was read here is older."""
        found = self._erasure_store.read_of(users)
        if not found:
            return []
        erased = [user for user in users if (found.erased_ms(user) or -1) > (self._erasures.erased_ms(user) or -1)]
        self._store.end_windows(self._partition, self._expected, erased)
        self._erasures.update(found)
        return erased

    def _keep(self, user: str, window: FilledWindow) -> None:
        before = self._windows.get(user)
        self._bytes += len(window.state) - (-_WINDOW_OVERHEAD if before is None else len(before.state))
        self._windows[user] = window

    def _state(self, user: str, window: FilledWindow | None) -> UserState:
        if window is None:
            return EMPTY_STATE
        try:
            return decode_state(window.state)
        except InvalidState as error:
            raise StateRefused(
                f"the row of user {user!r} in the generation that is filled can't be read: {error}. It was not written "
                "by this version; drop the generation (`driftline generations drop`) and fill it anew"
            ) from error

    def _to_encode(self, user: str, window: FilledWindow) -> UserWindow:
        trigger = _moved_decoder.decode(window.trigger or b"").trigger
        # Between vectors of two models there is no distance.
        previous = window.vector if window.model == self._engine.model_version else None
        return UserWindow(user, self._state(user, window), trigger, previous)

    def _rows(self, windows: Mapping[str, FilledWindow]) -> dict[str, UserRow]:
        wanted = [self._to_encode(user, window) for user, window in windows.items()]
        return {window.user_id: row for window, row in zip(wanted, self._encode(wanted), strict=True)}

    def _encode(self, windows: Sequence[UserWindow]) -> list[UserRow]:
        """Rows of windows; of one that breaks the model the events are tried one by one, as when they were live."""
        return one_by_one_if_need_be(
            windows, lambda some: self._engine.encode(some, _now_ms()), self._without_poison, self._engine.verify
        )

    def _without_poison(self, window: UserWindow, error: Exception) -> UserRow:
        row = self._engine.encode([replace(window, state=EMPTY_STATE)], _now_ms())[0]
        kept: list[int] = []
        for place in range(len(window.state)):
            attempt = _part(window, [*kept, place])
            try:
                row = self._engine.encode([attempt], _now_ms())[0]
            except DriftlineError:
                raise
            except Exception as cause:  # noqa: BLE001 - as above
                self._engine.verify()
                event_id = window.state.ids[place]
                _logger.error("event left out", user=window.user_id, event_id=event_id, error=repr(cause))
            else:
                kept.append(place)
        if len(kept) == len(window.state):
            _logger.warning("a failure did not repeat", user=window.user_id, error=repr(error))
        return row


def _part(window: UserWindow, places: Sequence[int]) -> UserWindow:
    state = window.state
    kept = UserState(
        state.version,
        [state.items[place] for place in places],
        [state.types[place] for place in places],
        [state.times[place] for place in places],
        [state.ids[place] for place in places],
        state.truncated,
        state.recent,
    )
    return replace(window, state=kept)


def _encoded(window: FilledWindow | None) -> tuple[bytes | None, str | None]:
    """The vector of a row and its model, as they were encoded last."""
    return (None, None) if window is None else (window.vector, window.model)


def _since(window: FilledWindow | None) -> int:
    """Events since a list was sent."""
    return 0 if window is None or window.trigger is None else _moved_decoder.decode(window.trigger).since


def _ordinal(event: SourceEvent) -> int:
    return event.ordinal


def _trigger_of(event: SourceEvent) -> Trigger:
    return Trigger(
        event.event_id,
        event.type,
        event.item_id,
        event.time_ms,
        event.topic,
        event.partition,
        event.offset,
        event.topic_id,
    )


def _now_ms() -> int:
    return round(time() * 1000)
