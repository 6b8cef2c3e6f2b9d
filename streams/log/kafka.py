"""Kafka clients on librdkafka. The only file that imports confluent_kafka."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self, TypeVar

import stamina
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import Message as KafkaMessage
from confluent_kafka import Producer as KafkaProducer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic  # type: ignore[attr-defined]  # 2.16

from streams.contracts.frame import Source
from streams.errors import (
    AuthenticationFailed,
    DeliveryFailed,
    DriftlineError,
    LogUnavailable,
    SettingsError,
    StateRefused,
    TopicMissing,
    UsageError,
)
from streams.settings import KafkaSettings

ANSWER_S: Final = 10.0
# The first wait for an answer; each that follows is twice as long, so that a slow connection gets its time.
_FIRST_WAIT_S: Final = 0.2
# The broker's default limit for a message is 1 MiB; a dead letter is the original plus our headers.
_MESSAGE_BYTES: Final = 4 * 1024 * 1024
# What is read is handed on only if the topic's id was looked at within this time, afterwards: a topic deleted, made
# anew and filled past the old position in less would be taken for the old one.
_TOPIC_CHECK_S: Final = 1.0
_FETCH_BYTES: Final = 64 * 1024
# What one fetch brought lies in librdkafka's queue: no need to wait for it.
_DRAIN_S: Final = 0.001
_REPORT_EVERY_S: Final = 10.0
_CREDENTIAL_ERRORS: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,  # noqa: SLF001 - librdkafka's names for its own errors
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
    }
)
# What a broker says of a topic just made, or while leaders and coordinators move.
_PASSING_ERRORS: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)
_MISSING_TOPIC_ERRORS: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}  # noqa: SLF001
)

_logger = logging.getLogger("driftline.kafka")
_Result = TypeVar("_Result")


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


def _passes(error: Exception) -> bool:
    return isinstance(error, KafkaException) and error.args[0].code() in _PASSING_ERRORS


class _Connection:
    """Configuration shared by every client, and the newest error that librdkafka reported in the background."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.servers = settings.bootstrap_servers
        self.newest_error: KafkaError | None = None
        self._settings = settings
        self._reported_at: dict[int, float] = {}
        self.config: dict[str, Any] = {
            **settings.confluent_config(),
            "client.id": "driftline",
            "error_cb": self._remember,
            # librdkafka reports a broker that is away some hundred times a second; `_remember` reports it once.
            "log_level": 2,
            "reconnect.backoff.max.ms": 2000,
        }

    def client(self, kind: Callable[..., _Result], config: Mapping[str, Any] = MappingProxyType({})) -> _Result:
        """Make a client of librdkafka; nothing is asked of Kafka yet.

        Raises:
            SettingsError: A certificate can't be read, a key is not its pair.
        """
        try:
            return kind({**self.config, **config}, logger=_logger)
        except KafkaException as error:
            # librdkafka says "BIO lib" and names no file; the same files, read for the other client, give the reason.
            self._settings.security()
            raise SettingsError(f"these kafka settings cannot be used: {error.args[0].str()}") from error

    @property
    def is_refused(self) -> bool:
        """Whether to ask again is in vain: the brokers refuse the credentials, or we their certificate."""
        return _is_refusal(self.newest_error)

    @property
    def visible(self) -> str:
        """What to add where Kafka has no topic: it also hides those that a user may not describe."""
        return "" if self._settings.security_protocol == "plaintext" else " that this user may see"

    def _remember(self, error: KafkaError) -> None:
        # It follows every other error and would hide its cause.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self.newest_error = error
        now = monotonic()
        if now - self._reported_at.get(error.code(), -math.inf) >= _REPORT_EVERY_S:
            self._reported_at[error.code()] = now
            _logger.warning("kafka client: %s", error.str())

    def ask(self, what: str, question: Callable[[], _Result]) -> _Result:
        """The answer; a question that Kafka is about to be able to answer is asked again for `ANSWER_S`."""
        try:
            for attempt in stamina.retry_context(
                on=_passes, attempts=None, timeout=ANSWER_S, wait_initial=0.1, wait_max=1.0
            ):
                with attempt:
                    answer = question()
        except KafkaException as error:
            raise self.translated(error.args[0], what) from error
        return answer

    def translated(self, error: KafkaError, what: str) -> DriftlineError:
        background = self.newest_error
        cause = background if background is not None and _is_refusal(background) else error
        if _is_bad_certificate(cause):
            return AuthenticationFailed(
                f"Kafka at {self.servers} did not {what}: {cause.str()}; check kafka.ssl_ca_file (who signed the "
                "brokers' certificates), the host names in kafka.bootstrap_servers, and kafka.ssl_certificate_file"
            )
        if _is_refusal(cause):
            return AuthenticationFailed(
                f"Kafka at {self.servers} refuses to {what}: {cause.str()}; check kafka.security_protocol, the "
                "kafka.sasl_* settings and what this user may do"
            )
        if error.code() in _MISSING_TOPIC_ERRORS:
            return TopicMissing(f"cannot {what}: {error.str()}; `driftline topics create` makes the topics")
        reason = error.str() if background is None else f"{error.str()} ({background.str()})"
        return LogUnavailable(
            f"Kafka at {self.servers} did not {what}: {reason}; is it running and reachable, and is "
            f"kafka.security_protocol ({self._settings.security_protocol}) what it speaks there?"
        )


