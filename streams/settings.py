"""Every setting of Driftline, and where its value comes from.

    defaults  <  driftline.toml  <  environment variables  <  flags

The file is `--config FILE`, else what `DRIFTLINE_CONFIG` names, else `driftline.toml` in the working directory if there
is one. The variable of `kafka.bootstrap_servers` is `DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS`. A later source replaces a
whole setting, mappings included: there would be no other way to leave one of the default topics out.

An unknown name is an error in every source, as is a bad value: each message names its source. Secrets appear in no
repr, log or error.

The sources are read here rather than with pydantic-settings (2.16, tried): that one ignores a misspelt section or a
single underscore without a word, merges mappings, and cannot say which source a bad value came from; importing it costs
0.2 s beside pydantic's 0.06.
"""

import difflib
import json
import os
import re
import ssl
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, get_args, get_origin
from urllib.parse import urlsplit

import annotated_types
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from streams.errors import SettingsError

PREFIX: Final = "DRIFTLINE_"
CONFIG_VARIABLE: Final = "DRIFTLINE_CONFIG"
CONFIG_FILE: Final = "driftline.toml"

# Kubernetes puts variables of this shape into every container for a Service called "driftline" or "driftline-…"; so
# does Docker's old --link. A typing error such as DRIFTLINE_HTTP_PORT=8010 has no "tcp://" and is still reported.
_SERVICE_LINK: Final = re.compile(
    r"DRIFTLINE_(?:[A-Z0-9]+_)*"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_LINKED_PORT: Final = re.compile(r"(?:tcp|udp|sctp)://")
_MASK: Final = "***"

GROUP_PATTERN: Final = r"^[A-Za-z0-9._-]{1,255}$"
TOPIC_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")


class _Section(BaseModel):
    """A group of settings: frozen, closed, and silent about values in its errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_plainly(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name is None:
            return value
        annotation = cls.model_fields[info.field_name].annotation
        kinds = _kinds(annotation)
        # pydantic takes `true` for 1, so `partitions = true` would pass.
        if isinstance(value, bool) and bool not in kinds:
            raise ValueError("should not be true or false")
        if isinstance(value, str):
            # A variable cannot be unset from a later source, so an empty one stands for "none" where there may be none.
            if not value and type(None) in kinds:
                return None
            options = _options(annotation)
            return next((option for option in options if option.casefold() == value.casefold()), value)
        return value


class KafkaSettings(_Section):
    """How to reach Kafka: one set for both clients, confluent-kafka (librdkafka) and Faust (aiokafka)."""

    bootstrap_servers: str = Field(
        default="127.0.0.1:9092", description="Brokers to ask first, host:port with commas between them."
    )
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        default="plaintext", description="How to talk to the brokers."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="How to log in, with a sasl_… protocol."
    )
    sasl_username: str | None = Field(default=None, description="Who logs in.")
    sasl_password: SecretStr | None = Field(default=None, description="Its password.")
    sasl_password_file: Path | None = Field(default=None, description="A file that holds the password instead.")
    ssl_ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) to trust; without it those of the operating system."
    )
    ssl_certificate_file: Path | None = Field(
        default=None, description="The client's certificate (PEM), for mutual TLS."
    )
    ssl_key_file: Path | None = Field(default=None, description="The client's private key (PEM), for mutual TLS.")
    ssl_key_password: SecretStr | None = Field(default=None, description="The password of the private key.")
    ssl_key_password_file: Path | None = Field(default=None, description="A file that holds that password instead.")
    session_timeout_s: float = Field(
        default=10.0,
        # The broker's defaults of group.min.session.timeout.ms and group.max.session.timeout.ms.
        ge=6,
        le=1800,
        description="Seconds of silence after which Kafka gives a worker's partitions to others.",
    )

    @field_validator("bootstrap_servers")
    @classmethod
    def _check_servers(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",")]
        for server in servers:
            host, colon, port = server.rpartition(":")
            if "/" in server or "@" in server:
                raise ValueError("should be host:port alone, without kafka:// and without a user")
            if not host or not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
                raise ValueError("should be host:port with commas between them, such as 127.0.0.1:9092")
        return ",".join(servers)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        protocol = self.security_protocol
        if protocol.startswith("sasl_"):
            if self.sasl_mechanism is None or self.sasl_username is None:
                raise ValueError(f"security_protocol {protocol} needs sasl_mechanism, sasl_username and a password")
            if (self.sasl_password is None) == (self.sasl_password_file is None):
                raise ValueError(
                    f"security_protocol {protocol} needs exactly one of sasl_password and sasl_password_file"
                )
        else:
            self._refuse_given(
                ("sasl_mechanism", "sasl_username", "sasl_password", "sasl_password_file"),
                f"security_protocol {protocol} does not log in, so it would be ignored; set sasl_ssl",
            )
        if not protocol.endswith("ssl"):
            self._refuse_given(
                (
                    "ssl_ca_file",
                    "ssl_certificate_file",
                    "ssl_key_file",
                    "ssl_key_password",
                    "ssl_key_password_file",
                ),
                f"security_protocol {protocol} does not encrypt, so it would be ignored; set ssl or sasl_ssl",
            )
        if (self.ssl_certificate_file is None) != (self.ssl_key_file is None):
            raise ValueError("ssl_certificate_file and ssl_key_file go together: set both or neither")
        if self.ssl_key_password is not None and self.ssl_key_password_file is not None:
            raise ValueError("ssl_key_password and ssl_key_password_file exclude each other: set one")
        if self.ssl_key_file is None:
            self._refuse_given(("ssl_key_password", "ssl_key_password_file"), "there is no ssl_key_file that it opens")
        return self

    def _refuse_given(self, names: Iterable[str], why: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is set, but {why}")

    @property
    def servers(self) -> tuple[str, ...]:
        """The brokers to ask first, each "host:port"."""
        return tuple(self.bootstrap_servers.split(","))

    @property
    def session_timeout_ms(self) -> int:
        """`session_timeout_s` in milliseconds, as librdkafka's `session.timeout.ms` wants it (consumers only)."""
        return round(self.session_timeout_s * 1000)

    def confluent_config(self) -> dict[str, str]:
        """Return the connection part of a librdkafka configuration, for producers, consumers and admin clients alike.

        The result holds the password in the clear: hand it to the client, never to a log.

        Raises:
            SettingsError: A secret's file cannot be read.
        """
        config = {"bootstrap.servers": self.bootstrap_servers, "security.protocol": self.security_protocol}
        if self.sasl_mechanism is not None:
            config["sasl.mechanism"] = self.sasl_mechanism
            config["sasl.username"] = self.sasl_username or ""
            config["sasl.password"] = self._sasl_password() or ""
        for key, path in (
            ("ssl.ca.location", self.ssl_ca_file),
            ("ssl.certificate.location", self.ssl_certificate_file),
            ("ssl.key.location", self.ssl_key_file),
        ):
            if path is not None:
                config[key] = str(path)
        key_password = self._key_password()
        if key_password is not None:
            config["ssl.key.password"] = key_password
        return config

    def security(self) -> "KafkaSecurity":
        """Return what a client that takes an `ssl.SSLContext` needs: Faust's credentials are built from it.

        Raises:
            SettingsError: A certificate, key or secret file cannot be read or does not fit.
        """
        return KafkaSecurity(
            ssl_context=self._ssl_context(),
            sasl_mechanism=self.sasl_mechanism,
            sasl_username=self.sasl_username,
            sasl_password=None if self.sasl_mechanism is None else self._sasl_password(),
        )

    def _sasl_password(self) -> str | None:
        return _secret("kafka.sasl_password", self.sasl_password, self.sasl_password_file)

    def _key_password(self) -> str | None:
        return _secret("kafka.ssl_key_password", self.ssl_key_password, self.ssl_key_password_file)

    def _ssl_context(self) -> ssl.SSLContext | None:
        if not self.security_protocol.endswith("ssl"):
            return None
        context = _trusting("kafka.ssl_ca_file", self.ssl_ca_file)
        if self.ssl_certificate_file is not None and self.ssl_key_file is not None:
            # Without a password, OpenSSL would ask for it on the terminal and a service would hang.
            password = self._key_password() or ""
            try:
                context.load_cert_chain(self.ssl_certificate_file, self.ssl_key_file, password)
            except OSError as error:
                raise SettingsError(
                    f"kafka.ssl_certificate_file {self.ssl_certificate_file} and kafka.ssl_key_file {self.ssl_key_file}"
                    f" cannot be used: {error.strerror or error}. Both must be readable PEM files of one pair; "
                    "an encrypted key needs kafka.ssl_key_password or kafka.ssl_key_password_file"
                ) from error
        return context


@dataclass(frozen=True)
class KafkaSecurity:
    """How a Kafka client that takes an `ssl.SSLContext` encrypts and logs in.

    Attributes:
        ssl_context: None: the connection is not encrypted.
        sasl_mechanism: None: nobody logs in, and there is neither a name nor a password.
    """

    ssl_context: ssl.SSLContext | None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None
    sasl_username: str | None
    sasl_password: str | None = field(repr=False)


class RedisSettings(_Section):
    """Where the state of the users lives."""

    url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Where Redis is: redis://, rediss:// (TLS) or unix://. A secret, for it may hold a password.",
    )
    username: str | None = Field(default=None, description="Who logs in.")
    password: SecretStr | None = Field(default=None, description="Its password.")
    password_file: Path | None = Field(default=None, description="A file that holds the password instead.")
    ssl_ca_file: Path | None = Field(default=None, description="Certificates (PEM) to trust with rediss://.")
    ttl_days: float = Field(
        default=90.0, gt=0, le=3650, description="Days after a user's last event until the row is dropped."
    )
    key_prefix: str = Field(
        default="driftline",
        # A brace would break the {p} tag that keeps a partition in one slot of a Redis Cluster.
        pattern=r"^[A-Za-z0-9._:-]{1,64}$",
        description="What every key begins with: letters, digits and . _ : -",
    )
    generation: str = Field(
        default="g1",
        pattern=r"^[A-Za-z0-9_-]{1,32}$",
        description="The namespace of all rows until another is activated. Letters, digits, - and _.",
    )
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="Seconds to wait for a connection or an answer.")

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr) -> SecretStr:
        # Never quotes any part of the URL: a password with an unescaped / or # is torn into host, port and path.
        try:
            parts = urlsplit(value.get_secret_value())
            port = parts.port
        except ValueError:
            parts, port = None, None
        if parts is None or parts.fragment or (parts.scheme != "unix" and "@" in parts.path + parts.query):
            raise ValueError(
                "is not a URL; in a password write / as %2F, # as %23, ? as %3F, @ as %40, or use redis.password_file"
            )
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("should begin with redis://, rediss:// (TLS) or unix://")
        if parts.scheme == "unix":
            if not parts.path.strip("/"):
                raise ValueError("should name a socket, such as unix:///run/redis.sock")
        elif not parts.hostname or port == 0:
            raise ValueError("should name a host, such as redis://127.0.0.1:6379/0")
        elif parts.path.strip("/") and not parts.path.strip("/").isdigit():
            raise ValueError("should end in the number of a database, such as redis://127.0.0.1:6379/0")
        return value

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        parts = urlsplit(self.url.get_secret_value())
        passwords = {
            "password in url": parts.password is not None or "password=" in parts.query,
            "password": self.password is not None,
            "password_file": self.password_file is not None,
        }
        given = [name for name, is_given in passwords.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: set one")
        if parts.username and self.username is not None:
            raise ValueError("url names a user and username another: set one")
        if self.username is not None and not given:
            raise ValueError("username is set without password or password_file")
        if self.ssl_ca_file is not None and parts.scheme != "rediss":
            raise ValueError("ssl_ca_file is set, but url does not begin with rediss://, so it would be ignored")
        return self

    @property
    def masked_url(self) -> str:
        """The URL with any password masked, for logs and errors."""
        # On the text: urlsplit would put unix:///run/redis.sock together again with one slash.
        url = re.sub(r"^(\w+://[^:@/?]*):[^/?]*@", rf"\1:{_MASK}@", self.url.get_secret_value())
        return re.sub(r"(?<=[?&]password=)[^&]*", _MASK, url)

    @property
    def ttl_ms(self) -> int:
        """`ttl_days` in milliseconds, at least one."""
        return max(1, round(self.ttl_days * 86_400_000))

    def check_files(self) -> None:
        """Read the certificates once: redis-py does so at every connection, and calls a missing file a lost one.

        Raises:
            SettingsError: They cannot be read.
        """
        if self.ssl_ca_file is not None:
            _trusting("redis.ssl_ca_file", self.ssl_ca_file)

    def client_options(self) -> dict[str, Any]:
        """Return the keyword arguments that `redis.Redis.from_url` takes beside the URL.

        The result holds the password in the clear: hand it to the client, never to a log.

        Raises:
            SettingsError: The secret's file cannot be read.
        """
        options: dict[str, Any] = {"socket_timeout": self.timeout_s, "socket_connect_timeout": self.timeout_s}
        password = _secret("redis.password", self.password, self.password_file)
        if self.username is not None:
            options["username"] = self.username
        if password is not None:
            options["password"] = password
        if self.ssl_ca_file is not None:
            options["ssl_ca_certs"] = str(self.ssl_ca_file)
        return options


class TopicSettings(_Section):
    """The topics, by name."""

    sources: Mapping[str, str] = Field(
        default={"clicks": "click", "views": "view"},
        description="Raw topics to read, each with the type of an event that names none.",
    )
    interactions: str = Field(
        default="interactions", description="The clean, ordered log of frames, between ingest and evolve."
    )
    recommendations: str = Field(default="recommendations", description="Where recommendations go out.")
    dead_letters: str = Field(
        default="events.dlq", description="Where messages go that cannot be processed, untouched."
    )
    partitions: int = Field(
        default=8, ge=1, le=1024, description="Partitions of a topic that `driftline topics create` makes."
    )
    replication_factor: int = Field(
        default=1, ge=1, le=32, description="Copies of a topic that `driftline topics create` makes."
    )

    @field_validator("interactions", "recommendations", "dead_letters")
    @classmethod
    def _check_name(cls, value: str) -> str:
        _check_topic(value)
        return value

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if not value:
            raise ValueError('should name at least one topic, such as {"clicks": "click"}')
        for topic, event_type in value.items():
            _check_topic(topic)
            # The bounds of an event's type in streams.contracts.event.
            if not 1 <= len(event_type) <= 64:
                raise ValueError(f"topic {topic!r} should have a type of 1 to 64 characters, such as click")
            if event_type.startswith("$"):
                raise ValueError(f"topic {topic!r} should have a type that does not begin with $, such as click")
        return value

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        owners: dict[str, str] = {}
        for name, topic in (
            *((f"sources ({topic})", topic) for topic in self.sources),
            ("interactions", self.interactions),
            ("recommendations", self.recommendations),
            ("dead_letters", self.dead_letters),
        ):
            # Kafka refuses two topics that differ only in . and _: the names of their metrics would be the same.
            owner = owners.setdefault(topic.replace(".", "_"), name)
            if owner != name:
                raise ValueError(
                    f"{owner} and {name} are both {topic!r} (. and _ count as one): each needs a topic of its own"
                )
        return self


class ModelSettings(_Section):
    """The model that serves."""

    bundle: Path | None = Field(
        default=None,
        description="Folder of the model bundle until one is activated; without it the demo model that Driftline brings.",
    )
    registry: Path | None = Field(
        default=None,
        description="Folder of the published versions; every worker must see it, as on a shared disk.",
    )
    provider: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="What the model runs on; auto takes CUDA where it works."
    )
    threads: int = Field(default=1, ge=1, le=256, description="Threads of the ONNX runtime for one call.")


