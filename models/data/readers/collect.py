"""What every reader of a log does with an event that it has read."""

import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta

from models.data.events import Log, LoggedEvent

MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999: later is no time but a mistake of unit."""

TIME_RULE = "Times lie between 1970 and 9999, in milliseconds since 1970 (MovieLens and RecBole: seconds)"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class InvalidTime(ValueError):
    """A value that is no time of an event; the reader says where it stands."""


class EventCollector:
    """Collects a log's events: gives ids and places where there are none, and leaves repeats out.

    Args:
        timed: Whether the source has times.
    """

    def __init__(self, *, timed: bool) -> None:
        self._timed = timed
        self._events: list[LoggedEvent] = []
        self._repeats = 0
        self._names: dict[str, str] = {}
        self._given: dict[str, set[str]] = defaultdict(set)
        self._places: dict[str, int] = defaultdict(int)

    def add(self, user_id: str, item_id: str, event_type: str, time_ms: int, event_id: str | None, line: int) -> None:
        """Take an event.

        Args:
            time_ms: Not looked at where the source has no times.
            event_id: None where the source gives none. The second event of a user with one given id is a repeat.
            line: Its line or row, counted over all files of the log: the id of an event that has none. Zero-padded,
                so that such events of one millisecond keep the order of the log.
        """
        # One string for all events of an item: a million events of ten thousand ids need no million strings.
        name = self._names.setdefault
        user_id = name(user_id, user_id)
        if event_id is None:
            event_id = f"{line:012d}"
        else:
            given = self._given[user_id]
            if event_id in given:
                self._repeats += 1
                return
            given.add(event_id)
        if not self._timed:
            time_ms = self._places[user_id]
            self._places[user_id] = time_ms + 1
        self._events.append(
            LoggedEvent(user_id, name(item_id, item_id), name(event_type, event_type), time_ms, event_id)
        )

    def log(self) -> Log:
        """All that was taken."""
        return Log(self._events, self._timed, self._repeats)


def milliseconds_of(time: datetime | int) -> int:
    """A time as whole milliseconds since 1970; an int is that already.

    Raises:
        InvalidTime: Before 1970 or after 9999.
    """
    found = time if isinstance(time, int) else (time - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= found <= MAX_TIME_MS:
        raise InvalidTime(f"time {found} is out of range. {TIME_RULE}")
    return found


def milliseconds_of_seconds(text: str) -> int:
    """A number of seconds since 1970, whole or not, as whole milliseconds.

    Raises:
        InvalidTime: No number, not finite, before 1970 or after 9999.
    """
    try:
        return milliseconds_of(int(text) * 1000)
    except InvalidTime:
        raise
    except ValueError:
        pass
    try:
        seconds = float(text)
    except ValueError as error:
        raise InvalidTime(f"time {text[:40]!r} is no number. {TIME_RULE}") from error
    if not math.isfinite(seconds):
        raise InvalidTime(f"time {text[:40]!r} is no number. {TIME_RULE}")
    return milliseconds_of(round(seconds * 1000))