class Producer:
    """Sends messages idempotently, batched, lz4-compressed; nothing counts as sent before `flush` has returned.

    Args:
        delivery_timeout_s: Seconds to try each message for.
        linger_ms: Milliseconds to wait for more messages before a request goes out. A service hands over all that it
            has and flushes, so it waits for nothing; an app sends one by one, and 5 is librdkafka's own default.
    """

    def __init__(self, settings: KafkaSettings, delivery_timeout_s: float = 60.0, linger_ms: float = 0) -> None:
        self._connection = _Connection(settings)
        self._failure: KafkaError | None = None
        self._producer = self._connection.client(
            KafkaProducer,
            {
                "enable.idempotence": True,  # also sets acks=all and keeps the order
                "compression.type": "lz4",
                "linger.ms": linger_ms,
                "message.max.bytes": _MESSAGE_BYTES,
                "message.timeout.ms": round(delivery_timeout_s * 1000),
                "queue.buffering.max.kbytes": 128 * 1024,
            },
        )

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> None:
        """Hand a message to librdkafka; blocks while its queue is full.

        Raises:
            DeliveryFailed: The message can never be sent, as when it is too large.
        """
        while True:
            try:
                self._producer.produce(
                    topic, value, key, partition, headers=list(headers), on_delivery=self._on_delivery
                )
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise DeliveryFailed(f"cannot send to {topic}: {error.args[0].str()}") from error
            else:
                return

    def flush(self) -> None:
        """Wait until the broker has acknowledged every message.

        Raises:
            DeliveryFailed: At least one was not accepted; which of the others were is unknown.
        """
        self._producer.flush()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise DeliveryFailed(
                f"Kafka at {self._connection.servers} did not accept a message: {failure.str()}"
            ) from KafkaException(failure)

    def poll(self) -> int:
        """Serve delivery reports; returns the number of messages still on their way."""
        self._producer.poll(0)
        return len(self._producer)

    def _on_delivery(self, error: KafkaError | None, _: KafkaMessage) -> None:
        if error is not None:
            self._failure = error


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
        self._connection = _Connection(settings)
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
        if error.fatal() or code in _CREDENTIAL_ERRORS or code in _MISSING_TOPIC_ERRORS:
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
                raise recreated(name, self._topics[name].topic_id, topic.topic_id)

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
        for committed in consumer.committed(partitions, timeout=ANSWER_S):
            topic = self._topics[committed.topic]
            if committed.offset >= 0 and committed.metadata and committed.metadata != topic.topic_id:
                raise recreated(committed.topic, committed.metadata, topic.topic_id)
            start, end = consumer.get_watermark_offsets(committed, timeout=ANSWER_S)
            if committed.offset > end:
                raise StateRefused(
                    f"the group's next offset in {committed.topic} partition {committed.partition} is "
                    f"{committed.offset}, but the log ends at {end}: the log was cut or made anew. "
                    f"If that is so, run `driftline topics adopt {committed.topic}`"
                )
            offset = committed.offset if committed.offset >= 0 else OFFSET_BEGINNING
            if 0 <= offset < start:
                _logger.error(
                    "%s partition %d: retention deleted %d events before ingest read them (offsets %d to %d)",
                    committed.topic, committed.partition, start - offset, offset, start - 1,
                )  # fmt: skip
                offset = start
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
        self._connection = _Connection(settings)
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
            if error is not None and (error.fatal() or error.code() in _CREDENTIAL_ERRORS | _MISSING_TOPIC_ERRORS):
                raise self._connection.translated(error, f"read {raw.topic()}")
        return [_message(raw) for raw in found if raw.error() is None]

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()


