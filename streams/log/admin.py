"""Asking Kafka what there is, and the few changes that an operator makes."""

from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Self

from confluent_kafka import (
    OFFSET_INVALID,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec  # type: ignore[attr-defined]  # 2.16

from streams.errors import TopicMissing, UsageError
from streams.log.connection import ANSWER_S, CREDENTIAL_ERRORS, Connection
from streams.log.topics import Committed, Extent, GroupMember, Partition, Topic
from streams.settings import KafkaSettings

_EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # 2.16
_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # 2.16
_STALE_EPOCH_ERRORS: Final = frozenset({KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH})
# A broker that died never answers, and until a request to it has failed librdkafka does not ask who is there in its place.
_DEAD_AFTER_S: Final = ANSWER_S / 4
# The first wait for an answer; each that follows is twice as long, so that a slow connection gets its time.
_FIRST_WAIT_S: Final = 0.2


class LogAdmin:
    """What an operator and a starting worker ask of Kafka. Close it, or use it as a context."""

    def __init__(self, settings: KafkaSettings, group: str = "driftline-admin") -> None:
        self._connection = Connection(settings)
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
        what = f"describe topic {', '.join(counts)}"
        described = self._connection.ask(what, lambda: self._describe(list(counts)))
        return {name: Topic(name, str(described[name].topic_id), count) for name, count in counts.items()}

    def _describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Kafka's descriptions of topics.

        librdkafka 2.16 asks the controller. One that died it goes on asking until it is told of another.
        """
        deadline = monotonic() + ANSWER_S
        while True:
            futures = self._admin.describe_topics(TopicCollection(list(names)), request_timeout=_DEAD_AFTER_S)
            try:
                return {name: future.result() for name, future in futures.items()}
            except KafkaException as error:
                if error.args[0].code() != KafkaError._TIMED_OUT or monotonic() >= deadline:  # noqa: SLF001
                    raise
                self._admin.list_topics(timeout=ANSWER_S)

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
            if kafka_error.retriable() or kafka_error.code() in CREDENTIAL_ERRORS or kafka_error.code() < 0:
                raise self._connection.translated(kafka_error, f"create topic {name}") from error
            raise UsageError(f"Kafka refuses to create topic {name}: {kafka_error.str()}") from error

    def topic_configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """The configuration of topics that exist, the broker's defaults included; librdkafka's mock has no answer."""
        wanted = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        futures = self._admin.describe_configs(wanted, request_timeout=ANSWER_S) if wanted else {}
        return {
            resource.name: {
                name: entry.value
                for name, entry in self._connection.ask(f"describe topic {resource.name}", future.result).items()
                if entry.value is not None
            }
            for resource, future in futures.items()
        }

    def extents(self, partitions: Iterable[Partition]) -> dict[Partition, Extent]:
        """Where each partition's log starts and ends.

        Not by the consumer's `get_watermark_offsets`: where one of its two requests fails and the other does not, librdkafka
        2.16 reports no error and gives the one offset that it got as both, so that a full log looks empty.
        """
        wanted = [TopicPartition(partition.topic, partition.number) for partition in partitions]
        if not wanted:
            return {}
        what = f"give the ends of {', '.join(sorted({partition.topic for partition in wanted}))}"
        # In this order, for a log that retention cuts, or that grows, between the two.
        starts = self._connection.ask(what, lambda: self._offsets(wanted, _EARLIEST))
        ends = self._connection.ask(what, lambda: self._offsets(wanted, _LATEST))
        return {partition: Extent(start, ends[partition]) for partition, start in starts.items()}

    def _offsets(self, wanted: Sequence[TopicPartition], spec: OffsetSpec) -> dict[Partition, int]:
        futures = self._admin.list_offsets(
            dict.fromkeys(wanted, spec),
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=_DEAD_AFTER_S,
        )
        try:
            found = {Partition(p.topic, p.partition): future.result().offset for p, future in futures.items()}
        except KafkaException as error:
            code = error.args[0].code()
            if code in _STALE_EPOCH_ERRORS:
                # librdkafka 2.16 would go on asking with the epoch that it knows.
                self._admin.list_topics(timeout=ANSWER_S)
            if code == KafkaError._TIMED_OUT:  # noqa: SLF001
                # So soon, that may also be a broker that is only slow: there is time to ask again.
                self._admin.list_topics(timeout=ANSWER_S)
                raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT, error.args[0].str())) from error
            raise
        if min(found.values()) < 0:
            # What librdkafka 2.16 makes of a broker that closes the connection, or is gone, instead of answering. It would go
            # on asking that one, although the partitions have other leaders by now.
            self._admin.list_topics(timeout=ANSWER_S)
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, "a broker went away before it answered"))
        return found

    def offsets_at(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int | None]:
        """Of each partition the first offset whose message is dated at this time or later; None where there is none.

        Args:
            time_ms: Milliseconds since 1970.
        """
        wanted = [TopicPartition(partition.topic, partition.number, time_ms) for partition in partitions]

        def found() -> list[TopicPartition]:
            answers = self._consumer.offsets_for_times(wanted, timeout=ANSWER_S)
            for answer in answers:
                if answer.error is not None:
                    raise KafkaException(answer.error)
            return answers

        answers = self._connection.ask("find offsets by time", found) if wanted else []
        return {
            Partition(answer.topic, answer.partition): answer.offset if answer.offset >= 0 else None
            for answer in answers
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