class IngestSettings(_Section):
    """From raw topics to frames."""

    group: str = Field(default="driftline-ingest", pattern=GROUP_PATTERN, description="The consumer group of ingest.")
    linger_ms: float = Field(
        default=8.0,
        ge=1,
        le=1000,
        description="Milliseconds that Kafka may hold events back to hand out more at a time; larger frames cost less.",
    )
    batch_events: int = Field(default=5000, ge=1, le=100_000, description="Events in one batch, at most.")
    max_event_bytes: int = Field(
        default=65_536, ge=256, le=900_000, description="Bytes of one raw event; a larger one is a dead letter."
    )
    frame_events: int = Field(default=1000, ge=1, le=10_000, description="Events in one frame, at most.")
    frame_bytes: int = Field(
        default=524_288,
        ge=4096,
        # Below the broker's message.max.bytes (1,048,588), with room for the batch around it.
        le=1_000_000,
        description="Bytes of one frame before compression, at most.",
    )
    pseudonym_key_file: Path | None = Field(
        default=None,
        description=(
            "A file with a key of 16 to 64 bytes: everything behind ingest then holds a keyed hash in the place of each user id."
        ),
    )

    def pseudonym_key(self) -> bytes | None:
        """The key in the file; None where none is named.

        Raises:
            SettingsError: It cannot be read, is no such key, or others than its owner and group have rights on it.
        """
        return None if self.pseudonym_key_file is None else _key_in(self.pseudonym_key_file)

    @model_validator(mode="after")
    def _check_room(self) -> Self:
        if self.frame_bytes < self.max_event_bytes:
            raise ValueError(
                f"frame_bytes ({self.frame_bytes}) is less than max_event_bytes ({self.max_event_bytes}), so an event "
                "could be too large for every frame: raise the first or lower the second"
            )
        return self


