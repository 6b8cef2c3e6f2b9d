import json
import shutil
import ssl
import subprocess
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from streams.errors import SettingsError
from streams.settings import HttpSettings, KafkaSettings, RedisSettings, Settings, load_settings, settings_table

SECRET = "hunter2-is-secret"


@pytest.fixture(autouse=True)
def _empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No driftline.toml of the machine, and a place to write one."""
    monkeypatch.chdir(tmp_path)


def refused(
    flags: Mapping[str, object] | None = None, *, toml: Path | None = None, environ: Mapping[str, str] | None = None
) -> str:
    """The message of the error that these sources lead to."""
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, toml=toml, environ=environ or {})
    return str(caught.value)


# Where values come from


def test_without_any_source_the_defaults_hold() -> None:
    settings = load_settings(environ={})
    assert settings == Settings()
    assert settings.kafka.bootstrap_servers == "127.0.0.1:9092"
    assert settings.topics.sources == {"clicks": "click", "views": "view"}
    assert settings.redis.masked_url == "redis://127.0.0.1:6379/0"
    assert settings.http.port is None


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "driftline.toml").write_text(
        "[ingest]\nlinger_ms = 1\nbatch_events = 11\nframe_events = 111\n[recommendations]\nk = 5\n"
    )
    settings = load_settings(
        {"ingest.frame_events": 333},
        environ={"DRIFTLINE_INGEST__BATCH_EVENTS": "22", "DRIFTLINE_INGEST__FRAME_EVENTS": "222"},
    )
    assert settings.ingest.linger_ms == 1
    assert settings.ingest.batch_events == 22
    assert settings.ingest.frame_events == 333
    assert settings.recommendations.k == 5
    assert settings.ingest.max_event_bytes == 65536


def test_the_file_is_that_of_the_flag_then_that_of_the_variable_then_the_one_in_the_working_directory(
    tmp_path: Path,
) -> None:
    for name, k in (("driftline.toml", 1), ("named.toml", 2), ("flag.toml", 3)):
        (tmp_path / name).write_text(f"[recommendations]\nk = {k}\n")
    environ = {"DRIFTLINE_CONFIG": "named.toml"}
    assert load_settings(environ={}).recommendations.k == 1
    assert load_settings(environ=environ).recommendations.k == 2
    assert load_settings(environ=environ, toml=tmp_path / "flag.toml").recommendations.k == 3


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert (
        load_settings({"recommendations.k": None}, environ={"DRIFTLINE_RECOMMENDATIONS__K": "7"}).recommendations.k == 7
    )


def test_a_mapping_is_replaced_and_not_merged(tmp_path: Path) -> None:
    (tmp_path / "driftline.toml").write_text('[topics.sources]\nplays = "play"\n')
    assert load_settings(environ={}).topics.sources == {"plays": "play"}
    environ = {"DRIFTLINE_TOPICS__SOURCES": '{"stars": "star"}'}
    assert load_settings(environ=environ).topics.sources == {"stars": "star"}
    assert load_settings({"topics.sources": {"a": "b"}}, environ=environ).topics.sources == {"a": "b"}


def test_an_empty_variable_takes_an_optional_setting_back(tmp_path: Path) -> None:
    (tmp_path / "driftline.toml").write_text("[http]\nport = 9\n[model]\nbundle = 'mine'\n")
    assert load_settings(environ={}).http.port == 9
    settings = load_settings(environ={"DRIFTLINE_HTTP__PORT": "", "DRIFTLINE_MODEL__BUNDLE": ""})
    assert settings.http.port is None
    assert settings.model.bundle is None


def test_an_empty_variable_is_an_error_where_there_must_be_a_value() -> None:
    assert "environment variable DRIFTLINE_RECOMMENDATIONS__K: ''" in refused(
        environ={"DRIFTLINE_RECOMMENDATIONS__K": ""}
    )


def test_words_are_taken_in_any_case() -> None:
    environ = {"DRIFTLINE_LOG__LEVEL": "WARNING", "DRIFTLINE_MODEL__PROVIDER": "CUDA"}
    settings = load_settings(environ=environ)
    assert (settings.log.level, settings.model.provider) == ("warning", "cuda")


def test_settings_cannot_be_changed_after_loading() -> None:
    settings = load_settings(environ={})
    with pytest.raises(ValidationError, match="frozen"):
        settings.recommendations.k = 3


# What is refused, and what the message says


def test_a_misspelt_variable_is_refused_with_the_right_name() -> None:
    message = refused(environ={"DRIFTLINE_KAFKA__BOOTSTRAP_SERVER": "kafka:9092"})
    assert message == (
        "environment variable DRIFTLINE_KAFKA__BOOTSTRAP_SERVER: there is no such setting; "
        "did you mean DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS?"
    )


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("DRIFTLINE_HTTP_PORT", "DRIFTLINE_HTTP__PORT"),
        ("DRIFTLINE_KAFAK__BOOTSTRAP_SERVERS", "DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS"),
        ("DRIFTLINE_redis__url", "DRIFTLINE_REDIS__URL"),
        ("DRIFTLINE_CONFG", "DRIFTLINE_CONFIG"),
    ],
)
def test_a_wrong_underscore_section_or_case_is_refused_too(wrong: str, right: str) -> None:
    assert f"{wrong}: there is no such setting; did you mean {right}?" in refused(environ={wrong: "1"})


def test_variables_of_others_and_of_kubernetes_services_are_left_alone() -> None:
    environ = {
        "PATH": "/bin",
        "KAFKA_OPTS": "x",
        "DRIFTLINE_PORT": "tcp://10.0.0.7:80",
        "DRIFTLINE_EVOLVE_SERVICE_HOST": "10.0.0.7",
        "DRIFTLINE_EVOLVE_SERVICE_PORT": "8011",
        "DRIFTLINE_EVOLVE_SERVICE_PORT_HTTP": "8011",
        "DRIFTLINE_EVOLVE_PORT": "tcp://10.0.0.7:8011",
        "DRIFTLINE_EVOLVE_PORT_8011_TCP": "tcp://10.0.0.7:8011",
        "DRIFTLINE_EVOLVE_PORT_8011_TCP_ADDR": "10.0.0.7",
    }
    assert load_settings(environ=environ) == Settings()


def test_a_bad_number_is_refused_with_its_source_its_value_and_its_bounds() -> None:
    assert refused(environ={"DRIFTLINE_RECOMMENDATIONS__K": "1001"}) == (
        "environment variable DRIFTLINE_RECOMMENDATIONS__K: '1001' is refused for recommendations.k: "
        "should be less than or equal to 1000; recommendations.k takes 1 to 1,000"
    )
    assert refused({"recommendations.k": 0}).startswith("flag --k: 0 is refused")


def test_a_bad_word_is_refused_with_a_close_match() -> None:
    assert refused({"model.provider": "cudo"}) == (
        "flag --provider: 'cudo' is refused for model.provider: should be 'auto', 'cuda' or 'cpu'; did you mean cuda?"
    )


def test_an_unknown_flag_is_refused() -> None:
    assert refused({"model.bundel": "x"}) == (
        "flag --bundel: there is no setting model.bundel; did you mean model.bundle?"
    )


def test_true_is_no_number() -> None:
    assert "should not be true or false" in refused({"topics.partitions": True})


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "abc", "1e9"])
def test_a_time_must_be_a_finite_number_within_bounds(value: str) -> None:
    assert f"'{value}' is refused for ingest.linger_ms" in refused(environ={"DRIFTLINE_INGEST__LINGER_MS": value})


def test_a_bad_value_in_the_file_is_refused_with_file_section_and_name(tmp_path: Path) -> None:
    (tmp_path / "driftline.toml").write_text('[kafka]\nbootstrap_servers = "localhost"\n')
    assert refused().startswith("driftline.toml: [kafka] bootstrap_servers: 'localhost' is refused")


def test_unknown_names_in_the_file_are_all_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "driftline.toml").write_text("topics = 3\n[kafak]\nx = 1\n[redis]\nurll = 'q'\n")
    assert refused().splitlines() == [
        "driftline.toml: topics is a section: write [topics], with its settings below",
        "driftline.toml: there is no section [kafak]; did you mean kafka?",
        "driftline.toml: [redis] has no setting urll; did you mean redis.url?",
    ]


def test_a_file_that_is_not_toml_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[kafka]\nbootstrap_servers = \n")
    message = refused(toml=path)
    assert message.startswith(f"--config: {path} is not TOML:")
    assert "line 2" in message
    path.write_bytes(b"\xff")
    assert "is not UTF-8" in refused(toml=path)


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    assert "--config: nowhere.toml does not exist" in refused(toml=Path("nowhere.toml"))
    assert "environment variable DRIFTLINE_CONFIG: nowhere.toml" in refused(
        environ={"DRIFTLINE_CONFIG": "nowhere.toml"}
    )
    assert "cannot be read: Is a directory" in refused(toml=tmp_path)


def test_a_mapping_that_is_not_json_is_refused_with_an_example() -> None:
    message = refused(environ={"DRIFTLINE_TOPICS__SOURCES": "clicks"})
    assert "'clicks' is not JSON" in message
    assert '{"clicks": "click", "views": "view"}' in message


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("DRIFTLINE_TOPICS__SOURCES", "{}", "at least one topic"),
        ("DRIFTLINE_TOPICS__SOURCES", '{"a/b": "click"}', "'a/b' is no name for a topic"),
        ("DRIFTLINE_TOPICS__SOURCES", '{"clicks": ""}', "a type of 1 to 64 characters"),
        ("DRIFTLINE_TOPICS__SOURCES", '{"clicks": 1}', "topics.sources (clicks): should be a valid string"),
        ("DRIFTLINE_TOPICS__INTERACTIONS", "..", "no name for a topic"),
        ("DRIFTLINE_TOPICS__INTERACTIONS", "x" * 250, "no name for a topic"),
        ("DRIFTLINE_TOPICS__INTERACTIONS", "clicks\n", "no name for a topic"),
        ("DRIFTLINE_TOPICS__DEAD_LETTERS", "clicks", "sources (clicks) and dead_letters are both 'clicks'"),
        ("DRIFTLINE_TOPICS__RECOMMENDATIONS", "events_dlq", "(. and _ count as one)"),
        ("DRIFTLINE_REDIS__GENERATION", "g 1", "redis.generation"),
        ("DRIFTLINE_REDIS__KEY_PREFIX", "{app}", "redis.key_prefix"),
        ("DRIFTLINE_REDIS__TTL_DAYS", "0", "redis.ttl_days takes more than 0, up to 3,650"),
        ("DRIFTLINE_EVOLVE__GROUP", "driftline-ingest", "each needs a group of its own"),
        ("DRIFTLINE_INGEST__FRAME_BYTES", "4096", "frame_bytes (4096) is less than max_event_bytes (65536)"),
        ("DRIFTLINE_HTTP__PORT", "65536", "http.port takes 0 to 65,535"),
        ("DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS", "a:1,b", "host:port with commas"),
        ("DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS", "a:70000", "host:port with commas"),
        ("DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS", "kafka://a:1", "without kafka://"),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(variable: str, value: str, reason: str) -> None:
    message = refused(environ={variable: value})
    assert f"environment variable {variable}" in message
    assert reason in message


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"sasl_username": "u"}, "security_protocol plaintext does not log in"),
        ({"ssl_ca_file": "ca.pem"}, "security_protocol plaintext does not encrypt"),
        ({"security_protocol": "sasl_plaintext", "ssl_ca_file": "ca.pem"}, "needs sasl_mechanism"),
        ({"security_protocol": "sasl_ssl", "sasl_mechanism": "PLAIN", "sasl_username": "u"}, "exactly one of"),
        (
            {
                "security_protocol": "sasl_ssl",
                "sasl_mechanism": "PLAIN",
                "sasl_username": "u",
                "sasl_password": SECRET,
                "sasl_password_file": "f",
            },
            "exactly one of",
        ),
        ({"security_protocol": "ssl", "ssl_certificate_file": "c"}, "set both or neither"),
        ({"security_protocol": "ssl", "ssl_key_password": SECRET}, "no ssl_key_file that it opens"),
        (
            {
                "security_protocol": "ssl",
                "ssl_certificate_file": "c",
                "ssl_key_file": "k",
                "ssl_key_password": SECRET,
                "ssl_key_password_file": "p",
            },
            "exclude each other",
        ),
    ],
)
def test_kafka_settings_that_do_not_fit_together_are_refused(section: dict[str, str], reason: str) -> None:
    message = refused({f"kafka.{name}": value for name, value in section.items()})
    assert reason in message
    assert "in kafka:" in message
    assert SECRET not in message


def test_an_error_between_settings_names_the_source_of_each(tmp_path: Path) -> None:
    (tmp_path / "driftline.toml").write_text('[ingest]\ngroup = "one"\nlinger_ms = 2\n')
    assert refused(environ={"DRIFTLINE_EVOLVE__GROUP": "one"}).startswith(
        "driftline.toml: [ingest] group; environment variable DRIFTLINE_EVOLVE__GROUP: ingest.group and evolve.group"
    )


# Secrets


@pytest.mark.parametrize(
    "environ",
    [
        {"DRIFTLINE_REDIS__URL": f"http://:{SECRET}@db/"},
        {"DRIFTLINE_REDIS__URL": f"redis://:{SECRET}/x@db:6379/0"},
        {"DRIFTLINE_REDIS__URL": f"redis://:{SECRET}#x@db:6379/0"},
        {"DRIFTLINE_REDIS__URL": f"redis://:{SECRET}@db:6379/0", "DRIFTLINE_REDIS__PASSWORD": SECRET},
        {"DRIFTLINE_REDIS__PASWORD": SECRET},
        {"DRIFTLINE_KAFKA__SASL_PASSWORD": SECRET},
        {"DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS": f"kafka://me:{SECRET}@broker:9092"},
        {"DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS": f"me:{SECRET}/x@broker:9092"},
    ],
)
def test_no_error_shows_a_secret_even_in_its_traceback(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=environ)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
    assert next(iter(environ)) in str(caught.value)


def test_a_secret_of_the_wrong_type_is_masked(tmp_path: Path) -> None:
    (tmp_path / "driftline.toml").write_text("[redis]\npassword = 123456\n")
    assert "driftline.toml: [redis] password: *** is refused" in refused()


def test_no_repr_or_dump_shows_a_secret() -> None:
    settings = load_settings(
        environ={
            "DRIFTLINE_KAFKA__SECURITY_PROTOCOL": "sasl_plaintext",
            "DRIFTLINE_KAFKA__SASL_MECHANISM": "PLAIN",
            "DRIFTLINE_KAFKA__SASL_USERNAME": "me",
            "DRIFTLINE_KAFKA__SASL_PASSWORD": SECRET,
            "DRIFTLINE_REDIS__URL": f"redis://me:{SECRET}@db:6379/0",
        }
    )
    security = settings.kafka.security()
    assert security.sasl_password == SECRET
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(security)):
        assert SECRET not in shown


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://db:6379/0", "redis://db:6379/0"),
        (f"redis://:{SECRET}@db/0", "redis://:***@db/0"),
        (f"rediss://me:{SECRET}@[::1]:6379/1", "rediss://me:***@[::1]:6379/1"),
        (f"redis://me:a@{SECRET}:b@db/0", "redis://me:***@db/0"),
        ("redis://me@db/0", "redis://me@db/0"),
        (f"unix:///run/redis.sock?db=1&password={SECRET}&x=y", "unix:///run/redis.sock?db=1&password=***&x=y"),
    ],
)
def test_the_masked_url_keeps_all_but_the_password(url: str, masked: str) -> None:
    assert RedisSettings.model_validate({"url": url}).masked_url == masked


@given(st.text(st.characters(codec="ascii", exclude_characters="/?#[]", min_codepoint=33), min_size=8))
def test_whatever_the_password_neither_the_masked_url_nor_an_error_shows_it(password: str) -> None:
    url = f"redis://user:{password}@db:6379/0"
    try:
        shown = load_settings({"redis.url": url}, environ={}).redis.masked_url
    except SettingsError as error:
        shown = str(error)
    assert f":{password}@" not in shown
    assert shown.startswith(("redis://user:***@db:6379/0", "flag --url: ***"))


@pytest.mark.parametrize(
    ("content", "secret"), [("pw\n", "pw"), ("pw\r\n", "pw"), ("pw", "pw"), (" pw \n\n", " pw \n"), ("pä\n", "pä")]
)
def test_a_secret_file_loses_one_line_end_and_nothing_else(content: str, secret: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content.encode())
    assert RedisSettings(password_file=path).client_options()["password"] == secret


def test_a_secret_file_is_read_at_use_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    settings = load_settings({"redis.password_file": path}, environ={})
    with pytest.raises(SettingsError, match=r"redis.password_file: .*secret cannot be read: No such file"):
        settings.redis.client_options()
    path.write_bytes(b"\n")
    with pytest.raises(SettingsError, match="is empty"):
        settings.redis.client_options()
    path.write_bytes(b"\xff" + SECRET.encode())
    with pytest.raises(SettingsError, match="not UTF-8") as caught:
        settings.redis.client_options()
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"url": f"redis://:{SECRET}@db/0", "password_file": "f"}, "password in url and password_file exclude"),
        ({"password": SECRET, "password_file": "f"}, "password and password_file exclude"),
        ({"url": f"redis://me:{SECRET}@db/0", "username": "you"}, "url names a user"),
        ({"username": "you"}, "username is set without"),
        ({"ssl_ca_file": "ca.pem"}, "does not begin with rediss://"),
        ({"url": "redis:///0"}, "should name a host"),
        ({"url": "redis://db/users"}, "number of a database"),
        ({"url": "unix://"}, "should name a socket"),
        ({"url": "db:6379"}, "should begin with redis://"),
    ],
)
def test_redis_settings_that_do_not_fit_together_are_refused(section: dict[str, str], reason: str) -> None:
    message = refused({f"redis.{name}": value for name, value in section.items()})
    assert reason in message
    assert SECRET not in message


def test_redis_options_are_what_redis_takes() -> None:
    settings = RedisSettings.model_validate(
        {"url": "rediss://db:6380/2", "username": "me", "password": SECRET, "ssl_ca_file": "ca.pem", "timeout_s": 1.5}
    )
    assert settings.client_options() == {
        "socket_timeout": 1.5,
        "socket_connect_timeout": 1.5,
        "username": "me",
        "password": SECRET,
        "ssl_ca_certs": "ca.pem",
    }
    assert RedisSettings().client_options() == {"socket_timeout": 5.0, "socket_connect_timeout": 5.0}
    assert RedisSettings(ttl_days=1).ttl_ms == 86_400_000
    assert RedisSettings(ttl_days=1e-12).ttl_ms == 1


# Both Kafka clients from one section


def test_the_plain_configuration_is_two_lines_and_no_ssl() -> None:
    kafka = KafkaSettings(bootstrap_servers=" a:1 , [::1]:2", session_timeout_s=6.5)
    assert kafka.confluent_config() == {"bootstrap.servers": "a:1,[::1]:2", "security.protocol": "plaintext"}
    assert kafka.servers == ("a:1", "[::1]:2")
    assert kafka.session_timeout_ms == 6500
    security = kafka.security()
    assert (security.ssl_context, security.sasl_mechanism, security.sasl_password) == (None, None, None)


def certificate(folder: Path, password: str | None) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    key, cert = folder / "key.pem", folder / "cert.pem"
    protection = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-subj",
            "/CN=test",
            "-days",
            "1",
            *protection,
            "-keyout",
            str(key),
            "-out",
            str(cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_both_clients_accept_the_full_configuration(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "key-password")
    (tmp_path / "sasl").write_text(f"{SECRET}\n")
    kafka = load_settings(
        {
            "kafka.bootstrap_servers": "127.0.0.1:1",
            "kafka.security_protocol": "sasl_ssl",
            "kafka.sasl_mechanism": "scram-sha-512",
            "kafka.sasl_username": "me",
            "kafka.sasl_password_file": tmp_path / "sasl",
            "kafka.ssl_ca_file": cert,
            "kafka.ssl_certificate_file": cert,
            "kafka.ssl_key_file": key,
            "kafka.ssl_key_password": "key-password",
        },
        environ={},
    ).kafka
    config = kafka.confluent_config()
    assert config == {
        "bootstrap.servers": "127.0.0.1:1",
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": SECRET,
        "ssl.ca.location": str(cert),
        "ssl.certificate.location": str(cert),
        "ssl.key.location": str(key),
        "ssl.key.password": "key-password",
    }
    # librdkafka reads the files and refuses names it does not know when the client is made; it connects later. The
    # "log_level" keeps its complaint about the missing broker out of the test's output.
    AdminClient({**config, "log_level": "0"})
    security = kafka.security()
    assert isinstance(security.ssl_context, ssl.SSLContext)
    assert security.ssl_context.verify_mode is ssl.CERT_REQUIRED
    assert security.ssl_context.check_hostname
    assert len(security.ssl_context.get_ca_certs()) == 1
    assert (security.sasl_mechanism, security.sasl_username, security.sasl_password) == ("SCRAM-SHA-512", "me", SECRET)


def test_a_key_without_a_password_loads_and_an_encrypted_one_without_its_password_does_not_ask_on_the_terminal(
    tmp_path: Path,
) -> None:
    cert, key = certificate(tmp_path, None)
    kafka = KafkaSettings(security_protocol="ssl", ssl_ca_file=cert, ssl_certificate_file=cert, ssl_key_file=key)
    assert isinstance(kafka.security().ssl_context, ssl.SSLContext)
    certificate(tmp_path, "key-password")
    with pytest.raises(SettingsError, match=r"cannot be used: .*an encrypted key needs kafka.ssl_key_password"):
        kafka.security()


def test_a_certificate_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    kafka = KafkaSettings(security_protocol="ssl", ssl_ca_file=tmp_path / "ca.pem")
    with pytest.raises(SettingsError, match=r"kafka.ssl_ca_file: .*ca.pem cannot be used: No such file"):
        kafka.security()
    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(SettingsError, match=r"kafka.ssl_ca_file: .*ca.pem cannot be used"):
        kafka.security()


def test_a_pool_that_is_smaller_than_the_list_is_refused_where_it_is_used() -> None:
    given = {"recommendations.k": 200}
    assert load_settings(given, environ={}).recommendations.rerank_pool == 100
    message = refused({**given, "recommendations.rerank": "mmr"})
    assert message == (
        "flag --k; flag --rerank: in recommendations: rerank_pool is 100 and k is 200: rerank needs a pool of at "
        "least k"
    )


# The table


def test_every_setting_of_the_table_can_be_set_through_its_variable_to_its_default() -> None:
    rows = settings_table()
    environ = {row.variable: row.default for row in rows}
    assert load_settings(environ=environ) == Settings()
    assert len({row.name for row in rows}) == len(rows) == sum(len(dict(section)) for _, section in Settings())


def test_the_table_says_what_an_operator_needs() -> None:
    rows = {row.name: row for row in settings_table()}
    assert rows["recommendations.k"] == (
        "recommendations.k",
        "DRIFTLINE_RECOMMENDATIONS__K",
        "10",
        "Items in one recommendation. Takes 1 to 1,000.",
    )
    assert json.loads(rows["topics.sources"].default) == {"clicks": "click", "views": "view"}
    assert rows["recommendations.filter_seen"].default == "true"
    assert rows["http.port"].default == ""
    for row in rows.values():
        assert len(row.description) > 10, row.name


def test_a_section_made_in_code_refuses_names_it_does_not_have() -> None:
    unknown: Any = {"prot": 1}
    with pytest.raises(ValidationError, match="prot"):
        HttpSettings(**unknown)


# The key of pseudonyms

KEY = "never shown in any error, 32 byte"


def key_file(directory: Path, content: str, mode: int = 0o600) -> Path:
    path = directory / "pseudonyms.key"
    path.write_text(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("mode", [0o600, 0o440])
def test_a_key_is_what_its_file_holds_without_the_end_of_the_line(tmp_path: Path, end: str, mode: int) -> None:
    settings = load_settings({"ingest.pseudonym_key_file": key_file(tmp_path, KEY + end, mode)}, environ={})
    assert settings.ingest.pseudonym_key() == KEY.encode()


def test_without_a_file_there_is_no_key() -> None:
    assert load_settings(environ={"DRIFTLINE_INGEST__PSEUDONYM_KEY_FILE": ""}).ingest.pseudonym_key() is None


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (KEY[:15], 0o600, "holds 15 bytes, and a key has 16 to 64"),
        (KEY * 3, 0o600, "holds 99 bytes, and a key has 16 to 64"),
        (KEY, 0o644, r"is open to every user of this machine \(mode 0644\). Close it: chmod o= "),
    ],
)
def test_a_key_that_is_none_is_refused_without_being_shown(
    tmp_path: Path, content: str, mode: int, message: str
) -> None:
    path = key_file(tmp_path, content, mode)
    with pytest.raises(SettingsError, match=rf"ingest.pseudonym_key_file: {path} {message}") as caught:
        load_settings({"ingest.pseudonym_key_file": path}, environ={}).ingest.pseudonym_key()
    assert KEY[:10] not in str(caught.value)


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = load_settings({"ingest.pseudonym_key_file": tmp_path / "none"}, environ={})
    with pytest.raises(SettingsError, match="none cannot be read: No such file or directory"):
        settings.ingest.pseudonym_key()
