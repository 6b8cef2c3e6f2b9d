"""What every client of librdkafka shares: its configuration, and how Kafka's errors become ours."""

import logging
import math
from collections.abc import Callable, Mapping
from time import monotonic
from types import MappingProxyType
from typing import Any, Final, TypeVar

import stamina
from confluent_kafka import KafkaError, KafkaException

from streams.errors import AuthenticationFailed, DriftlineError, LogUnavailable, SettingsError, TopicMissing
from streams.settings import KafkaSettings

ANSWER_S: Final = 10.0
CREDENTIAL_ERRORS: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,  # noqa: SLF001 - librdkafka's names for its own errors
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
    }
)
# What a broker says of a topic just made, or while leaders and coordinators move and replicas catch up.
_PASSING_ERRORS: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._NOENT,  # noqa: SLF001 - no partition of those asked for has a leader now
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)
MISSING_TOPIC_ERRORS: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}  # noqa: SLF001
)

_REPORT_EVERY_S: Final = 10.0
_logger = logging.getLogger("driftline.kafka")
_Result = TypeVar("_Result")


class Connection:
    """Configuration shared by every client, and the newest error that librdkafka reported in the background."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.servers = settings.bootstrap_servers
        self.newest_error: KafkaError | None = None
        self._settings = settings
        self._reported_at: dict[int, float] = {}
        self.config: dict[str, Any] = {
            **settings.confluent_config(),
            "client.id": "driftline",
            "error_cb": self._remember,
            # librdkafka reports a broker that is away some hundred times a second; `_remember` reports it once.
            "log_level": 2,
            "reconnect.backoff.max.ms": 2000,
        }

    def client(self, kind: Callable[..., _Result], config: Mapping[str, Any] = MappingProxyType({})) -> _Result:
        """Make a client of librdkafka; nothing is asked of Kafka yet.

        Raises:
            SettingsError: A certificate can't be read, a key is not its pair.
        """
        try:
            return kind({**self.config, **config}, logger=_logger)
        except KafkaException as error:
            # librdkafka says "BIO lib" and names no file; the same files, read for the other client, give the reason.
            self._settings.security()
            raise SettingsError(f"these kafka settings cannot be used: {error.args[0].str()}") from error

    @property
    def is_refused(self) -> bool:
        """Whether to ask again is in vain: the brokers refuse the credentials, or we their certificate."""
        return _is_refusal(self.newest_error)

    @property
    def visible(self) -> str:
        """What to add where Kafka has no topic: it also hides those that a user may not describe."""
        return "" if self._settings.security_protocol == "plaintext" else " that this user may see"

    def _remember(self, error: KafkaError) -> None:
        # It follows every other error and would hide its cause.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self.newest_error = error
        now = monotonic()
        if now - self._reported_at.get(error.code(), -math.inf) >= _REPORT_EVERY_S:
            self._reported_at[error.code()] = now
            _logger.warning("kafka client: %s", error.str())

    def ask(self, what: str, question: Callable[[], _Result]) -> _Result:
        """The answer; a question that Kafka is about to be able to answer is asked again for `ANSWER_S`."""
        try:
            for attempt in stamina.retry_context(
                on=_passes, attempts=None, timeout=ANSWER_S, wait_initial=0.1, wait_max=1.0
            ):
                with attempt:
                    answer = question()
        except KafkaException as error:
            raise self.translated(error.args[0], what) from error
        return answer

    def translated(self, error: KafkaError, what: str) -> DriftlineError:
        """The error of ours that a failure to do ``what`` comes to, by what Kafka said to it and before it."""
        background = self.newest_error
        cause = background if background is not None and _is_refusal(background) else error
        if _is_bad_certificate(cause):
            return AuthenticationFailed(
                f"Kafka at {self.servers} did not {what}: {cause.str()}; check kafka.ssl_ca_file (who signed the "
                "brokers' certificates), the host names in kafka.bootstrap_servers, and kafka.ssl_certificate_file"
            )
        if _is_refusal(cause):
            return AuthenticationFailed(
                f"Kafka at {self.servers} refuses to {what}: {cause.str()}; check kafka.security_protocol, the "
                "kafka.sasl_* settings and what this user may do"
            )
        if error.code() in MISSING_TOPIC_ERRORS:
            return TopicMissing(f"cannot {what}: {error.str()}; `driftline topics create` makes the topics")
        reason = error.str() if background is None else f"{error.str()} ({background.str()})"
        return LogUnavailable(
            f"Kafka at {self.servers} did not {what}: {reason}; is it running and reachable, and is "
            f"kafka.security_protocol ({self._settings.security_protocol}) what it speaks there?"
        )


def _passes(error: Exception) -> bool:
    return isinstance(error, KafkaException) and error.args[0].code() in _PASSING_ERRORS


def _is_refusal(error: KafkaError | None) -> bool:
    """Whether one side refuses the other, rather than being away; a handshake that broke off may yet succeed."""
    if error is None:
        return False
    return error.code() in CREDENTIAL_ERRORS or _is_bad_certificate(error)


def _is_bad_certificate(error: KafkaError) -> bool:
    # Only the text tells. What brokers say of our certificate comes after the handshake, as a failure of the transport.
    return error.code() in (KafkaError._SSL, KafkaError._TRANSPORT) and (  # noqa: SLF001
        "certificate verify failed" in error.str() or "SSL alert number" in error.str()
    )
