"""Messages whose header names are any bytes, as clients in other languages can send them.

confluent-kafka's own producer cannot: it wants text, and dies of a lone surrogate (2.16). aiokafka's batches in plain Python
ask a name for its bytes, so a name may have others than its text's.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

_BATCH_BYTES = 1_000_000


class Strange(NamedTuple):
    """A message to send."""

    value: bytes
    key: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]]


class _Name(str):
    """A header's name that goes out as these bytes."""

    __slots__ = ("_raw",)
    _raw: bytes

    def __new__(cls, raw: bytes) -> "_Name":
        name = super().__new__(cls, raw.decode(errors="replace"))
        name._raw = raw
        return name

    def encode(self, *_: object) -> bytes:
        return self._raw


def send_strange(bootstrap_servers: str, topic: str, partition: int, messages: Sequence[Strange]) -> None:
    """Send messages, in one batch, and wait until Kafka has them."""
    asyncio.run(_send(bootstrap_servers, topic, partition, messages))


async def _send(bootstrap_servers: str, topic: str, partition: int, messages: Sequence[Strange]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        batch = producer.create_batch()
        # No compression, no transaction, no producer id.
        batch._builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, -1, _BATCH_BYTES)
        for message in messages:
            headers = [(_Name(name), value) for name, value in message.headers]
            assert batch.append(timestamp=None, key=message.key, value=message.value, headers=headers) is not None
        await (await producer.send_batch(batch, topic, partition=partition))
    finally:
        await producer.stop()
