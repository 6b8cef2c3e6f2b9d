"""Topics, their partitions and messages, and what groups have recorded of them: plain values, without a client library."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from streams.contracts.frame import Source


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int


class Message(NamedTuple):
    """A message as it lies in the log. ``timestamp_ms`` is Kafka's, -1 where it has none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the cluster knows it. ``topic_id`` is "" on librdkafka's mock cluster, which has none."""

    name: str
    topic_id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a partition's log starts (oldest offset kept) and ends (offset of the next message)."""

    start: int
    end: int


class Committed(NamedTuple):
    """The next offset that a group has recorded, and the id of the topic that ingest meant by it ("" if unknown)."""

    offset: int
    topic_id: str


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One process of a consumer group, and the partitions that it reads."""

    client_id: str
    host: str
    partitions: Sequence[Partition]


def sources_of(topics: Mapping[str, Topic]) -> Iterator[tuple[Partition, Source]]:
    """Every partition of the topics, and the name that frames give it."""
    for topic in topics.values():
        for number in range(topic.partitions):
            yield Partition(topic.name, number), Source(topic.name, topic.topic_id, number)
