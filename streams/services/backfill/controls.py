"""`$erase` and `$identify` in a log that is not `interactions`: known before its first event is taken.

Live workers come to a `$identify` when the anonymous user's window is there, and hand it over to the partition of the user
who it was. The workers of a backfill each read the whole source and keep the events of some partitions' users, and have no
such window: the other partition may be another worker's. So the source is read once before, for its control events alone,
and then every event is taken for the user in whose window it ends up: an anonymous user's for the user of the `$identify`
that follows it, and so on from there; one that a `$erase` follows for nobody. One that was handed over is left out too if
the anonymous user was erased later: live workers leave it where it is by then.

A window's newest events are the same in whatever order they come, so the user's window holds what live workers put there.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from streams.contracts.erasure import Erasures
from streams.contracts.event import CONTROL_TYPES, ERASE
from streams.services.backfill.events import SourceEvent


class _End(NamedTuple):
    """Where a window ends in the log.

    Attributes:
        heir: The user who has its events from there on; None: it was erased.
        appended_ms: Kafka's timestamp of the control event, milliseconds since 1970.
    """

    ordinal: int
    heir: str | None
    appended_ms: int


class Controls:
    """The control events of a source: in memory 400 bytes a `$identify`, 570 a `$erase`.

    Args:
        erasures: That are recorded already; those of the source are added.

    Attributes:
        erased: The erasures of the source.
    """

    def __init__(self, erasures: Erasures) -> None:
        self.erased = Erasures()
        self._erasures = erasures
        self._ends: dict[str, list[_End]] = {}

    def add(self, events: Iterable[SourceEvent]) -> None:
        """Take in events that follow those added before; of ordinary ones nothing is kept."""
        for event in events:
            if event.type not in CONTROL_TYPES:
                continue
            user, heir = event.user_id, None
            if event.type == ERASE:
                self.erased.add(user, event.appended_ms)
                self._erasures.add(user, event.appended_ms)
            elif event.item_id == user or self._erasures.covers(user, event.appended_ms):
                continue
            else:
                heir = event.item_id
            self._ends.setdefault(user, []).append(_End(event.ordinal, heir, event.appended_ms))

    def settle(self, event: SourceEvent) -> SourceEvent | None:
        """The event as it ends up: under its last user, and dated when it was handed over; None: it was erased.

        Asked after all of the source was added.
        """
        if event.type in CONTROL_TYPES:
            return None
        if event.user_id not in self._ends:
            return None if self._erasures.covers(event.user_id, event.appended_ms) else event
        user, ordinal, appended_ms = event.user_id, event.ordinal, event.appended_ms
        while not self._erasures.covers(user, appended_ms):
            end = self._following(user, ordinal)
            if end is None:
                return msgspec.structs.replace(event, user_id=user, appended_ms=appended_ms)
            if end.heir is None:
                return None
            user, ordinal, appended_ms = end.heir, end.ordinal, end.appended_ms
        return None

    def _following(self, user: str, ordinal: int) -> _End | None:
        """The first end of the user's window after a place."""
        ends = self._ends.get(user, [])
        index = bisect_right(ends, ordinal, key=lambda end: end.ordinal)
        return ends[index] if index < len(ends) else None
