"""What is recorded of erasures on a real Redis; ids themselves are not."""

from collections.abc import Iterator, Sequence

import pytest
from pydantic import SecretStr
from redis import Redis

from deploy.local.servers import RedisServer
from streams.contracts.erasure import Erasure
from streams.contracts.frame import partition_of
from streams.contracts.generation import Generation
from streams.settings import RedisSettings
from streams.store.redis import RedisErasures, RedisGenerations, RedisStore
from tests.store_contract import PARTITIONS, TOPIC_ID, ErasureContract, erased, row, swap


@pytest.fixture
def settings(redis_server: RedisServer) -> RedisSettings:
    return RedisSettings(url=SecretStr(redis_server.url))


@pytest.fixture
def erasures(settings: RedisSettings) -> Iterator[RedisErasures]:
    opened = RedisErasures(settings)
    yield opened
    opened.close()


@pytest.fixture
def generations(settings: RedisSettings) -> Iterator[Sequence[RedisStore]]:
    records = RedisGenerations(settings)
    for number, name in enumerate(("g1", "g2")):
        records.register(Generation(name, "pooling", "aaaaaaaaaaaa", "space-a", "/models/a", number, "live"))
    records.close()
    stores = [RedisStore(settings, name) for name in ("g1", "g2")]
    yield stores
    for store in stores:
        store.close()


class TestRedisErasures(ErasureContract):
    pass


def test_no_id_is_recorded_but_its_digest(redis_server: RedisServer, erasures: RedisErasures) -> None:
    erasures.record(erased(alice=1_790_000_000_000))
    with Redis.from_url(redis_server.url) as client:
        # printf alice | b2sum --length 128
        assert client.hgetall("driftline:erasures") == {b"69b5957599f918e276a3d2428acdc997": b"1790000000000"}


def test_whoever_waits_to_be_encoded_is_forgotten_there_too(
    redis_server: RedisServer, erasures: RedisErasures, generations: Sequence[RedisStore]
) -> None:
    partition = partition_of("alice", PARTITIONS)
    generations[1].set_partitions(PARTITIONS)
    generations[1].swap([swap(partition, None, 2, {"alice": row(1)})])
    with Redis.from_url(redis_server.url) as client:
        client.sadd(f"driftline:g2:{{{partition}}}:unencoded", "alice", "bob")
        erasures.forget([Erasure("alice", 500, 7)], TOPIC_ID, PARTITIONS)
        assert client.smembers(f"driftline:g2:{{{partition}}}:unencoded") == {b"bob"}
        assert not list(client.scan_iter("*alice*"))
