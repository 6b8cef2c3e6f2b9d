from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, Producer

from streams.errors import AuthenticationFailed, LogUnavailable
from streams.log.admin import LogAdmin
from streams.log.topics import Extent, Partition
from streams.settings import KafkaSettings
from tests.streams.log.failing_brokers import LIST_OFFSETS, FailingBrokers, failing_brokers

CLICKS = [Partition("clicks", 0), Partition("clicks", 1)]
FULL = {CLICKS[0]: Extent(0, 25), CLICKS[1]: Extent(0, 0)}


@pytest.fixture
def brokers() -> Iterator[FailingBrokers]:
    with failing_brokers() as found:
        producer = Producer({"bootstrap.servers": found.bootstrap_servers})
        for _ in range(25):
            producer.produce(found.topic, b"x", partition=0)
        assert producer.flush(60) == 0
        yield found


@pytest.fixture
def admin(brokers: FailingBrokers) -> Iterator[LogAdmin]:
    with LogAdmin(KafkaSettings(bootstrap_servers=brokers.bootstrap_servers)) as found:
        yield found


def test_the_extents_of_all_partitions_are_their_starts_and_ends(admin: LogAdmin) -> None:
    assert admin.extents(CLICKS) == FULL
    assert admin.extents([]) == {}


@pytest.mark.parametrize(
    "error",
    [
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError._TRANSPORT,  # the mock then closes the connection without an answer
    ],
)
@pytest.mark.parametrize("healthy", [0, 1])
def test_a_broker_that_fails_for_a_moment_never_leads_to_a_wrong_extent(
    brokers: FailingBrokers, admin: LogAdmin, error: int, healthy: int
) -> None:
    assert admin.extents(CLICKS) == FULL
    brokers.fail(LIST_OFFSETS, *[0] * healthy, error)
    assert admin.extents(CLICKS) == FULL


def test_a_leader_that_moves_and_comes_back_is_found(brokers: FailingBrokers, admin: LogAdmin) -> None:
    assert admin.extents(CLICKS) == FULL
    for leader in (1, 2, 2, 1, 1):
        brokers.move_leader(0, leader)
        assert admin.extents(CLICKS) == FULL


def test_a_refusal_is_said_at_once(brokers: FailingBrokers, admin: LogAdmin) -> None:
    brokers.fail(LIST_OFFSETS, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(AuthenticationFailed, match="refuses to give the ends of clicks"):
        admin.extents(CLICKS)


def test_a_failure_that_does_not_pass_is_an_error_and_no_extent(brokers: FailingBrokers, admin: LogAdmin) -> None:
    brokers.fail(LIST_OFFSETS, *[KafkaError.UNKNOWN] * 2)
    with pytest.raises(LogUnavailable, match="did not give the ends of clicks"):
        admin.extents(CLICKS)
