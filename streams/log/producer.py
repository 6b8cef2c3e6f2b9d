"""Sending to Kafka."""

from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as KafkaMessage
from confluent_kafka import Producer as KafkaProducer

from streams.errors import DeliveryFailed
from streams.log.connection import Connection
from streams.settings import KafkaSettings

# The broker's default limit for a message is 1 MiB; a dead letter is the original plus our headers.
_MESSAGE_BYTES: Final = 4 * 1024 * 1024


class Producer:
    """Sends messages idempotently, batched, lz4-compressed; nothing counts as sent before `flush` has returned.

    Args:
        delivery_timeout_s: Seconds to try each message for.
        linger_ms: Milliseconds to wait for more messages before a request goes out. A service hands over all that it
            has and flushes, so it waits for nothing; an app sends one by one, and 5 is librdkafka's own default.
    """

    def __init__(self, settings: KafkaSettings, delivery_timeout_s: float = 60.0, linger_ms: float = 0) -> None:
        self._connection = Connection(settings)
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
        timestamp_ms: int = 0,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Hand a message to librdkafka; blocks while its queue is full.

        Args:
            partition: -1: by the key, as librdkafka does.
            timestamp_ms: Kafka's timestamp of the message; 0: now.
            on_failure: Is told why Kafka did not accept the message, before `flush` returns; `flush` then does not raise
                for it.

        Raises:
            DeliveryFailed: The message can never be sent, as when it is too large.
        """

        def delivered(error: KafkaError | None, _: KafkaMessage) -> None:
            if error is not None and on_failure is not None:
                on_failure(error.str())

        while True:
            try:
                self._producer.produce(
                    topic,
                    value,
                    key,
                    partition,
                    headers=list(headers),
                    timestamp=timestamp_ms,
                    on_delivery=self._on_delivery if on_failure is None else delivered,
                )
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise DeliveryFailed(f"cannot send to {topic}: {error.args[0].str()}") from error
            else:
                return

    def flush(self) -> None:
        """Wait until the broker has acknowledged every message, or those who asked were told that it has not.

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