class LogAdmin:
    """What an operator and a starting worker ask of Kafka. Close it, or use it as a context."""

    def __init__(self, settings: KafkaSettings, group: str = "driftline-admin") -> None:
        self._connection = _Connection(settings)
        self._group = group
        self._admin = self._connection.client(AdminClient)
        self._consumer = self._connection.client(KafkaConsumer, {"group.id": group, "enable.auto.commit": False})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """The topics with these names.

        Raises:
            TopicMissing: One does not exist.
        """
        found = self.existing_topics(names)
        missing = sorted(set(names) - set(found))
        if missing:
            raise TopicMissing(
                f"Kafka at {self._connection.servers} has no topic {', '.join(missing)}{self._connection.visible}; "
                "`driftline topics create` makes the topics"
            )
        return found

    def existing_topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """Those of the topics that exist."""
        metadata = self._connection.ask("list its topics", self._metadata)
        counts = {
            name: len(metadata.topics[name].partitions)
            for name in names
            if name in metadata.topics and metadata.topics[name].error is None
        }
        # librdkafka's mock cluster answers no DescribeTopics and has no topic ids; it does name itself.
        if (metadata.cluster_id or "").startswith("mockCluster"):
            return {name: Topic(name, "", count) for name, count in counts.items()}
        described = self._admin.describe_topics(TopicCollection(list(counts)), request_timeout=ANSWER_S)
        ids = {
            name: self._connection.ask(f"describe topic {name}", lambda f=future: f.result())  # type: ignore[misc]
            for name, future in described.items()
        }
        return {name: Topic(name, str(ids[name].topic_id), count) for name, count in counts.items()}

    def _metadata(self) -> Any:  # 2.16 declares that a cluster has no id
        """The cluster's brokers and topics, asked for in slices: librdkafka would try a wrong password to the end."""
        deadline = monotonic() + ANSWER_S
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                return self._consumer.list_topics(timeout=min(wait_s, max(0.1, deadline - monotonic())))
            except KafkaException:
                self._consumer.poll(_FIRST_WAIT_S)  # lets `_remember` hear what the brokers said
                if self._connection.is_refused or monotonic() >= deadline:
                    raise
                wait_s *= 2

    def create_topic(self, name: str, partitions: int, replication_factor: int, config: Mapping[str, str]) -> None:
        """Make a topic.

        Raises:
            UsageError: Kafka refuses, as when there are fewer brokers than copies.
        """
        futures = self._admin.create_topics(
            [NewTopic(name, partitions, replication_factor, config=dict(config))], request_timeout=ANSWER_S
        )
        try:
            futures[name].result()
        except KafkaException as error:
            kafka_error = error.args[0]
            if kafka_error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return
            if kafka_error.retriable() or kafka_error.code() in _CREDENTIAL_ERRORS or kafka_error.code() < 0:
                raise self._connection.translated(kafka_error, f"create topic {name}") from error
            raise UsageError(f"Kafka refuses to create topic {name}: {kafka_error.str()}") from error

    def topic_configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """The configuration of topics that exist, the broker's defaults included; librdkafka's mock has no answer."""
        wanted = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        futures = self._admin.describe_configs(wanted, request_timeout=ANSWER_S) if wanted else {}
        return {
            resource.name: {
                name: entry.value
                for name, entry in self._connection.ask(
                    f"describe topic {resource.name}",
                    lambda f=future: f.result(),  # type: ignore[misc]
                ).items()
                if entry.value is not None
            }
            for resource, future in futures.items()
        }

    def extents(self, partitions: Iterable[Partition]) -> dict[Partition, Extent]:
        """Where each partition's log starts and ends."""
        return {
            partition: Extent(
                *self._connection.ask(
                    f"give the ends of {partition.topic}",
                    lambda p=partition: self._consumer.get_watermark_offsets(  # type: ignore[misc]
                        TopicPartition(p.topic, p.number), timeout=ANSWER_S
                    ),
                )
            )
            for partition in partitions
        }

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int | None]:
        """The next offset that the group has recorded for each partition; None where it has none."""
        found = self.committed_positions(partitions)
        return {partition: None if position is None else position.offset for partition, position in found.items()}

    def committed_positions(self, partitions: Iterable[Partition]) -> dict[Partition, Committed | None]:
        """As `committed`, with the topic's id beside each offset."""
        wanted = [TopicPartition(partition.topic, partition.number) for partition in partitions]
        found = self._connection.ask(
            "give the group's offsets", lambda: self._consumer.committed(wanted, timeout=ANSWER_S)
        )
        return {
            Partition(position.topic, position.partition): None
            if position.offset == OFFSET_INVALID
            else Committed(position.offset, position.metadata or "")
            for position in found
        }

    def set_committed(self, next_offsets: Mapping[Partition, int], topic_id: str) -> None:
        """Record offsets for the group, which must have no members.

        Raises:
            UsageError: The group has members.
        """
        offsets = [TopicPartition(p.topic, p.number, offset, topic_id) for p, offset in next_offsets.items()]
        request = ConsumerGroupTopicPartitions(self._group, offsets)
        future = self._admin.alter_consumer_group_offsets([request])[self._group]
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP):
                raise UsageError(f"group {self._group} still has members; stop its workers first") from error
            raise self._connection.translated(error.args[0], f"set the offsets of group {self._group}") from error

    def members(self, group: str) -> list[GroupMember]:
        """The processes of a group; none while it does not exist."""
        future = self._admin.describe_consumer_groups([group], request_timeout=ANSWER_S)[group]
        try:
            description = future.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            raise self._connection.translated(error.args[0], f"describe group {group}") from error
        return [
            GroupMember(
                member.client_id,
                member.host,
                [Partition(p.topic, p.partition) for p in member.assignment.topic_partitions],
            )
            for member in description.members
        ]


