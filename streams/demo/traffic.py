"""Simulated apps: visitors with drifting tastes, whose clicks and views go to the raw topics as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from threading import Event as Flag
from time import monotonic, time
from typing import Final, Protocol

import msgspec

from models.synthetic import CLICK, Visitor

DRIFT: Final = 0.5
"""How strongly tastes drift, 0 to 1: at 0.5 a visitor has a new favourite topic every 20 events on average."""

# As an app's bug would make them; the comment is what ingest says of each.
_BAD: Final = (
    b'{"user_id": "visitor-0000", "item_id": ',  # not JSON
    b'{"user_id": "visitor-0000"}',  # an id is missing
    b'{"user_id": "visitor-0000", "item_id": "espresso-01", "event_time": 1767225600}',  # seconds, not milliseconds
    b'{"user_id": "visitor-0000", "item_id": "caf\xe9"}',  # Latin-1, not UTF-8
)
_BAD_EVERY: Final = 100
_FIRST_BAD: Final = 10
_LONGEST_PAUSE_S: Final = 0.02


def visitor_count(events_per_second: float) -> int:
    """How many visitors make this much traffic, one event a second each, within what is worth to look at."""
    return min(max(round(events_per_second), 5), 1000)


@dataclass(frozen=True, slots=True)
class Sent:
    """A good event on its way. ``at_s`` is the wall clock just before it was handed to the producer."""

    user_id: str
    event_id: str
    at_s: float


class Sender(Protocol):
    """What the traffic needs of `streams.log.producer.Producer`."""

    def send(self, topic: str, value: bytes | None, key: bytes | str | None = None) -> None:
        """Hand over a message."""

    def poll(self) -> int:
        """Serve delivery reports."""

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged."""


class Traffic:
    """Sends the visitors' events at a steady rate, one of every hundred broken on purpose. One thread calls `run`.

    Args:
        topics: Raw topic by event type.
        on_sent: Called for every good event that `run` sends.
        seed: Fixes who comes and what they do.

    Attributes:
        sent: Messages handed to the producer, bad ones included.
        bad: Bad ones among them.
    """

    def __init__(
        self,
        producer: Sender,
        topics: dict[str, str],
        visitors: int,
        events_per_second: float,
        on_sent: Callable[[Sent], None],
        seed: int = 7,
    ) -> None:
        self._producer = producer
        self._topics = topics
        self._rate = events_per_second
        self._on_sent = on_sent
        self._rng = Random(seed)
        self._visitors = [
            Visitor(f"visitor-{number:04d}", DRIFT, Random(f"{seed}/{number}")) for number in range(1, visitors + 1)
        ]
        self.sent = 0
        self.bad = 0

    @property
    def visitors(self) -> Sequence[Visitor]:
        """Everybody who browses."""
        return self._visitors

    def send_from(self, visitor: Visitor) -> Sent:
        """Send a visitor's next event."""
        at_s = time()
        event = visitor.next_event(round(at_s * 1000))
        # No event_time: ingest then takes Kafka's timestamp, which is now.
        payload = {"user_id": event.user_id, "item_id": event.item_id, "event_id": event.event_id}
        self._producer.send(self._topics[event.type], msgspec.json.encode(payload), event.user_id)
        self.sent += 1
        return Sent(event.user_id, event.event_id, at_s)

    def run(self, stop: Flag, seconds: float | None) -> float:
        """Send until told to stop, or for so many seconds, and wait for the broker's acknowledgements.

        Returns:
            How many seconds it took.

        Raises:
            DeliveryFailed: The broker did not accept an event.
        """
        started = monotonic()
        done = 0
        while not stop.is_set():
            elapsed = monotonic() - started
            over = seconds is not None and elapsed >= seconds
            due = int(self._rate * (seconds if over and seconds is not None else elapsed))
            while done < due:
                if done % _BAD_EVERY == _FIRST_BAD:
                    self._send_bad()
                else:
                    self._on_sent(self.send_from(self._rng.choice(self._visitors)))
                done += 1
            self._producer.poll()
            if over:
                break
            stop.wait(min(_LONGEST_PAUSE_S, max(0.001, (done + 1) / self._rate - (monotonic() - started))))
        self._producer.flush()
        return monotonic() - started

    def _send_bad(self) -> None:
        self._producer.send(self._topics[CLICK], _BAD[self.bad % len(_BAD)], "visitor-0000")
        self.sent += 1
        self.bad += 1
