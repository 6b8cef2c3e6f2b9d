"""What a backfill reads, whatever it reads it from: events in one fixed order, and an account of what was no event."""

from collections import Counter
from typing import Final

from msgspec import Struct

from streams.contracts.event import Event, derived_event_id

BATCH_RECORDS: Final = 10_000
"""Records of a batch at most."""
_EXAMPLES: Final = 5


class SourceEvent(Struct, frozen=True, gc=False, array_like=True):
    """One event, with what windows and the trigger of a recommendation need of it.

    Attributes:
        user_id, item_id, type: Of a control event as in a frame.
        named: The app gave the event id, so a repeat of it can come.
        topic, topic_id, partition, offset: Its place; of an event in a file the file's name, its path, 0 and the line.
        ordinal: How many records of the source come before it.
        appended_ms: When it came into Kafka, milliseconds since 1970; of an event in a file, when it happened.
    """

    user_id: str
    item_id: str
    type: str
    time_ms: int
    event_id: str
    named: bool
    topic: str
    topic_id: str
    partition: int
    offset: int
    ordinal: int
    appended_ms: int


def source_event(
    event: Event,
    default_type: str,
    time_ms: int,
    topic: str,
    topic_id: str,
    partition: int,
    offset: int,
    ordinal: int,
    appended_ms: int,
) -> SourceEvent:
    """What a source gives for an event that it read at a place; what the event leaves out is filled in."""
    event_id = event.event_id
    return SourceEvent(
        event.window_of,
        event.subject,
        event.type or default_type,
        time_ms,
        derived_event_id(topic, partition, offset) if event_id is None else event_id,
        event_id is not None,
        topic,
        topic_id,
        partition,
        offset,
        ordinal,
        appended_ms,
    )


class Batch(Struct, frozen=True):
    """Consecutive records of a source.

    Attributes:
        next: The ordinal of the record after the last one of these: to skip that many is to go on from here.
        bad: The ordinals of the records among them that are no events.
    """

    next: int
    events: list[SourceEvent]
    bad: list[int]


class Count(Struct, frozen=True):
    """How many records a source holds: exactly so, or as a sample suggests."""

    records: int
    is_exact: bool


class BadRecords:
    """What was no event and why, with the first few examples.

    Attributes:
        by_reason: How many by the reasons of `InvalidEvent`.
        examples: "place: message" of the first of them.
    """

    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()
        self.examples: list[str] = []

    @property
    def total(self) -> int:
        """Of all reasons."""
        return self.by_reason.total()

    def add(self, reason: str, place: str, message: str) -> None:
        """Take one down; ``place`` is "file, line 7", or topic, partition and offset."""
        self.by_reason[reason] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{place}: {message}")
