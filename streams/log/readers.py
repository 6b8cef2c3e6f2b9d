"""Reading from Kafka: raw topics as a member of a group, and any topic as a bystander."""

import logging
from collections.abc import Callable, Iterable, Mapping
from operator import methodcaller
from time import monotonic
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import Message as KafkaMessage

from streams.contracts.dead_letter import Headers
from streams.errors import DriftlineError, LogGap, LogUnavailable, StateRefused
from streams.log.admin import LogAdmin
from streams.log.connection import ANSWER_S, CREDENTIAL_ERRORS, MISSING_TOPIC_ERRORS, Connection
from streams.log.topics import Extent, Message, Partition, Topic
from streams.settings import KafkaSettings

# What is read is handed on only if the topic's id was looked at within this time, afterwards: a topic deleted, made
# anew and filled past the old position in less would be taken for the old one.
_TOPIC_CHECK_S: Final = 1.0
_FETCH_BYTES: Final = 64 * 1024
# What lies in the log already comes in large pieces (a frame may have half a megabyte), of many partitions in smaller
# ones: each brings one after the other, and who merges them has to keep what comes before the last.
_EXTENT_FETCH_BYTES: Final = 4 * 1024 * 1024
_LEAST_FETCH_BYTES: Final = 256 * 1024
# What one fetch brought lies in librdkafka's queue: no need to wait for it.
_DRAIN_S: Final = 0.001
# librdkafka goes on trying by itself; a broker that starts again is back in less.
_SILENCE_S: Final = 30.0

# In the place of headers that the client cannot read.
HEADERS_LEFT_OUT: Final = (("driftline-headers-left-out", b"the name of a header is not UTF-8"),)
_ask_headers: Final = methodcaller("headers")

_logger = logging.getLogger("driftline.kafka")


