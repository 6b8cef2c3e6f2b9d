"""A Kafka in this process's memory."""

import logging
from collections.abc import Iterable

from confluent_kafka import KafkaException
from confluent_kafka import Producer as KafkaProducer

from streams.errors import LogUnavailable
from streams.log.connection import ANSWER_S

_logger = logging.getLogger("driftline.kafka")


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
