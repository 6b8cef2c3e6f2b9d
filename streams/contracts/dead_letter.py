"""A dead letter: the message as it came (value, key, headers), plus headers that say what was wrong.

The header names are those of Kafka Streams (KIP-1034), so that tools made for it read ours; `stage` is our own.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

EXCEPTION: Final = "__streams.errors.exception"
MESSAGE: Final = "__streams.errors.message"
TOPIC: Final = "__streams.errors.topic"
PARTITION: Final = "__streams.errors.partition"
OFFSET: Final = "__streams.errors.offset"
STAGE: Final = "__streams.errors.stage"

Headers = Sequence[tuple[str, bytes | None]]


class DeadLetter(Struct, frozen=True):
    """What goes to the dead-letter topic.

    Attributes:
        value, key, headers: Of the original message, untouched.
        reason: A short code from a closed set (labels metrics; the exception header).
        message: What was wrong, for a person.
        topic, partition, offset: Where the original message is.
        stage: The step that refused it: ``decode``, ``validate``, ``frame`` or ``encode``.
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
        ]
