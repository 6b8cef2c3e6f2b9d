"""A real Kafka and a real Redis, started once a session. A test that kills one for good starts its own instead."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from redis import Redis

from deploy.local.servers import KafkaServer, RedisServer


@pytest.fixture(scope="session")
def kafka_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """The session's Kafka; tests take `kafka`."""
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's Redis; tests take `redis_server`."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def kafka(kafka_session: KafkaServer) -> KafkaServer:
    """A running Kafka with the topics of earlier tests: name yours after `topic_prefix`. A test may stop or kill it."""
    if not kafka_session.is_running:
        kafka_session.start()
    return kafka_session


@pytest.fixture
def topic_prefix() -> str:
    """The beginning of this test's topic and group names, which no other test's names share."""
    return f"test-{uuid4().hex[:12]}-"


@pytest.fixture
def redis_server(redis_session: RedisServer) -> RedisServer:
    """A running Redis with nothing in it. A test may stop, kill or restore it."""
    if not redis_session.is_running:
        redis_session.start()
    with Redis.from_url(redis_session.url) as client:
        client.flushall()
    return redis_session