class EvolveSettings(_Section):
    """From frames to vectors and recommendations."""

    group: str = Field(default="driftline-evolve", pattern=GROUP_PATTERN, description="The consumer group of evolve.")
    batch_users: int = Field(default=512, ge=1, le=4096, description="Users in one batch, at most.")
    queue_frames: int = Field(
        default=256, ge=1, le=65_536, description="Frames that wait in memory; when there are as many, reading pauses."
    )
    linger_ms: float = Field(
        default=5.0,
        ge=1,
        le=1000,
        description="Milliseconds that Kafka may hold frames back to hand out more at a time; larger batches cost less.",
    )
    dedupe_memory: int = Field(
        default=64,
        ge=0,
        le=4096,
        description="Newest event ids remembered a user besides those in the window, to drop what apps send twice.",
    )
    sweep_users_per_second: int = Field(
        default=200,
        ge=0,
        le=100_000,
        description="How many users without new events are encoded again a second after a model changed; 0 is none.",
    )
    stall_s: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="Seconds without progress, with frames waiting, after which /livez fails.",
    )


class RecommendationSettings(_Section):
    """What a recommendation holds."""

    k: int = Field(default=10, ge=1, le=1000, description="Items in one recommendation.")
    filter_seen: bool = Field(default=True, description="Leave out items that are in the user's window.")
    because: int = Field(default=2, ge=0, le=10, description="Past items named as the reason of each recommended one.")
    exploration: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description=(
            "How far lists stray from the vector, by what a variational model is unsure of; 1 draws from its posterior."
        ),
    )
    rerank: Literal["none", "mmr", "dpp", "calibrated"] = Field(
        default="none",
        description=(
            "How a list is chosen from the best items: no two alike (mmr, dpp), or topics as in the window (calibrated)."
        ),
    )
    rerank_pool: int = Field(default=100, ge=1, le=1000, description="How many best items a list is chosen from.")
    diversity: float = Field(
        default=0.3, ge=0, le=1, description="What rerank weighs against relevance: 0 is relevance alone."
    )

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        if self.rerank != "none" and self.rerank_pool < self.k:
            raise ValueError(f"rerank_pool is {self.rerank_pool} and k is {self.k}: rerank needs a pool of at least k")
        return self


