"""One set of settings secures both Kafka clients and Redis, and no secret gets into a log.

A real Kafka with a SASL_SSL and a mutual-TLS listener and an authorizer, and a real Redis with an ACL user behind TLS;
the users have no more rights than README, "Least rights", lists.
"""

import base64
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote
from uuid import uuid4

import pytest
import redis
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # 2.16
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)

from deploy.local.servers import KafkaServer, RedisServer
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from streams.contracts.erasure import Erasure, Erasures
from streams.contracts.generation import Generation, Plan, Progress, Request, Serving
from streams.errors import AuthenticationFailed, DriftlineError, SettingsError, TopicMissing
from streams.interest.engine import UserRow
from streams.log.admin import LogAdmin
from streams.log.producer import Producer
from streams.log.readers import RawReader, TailReader
from streams.settings import KafkaSettings, RedisSettings, load_settings
from streams.store.protocol import Swap, Watermark
from streams.store.redis import RedisErasures, RedisFilling, RedisGenerations, RedisStore, RedisSweep
from streams.store.redis.filling import FilledWindow
from tests.integration.oracle import Rule, read_model
from tests.integration.pipeline import Names, Pipeline, Raw, Worker
from tests.integration.tls import Authority, TlsDoor

RULE = Rule(longest=20, keep=10)
ITEMS = [f"item-{number}" for number in range(50)]
USER = "driftline"
STRANGER = "stranger"
KAFKA_PASSWORD = "kafka-s3same=,:%/#@"
KEY_PASSWORD = "key-s3same=,:%/#@"
REDIS_PASSWORD = "redis-s3same=,:%/#@"
WRONG = "wr0ng-s3same=,:%/#@"
SECRETS = (KAFKA_PASSWORD, KEY_PASSWORD, REDIS_PASSWORD, WRONG)
# Everything that Driftline asks of Redis, scripts included; INFO and CONFIG GET are for `driftline doctor` alone.
REDIS_RIGHTS = (
    *("+get", "+mget", "+set", "+del", "+unlink", "+exists", "+pexpire", "+scan"),
    *("+hget", "+hmget", "+hgetall", "+hexists", "+hset", "+hsetnx", "+hdel"),
    *("+sadd", "+srem", "+scard", "+srandmember"),
    *("+watch", "+unwatch", "+multi", "+exec"),
    *("+evalsha", "+script|load"),
    *("+info", "+config|get"),
)
END_S: Final = 30.0

Settings = dict[str, str]


@dataclass(frozen=True)
class Secured:
    """Where the secured servers are, and the files of those who may talk to them."""

    kafka: KafkaServer
    redis: RedisServer
    door: TlsDoor
    authority: Authority
    other_ca_file: Path
    client_pair: tuple[Path, Path]
    bundle: Path
    directory: Path

    def file(self, text: str) -> str:
        """A file that holds a secret, with the line end that editors add."""
        path = self.directory / uuid4().hex
        path.write_text(f"{text}\n")
        return str(path)

    def sasl(self, mechanism: str) -> Settings:
        """Kafka by SASL_SSL, without a password."""
        return {
            "KAFKA__BOOTSTRAP_SERVERS": self.kafka.address("SECURE"),
            "KAFKA__SECURITY_PROTOCOL": "sasl_ssl",
            "KAFKA__SASL_MECHANISM": mechanism,
            "KAFKA__SASL_USERNAME": USER,
            "KAFKA__SSL_CA_FILE": str(self.authority.ca_file),
        }

    def mutual_tls(self) -> Settings:
        certificate, key = self.client_pair
        return {
            "KAFKA__BOOTSTRAP_SERVERS": self.kafka.address("MUTUAL"),
            "KAFKA__SECURITY_PROTOCOL": "ssl",
            "KAFKA__SSL_CA_FILE": str(self.authority.ca_file),
            "KAFKA__SSL_CERTIFICATE_FILE": str(certificate),
            "KAFKA__SSL_KEY_FILE": str(key),
            "KAFKA__SSL_KEY_PASSWORD_FILE": self.file(KEY_PASSWORD),
        }

    def redis_tls(self) -> Settings:
        """Redis by rediss://, without a user."""
        return {
            "REDIS__URL": f"rediss://127.0.0.1:{self.door.port}/0",
            "REDIS__SSL_CA_FILE": str(self.authority.ca_file),
        }

    def by_files(self) -> Settings:
        return {
            **self.sasl("SCRAM-SHA-512"),
            **self.redis_tls(),
            "KAFKA__SASL_PASSWORD_FILE": self.file(KAFKA_PASSWORD),
            "REDIS__USERNAME": USER,
            "REDIS__PASSWORD_FILE": self.file(REDIS_PASSWORD),
        }

    def by_environment(self) -> Settings:
        return {
            **self.sasl("PLAIN"),
            **self.redis_tls(),
            "KAFKA__SASL_PASSWORD": KAFKA_PASSWORD,
            "REDIS__URL": f"rediss://{USER}:{quote(REDIS_PASSWORD, safe='')}@127.0.0.1:{self.door.port}/0",
        }

    def by_certificate(self) -> Settings:
        return {
            **self.mutual_tls(),
            **self.redis_tls(),
            "REDIS__USERNAME": USER,
            "REDIS__PASSWORD": REDIS_PASSWORD,
        }


