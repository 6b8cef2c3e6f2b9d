"""What apps send while faults happen: hot users, repeats, late events, bad ones, of several source topics."""

import json
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.integration.oracle import Rule
from tests.integration.pipeline import BAD_VALUES, Names, Pipeline, Raw

RULE: Final = Rule(longest=20, keep=10)
ITEMS: Final = tuple(f"item-{number}" for number in range(300))
USERS: Final = tuple(f"user-{number}" for number in range(150))
# The hottest user makes a twelfth of all events, the last one a five hundredth.
_WEIGHTS: Final = tuple(1 / (place + 3) for place in range(len(USERS)))
_SECONDS_BETWEEN_EVENTS: Final = 1
_STEP_S: Final = 0.05
_FLUSH_S: Final = 300.0


@dataclass(frozen=True)
class FaultNames(Names):
    """With a third raw topic, which may be deleted and made anew: so nothing bad is sent there, for a dead letter names the
    topic of its message and not which of the two it was.
    """

    @property
    def carts(self) -> str:
        """The third raw topic."""
        return f"{self.clicks}-carts"

    @property
    def types(self) -> dict[str, str]:
        return {**super().types, self.carts: "cart"}


def endless_events(names: FaultNames, seed: int) -> Iterator[Raw]:
    """The same for the same seed. Seven in ten have no id of their own: only offsets tell that they were sent again."""
    rng = random.Random(seed)
    recent: deque[Raw] = deque(maxlen=50)
    number = 0
    while True:
        number += 1
        topic = rng.choices((names.clicks, names.views, names.carts), (5, 4, 2))[0]
        kind = rng.random()
        if kind < 0.01 and topic != names.carts:
            yield Raw(topic, f"bad-{number}", rng.choice(BAD_VALUES))
            continue
        if kind < 0.04 and recent:
            yield rng.choice(recent)  # a client's retry
            continue
        delay = rng.randrange(300) if rng.random() < 0.15 else 0
        event: dict[str, object] = {
            "user_id": rng.choices(USERS, _WEIGHTS)[0],
            "item_id": rng.choice(ITEMS),
            "event_time": 1_700_000_000_000 + (number - delay) * _SECONDS_BETWEEN_EVENTS * 1000,
        }
        if rng.random() < 0.3:
            event["event_id"] = f"event-{number}-{seed}"
        # Not all keyed by user: nothing may depend on how an app chooses its keys.
        key = event["item_id"] if topic == names.views else event["user_id"]
        message = Raw(topic, str(key), json.dumps(event).encode())
        recent.append(message)
        yield message


class Traffic(threading.Thread):
    """Produces events at a steady rate beside what is done to the pipeline, until it is told to stop.

    Attributes:
        sent: How many were handed to the producer.
    """

    def __init__(self, pipeline: Pipeline, names: FaultNames, seed: int, per_second: float) -> None:
        super().__init__(name="traffic", daemon=True)
        self.sent = 0
        self._pipeline = pipeline
        self._events = endless_events(names, seed)
        self._per_second = per_second
        self._stopping = threading.Event()
        self._cancelled = False
        self._lock = threading.Lock()
        self._held: str | None = None
        self._waiting: list[Raw] = []
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._send_until_stopped()
            if not self._cancelled:
                self._pipeline.flush()
        # Raised by `stop` again: in this thread nobody would see it.
        except BaseException as error:  # noqa: BLE001
            self._failure = error

    def _send_until_stopped(self) -> None:
        due = time.monotonic()
        step = max(1, round(self._per_second * _STEP_S))
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due += step / self._per_second
            with self._lock:
                events = [next(self._events) for _ in range(step)]
                self._waiting += [event for event in events if event.topic == self._held]
                self._pipeline.send(event for event in events if event.topic != self._held)
            self.sent += len(events)

    def hold(self, topic: str) -> None:
        """Send nothing to a topic, until `release`; returns when Kafka has what was sent."""
        with self._lock:
            self._held = topic
            self._pipeline.flush()

    def release(self) -> None:
        """Send what was held back, and all that follows."""
        with self._lock:
            self._held = None
            self._pipeline.send(self._waiting)
            self._pipeline.flush()
            self._waiting = []

    def cancel(self) -> None:
        """Send no more, whatever becomes of what was sent."""
        self._cancelled = True
        self._stopping.set()
        if self.is_alive():
            self.join()

    def stop(self) -> None:
        """Send no more, and wait until Kafka has everything."""
        self._stopping.set()
        self.join(_FLUSH_S)
        if self.is_alive():
            raise TimeoutError(f"Kafka has not taken all of {self.sent} messages within {_FLUSH_S:g} s")
        if self._failure is not None:
            raise self._failure