class HttpSettings(_Section):
    """The small HTTP server with /livez, /readyz and /metrics."""

    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 opens it to the network."
    )
    port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="Port; without it 8010 for ingest and 8011 for evolve; 0 turns the server off.",
    )


class LogSettings(_Section):
    """What the process says about itself, on stderr."""

    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto is console on a terminal and json elsewhere."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least that is logged.")


class Settings(_Section):
    """Every setting. `Settings()` is the defaults and reads nothing; services call `load_settings`."""

    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    topics: TopicSettings = TopicSettings()
    model: ModelSettings = ModelSettings()
    ingest: IngestSettings = IngestSettings()
    evolve: EvolveSettings = EvolveSettings()
    recommendations: RecommendationSettings = RecommendationSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.ingest.group == self.evolve.group:
            raise ValueError(
                f"ingest.group and evolve.group are both {self.ingest.group!r}: they read different topics, so each "
                "needs a group of its own"
            )
        return self


class SettingRow(NamedTuple):
    """One line of the table of settings.

    Attributes:
        name: Dotted, such as "kafka.bootstrap_servers".
        variable: Its environment variable.
        default: As it would be written in a variable; empty for none.
        description: One sentence or two, with what is accepted.
    """

    name: str
    variable: str
    default: str
    description: str


