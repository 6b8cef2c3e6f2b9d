"""Logs of events, the users' sequences in them, and how the sequences are split to learn and to judge."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from models.errors import DataError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Id = Annotated[str, msgspec.Meta(min_length=1)]


class LoggedEvent(msgspec.Struct, frozen=True):
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


@dataclass(frozen=True, slots=True)
class Judged:
    """Sequences to continue, and the item that each went on with.

    Attributes:
        contexts: What was known before.
        targets: The item of the event that came next.
    """

    contexts: tuple[UserSequence, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Leave-one-out, after Kang and McAuley (2018): of each user the last event tests, the one before validates.

    Attributes:
        train: Everything before those two. A user with fewer than three events is here whole and judges nothing.
        validation: The event before the last, given all before it.
        test: The last event, given all before it.
    """

    train: tuple[UserSequence, ...]
    validation: Judged
    test: Judged


class _EventLine(msgspec.Struct, frozen=True):
    """The fields of Event v1 that training reads. In a file there is no Kafka timestamp, so a time is required."""

    user_id: _Id
    item_id: _Id
    event_time: Annotated[datetime, msgspec.Meta(tz=True)] | int
    type: _Id = "click"
    event_id: str | None = None


def read_log(path: str | Path) -> list[LoggedEvent]:
    """Read a log of events in JSON lines, each an Event v1 with `event_time`.

    A type that is not given is "click"; an event id that is not given is the line's number. Empty lines are skipped.

    Args:
        path: The file, UTF-8.

    Returns:
        The events in the order of the file.

    Raises:
        DataError: The file cannot be read, holds no event, or a line is no event. The message names file and line.
    """
    path = Path(path)
    decoder = msgspec.json.Decoder(_EventLine)
    events = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    event = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise DataError(
                        f"{path}, line {number}: not an event: {error}. "
                        "Every line needs user_id, item_id and event_time (ISO 8601 with offset, or epoch milliseconds)"
                    ) from error
                time = event.event_time
                time_ms = time if isinstance(time, int) else (time - _EPOCH) // timedelta(milliseconds=1)
                # Zero-padded, so that lines of one millisecond keep the order of the file.
                event_id = event.event_id or f"{number:012d}"
                events.append(LoggedEvent(event.user_id, event.item_id, event.type, time_ms, event_id))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Check the path and its permissions") from error
    if not events:
        raise DataError(f"{path} holds no event. A log has one JSON event a line")
    return events


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


def leave_one_out(sequences: Sequence[UserSequence]) -> Split:
    """Split every user's sequence into what is learned from, one event to validate and one to test.

    Raises:
        DataError: No user has three events, so nothing could be judged.
    """
    judged = [sequence for sequence in sequences if len(sequence) >= 3]
    if not judged:
        raise DataError("no user has three events or more, so no event can be held out to judge a model. Use more data")
    return Split(
        train=tuple(s.part(0, len(s) - 2) if len(s) >= 3 else s for s in sequences),
        validation=Judged(tuple(s.part(0, len(s) - 2) for s in judged), tuple(s.items[-2] for s in judged)),
        test=Judged(tuple(s.part(0, len(s) - 1) for s in judged), tuple(s.items[-1] for s in judged)),
    )


def item_counts(sequences: Iterable[UserSequence]) -> dict[str, int]:
    """How often each item occurs, most often first, equal counts by item id."""
    counts: dict[str, int] = defaultdict(int)
    for sequence in sequences:
        for item_id in sequence.items:
            counts[item_id] += 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def training_segments(
    sequences: Sequence[UserSequence], max_length: int, rng: np.random.Generator
) -> list[UserSequence]:
    """Cut sequences into segments that cover every event as a target once an epoch, wherever its window begins.

    A sequence is tiled from its end with segments of `max_length + 1` events that overlap by one: the last of each is
    only a target, the first only an input. The tiling's end of a sequence that does not fit into one segment is moved
    back, with probability one half, by a random 0 to `max_length - 1`, so that cuts fall elsewhere every epoch; the few
    events after it sit out this epoch.

    Args:
        sequences: What to learn from.
        max_length: Longest window.
        rng: Where the cuts come from.

    Returns:
        Segments of 2 to `max_length + 1` events.
    """
    segments = []
    for sequence in sequences:
        stop = len(sequence)
        if stop > max_length + 1 and rng.random() < 0.5:
            stop -= int(rng.integers(0, max_length))
        while stop >= 2:
            start = max(0, stop - max_length - 1)
            segments.append(sequence.part(start, stop))
            stop = start + 1
    return segments
