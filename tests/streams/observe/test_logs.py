import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from streams.observe.logs import OncePerPeriod, configure_logging

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    for name in ("aiokafka", "asyncio", "faust", "kafka", "mode"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_of_structlog_and_of_the_standard_library_have_one_format() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", "evolve", stream)
    structlog.get_logger("streams.ours").info("batch applied", users=512)
    logging.getLogger("confluent_kafka").warning("broker %s is down", "kafka:9092")
    ours, theirs = lines(stream)
    assert ours.pop("timestamp").endswith("Z")
    assert theirs.pop("timestamp").endswith("Z")
    assert list(ours) == ["level", "service", "logger", "message", "users"]
    assert ours == {
        "message": "batch applied",
        "users": 512,
        "level": "info",
        "logger": "streams.ours",
        "service": "evolve",
    }
    assert theirs == {
        "message": "broker kafka:9092 is down",
        "level": "warning",
        "logger": "confluent_kafka",
        "service": "evolve",
    }


def test_what_is_below_the_level_is_not_logged() -> None:
    stream = io.StringIO()
    configure_logging("json", "warning", "ingest", stream)
    structlog.get_logger().info("no")
    logging.getLogger("x").info("no")
    structlog.get_logger().warning("yes")
    logging.getLogger("x").warning("yes too")
    assert [line["message"] for line in lines(stream)] == ["yes", "yes too"]


@pytest.mark.parametrize(("level", "expected"), [("info", ["warning"]), ("debug", ["info", "warning"])])
def test_talkative_libraries_only_warn_unless_everything_is_asked_for(level: Any, expected: list[str]) -> None:
    stream = io.StringIO()
    configure_logging("json", level, "evolve", stream)
    logging.getLogger("mode.worker").info("[^Worker]: Starting...")
    logging.getLogger("faust.app").warning("trouble")
    assert [line["level"] for line in lines(stream)] == expected


def test_a_second_configuration_takes_the_place_of_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    logger = structlog.get_logger()
    configure_logging("json", "info", "ingest", first)
    logger.info("one")
    configure_logging("json", "debug", "evolve", second)
    logger.debug("two")
    logging.getLogger("x").info("three")
    assert [line["message"] for line in lines(first)] == ["one"]
    assert [(line["service"], line["message"]) for line in lines(second)] == [("evolve", "two"), ("evolve", "three")]


def test_auto_is_json_off_a_terminal_and_console_on_one() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file, terminal = io.StringIO(), Terminal()
    configure_logging("auto", "info", "ingest", file)
    structlog.get_logger().info("hello")
    configure_logging("auto", "info", "ingest", terminal)
    structlog.get_logger().info("hello")
    assert lines(file)[0]["message"] == "hello"
    assert "hello" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    configure_logging("console", "info", "ingest", stream)
    structlog.get_logger().info("hello")
    assert "\x1b" not in stream.getvalue()


def test_logs_go_to_stderr_and_leave_stdout_to_results() -> None:
    program = (
        "import logging; from streams.observe.logs import configure_logging; "
        "configure_logging('json', 'info', 'ingest'); logging.getLogger('x').info('hello'); print('result')"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "result\n"
    assert json.loads(done.stderr)["message"] == "hello"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_reaches_the_log_by_any_way(log_format: Any) -> None:
    class Client:
        def __repr__(self) -> str:
            return f"Client(password='{SECRET}')"

    stream = io.StringIO()
    configure_logging(log_format, "debug", "evolve", stream)
    logger = structlog.get_logger()
    logger.info("connecting", password=SECRET, url=f"redis://me:{SECRET}@db:6379/0")
    logger.info("client", config={"sasl.password": SECRET, "ssl.key.password": SECRET, "servers": ["a:1"]})
    logger.info("nested", tries=[{"auth": {"api_key": SECRET, "access_token": SECRET}}])
    logger.info("object", client=Client(), secret_str=SecretStr(SECRET))
    told_by_librdkafka = f"sasl.password={SECRET}; retrying"
    logger.info(told_by_librdkafka)
    logging.getLogger("x").warning("config %s at redis://:%s@db/0", {"sasl_password": SECRET}, SECRET)
    logging.getLogger("x").warning('headers {"api-key": "%s"}', SECRET)

    def fails(password: str) -> None:
        raise ValueError(f"cannot reach redis://me:{password}@db:6379/0")

    try:
        fails(SECRET)
    except ValueError:
        logger.exception("failed")
        logging.getLogger("x").exception("failed too")
    text = stream.getvalue()
    assert SECRET not in text
    assert text.count("ValueError: cannot reach redis://me:***@db:6379/0") == 2
    assert text.count("Traceback (most recent call last)") == 2
    assert "a:1" in text
    assert "sasl.password=***; retrying" in text


def test_what_only_looks_like_a_secret_stays_readable() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", "evolve", stream)
    structlog.get_logger().info(
        "redis://db:6379/0 user@example.org",
        password_file="/run/secrets/redis",
        tokens=512,
        password=None,
        key="driftline:g1:{3}:u1",
        **{"ssl.key.location": "key.pem"},
    )
    (line,) = lines(stream)
    assert line["message"] == "redis://db:6379/0 user@example.org"
    assert line["password_file"] == "/run/secrets/redis"
    assert line["tokens"] == 512
    assert line["password"] is None
    assert line["key"] == "driftline:g1:{3}:u1"
    assert line["ssl.key.location"] == "key.pem"


def test_a_traceback_shows_no_local_variables() -> None:
    stream = io.StringIO()
    configure_logging("console", "info", "evolve", stream)

    def fails() -> None:
        local = f"a local with {SECRET}"
        raise KeyError(len(local))

    try:
        fails()
    except KeyError:
        structlog.get_logger().exception("failed")
    assert "KeyError: 20" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_warnings_are_logged() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", "evolve", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    logging.captureWarnings(capture=False)
    (line,) = lines(stream)
    assert "DeprecationWarning: this is old" in line["message"]
    assert line["logger"] == "py.warnings"


def test_a_message_that_a_library_repeats_is_let_through_once_a_period_and_counted() -> None:
    now = 100.0
    once = OncePerPeriod(("aiokafka",), 10.0, clock=lambda: now)

    def record(name: str, message: str, *arguments: object) -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, "x.py", 1, message, arguments, None)

    assert once.filter(record("aiokafka.conn", "no node %s", 1))
    assert not once.filter(record("aiokafka.conn", "no node %s", 2))
    assert once.filter(record("aiokafka.conn", "another"))
    assert once.filter(record("driftline.kafka", "no node %s", 1))
    assert once.filter(record("driftline.kafka", "no node %s", 1))
    now = 110.0
    last = record("aiokafka.conn", "no node %s", 3)
    assert once.filter(last)
    assert last.getMessage() == "no node 3 (and 1 times more before this)"