def settings_table() -> list[SettingRow]:
    """Return every setting in the order of declaration; the README's table is made from it."""
    rows = []
    for name, info in _fields().items():
        description = info.description or ""
        accepted = _accepted(info)
        if accepted:
            description = f"{description} Takes {accepted}."
        rows.append(SettingRow(name, _variable(name), _written(info.default), description))
    return rows


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    toml: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Read every source and return the settings.

    Args:
        flags: From the command line, by dotted name ("kafka.bootstrap_servers"); None: the flag was not given.
        toml: The file that `--config` named, if it was given: it must exist.
        environ: The environment; variables that begin with `DRIFTLINE_` are ours, and an unknown one is an error.

    Raises:
        SettingsError: Something in a source is unknown, unreadable or refused. Names all of it, each with its source.
    """
    problems: list[str] = []
    given: dict[str, _Given] = {}
    for item in (
        *_from_toml(toml, environ, problems),
        *_from_environ(environ, problems),
        *_from_flags(flags, problems),
    ):
        given[item.name] = item
    if problems:
        # Not validated yet: with a name misspelt, what is missing elsewhere would be reported wrongly.
        raise SettingsError("\n".join(problems))
    sections: dict[str, dict[str, object]] = {}
    for item in given.values():
        section, _, setting = item.name.partition(".")
        sections.setdefault(section, {})[setting] = item.value
    try:
        return Settings.model_validate(sections)
    except ValidationError as error:
        problems = [_explain(detail["loc"], detail["msg"], given) for detail in error.errors(include_input=False)]
    # Outside the handler: pydantic's error holds the values, secrets included, and must not be the context of ours.
    raise SettingsError("\n".join(problems))


class _Given(NamedTuple):
    """A value from one source, not validated yet."""

    name: str
    value: object
    source: str


def _from_toml(toml: Path | None, environ: Mapping[str, str], problems: list[str]) -> Iterator[_Given]:
    named = environ.get(CONFIG_VARIABLE)
    if toml is not None:
        path, document = toml, _read_toml(toml, "--config", problems)
    elif named:
        path, document = Path(named), _read_toml(Path(named), f"environment variable {CONFIG_VARIABLE}", problems)
    else:
        path, document = Path(CONFIG_FILE), _read_toml(Path(CONFIG_FILE), None, problems)
    for section, table in document.items():
        if section not in Settings.model_fields:
            problems.append(f"{path}: there is no section [{section}]{_did_you_mean(section, Settings.model_fields)}")
        elif not isinstance(table, dict):
            problems.append(f"{path}: {section} is a section: write [{section}], with its settings below")
        else:
            for setting, value in table.items():
                name = f"{section}.{setting}"
                if name in _fields():
                    yield _Given(name, value, f"{path}: [{section}] {setting}")
                else:
                    problems.append(f"{path}: [{section}] has no setting {setting}{_did_you_mean(name, _fields())}")


def _read_toml(path: Path, origin: str | None, problems: list[str]) -> dict[str, Any]:
    """Read a TOML file; with no origin, nobody named it and it need not exist."""
    where = f"{origin}: {path}" if origin else str(path)
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        if origin is not None:
            problems.append(f"{where} does not exist. Name a TOML file, or none to use the defaults")
    except OSError as error:
        problems.append(f"{where} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"{where} is not UTF-8 (byte {error.start}), so it is not TOML")
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{where} is not TOML: {error}")  # ends in "(at line 3, column 7)"
    return {}


def _from_environ(environ: Mapping[str, str], problems: list[str]) -> Iterator[_Given]:
    names = {_variable(name): name for name in _fields()}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE or _is_service_link(variable, text):
            continue
        source = f"environment variable {variable}"
        if variable not in names:
            suggestion = _did_you_mean(variable.upper(), (*names, CONFIG_VARIABLE))
            problems.append(
                f"{source}: there is no such setting{suggestion or '. Unset it, or see the table of settings'}"
            )
            continue
        yield from _parsed(names[variable], text, source, problems)


def _from_flags(flags: Mapping[str, object] | None, problems: list[str]) -> Iterator[_Given]:
    for name, value in (flags or {}).items():
        source = f"flag --{name.rpartition('.')[2].replace('_', '-')}"
        if name not in _fields():
            problems.append(f"{source}: there is no setting {name}{_did_you_mean(name, _fields())}")
        elif isinstance(value, str):
            yield from _parsed(name, value, source, problems)
        elif value is not None:
            yield _Given(name, value, source)


def _parsed(name: str, text: str, source: str, problems: list[str]) -> Iterator[_Given]:
    if get_origin(_fields()[name].annotation) is not Mapping:
        yield _Given(name, text, source)
        return
    example = _written(_fields()[name].default)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        problems.append(f"{source}: {_shown(text)} is not JSON: {error}. Write it as {example}")
        return
    yield _Given(name, value, source)


def _is_service_link(variable: str, text: str) -> bool:
    if "__" in variable:
        return False
    if variable.endswith("_PORT") and _LINKED_PORT.match(text):
        return True
    return _SERVICE_LINK.fullmatch(variable) is not None


def _explain(location: tuple[int | str, ...], message: str, given: Mapping[str, _Given]) -> str:
    reason = message.removeprefix("Value error, ").replace("Input should", "should")
    name = ".".join(str(part) for part in location[:2])
    if name in given and name in _fields():
        info = _fields()[name]
        shown = _MASK if _is_secret(info) else _shown(given[name].value)
        inside = f" ({location[2]})" if len(location) > 2 else ""
        options = _options(info.annotation)
        # Of a bound pydantic names one end, of words all.
        takes = f"; {name} takes {_accepted(info)}" if _accepted(info) and not options else ""
        close = _did_you_mean(str(given[name].value), options)
        return f"{given[name].source}: {shown} is refused for {name}{inside}: {reason}{takes}{close}"
    # Several settings that do not fit together: name the sources of those that the reason speaks of.
    words = set(re.findall(r"[a-z_]+", reason))
    sources = [
        item.source for item in given.values() if item.name.startswith(name) and item.name.rpartition(".")[2] in words
    ]
    return f"{'; '.join(sources) or 'settings'}: {f'in {name}: ' if name else ''}{reason}"


def _shown(value: object) -> str:
    text = repr(value)
    text = text if len(text) <= 200 else f"{text[:200]}…"
    # What stands before an @ may be a password that was put into the wrong place.
    return re.sub(r"[^\s'\"]+@", f"{_MASK}@", text)


def _secret(name: str, value: SecretStr | None, path: Path | None) -> str | None:
    """Return a secret from its setting or its file, without the one line end that editors put at a file's end."""
    if value is not None:
        return value.get_secret_value()
    if path is None:
        return None
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise SettingsError(
            f"{name}_file: {path} cannot be read: {error.strerror}. Name a file that holds the secret alone"
        ) from error
    except UnicodeDecodeError:
        text = None
    if text is None:
        # Outside the handler: the decoding error holds the file's bytes.
        raise SettingsError(f"{name}_file: {path} is not UTF-8 text. Name a file that holds the secret alone")
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise SettingsError(f"{name}_file: {path} is empty. Name a file that holds the secret alone")
    return secret