class RawReader:
    """Reads raw topics as a member of a consumer group; commits only what it is told to.

    The topic's id is committed as the offset's metadata: a topic that was deleted and made anew starts at offset 0
    again, and continuing at the old offset would skip its first events without a word. That is refused.

    Args:
        linger_s: Seconds that Kafka may hold messages back to hand out more at a time.
    """

    def __init__(
        self, settings: KafkaSettings, group: str, topics: Mapping[str, Topic], linger_s: float = 0.008
    ) -> None:
        self._connection = Connection(settings)
        self._topics = topics
        self._refusal: DriftlineError | None = None
        self._checked_at = monotonic()
        self._admin = LogAdmin(settings)
        self._before_revoke: Callable[[], None] = lambda: None
        self._after_loss: Callable[[], None] = lambda: None
        self._consumer = self._connection.client(
            KafkaConsumer,
            {
                "group.id": group,
                "session.timeout.ms": settings.session_timeout_ms,
                "heartbeat.interval.ms": max(500, settings.session_timeout_ms // 5),
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.auto.commit": False,
                # A position outside the log ends the process rather than skipping to either end of it.
                "auto.offset.reset": "error",
                # Kafka holds back what is little: without it every event wakes a fetch (at 1,000 events/s, a third of
                # a core of the broker) and a frame holds one or two events.
                "fetch.min.bytes": _FETCH_BYTES,
                "fetch.wait.max.ms": max(1, round(linger_s * 1000)),
                "queued.min.messages": 20_000,
                "queued.max.messages.kbytes": 64 * 1024,
            },
        )

    def subscribe(self, before_revoke: Callable[[], None], after_loss: Callable[[], None]) -> None:
        """Join the group.

        Args:
            before_revoke: Runs inside `read`, before partitions go to another member.
            after_loss: Runs inside `read`, when they went without asking, as after a long silence.
        """
        self._before_revoke = before_revoke
        self._after_loss = after_loss
        self._consumer.subscribe(list(self._topics), on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)

    def read(self, count: int, wait_s: float) -> list[Message]:
        """Up to ``count`` messages: waits ``wait_s`` for a first one, then takes what came with it.

        Raises:
            StateRefused: A topic was deleted and made anew, or the log no longer has the next message.
            TopicMissing, AuthenticationFailed, LogUnavailable: Kafka says so.
        """
        messages = self._consume(1, wait_s)
        if messages:
            messages += self._consume(count - 1, _DRAIN_S)
        self._check_topics()
        return messages

    def commit(self, next_offsets: Mapping[Partition, int], *, wait: bool = False) -> bool:
        """Record where the group goes on. What is not recorded is read again, and dropped by its marks.

        Args:
            wait: For Kafka's answer.

        Returns:
            False if Kafka refused; without ``wait`` only if it could not be asked.
        """
        offsets = [
            TopicPartition(partition.topic, partition.number, offset, self._topics[partition.topic].topic_id)
            for partition, offset in next_offsets.items()
        ]
        try:
            if wait:
                answers = self._consumer.commit(offsets=offsets, asynchronous=False)
                refused = [answer.error for answer in answers if answer.error is not None]
            else:
                self._consumer.commit(offsets=offsets, asynchronous=True)
                refused = []
        except KafkaException as error:
            refused = [error.args[0]]
        if refused:
            _logger.warning("offsets not committed, their events may be sent again: %s", refused[0].str())
        return not refused

    def lag(self) -> int:
        """Messages of the assigned partitions not read yet, as of the newest fetch; 0 while that is unknown."""
        behind = 0
        for position in self._consumer.position(self._consumer.assignment()):
            _, end = self._consumer.get_watermark_offsets(position, cached=True)
            if position.offset >= 0 and end > position.offset:
                behind += end - position.offset
        return behind

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()
        self._admin.close()

    def _consume(self, count: int, wait_s: float) -> list[Message]:
        messages = []
        for raw in self._connection.ask("read", lambda: self._consumer.consume(count, wait_s)):
            error = raw.error()
            if error is None:
                messages.append(_message(raw))
            else:
                self._on_error(error, raw)
        if self._refusal is not None:
            raise self._refusal
        return messages

    def _on_error(self, error: KafkaError, raw: KafkaMessage) -> None:
        code = error.code()
        if code == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            raise StateRefused(
                f"{raw.topic()} partition {raw.partition()} has no message at the offset to read next: {error.str()}. "
                "Either its retention deleted events before ingest read them, or the topic was deleted and made anew; "
                "start ingest again: it tells which, and what to do"
            )
        if error.fatal() or code in CREDENTIAL_ERRORS or code in MISSING_TOPIC_ERRORS:
            raise self._connection.translated(error, f"read {raw.topic() or 'the raw topics'}")
        _logger.warning("kafka consumer: %s", error.str())

    def _check_topics(self) -> None:
        if monotonic() - self._checked_at < _TOPIC_CHECK_S:
            return
        try:
            found = self._admin.topics(self._topics)
        except LogUnavailable as error:
            _logger.warning("topic ids not checked this time: %s", error)
            return
        finally:
            self._checked_at = monotonic()
        for name, topic in found.items():
            if topic.topic_id != self._topics[name].topic_id:
                raise _recreated(name, self._topics[name].topic_id, topic.topic_id)

    def _assign(self, consumer: KafkaConsumer, partitions: list[TopicPartition]) -> None:
        # An exception must not leave through librdkafka's callback: `_consume` raises it afterwards.
        try:
            self._connection.ask("give the group's offsets", lambda: self._start_at(consumer, partitions))
        except DriftlineError as error:
            self._refusal = error
            for partition in partitions:
                partition.offset = OFFSET_END
            consumer.incremental_assign(partitions)
            consumer.pause(partitions)

    def _start_at(self, consumer: KafkaConsumer, partitions: list[TopicPartition]) -> None:
        positions = consumer.committed(partitions, timeout=ANSWER_S)
        # After the offsets: those of a moment later may be past an end of a moment before.
        extents = self._admin.extents(Partition(p.topic, p.partition) for p in partitions)
        for committed in positions:
            topic = self._topics[committed.topic]
            if committed.offset >= 0 and committed.metadata and committed.metadata != topic.topic_id:
                raise _recreated(committed.topic, committed.metadata, topic.topic_id)
            extent = extents[Partition(committed.topic, committed.partition)]
            if committed.offset > extent.end:
                raise StateRefused(
                    f"the group's next offset in {committed.topic} partition {committed.partition} is "
                    f"{committed.offset}, but the log ends at {extent.end}: the log was cut or made anew. "
                    f"If that is so, run `driftline topics adopt {committed.topic}`"
                )
            offset = committed.offset if committed.offset >= 0 else OFFSET_BEGINNING
            if 0 <= offset < extent.start:
                _logger.error(
                    "%s partition %d: retention deleted %d events before ingest read them (offsets %d to %d)",
                    committed.topic, committed.partition, extent.start - offset, offset, extent.start - 1,
                )  # fmt: skip
                offset = extent.start
            position = next(p for p in partitions if (p.topic, p.partition) == (committed.topic, committed.partition))
            position.offset = offset
        consumer.incremental_assign(partitions)
        _logger.info("assigned %s", ", ".join(f"{p.topic}/{p.partition}" for p in partitions) or "nothing new")

    def _revoke(self, _: KafkaConsumer, partitions: list[TopicPartition]) -> None:
        self._before_revoke()
        _logger.info("revoked %s", ", ".join(f"{p.topic}/{p.partition}" for p in partitions))

    def _lose(self, _: KafkaConsumer, partitions: list[TopicPartition]) -> None:
        self._after_loss()
        _logger.warning("lost %s", ", ".join(f"{p.topic}/{p.partition}" for p in partitions))


class TailReader:
    """Reads whole topics outside of any group, from their ends or their beginnings."""

    def __init__(self, settings: KafkaSettings, topics: Iterable[Topic], *, from_beginning: bool = False) -> None:
        self._connection = Connection(settings)
        self._consumer = self._connection.client(
            KafkaConsumer, {"group.id": "driftline-tail", "enable.auto.commit": False}
        )
        start = OFFSET_BEGINNING if from_beginning else OFFSET_END
        self._consumer.assign([TopicPartition(t.name, n, start) for t in topics for n in range(t.partitions)])

    def read(self, count: int, wait_s: float) -> list[Message]:
        """Up to ``count`` messages, those that come within ``wait_s``."""
        found = self._connection.ask("read", lambda: self._consumer.consume(count, wait_s))
        for raw in found:
            error = raw.error()
            if error is not None and (error.fatal() or error.code() in CREDENTIAL_ERRORS | MISSING_TOPIC_ERRORS):
                raise self._connection.translated(error, f"read {raw.topic()}")
        return [_message(raw) for raw in found if raw.error() is None]

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()


class ExtentsReader:
    """Reads parts of partitions outside of any group, each from its start up to its end and no further.

    Args:
        extents: What to read.
        has_gaps: Offsets may be missing in the midst of a log, as compaction and transactions leave them.
        fetch_bytes: Of one partition before the next one's turn; small pieces keep the partitions abreast. Default: as fast
            as can be.
        clock: Seconds.

    Attributes:
        unfinished: The partitions of which the last message was not handed out yet.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        extents: Mapping[Partition, Extent],
        *,
        has_gaps: bool = True,
        fetch_bytes: int | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._settings = settings
        self._connection = Connection(settings)
        fetch_bytes = fetch_bytes or max(_EXTENT_FETCH_BYTES // max(1, len(extents)), _LEAST_FETCH_BYTES)
        # By topic and number: a `Partition` compares as that, and is slower to make.
        self._next: dict[tuple[str, int], int] = {p: extent.start for p, extent in extents.items()}
        self._ends: dict[tuple[str, int], int] = {p: extent.end for p, extent in extents.items()}
        self.unfinished = {partition for partition, extent in extents.items() if extent.start < extent.end}
        self._has_gaps = has_gaps
        self._clock = clock
        self._silent_s = 0.0
        self._consumer = self._connection.client(
            KafkaConsumer,
            {
                "group.id": "driftline-extents",
                "enable.auto.commit": False,
                # An offset that is gone is an error, not a reason to start elsewhere.
                "auto.offset.reset": "error",
                # The last offsets may hold no message: then only the end of the log says that they are past.
                "enable.partition.eof": True,
                "max.partition.fetch.bytes": fetch_bytes,
                "queued.min.messages": 20_000,
                "queued.max.messages.kbytes": 32 * 1024,
                # Once that is reached, librdkafka waits a second by default before it fetches again: half the speed.
                "fetch.queue.backoff.ms": 10,
            },
        )
        self._consumer.assign([TopicPartition(*partition, self._next[partition]) for partition in self.unfinished])

    def read(self, count: int, wait_s: float) -> list[Message]:
        """Up to ``count`` messages, each partition in order: waits ``wait_s`` for a first one, then takes what came.

        Raises:
            LogGap: The log has not, or no longer, an offset that is to be read.
            LogUnavailable: Nothing came in half a minute of waiting here.
            TopicMissing, AuthenticationFailed: Kafka says so.
        """
        if not self.unfinished:
            return []
        started = self._clock()
        messages = self._consume(1, wait_s)
        if messages:
            messages += self._consume(count - 1, _DRAIN_S) if count > 1 else []
            self._silent_s = 0.0
        else:
            self._silent_s += self._clock() - started
            self._check_silence()
        return messages

    def pause(self, partition: Partition) -> None:
        """Read no more of a partition for a while; what was fetched of it already is fetched again."""
        self._consumer.pause([TopicPartition(*partition)])

    def resume(self, partition: Partition) -> None:
        """Go on with a partition after `pause`."""
        if partition in self.unfinished:
            self._consumer.resume([TopicPartition(*partition)])

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _consume(self, count: int, wait_s: float) -> list[Message]:
        messages = []
        for raw in self._connection.ask("read", lambda: self._consumer.consume(count, wait_s)):
            error = raw.error()
            if error is None:
                message = _message(raw)
                if self._takes(message):
                    messages.append(message)
            else:
                self._on_error(error, raw)
        return messages

    def _takes(self, message: Message) -> bool:
        """Whether a message is one to hand out."""
        topic, partition, offset = message[:3]
        place = topic, partition
        expected, end = self._next[place], self._ends[place]
        if offset < expected or offset >= end:
            if offset >= end:
                self._finish(Partition(topic, partition))
            return False
        if offset != expected and not self._has_gaps:
            raise _gap(Partition(topic, partition), expected, f"the message after the one before has offset {offset}")
        self._next[place] = offset + 1
        if offset + 1 == end:
            self._finish(Partition(topic, partition))
        return True

    def _finish(self, partition: Partition) -> None:
        self.unfinished.discard(partition)
        self.pause(partition)

    def _on_error(self, error: KafkaError, raw: KafkaMessage) -> None:
        found: Any = raw  # the stubs of 2.16 say that any of its parts may be missing
        code = error.code()
        partition = Partition(found.topic() or "", found.partition() or 0)
        if code == KafkaError._PARTITION_EOF:  # noqa: SLF001
            if self._has_gaps and found.offset() >= self._ends[partition]:
                self._finish(partition)
        elif code == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            with LogAdmin(self._settings) as admin:
                extent = admin.extents([partition])[partition]
            raise _gap(
                partition, self._next[partition], f"its log now starts at {extent.start} and ends at {extent.end}"
            )
        elif error.retriable():
            _logger.warning("kafka consumer: %s", error.str())
        else:
            # Anything else stands in the place of messages that would be missed without a word.
            raise self._connection.translated(error, f"read {partition.topic or 'the log'}")

    def _check_silence(self) -> None:
        refusal = self._connection.newest_error
        if refusal is not None and self._connection.is_refused:
            raise self._connection.translated(refusal, "read")
        if self._silent_s > _SILENCE_S and self.unfinished:
            waiting = ", ".join(f"{p.topic} partition {p.number} at offset {self._next[p]}" for p in self.unfinished)
            reason = "" if refusal is None else f" ({refusal.str()})"
            raise LogUnavailable(
                f"Kafka at {self._connection.servers} has sent nothing for {_SILENCE_S:g} s{reason}; still to come: "
                f"{waiting}. Is it running, and does the log still reach that far?"
            )


class RangeReader(ExtentsReader):
    """Reads one partition from ``start`` up to ``end``, of a log without gaps such as `interactions`.

    A message that is missing is a `LogGap`.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        partition: Partition,
        start: int,
        end: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(settings, {partition: Extent(start, end)}, has_gaps=False, clock=clock)


def _gap(partition: Partition, expected: int, found: str) -> LogGap:
    return LogGap(
        f"{partition.topic} partition {partition.number} has no message at offset {expected}: {found}. Retention deleted "
        "it, or the topic was made anew; `driftline topics describe` shows the topic's retention"
    )


def _recreated(topic: str, old_id: str, new_id: str) -> StateRefused:
    """The refusal to go on with a topic that was deleted and made anew."""
    return StateRefused(
        f"topic {topic} was deleted and made anew: its id was {old_id}, it is {new_id or 'none'}. Its offsets begin "
        "at 0 again, so what was applied before cannot be told from what is new. If the new topic is meant, stop "
        f"ingest and evolve, run `driftline topics adopt {topic}`, and start them again"
    )


def _message(raw: KafkaMessage) -> Message:
    # A message that was read has all of these; the stubs of 2.16 say that any may be missing.
    found: Any = raw
    return Message(
        found.topic(),
        found.partition(),
        found.offset(),
        found.timestamp()[1],
        found.key(),
        found.value(),
        _headers(found),
    )


def _headers(raw: Any) -> Headers:
    """The headers; where the name of one is not UTF-8, all that can be said is that they are not here.

    confluent-kafka 2.16 then gives tuples with a null pointer in them, and to touch one ends the process; the first time it
    has raised UnicodeDecodeError as well. To return and to raise is a mistake that Python turns into SystemError where it
    looks: a call in C always does, but not one in Python that ran often (CPython 3.11 specialises it). So it is asked once,
    and through C.
    """
    try:
        found: Headers | None = _ask_headers(raw)
    except (SystemError, UnicodeDecodeError):
        return HEADERS_LEFT_OUT
    return found or ()
