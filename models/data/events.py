"""Events as a log records them, and the sequences of the users in it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec


# Millions of these are held at once, and none can refer to itself: the garbage collector need not follow them.
class LoggedEvent(msgspec.Struct, frozen=True, gc=False):
    """One interaction of one user with one item.

    Attributes:
        user_id: Who.
        item_id: What.
        type: What happened, such as "click".
        time_ms: When, milliseconds since the epoch.
        event_id: Orders events of the same millisecond.
    """

    user_id: str
    item_id: str
    type: str
    time_ms: int
    event_id: str


@dataclass(frozen=True, slots=True)
class Log:
    """What a source of events holds.

    Attributes:
        events: In the order of the source.
        timed: Whether the source says when its events happened. Without, `time_ms` is the event's place among those of
            its user, from 0: it orders them, and every gap is 1 ms, from which nothing can be learned.
        repeats: Events left out because their user had one with the same event id before.
    """

    events: list[LoggedEvent]
    timed: bool = True
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class UserSequence:
    """A user's events, oldest first: a `Window` without a bound.

    Attributes:
        user_id: Who.
        items: Item ids.
        types: Event type names.
        times: Milliseconds since the epoch.
    """

    user_id: str
    items: tuple[str, ...]
    types: tuple[str, ...]
    times: tuple[int, ...]

    def __len__(self) -> int:
        """The number of events."""
        return len(self.items)

    def part(self, start: int, stop: int) -> "UserSequence":
        """The events from `start` up to, not including, `stop`."""
        cut = slice(start, stop)
        return UserSequence(self.user_id, self.items[cut], self.types[cut], self.times[cut])


def user_sequences(events: Iterable[LoggedEvent]) -> list[UserSequence]:
    """Each user's events in order of (time, event id), users in order of their ids."""
    by_user: dict[str, list[LoggedEvent]] = defaultdict(list)
    for event in events:
        by_user[event.user_id].append(event)
    sequences = []
    for user_id in sorted(by_user):
        ordered = sorted(by_user[user_id], key=lambda event: (event.time_ms, event.event_id))
        sequences.append(
            UserSequence(
                user_id,
                tuple(event.item_id for event in ordered),
                tuple(event.type for event in ordered),
                tuple(event.time_ms for event in ordered),
            )
        )
    return sequences


def item_counts(sequences: Iterable[UserSequence]) -> dict[str, int]:
    """How often each item occurs, most often first, equal counts by item id."""
    counts: dict[str, int] = defaultdict(int)
    for sequence in sequences:
        for item_id in sequence.items:
            counts[item_id] += 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