def _key_in(path: Path) -> bytes:
    """The key in a file, without the one line end that editors put at a file's end."""
    where = f"ingest.pseudonym_key_file: {path}"
    make = f"Make one: (umask 077; head -c 32 /dev/urandom | base64 > {path})"
    try:
        mode = path.stat().st_mode
        key = path.read_bytes().removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}. {make}") from error
    if mode & stat.S_IRWXO:
        raise SettingsError(
            f"{where} is open to every user of this machine (mode {stat.S_IMODE(mode):04o}). Close it: chmod o= {path}"
        )
    if not 16 <= len(key) <= 64:
        raise SettingsError(f"{where} holds {len(key)} bytes, and a key has 16 to 64. {make}")
    return key


def _trusting(name: str, path: Path | None) -> ssl.SSLContext:
    """Return a context that trusts the certificates in a file; None: those of the operating system."""
    try:
        return ssl.create_default_context(cafile=None if path is None else str(path))
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"{name}: {path} cannot be used: {error.strerror or error}. Name a readable file of PEM certificates"
        ) from error


def _check_topic(name: str) -> None:
    if name in (".", "..") or not TOPIC_PATTERN.fullmatch(name):
        raise ValueError(f"{name[:60]!r} is no name for a topic: 1 to 249 letters, digits and . _ -")


