"""The rival: what a competent Faust user writes, without frames and without batches.

    python -m tests.benchmarks.stock_agent

One event at a time from the same raw topic: decode, read the user's row, advance the window, encode, rank, write the row
with its TTL, send the recommendation; Faust commits. The work is the same because the functions are the same: the same
ONNX session, ranking and JSON, the same fields in Redis. It is exactly what Faust gives and no more: a crash repeats events
and counts them twice. Settings come from the same variables as Driftline's.

Of the clients that it could use it has the faster ones, measured on two cores: redis-py without asyncio rather than
`redis.asyncio`, and confluent-kafka's producer rather than `topic.send`. `--redis asyncio` and `--send faust` show it.
"""

import argparse
import time
from collections.abc import Awaitable
from typing import Any

import faust
import redis
import redis.asyncio

from streams.contracts.event import decode_event, derived_event_id, event_time_ms
from streams.contracts.frame import FRAME_VERSION, Frame, Source, partition_of
from streams.interest.engine import UserEvents
from streams.interest.window import Arrival
from streams.log.producer import Producer
from streams.services.parts import open_engine
from streams.settings import load_settings
from tests.benchmarks.workload import PARTITIONS

parser = argparse.ArgumentParser()
parser.add_argument("--redis", choices=["sync", "asyncio"], default="sync")
parser.add_argument("--send", choices=["confluent", "faust"], default="confluent")
options = parser.parse_args()

settings = load_settings()
engine, _ = open_engine(settings)
topic_name, event_type = next(iter(settings.topics.sources.items()))
app = faust.App(
    settings.evolve.group,
    broker=[f"kafka://{server}" for server in settings.kafka.servers],
    store="memory://",
    consumer_auto_offset_reset="earliest",
    topic_allow_declare=False,
    topic_disable_leader=True,
    web_enabled=False,
)
clicks = app.topic(topic_name, key_serializer="raw", value_serializer="raw")
recommendations = app.topic(settings.topics.recommendations, key_serializer="raw", value_serializer="raw")
producer = Producer(settings.kafka)
url = settings.redis.url.get_secret_value()
store = redis.Redis.from_url(url)
async_store = redis.asyncio.Redis.from_url(url)
prefix = f"{settings.redis.key_prefix}:{settings.redis.generation}"
# An arrival names where it came from; one frame serves for all events, for none has to be found again.
FRAME = Frame(FRAME_VERSION, [], [], [], [], [], [], [], [], [], {})


@app.agent(clicks)
async def evolve(stream: Any) -> None:
    """Process one event after the other."""
    async for received in stream.events():
        message = received.message
        event = decode_event(message.value, settings.ingest.max_event_bytes)
        appended_ms, now_ms = round(message.timestamp * 1000), round(time.time() * 1000)
        event_id = event.event_id or derived_event_id(message.topic, message.partition, message.offset)
        arrival = Arrival(
            event_time_ms(event, appended_ms, now_ms),
            event_id,
            event.item_id,
            event.type or event_type,
            event.event_id is not None,
            Source(message.topic, "", message.partition),
            message.offset,
            appended_ms,
            FRAME,
            0,
        )
        key = f"{prefix}:{{{partition_of(event.user_id, PARTITIONS)}}}:user:{event.user_id}"
        state, vector, model = await _finished(
            (async_store if options.redis == "asyncio" else store).hmget(key, ("state", "vector", "model"))
        )
        previous = vector if model is not None and model.decode() == engine.model_version else None
        user = UserEvents(event.user_id, state, previous, [arrival])
        update = engine.evolve([user], now_ms)[0]
        row = update.row
        if row is None:
            continue
        pipe: Any = (async_store if options.redis == "asyncio" else store).pipeline(transaction=False)
        pipe.hset(
            key,
            mapping={
                "vector": row.vector,
                "recommendations": row.recommendations,
                "state": row.state,
                "model": row.model,
                "updated_at": row.updated_at,
            },
        )
        pipe.pexpire(key, settings.redis.ttl_ms)
        await _finished(pipe.execute())
        if options.send == "faust":
            await recommendations.send(key=event.user_id.encode(), value=row.recommendations)
        else:
            producer.send(settings.topics.recommendations, row.recommendations, event.user_id)
            producer.poll()


async def _finished(answer: Any) -> Any:
    return await answer if isinstance(answer, Awaitable) else answer


if __name__ == "__main__":
    app.finalize()
    faust.Worker(app, loglevel="WARN").execute_from_commandline()
