import asyncio

from aiokafka import AIOKafkaConsumer
from faust.types import TP

from streams.services.evolve import known_end


def test_the_end_of_a_partition_that_a_rebalance_took_away_is_unknown_and_ends_nothing() -> None:
    async def ask() -> int | None:
        consumer = AIOKafkaConsumer("interactions")
        try:
            return known_end(consumer, TP("interactions", 3))
        finally:
            await consumer.stop()

    assert asyncio.run(ask()) is None
