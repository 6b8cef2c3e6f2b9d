"""How fresh vectors are, seen from outside: from an event handed to the producer to its vector read back from Redis."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import Event as Flag
from threading import Lock
from time import time
from typing import Final

from streams.contracts.frame import partition_of
from streams.demo.traffic import Sent
from streams.interest.window import decode_state
from streams.store.protocol import Reading, StateStore

# Of a steady stream 20 events a second, whatever became of those before: waiting for one sample before taking the next
# would take few samples just when the engine is slow.
_SAMPLE_EVERY_S: Final = 0.05
# A vector is found at most this much later than it was readable, so the figures err on the slow side.
_LOOK_EVERY_S: Final = 0.002
_RECENT: Final = 200
_KEPT: Final = 100_000


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that so many percent of all values do not exceed (nearest rank); None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


class FreshnessProbe:
    """Picks events of the traffic as samples and looks for each in its user's row until it is there.

    `offer` is called by the thread that sends; `run` by a thread of its own.
    """

    def __init__(self, store: StateStore, partitions: int, clock: Callable[[], float] = time) -> None:
        self._store = store
        self._partitions = partitions
        self._clock = clock
        self._lock = Lock()
        self._waiting: list[Sent] = []
        self._next_sample_s = 0.0
        self._milliseconds: deque[float] = deque(maxlen=_KEPT)

    def offer(self, sent: Sent) -> None:
        """Take the event as a sample if it is time for one."""
        if sent.at_s < self._next_sample_s:
            return
        self._next_sample_s = sent.at_s + _SAMPLE_EVERY_S
        with self._lock:
            self._waiting.append(sent)

    def run(self, stop: Flag) -> None:
        """Look until told to stop.

        Raises:
            StoreUnavailable: Redis went away.
        """
        while not stop.wait(_LOOK_EVERY_S):
            self.look()

    def look(self) -> int:
        """Read the rows of all waiting samples' users once; returns how many samples still wait."""
        with self._lock:
            waiting = list(self._waiting)
        if not waiting:
            return 0
        users = sorted({sent.user_id for sent in waiting})
        wanted: dict[int, list[str]] = {}
        for user in users:
            wanted.setdefault(partition_of(user, self._partitions), []).append(user)
        readable = _readable_events(wanted, self._store.read_rows(wanted))
        now_s = self._clock()
        found = [sent for sent in waiting if sent.event_id in readable[sent.user_id]]
        self._milliseconds.extend((now_s - sent.at_s) * 1000 for sent in found)
        with self._lock:
            self._waiting = [sent for sent in self._waiting if sent not in found]
            return len(self._waiting)

    def settle(self) -> None:
        """Count what still waits as readable just now. For the end, when all events are known to be applied.

        Only a sample whose event has left its user's window before it was seen can still wait then.
        """
        if self.look():
            now_s = self._clock()
            with self._lock:
                self._milliseconds.extend((now_s - sent.at_s) * 1000 for sent in self._waiting)
                self._waiting = []

    def recent(self) -> list[float]:
        """Milliseconds of the newest samples, those of about ten seconds."""
        return self.all()[-_RECENT:]

    def all(self) -> list[float]:
        """Milliseconds of every sample, or of the newest 100,000."""
        return list(self._milliseconds)


def _readable_events(wanted: Mapping[int, Sequence[str]], readings: Mapping[int, Reading]) -> dict[str, set[str]]:
    """The ids of the events in each user's window, where there is a vector beside it."""
    return {
        user: set(decode_state(row.state).ids) if row.state is not None and row.vector is not None else set()
        for partition, users in wanted.items()
        for user, row in zip(users, readings[partition].rows, strict=True)
    }
