import asyncio
import os
from types import SimpleNamespace
from typing import NoReturn

import pytest
from aiokafka import AIOKafkaConsumer
from faust.types import TP

from streams.services import evolve
from streams.services.evolve import Evolve, known_end


def test_the_end_of_a_partition_that_a_rebalance_took_away_is_unknown_and_ends_nothing() -> None:
    async def ask() -> int | None:
        consumer = AIOKafkaConsumer("interactions")
        try:
            return known_end(consumer, TP("interactions", 3))
        finally:
            await consumer.stop()

    assert asyncio.run(ask()) is None


class Ended(BaseException):
    """The process ended with this code."""


@pytest.mark.timeout(20)
def test_a_shutdown_that_swallows_its_cancellation_does_not_outlive_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> NoReturn:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(evolve, "_STOP_S", 0.05)

    async def stop() -> None:
        over = asyncio.Event()

        async def wait_for_ever() -> None:
            # As Faust's consumer waits for what was not acknowledged.
            while not over.is_set():
                try:
                    await asyncio.wait_for(over.wait(), 0.5)
                except (TimeoutError, asyncio.CancelledError):
                    continue

        worker = Evolve.__new__(Evolve)
        worker._health = SimpleNamespace(block=lambda *_: None)  # type: ignore[assignment]
        worker._app = SimpleNamespace(stop=wait_for_ever)  # type: ignore[assignment]
        try:
            await worker._stop(asyncio.create_task(asyncio.sleep(0)))
        finally:
            over.set()

    with pytest.raises(Ended) as ended:
        asyncio.run(stop())
    assert ended.value.args == (0,)
