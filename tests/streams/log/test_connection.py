"""How Kafka's errors become ours. Nothing is asked of a network: a client connects only when it is used."""

import logging

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.errors import AuthenticationFailed, DriftlineError, LogUnavailable, TopicMissing
from streams.log.connection import Connection
from streams.settings import KafkaSettings

# A handshake that fails by the certificate has no code of its own: only the text tells.
BAD_CERTIFICATE = "ssl://broker:9093/bootstrap: SSL handshake failed: certificate verify failed (broker's CA)"


@pytest.fixture
def connection() -> Connection:
    return Connection(KafkaSettings(bootstrap_servers="broker:9092"))


def reported(connection: Connection, error: KafkaError) -> None:
    """As librdkafka reports an error in the background."""
    connection.config["error_cb"](error)


@pytest.mark.parametrize(
    ("code", "text", "kind", "remedy"),
    [
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "unknown topic", TopicMissing, "`driftline topics create`"),
        (KafkaError._UNKNOWN_TOPIC, "unknown topic", TopicMissing, "`driftline topics create`"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "denied", AuthenticationFailed, "what this user may do"),
        (KafkaError._AUTHENTICATION, "no such user", AuthenticationFailed, "kafka.sasl_* settings"),
        (KafkaError._SSL, BAD_CERTIFICATE, AuthenticationFailed, "kafka.ssl_ca_file"),
        (KafkaError._SSL, "connection closed during the handshake", LogUnavailable, "is it running and reachable"),
        (KafkaError._TRANSPORT, "connection refused", LogUnavailable, "is it running and reachable"),
        (KafkaError.REQUEST_TIMED_OUT, "timed out", LogUnavailable, "kafka.security_protocol (plaintext)"),
    ],
)
def test_each_failure_of_kafka_becomes_an_error_that_says_what_to_do(
    connection: Connection, code: int, text: str, kind: type[DriftlineError], remedy: str
) -> None:
    error = connection.translated(KafkaError(code, text), "list its topics")
    assert type(error) is kind
    assert text in str(error)
    assert "list its topics" in str(error)
    assert remedy in str(error)


def test_a_refusal_heard_before_is_the_cause_of_what_fails_now(connection: Connection) -> None:
    reported(connection, KafkaError(KafkaError._AUTHENTICATION, "wrong password"))
    reported(connection, KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    error = connection.translated(KafkaError(KafkaError._TRANSPORT, "timed out"), "list its topics")
    assert isinstance(error, AuthenticationFailed)
    assert "wrong password" in str(error)
    assert connection.is_refused


def test_an_error_heard_before_that_may_pass_is_told_beside_what_fails_now(connection: Connection) -> None:
    reported(connection, KafkaError(KafkaError._RESOLVE, "no such host: broker"))
    error = connection.translated(KafkaError(KafkaError._TIMED_OUT, "timed out"), "list its topics")
    assert isinstance(error, LogUnavailable)
    assert "did not list its topics: timed out (no such host: broker)" in str(error)
    assert not connection.is_refused


def test_a_question_that_kafka_is_about_to_be_able_to_answer_is_asked_again(connection: Connection) -> None:
    failures = [KafkaError.NOT_LEADER_FOR_PARTITION]

    def question() -> str:
        if failures:
            raise KafkaException(KafkaError(failures.pop(), "not yet"))
        return "answer"

    assert connection.ask("give the ends of clicks", question) == "answer"


def test_any_other_question_is_asked_once(connection: Connection) -> None:
    asked = []

    def question() -> None:
        asked.append(1)
        raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, "unknown topic"))

    with pytest.raises(TopicMissing, match="cannot give the ends of clicks: unknown topic"):
        connection.ask("give the ends of clicks", question)
    assert len(asked) == 1


def test_a_broker_that_is_away_is_logged_once_and_not_each_time(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "driftline.kafka"):
        for _ in range(50):
            reported(connection, KafkaError(KafkaError._TRANSPORT, "connection refused"))
        reported(connection, KafkaError(KafkaError._RESOLVE, "no such host"))
    assert [record.getMessage() for record in caplog.records] == [
        "kafka client: connection refused",
        "kafka client: no such host",
    ]