@pytest.fixture(scope="module")
def secured(redis_session: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    authority = Authority(directory / "authority")
    other = Authority(directory / "other")
    certificate, key = authority.pair("server", "127.0.0.1")
    keystore = directory / "keystore.pem"
    keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
    bundle = directory / "bundle"
    write_pooling_bundle(bundle, ITEMS, dim=16, window=WindowRule(max=RULE.longest, keep=RULE.keep))
    with (
        KafkaServer(
            directory / "kafka",
            listeners={"SECURE": "SASL_SSL", "MUTUAL": "SSL"},
            properties=broker_properties(keystore, authority.ca_file),
        ) as kafka,
        TlsDoor(redis_session.port, certificate, key) as door,
        redis.Redis.from_url(redis_session.url) as admin,
    ):
        make_kafka_users(kafka)
        admin.execute_command(
            "ACL", "SETUSER", USER, "on", f">{REDIS_PASSWORD}", "resetchannels", "~secured-*", *REDIS_RIGHTS
        )
        yield Secured(
            kafka,
            redis_session,
            door,
            authority,
            other.ca_file,
            authority.pair(USER, "apps.example", password=KEY_PASSWORD),
            bundle,
            directory,
        )
        admin.execute_command("ACL", "DELUSER", USER)


def broker_properties(keystore: Path, ca_file: Path) -> dict[str, str]:
    login = "org.apache.kafka.common.security"
    users = " ".join(f'user_{name}="{KAFKA_PASSWORD}"' for name in (USER, STRANGER))
    stores = {}
    for listener in ("secure", "mutual"):
        stores[f"listener.name.{listener}.ssl.keystore.type"] = "PEM"
        stores[f"listener.name.{listener}.ssl.keystore.location"] = str(keystore)
    return {
        **stores,
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.mutual.ssl.truststore.type": "PEM",
        "listener.name.mutual.ssl.truststore.location": str(ca_file),
        "listener.name.mutual.ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
        "listener.name.secure.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.secure.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required {users};",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # Whoever comes by the plain listener: the broker itself, and the test.
        "super.users": "User:ANONYMOUS",
    }


def make_kafka_users(kafka: KafkaServer) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    wanted: list[UserScramCredentialAlteration] = [UserScramCredentialUpsertion(USER, info, KAFKA_PASSWORD.encode())]
    for future in admin.alter_user_scram_credentials(wanted).values():
        future.result(10)


def grant(kafka: KafkaServer, names: Names) -> None:
    """Give the user what ingest, evolve and doctor need, and no more."""
    read, write = AclOperation.READ, AclOperation.WRITE
    topics = {
        names.clicks: [read],
        names.views: [read],
        names.interactions: [read, write],
        names.recommendations: [write],
        names.dead_letters: [write],
    }
    rights = [
        (ResourceType.TOPIC, name, operation)
        for name, operations in topics.items()
        for operation in (*operations, AclOperation.DESCRIBE_CONFIGS)
    ]
    rights += [(ResourceType.GROUP, name, read) for name in (names.ingest_group, names.evolve_group)]
    bindings = [
        AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{USER}", "*", operation, AclPermissionType.ALLOW)
        for kind, name, operation in rights
    ]
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for future in admin.create_acls(bindings).values():
        future.result(10)


@pytest.fixture
def names() -> Names:
    return Names.under(f"secured-{uuid4().hex[:8]}-")


@pytest.fixture
def open_pipeline(secured: Secured, names: Names, tmp_path: Path) -> Iterator[Callable[[Mapping[str, str]], Pipeline]]:
    """A pipeline whose workers have these settings; the test itself looks on by the plain listeners."""
    opened: list[Pipeline] = []

    def open_with(settings: Mapping[str, str]) -> Pipeline:
        directory = tmp_path / str(len(opened))
        directory.mkdir()
        pipeline = Pipeline(
            directory,
            secured.kafka.bootstrap_servers,
            secured.redis.url,
            names,
            secured.bundle,
            partitions=2,
            settings={**settings, "LOG__LEVEL": "debug"},
        )
        if not opened:
            pipeline.create_topics()
            grant(secured.kafka, names)
        opened.append(pipeline)
        return pipeline

    yield open_with
    for pipeline in opened:
        pipeline.__exit__(None, None, None)


def events(names: Names, count: int) -> list[Raw]:
    return [
        Raw(
            names.clicks if number % 3 else names.views,
            f"user-{number % 20}",
            json.dumps({"user_id": f"user-{number % 20}", "item_id": item}).encode(),
        )
        for number, item in enumerate(ITEMS * (count // len(ITEMS)))
    ]


def check_silent(written: bytes) -> None:
    """No secret in what was written: not as it is, not as in a URL, not as in SASL/PLAIN's message."""
    for secret in SECRETS:
        token = f"\0{USER}\0{secret}".encode()
        for form in (secret.encode(), quote(secret, safe="").encode(), base64.b64encode(secret.encode())):
            assert form not in written, f"the secret {secret!r} was written as {form!r}"
        assert base64.b64encode(token) not in written
    assert b"PRIVATE KEY" not in written


def wait_until_all_end(pipeline: Pipeline, *workers: Worker) -> None:
    pipeline.wait_until(lambda: all(worker.exits for worker in workers), END_S, "every command has ended")


@pytest.mark.parametrize("way", [Secured.by_environment, Secured.by_files, Secured.by_certificate])
def test_one_set_of_settings_takes_events_to_vectors_through_tls_and_logins_and_no_secret_is_logged(
    way: Callable[[Secured], Settings],
    secured: Secured,
    names: Names,
    open_pipeline: Callable[[Mapping[str, str]], Pipeline],
) -> None:
    pipeline = open_pipeline(way(secured))
    workers = [pipeline.start("ingest", restarts=False), pipeline.start("evolve", restarts=False)]
    pipeline.produce(events(names, 400))
    pipeline.produce([Raw(names.clicks, "bad", b"{not json")])
    pipeline.wait_until_applied(30)
    account = pipeline.check(RULE, read_model(secured.bundle))
    assert account[:6] == (401, 20, 400, 0, 0, 1)
    metrics = [worker._get("/metrics") for worker in workers]
    assert [worker.stop() for worker in workers] == [0, 0]
    logs = [worker.log.read_bytes() for worker in workers]
    # Faust's client did log at debug.
    assert b"[debug" in logs[1]
    assert b"[aiokafka" in logs[1]
    check_silent(b"".join([*logs, *(text.encode() for text in metrics if text)]))


def test_doctor_finds_nothing_wrong_with_a_secured_deployment(
    secured: Secured, open_pipeline: Callable[[Mapping[str, str]], Pipeline]
) -> None:
    pipeline = open_pipeline(secured.by_files())
    doctor = pipeline.start("doctor", "--output", "json", restarts=False)
    wait_until_all_end(pipeline, doctor)
    written = doctor.log.read_bytes()
    assert doctor.exits == [0], written
    assert f"answers over sasl_ssl, logged in as {USER}".encode() in written
    check_silent(written)


@dataclass(frozen=True)
class Fault:
    """The same thing wrong with Kafka and with Redis.

    Attributes:
        kafka, redis: The settings that are wrong.
        exit_code: Of ingest, and of evolve whichever of the two is wrong.
        kafka_says, redis_says: In the error of a service, and among doctor's findings.
    """

    kafka: Callable[[Secured], Settings]
    kafka_says: str
    redis: Callable[[Secured], Settings]
    redis_says: str
    exit_code: int


FAULTS = {
    "wrong password": Fault(
        lambda secured: {"KAFKA__SASL_PASSWORD_FILE": secured.file(WRONG)},
        "SASL authentication error",
        lambda secured: {"REDIS__PASSWORD_FILE": secured.file(WRONG)},
        "check redis.username and redis.password",
        exit_code=14,
    ),
    "unknown authority": Fault(
        lambda secured: {"KAFKA__SSL_CA_FILE": str(secured.other_ca_file)},
        "check kafka.ssl_ca_file",
        lambda secured: {"REDIS__SSL_CA_FILE": str(secured.other_ca_file)},
        "check redis.ssl_ca_file",
        exit_code=14,
    ),
    "missing secret": Fault(
        lambda _: {"KAFKA__SASL_PASSWORD_FILE": "/nowhere/password"},
        "kafka.sasl_password_file: /nowhere/password cannot be read: No such file or directory",
        lambda _: {"REDIS__PASSWORD_FILE": "/nowhere/password"},
        "redis.password_file: /nowhere/password cannot be read: No such file or directory",
        exit_code=2,
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_ends_each_service_with_one_line_and_its_exit_code_and_doctor_finds_it(
    fault: Fault, secured: Secured, open_pipeline: Callable[[Mapping[str, str]], Pipeline]
) -> None:
    wrong_kafka = open_pipeline({**secured.by_files(), **fault.kafka(secured)})
    wrong_redis = open_pipeline({**secured.by_files(), **fault.redis(secured)})
    wrong_both = open_pipeline({**secured.by_files(), **fault.kafka(secured), **fault.redis(secured)})
    services = {
        wrong_kafka.start("ingest", restarts=False): fault.kafka_says,
        wrong_kafka.start("evolve", restarts=False): fault.kafka_says,
        wrong_redis.start("evolve", restarts=False): fault.redis_says,
    }
    doctor = wrong_both.start("doctor", "--output", "json", restarts=False)
    for pipeline in (wrong_kafka, wrong_redis, wrong_both):
        wait_until_all_end(pipeline, *pipeline.workers)
    for worker, says in services.items():
        written = worker.log.read_text()
        assert worker.exits == [fault.exit_code]
        errors = [line for line in written.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert says in errors[0]
        assert "Traceback" not in written
        check_silent(written.encode())
    findings = doctor.log.read_text()
    assert doctor.exits == [1]
    assert fault.kafka_says in findings
    assert fault.redis_says in findings
    assert "Traceback" not in findings
    check_silent(findings.encode())


KAFKA_FAULTS: Mapping[str, tuple[Callable[[Secured], Settings], type[DriftlineError], str]] = {
    "wrong password, PLAIN": (
        lambda secured: {**secured.by_environment(), "KAFKA__SASL_PASSWORD": WRONG},
        AuthenticationFailed,
        "Invalid username or password",
    ),
    "mechanism that Kafka does not have": (
        lambda secured: {**secured.by_environment(), "KAFKA__SASL_MECHANISM": "SCRAM-SHA-256"},
        AuthenticationFailed,
        "Unsupported SASL mechanism",
    ),
    "no client certificate where Kafka wants one": (
        lambda secured: {
            "KAFKA__BOOTSTRAP_SERVERS": secured.kafka.address("MUTUAL"),
            "KAFKA__SECURITY_PROTOCOL": "ssl",
            "KAFKA__SSL_CA_FILE": str(secured.authority.ca_file),
        },
        AuthenticationFailed,
        "kafka.ssl_certificate_file",
    ),
    "wrong password of the client's key": (
        lambda secured: {**secured.by_certificate(), "KAFKA__SSL_KEY_PASSWORD_FILE": secured.file(WRONG)},
        SettingsError,
        "an encrypted key needs kafka.ssl_key_password",
    ),
    "user without rights": (
        lambda secured: {**secured.by_environment(), "KAFKA__SASL_USERNAME": STRANGER},
        TopicMissing,
        "that this user may see",
    ),
}


@pytest.mark.parametrize("fault", KAFKA_FAULTS)
def test_what_is_wrong_with_a_login_at_kafka_is_told_at_once(
    fault: str, secured: Secured, names: Names, open_pipeline: Callable[[Mapping[str, str]], Pipeline]
) -> None:
    wrong, error, says = KAFKA_FAULTS[fault]
    open_pipeline({})  # the topics are there
    environment = {f"DRIFTLINE_{name}": value for name, value in wrong(secured).items()}
    started = time.monotonic()
    with (
        pytest.raises(error, match=re.escape(says)) as caught,
        LogAdmin(load_settings(environ=environment).kafka) as admin,
    ):
        admin.topics([names.clicks])
    assert time.monotonic() - started < 8
    check_silent(str(caught.value).encode())


def test_the_least_rights_suffice_for_all_that_the_store_does(secured: Secured, names: Names) -> None:
    environment = {f"DRIFTLINE_{name}": value for name, value in secured.by_files().items()}
    store = RedisStore(load_settings(environ={**environment, "DRIFTLINE_REDIS__KEY_PREFIX": names.key_prefix}).redis)
    first, second = Watermark(0, "id", 4, {}), Watermark(7, "id", 4, {})
    row = UserRow(b"vector", b"[]", b"state", "model", 1)
    # The partition of "alice" among 4: zlib's crc32 of it is 0x278EBC47, whose last two bits are 3.
    assert store.set_partitions(4) == 4
    assert [result.swapped for result in store.swap([Swap(3, None, first, {"alice": row})])] == [True]
    assert store.replace_watermark(3, first, second)
    assert not store.replace_watermark(3, first, second)
    assert store.read_watermarks([3]) == {3: second}
    assert store.read_rows({3: ["alice"]})[3].offset == 7
    found = store.read_user("alice")
    assert found is not None
    assert found.row == row
    assert [record.user_id for record in store.scan_users()] == ["alice"]
    assert store.facts().role == "master"
    store.close()


def test_the_least_rights_suffice_for_erasures(secured: Secured, names: Names) -> None:
    environment = {f"DRIFTLINE_{name}": value for name, value in secured.by_files().items()}
    settings = load_settings(environ={**environment, "DRIFTLINE_REDIS__KEY_PREFIX": names.key_prefix}).redis
    asked = Erasures()
    asked.add("alice", 500)
    with (
        closing(RedisGenerations(settings)) as generations,
        closing(RedisStore(settings, "g2")) as store,
        closing(RedisErasures(settings)) as erasures,
    ):
        generations.register(Generation("g2", "name", "model", "space", "/bundle", 1, "live"))
        store.set_partitions(1)
        row = UserRow(b"vector", b"[]", b"state", "model", 1)
        store.swap([Swap(0, None, Watermark(7, "id", 1, {}), {"alice": row, "bob": row})])
        erasures.record(asked)
        assert erasures.read().erased_ms("alice") == erasures.read_of(["alice"]).erased_ms("alice") == 500
        erasures.forget([Erasure("alice", 500, 8)], "id", 1)
        assert [record.user_id for record in store.scan_users()] == ["bob"]
        store.swap([Swap(0, 7, Watermark(8, "id", 1, {}), {}, ["bob"])])
        assert not list(store.scan_users())


def test_the_least_rights_suffice_for_generations(secured: Secured, names: Names) -> None:
    environment = {f"DRIFTLINE_{name}": value for name, value in secured.by_files().items()}
    settings = load_settings(environ={**environment, "DRIFTLINE_REDIS__KEY_PREFIX": names.key_prefix}).redis
    plan = Plan(Request("interactions"), 1, 1, "id", "model", 1)
    with (
        closing(RedisGenerations(settings)) as generations,
        closing(RedisFilling(settings, "g2", "me", 60_000)) as filling,
    ):
        assert generations.register(Generation("g2", "name", "model", "space", "/bundle", 1, "backfill"))
        assert filling.begin(plan, {0: Progress(0)})
        assert filling.claim([0])
        assert filling.is_claimed([0])
        filling.write_windows(0, None, {"ana": FilledWindow(b"state", b"trigger")})
        assert filling.count_unencoded([0]) == 1
        assert filling.unencoded(0, 5) == ["ana"]
        filling.write_rows(0, None, {"ana": UserRow(b"vector", b"[]", b"state", "model", 1)})
        filling.leave_out(0, ["bea"])
        filling.checkpoint(0, None, Progress(1), Watermark(0, "id", 1, {}))
        filling.release([0])
        filling.end(plan)
        serving = generations.serving()
        assert generations.serve(serving, Serving("g2", "model"))
        assert [record.name for record in generations.all()] == ["g2"]
        assert sum(generations.drop("g2")) == 3
    with closing(RedisSweep(settings, "g2")) as sweep:
        sweep.record(0, "model")
        assert sweep.unswept([0, 1], "model") == [1]
        assert list(sweep.outdated([0], "model")) == []


def test_a_redis_user_kept_to_other_keys_is_refused_at_once(secured: Secured) -> None:
    environment = {f"DRIFTLINE_{name}": value for name, value in secured.by_files().items()}
    store = RedisStore(load_settings(environ={**environment, "DRIFTLINE_REDIS__KEY_PREFIX": "of-others"}).redis)
    with pytest.raises(AuthenticationFailed, match="what this user may do"):
        store.partitions()
    store.close()


def test_faust_refused_by_a_kafka_that_took_the_other_client_ends_evolve_and_says_so(
    secured: Secured, open_pipeline: Callable[[Mapping[str, str]], Pipeline]
) -> None:
    pipeline = open_pipeline(secured.by_environment())
    # No settings lead there: the password is changed for Faust alone, as when it is changed in Kafka between the two.
    changed = (
        "from dataclasses import replace\n"
        "from streams.cli import main\n"
        "from streams.settings import KafkaSettings\n"
        "right = KafkaSettings.security\n"
        f"KafkaSettings.security = lambda self: replace(right(self), sasl_password={WRONG!r})\n"
        "main()"
    )
    evolve = pipeline._worker("evolve", [sys.executable, "-c", changed, "evolve"])
    evolve.restarts = False
    evolve.start()
    wait_until_all_end(pipeline, evolve)
    written = evolve.log.read_text()
    assert evolve.exits == [10]
    assert "SaslAuthenticationFailed" in written
    assert "does not let Faust in" in written
    assert "Traceback" not in written
    check_silent(evolve.log.read_bytes())


def test_a_user_who_may_run_scripts_but_not_the_commands_in_them_is_refused_at_once(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "half", "on", f">{REDIS_PASSWORD}", "~*", "+evalsha", "+script|load")
        settings = RedisSettings.model_validate(
            {"url": redis_server.url, "username": "half", "password": REDIS_PASSWORD}
        )
        store = RedisStore(settings)
        swap = Swap(0, None, Watermark(0, "id", 1, {}), {})
        with pytest.raises(AuthenticationFailed, match="not all commands in them") as caught:
            store.swap([swap])
        assert REDIS_PASSWORD not in str(caught.value)
        store.close()
        admin.execute_command("ACL", "DELUSER", "half")


@pytest.mark.parametrize(
    "open_client",
    [
        LogAdmin,
        Producer,
        lambda settings: RawReader(settings, "group", {}),
        lambda settings: TailReader(settings, []),
    ],
    ids=["LogAdmin", "Producer", "RawReader", "TailReader"],
)
def test_every_kafka_client_names_the_file_that_it_cannot_use(
    open_client: Callable[[KafkaSettings], object], tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    settings = KafkaSettings(bootstrap_servers="127.0.0.1:1", security_protocol="ssl", ssl_ca_file=file)
    with pytest.raises(SettingsError, match=rf"kafka.ssl_ca_file: {file} cannot be used: No such file or directory"):
        open_client(settings)
    file.write_text("nonsense")
    with pytest.raises(SettingsError, match=rf"kafka.ssl_ca_file: {file} cannot be used"):
        open_client(settings)


def test_a_certificate_for_another_host_is_refused(redis_server: RedisServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    settings = {"ssl_ca_file": authority.ca_file}
    with TlsDoor(redis_server.port, *authority.pair("server", "elsewhere.example")) as door:
        store = RedisStore(RedisSettings.model_validate({"url": f"rediss://127.0.0.1:{door.port}/0", **settings}))
        with pytest.raises(AuthenticationFailed, match="IP address mismatch"):
            store.ping()
        store.close()
        # A door is no Kafka, but the certificate comes before anything of Kafka's.
        kafka = KafkaSettings.model_validate(
            {"bootstrap_servers": f"127.0.0.1:{door.port}", "security_protocol": "ssl", **settings}
        )
        with LogAdmin(kafka) as admin, pytest.raises(AuthenticationFailed, match="check kafka"):
            admin.existing_topics(["clicks"])
