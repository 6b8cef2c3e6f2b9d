"""A dead letter: the message as it came (value, key, headers), plus headers that say what was wrong.

The header names are those of Kafka Streams (KIP-1034), so that tools made for it read ours; `stage` and `timestamp` are
our own. Where the name of an original header is not UTF-8 the client library can read none of them: the letter has
`driftline-headers-left-out` in their place.

Beside the letters, the dead-letter topic holds one *mark* for each letter that `driftline deadletters replay` has sent
back: a message without a value whose one header, `driftline-replayed`, names the letter. It lies in the letter's
partition, behind it, so retention deletes no mark before its letter. The message that was sent back carries the same
header.
"""

from collections.abc import Sequence
from typing import Annotated, Final, get_args

import msgspec
from msgspec import Meta, Struct

from streams.contracts.event import InvalidEventReason

EXCEPTION: Final = "__streams.errors.exception"
MESSAGE: Final = "__streams.errors.message"
TOPIC: Final = "__streams.errors.topic"
PARTITION: Final = "__streams.errors.partition"
OFFSET: Final = "__streams.errors.offset"
STAGE: Final = "__streams.errors.stage"
TIMESTAMP: Final = "__streams.errors.timestamp"
REPLAYED: Final = "driftline-replayed"

REASONS: Final[tuple[str, ...]] = (*get_args(InvalidEventReason), "invalid_frame", "poison")
"""Every reason that a letter may have."""

Headers = Sequence[tuple[str, bytes | None]]

# Letters written before there was a timestamp end without it.
_OURS: Final = (EXCEPTION, MESSAGE, TOPIC, PARTITION, OFFSET, STAGE, TIMESTAMP)
# Fewer than these fit Kafka's 64 bits.
_DIGITS: Final = 19


class Replay(Struct, frozen=True):
    """What the header `driftline-replayed` holds, as JSON: which letter was sent back.

    Attributes:
        times: How often this event has been sent back by now.
        topic, partition, offset: Where the letter lies.
    """

    times: Annotated[int, Meta(ge=1)]
    topic: str
    partition: int
    offset: int


class DeadLetter(Struct, frozen=True):
    """What goes to the dead-letter topic.

    Attributes:
        value, key, headers: Of the original message, untouched.
        reason: A short code, one of `REASONS` (labels metrics; the exception header).
        message: What was wrong, for a person.
        topic, partition, offset: Where the original message is.
        stage: The step that refused it: ``decode``, ``validate``, ``frame`` or ``encode``.
        timestamp_ms: Kafka's timestamp of the original message; None where it is not known.
    """

    value: bytes | None
    key: bytes | None
    headers: Headers
    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    stage: str
    timestamp_ms: int | None = None

    def all_headers(self) -> list[tuple[str, bytes | None]]:
        """The original headers, then ours. When a letter dies a second time, the last of a name is the newest."""
        return [
            *self.headers,
            (EXCEPTION, self.reason.encode()),
            (MESSAGE, self.message.encode()),
            (TOPIC, self.topic.encode()),
            (PARTITION, str(self.partition).encode()),
            (OFFSET, str(self.offset).encode()),
            (STAGE, self.stage.encode()),
            *([] if self.timestamp_ms is None else [(TIMESTAMP, str(self.timestamp_ms).encode())]),
        ]

    def replay(self) -> Replay | None:
        """What the original message said of having been sent back; None: it was not, or nobody can read what it says."""
        return _replay_in(self.headers)


def read_letter(value: bytes | None, key: bytes | None, headers: Headers) -> DeadLetter | None:
    """The letter in a message of the dead-letter topic; None where another program, or a mark, wrote it."""
    for names in (_OURS, _OURS[:-1]):
        first = len(headers) - len(names)
        if first >= 0 and tuple(name for name, _ in headers[first:]) == names:
            ours = [(content or b"").decode(errors="replace") for _, content in headers[first:]]
            reason, message, topic, partition, offset, stage, *timestamp = ours
            if not all(number.isdecimal() and len(number) < _DIGITS for number in (partition, offset, *timestamp)):
                return None
            timestamp_ms = int(timestamp[0]) if timestamp else None
            original = tuple(headers[:first])
            return DeadLetter(
                value, key, original, reason, message, topic, int(partition), int(offset), stage, timestamp_ms
            )
    return None


def replay_headers(letter: DeadLetter, replay: Replay) -> list[tuple[str, bytes | None]]:
    """The headers of a letter's message when it is sent back: the original ones, and the one that says so."""
    return [*((name, value) for name, value in letter.headers if name != REPLAYED), *mark_headers(replay)]


def mark_headers(replay: Replay) -> list[tuple[str, bytes | None]]:
    """The headers of the mark that a letter was sent back."""
    return [(REPLAYED, _encoder.encode(replay))]


def read_mark(value: bytes | None, headers: Headers) -> Replay | None:
    """The mark in a message of the dead-letter topic that is no letter; None: it is no mark either."""
    return _replay_in(headers) if value is None else None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Replay)


def _replay_in(headers: Headers) -> Replay | None:
    """What the last header of the name says. Apps may write it too, so that it may be anything."""
    found = [value for name, value in headers if name == REPLAYED]
    try:
        return _decoder.decode(found[-1] or b"") if found else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