class EmbeddedCluster:
    """librdkafka's mock cluster: a Kafka in this process's memory, on a random loopback port, for the demo.

    It speaks the real protocol, so every client here works against it unchanged. It keeps the newest 5 MB a partition,
    gives every topic 4 partitions, and has no admin API, no topic ids and no disk. Closing it, or the end of the process,
    ends it.

    Args:
        topics: Topics to make.

    Raises:
        LogUnavailable: librdkafka could not start it.
    """

    def __init__(self, topics: Iterable[str]) -> None:
        self._holder: KafkaProducer | None = KafkaProducer(
            {"client.id": "driftline", "test.mock.num.brokers": 1, "log_level": 2}, logger=_logger
        )
        try:
            # Asking for a topic makes it. The clients that follow do not ask with that right.
            answers = [self._holder.list_topics(topic, timeout=ANSWER_S) for topic in topics]
        except KafkaException as error:
            raise LogUnavailable(f"librdkafka's mock cluster does not answer: {error.args[0].str()}") from error
        broker = next(iter(answers[0].brokers.values()))
        self.bootstrap_servers = f"{broker.host}:{broker.port}"

    def close(self) -> None:
        """End the cluster: librdkafka takes it down with the client that holds it."""
        self._holder = None


def recreated(topic: str, old_id: str, new_id: str) -> StateRefused:
    """The refusal to go on with a topic that was deleted and made anew."""
    return StateRefused(
        f"topic {topic} was deleted and made anew: its id was {old_id}, it is {new_id or 'none'}. Its offsets begin "
        "at 0 again, so what was applied before cannot be told from what is new. If the new topic is meant, stop "
        f"ingest and evolve, run `driftline topics adopt {topic}`, and start them again"
    )


def sources_of(topics: Mapping[str, Topic]) -> Iterator[tuple[Partition, Source]]:
    """Every partition of the topics, and the name that frames give it."""
    for topic in topics.values():
        for number in range(topic.partitions):
            yield Partition(topic.name, number), Source(topic.name, topic.topic_id, number)


def _is_refusal(error: KafkaError | None) -> bool:
    """Whether one side refuses the other, rather than being away; a handshake that broke off may yet succeed."""
    if error is None:
        return False
    return error.code() in _CREDENTIAL_ERRORS or _is_bad_certificate(error)


def _is_bad_certificate(error: KafkaError) -> bool:
    # Only the text tells. What brokers say of our certificate comes after the handshake, as a failure of the transport.
    return error.code() in (KafkaError._SSL, KafkaError._TRANSPORT) and (  # noqa: SLF001
        "certificate verify failed" in error.str() or "SSL alert number" in error.str()
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
        found.headers() or (),
    )
