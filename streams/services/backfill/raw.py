"""Events of raw topics, all partitions in one order: that of Kafka's timestamps."""

import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from time import monotonic, time
from typing import Final, Protocol

from streams.contracts.event import InvalidEvent, decode_event, event_time_ms, may_be_control
from streams.contracts.pseudonym import Pseudonyms
from streams.errors import UsageError
from streams.log.readers import ExtentsReader
from streams.log.topics import Extent, Message, Partition, Topic
from streams.services.backfill.events import BATCH_RECORDS, BadRecords, Batch, Count, SourceEvent, source_event
from streams.settings import Settings

_READ_MESSAGES: Final = 5000
_WAIT_S: Final = 0.2
_BATCH_S: Final = 1.0
# Of all partitions together; a message in memory takes half a kilobyte beside its value.
_BUFFERED_MESSAGES: Final = 100_000
_BUFFERED_BYTES: Final = 128 * 1024 * 1024


class PartitionsReader(Protocol):
    """Where messages come from; `streams.log.readers.ExtentsReader` is one."""

    unfinished: set[Partition]

    def read(self, count: int, wait_s: float) -> list[Message]:
        """Up to ``count`` messages, each partition in order."""

    def pause(self, partition: Partition) -> None:
        """Read no more of a partition for a while."""

    def resume(self, partition: Partition) -> None:
        """Go on with it."""


class RawSource:
    """Parts of raw topics, merged by (Kafka's timestamp, topic, partition, offset): the same parts, the same order.

    Each partition stays in its own order; where its timestamps go back, the merge does not. Messages are decoded as
    ingest does: what is no event was dead-lettered when ingest met it, and is only counted here.

    Args:
        topics: The raw topics by name; each is one of the settings' ``topics.sources``, which gives the type of an event
            that names none.
        extents: What to read of each of their partitions.

    Attributes:
        bad: What was no event in all that was read so far.

    Raises:
        UsageError: A topic is not among the settings' sources.
        SettingsError: The key of pseudonyms cannot be used.
    """

    def __init__(self, settings: Settings, topics: Mapping[str, Topic], extents: Mapping[Partition, Extent]) -> None:
        types = settings.topics.sources
        for name in topics:
            if name not in types:
                raise UsageError(
                    f"topic {name} is none of the raw topics that ingest reads: {', '.join(types)}. Name it in "
                    'topics.sources with the type of its events, as in {"clicks": "click"}'
                )
        self.bad = BadRecords()
        self._settings = settings
        self._topics = topics
        self._extents = extents
        self._pseudonyms = Pseudonyms(settings.ingest.pseudonym_key())

    def count(self) -> Count:
        """How many offsets there are: as many records, unless the log has gaps."""
        return Count(sum(extent.end - extent.start for extent in self._extents.values()), is_exact=True)

    def read(self, skip: int = 0, *, only_controls: bool = False) -> Iterator[Batch]:
        """Every event after the first ``skip`` messages, in batches of up to 10,000 messages or of about a second.

        Those that are skipped are read from Kafka again, for their order, but not decoded: their batches are empty.

        Args:
            only_controls: Leave out, without decoding it, what can't be a control event.

        Raises:
            LogGap: Messages are not there any more that were when the extents were found.
            LogUnavailable, TopicMissing, AuthenticationFailed: Kafka says so.
        """
        first = 0
        with closing(ExtentsReader(self._settings.kafka, self._extents)) as reader:
            for messages in _batches(merged(reader)):
                left_out = max(0, skip - first)
                bad: list[int] = []
                events = list(self._events(messages[left_out:], first + left_out, bad, only_controls))
                first += len(messages)
                yield Batch(first, events, bad)

    def _events(
        self, messages: list[Message], first: int, bad: list[int], only_controls: bool
    ) -> Iterator[SourceEvent]:
        types, max_bytes = self._settings.topics.sources, self._settings.ingest.max_event_bytes
        ids = {name: topic.topic_id for name, topic in self._topics.items()}
        now_ms = round(time() * 1000)
        for ordinal, message in enumerate(messages, start=first):
            if only_controls and not may_be_control(message.value or b""):
                continue
            topic, partition, offset = message.topic, message.partition, message.offset
            appended_ms = message.timestamp_ms if message.timestamp_ms > 0 else now_ms
            try:
                event = self._pseudonyms.in_event(decode_event(message.value, max_bytes))
                time_ms = event_time_ms(event, appended_ms, now_ms)
            except InvalidEvent as error:
                self.bad.add(error.reason, f"{topic} partition {partition} offset {offset}", str(error))
                bad.append(ordinal)
                continue
            yield source_event(event, types[topic], time_ms, topic, ids[topic], partition, offset, ordinal, appended_ms)