@cache
def _fields() -> dict[str, FieldInfo]:
    """Every setting by its dotted name."""
    fields = {}
    for section, outer in Settings.model_fields.items():
        if isinstance(outer.annotation, type) and issubclass(outer.annotation, _Section):
            fields.update({f"{section}.{name}": info for name, info in outer.annotation.model_fields.items()})
    return fields


def _variable(name: str) -> str:
    return PREFIX + name.replace(".", "__").upper()


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """`int | None` → (int, NoneType); `bool` → (bool,)."""
    return get_args(annotation) if get_origin(annotation) not in (None, Literal) else (annotation,)


def _options(annotation: Any) -> tuple[str, ...]:
    """The words that a setting is one of, or none if it takes others."""
    literals = (kind for kind in _kinds(annotation) if get_origin(kind) is Literal)
    return tuple(option for literal in literals for option in get_args(literal))


def _is_secret(info: FieldInfo) -> bool:
    return SecretStr in _kinds(info.annotation)


def _accepted(info: FieldInfo) -> str:
    """What a setting takes, in words, where the declaration says it: "1 to 1,000", "auto, cuda or cpu"."""
    options = _options(info.annotation)
    if options:
        return f"{', '.join(options[:-1])} or {options[-1]}"
    if bool in _kinds(info.annotation):
        return "true or false"
    low = next((f"{bound.ge:,}" for bound in info.metadata if isinstance(bound, annotated_types.Ge)), None)
    above = next((f"{bound.gt:,}" for bound in info.metadata if isinstance(bound, annotated_types.Gt)), None)
    high = next((f"{bound.le:,}" for bound in info.metadata if isinstance(bound, annotated_types.Le)), None)
    if high is None:
        return ""
    return f"{low} to {high}" if above is None else f"more than {above}, up to {high}"


def _written(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, bool):
        return str(default).lower()
    return json.dumps(default) if isinstance(default, Mapping) else str(default)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""
