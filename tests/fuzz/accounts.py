"""Counting what became of every message, by plain means that share no code with ingest."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from tests.fuzz.messages import Fate

Headers = Sequence[tuple[str, bytes | None]]
_READ = 1000
_WAIT_S = 0.5


class Sent(NamedTuple):
    """What is remembered of a message until it turns up: what has to become of it, and a checksum."""

    fate: Fate
    checksum: int


def checksum(value: bytes | None, key: bytes | None, headers: Headers | None) -> int:
    """Of all that a dead letter must keep; ``headers`` None: the client library cannot read them."""
    return zlib.crc32(repr((value, key, None if headers is None else [tuple(pair) for pair in headers])).encode())


class Accounts:
    """Every message sent, and where it was found.

    Attributes:
        in_frames, dead_letters: Messages found, repeats included.
        reasons: Dead letters by reason.
        wrong: What must not be, in words; the first few of each kind.
    """

    def __init__(self) -> None:
        self.in_frames = self.dead_letters = 0
        self.reasons: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._sent: dict[tuple[str, int], list[Sent]] = defaultdict(list)
        self._found: dict[tuple[str, int], bytearray] = defaultdict(bytearray)
        self._wrong_by_kind: Counter[str] = Counter()

    def sent(self, topic: str, partition: int, sent: Sent) -> None:
        """A message that takes the next offset of its partition: the topic was empty, and its producer keeps the order."""
        self._sent[topic, partition].append(sent)
        self._found[topic, partition].append(0)

    @property
    def count(self) -> int:
        """Messages sent."""
        return sum(map(len, self._sent.values()))

    @property
    def accounted(self) -> int:
        """Messages sent that were found at least once."""
        return sum(len(found) - found.count(0) for found in self._found.values())

    @property
    def missing(self) -> int:
        """Messages sent that were found nowhere."""
        return self.count - self.accounted

    @property
    def twice(self) -> int:
        """Messages found more than once."""
        return sum(len(found) - found.count(0) - found.count(1) for found in self._found.values())

    @property
    def violations(self) -> int:
        """Everything that must not be."""
        return self.missing + self.twice + sum(self._wrong_by_kind.values())

    def frame(self, raw: bytes | None) -> None:
        """Take a frame apart: columns as README and the contract name them."""
        _, sources, source, offsets, *_ = msgspec.msgpack.decode(raw or b"")
        for index, offset in zip(source, offsets, strict=True):
            topic, _, partition = sources[index]
            self.in_frames += 1
            self._turned_up(topic, partition, offset, Fate.DEAD_LETTER, "is in a frame and must not")

    def letter(self, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Take a dead letter apart: seven headers at the end are ingest's."""
        original, ours = headers[:-7], {name: value or b"" for name, value in headers[-7:]}
        named = {name.removeprefix("__streams.errors."): content.decode() for name, content in ours.items()}
        self.dead_letters += 1
        self.reasons[named["exception"]] += 1
        place = named["topic"], int(named["partition"])
        offset = int(named["offset"])
        if not self._turned_up(*place, offset, Fate.FRAME, f"is a dead letter ({named['message']}) and must not"):
            return
        readable = None if original and original[0][0] == "driftline-headers-left-out" else original
        if self._sent[place][offset].checksum != checksum(value, key, readable):
            self._complain("changed", f"{place[0]}/{place[1]}@{offset} is not what was sent")

    def _turned_up(self, topic: str, partition: int, offset: int, impossible: Fate, complaint: str) -> bool:
        found = self._found.get((topic, partition), bytearray())
        if not 0 <= offset < len(found):
            self._complain("unknown", f"{topic}/{partition}@{offset} was never sent")
            return False
        found[offset] = min(found[offset] + 1, 255)
        if self._sent[topic, partition][offset].fate is impossible:
            self._complain("fate", f"{topic}/{partition}@{offset} {complaint}")
        return True

    def _complain(self, kind: str, complaint: str) -> None:
        self._wrong_by_kind[kind] += 1
        if self._wrong_by_kind[kind] <= 5:
            self.wrong.append(complaint)


class Outcome:
    """Reads what ingest writes, from the beginning on."""

    def __init__(self, bootstrap_servers: str, frames: str, letters: str, partitions: int) -> None:
        self._frames = frames
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap_servers, "group.id": "fuzz", "enable.auto.commit": False, "log_level": 2}
        )
        self._consumer.assign(
            [TopicPartition(topic, n, OFFSET_BEGINNING) for topic in (frames, letters) for n in range(partitions)]
        )

    def read_into(self, accounts: Accounts) -> int:
        """Account for what is there by now; returns how many messages that were."""
        messages = self._consumer.consume(_READ, _WAIT_S)
        for message in messages:
            found: Any = message
            if found.error() is not None:
                raise KafkaException(found.error())
            if found.topic() == self._frames:
                accounts.frame(found.value())
            else:
                accounts.letter(found.value(), found.key(), found.headers() or ())
        return len(messages)

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()