def _batches(messages: Iterator[Message]) -> Iterator[list[Message]]:
    """Up to 10,000 messages, or as many as come in a second: whoever reads has other things to do now and then."""
    batch: list[Message] = []
    until = monotonic() + _BATCH_S
    for message in messages:
        batch.append(message)
        if len(batch) >= BATCH_RECORDS or monotonic() >= until:
            yield batch
            batch = []
            until = monotonic() + _BATCH_S
    if batch:
        yield batch


def merged(
    reader: PartitionsReader, max_messages: int = _BUFFERED_MESSAGES, max_bytes: int = _BUFFERED_BYTES
) -> Iterator[Message]:
    """The messages of all partitions by (timestamp, topic, partition, offset), each partition in its own order.

    A partition that is ahead of the others is paused while its share of the memory is used up.

    Args:
        reader: Of which nothing was read yet.
        max_messages, max_bytes: Kept in memory, of all partitions together and about: a read may exceed it once.
    """
    share = max(1, len(reader.unfinished))
    # By topic and number: a `Partition` compares as that, and is slower to make.
    buffers: dict[tuple[str, int], _Buffer] = {
        partition: _Buffer(partition, max(1, max_messages // share), max(1, max_bytes // share))
        for partition in sorted(reader.unfinished)
    }
    # The oldest message of each partition that has one; `behind` are those of which none is known, but some will come.
    heads: list[_Head] = []
    behind = set(reader.unfinished)
    while True:
        while behind:
            for buffer in buffers.values():
                if buffer.is_full and not buffer.is_paused and buffer.partition in reader.unfinished:
                    buffer.is_paused = True
                    reader.pause(buffer.partition)
            for message in reader.read(_READ_MESSAGES, _WAIT_S):
                buffers[message.topic, message.partition].append(message)
            for partition in list(behind):
                if buffers[partition]:
                    heapq.heappush(heads, buffers[partition].pop())
                    behind.discard(partition)
                elif partition not in reader.unfinished:
                    behind.discard(partition)
        if not heads:
            return
        *_, message, buffer = heads[0]
        if buffer.is_paused and buffer.is_low:
            buffer.is_paused = False
            reader.resume(buffer.partition)
        if buffer:
            heapq.heapreplace(heads, buffer.pop())
        else:
            heapq.heappop(heads)
            if buffer.partition in reader.unfinished:
                behind.add(buffer.partition)
        yield message


class _Buffer:
    """Messages of one partition that wait for their turn, with their keys in the merge."""

    def __init__(self, partition: Partition, max_messages: int, max_bytes: int) -> None:
        self.partition = partition
        self.is_paused = False
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages: deque[Message] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        return len(self._messages) >= self._max_messages or self._bytes >= self._max_bytes

    @property
    def is_low(self) -> bool:
        return len(self._messages) <= self._max_messages // 2 and self._bytes <= self._max_bytes // 2

    def append(self, message: Message) -> None:
        self._messages.append(message)
        self._bytes += len(message.value or b"")

    def pop(self) -> "_Head":
        message = self._messages.popleft()
        self._bytes -= len(message.value or b"")
        return message.timestamp_ms, message.topic, message.partition, message.offset, message, self


_Head = tuple[int, str, int, int, Message, _Buffer]
"""The next message of a partition after what it is ordered by, and the buffer that the one after it comes from."""
