"""The operator's commands, run as an operator runs them, on a real Kafka and a real Redis."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pytest
import redis
from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]  # 2.16
from pyarrow import parquet

from deploy.local.process import free_port
from deploy.local.servers import KafkaServer, RedisServer
from export.pooling import write_pooling_bundle
from models.bundle import Bundle
from models.spec import ItemMetadata
from tests.integration.waiting import wait_until

# Each command is a process of its own, and starting one takes a second or more on busy cores.
pytestmark = pytest.mark.timeout(300)

REPOSITORY = Path(__file__).parents[2]
ITEMS = [f"item-{n}" for n in range(20)]
USERS = 1203  # more than two of the batches that Redis is scanned in
START_MS = 1_700_000_000_000


@dataclass
class Terminal:
    """Runs `driftline` with one configuration file; ends what it left running."""

    directory: Path
    config: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "streams.cli", *arguments, "--config", str(self.config)]

    def environment(self, **settings: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
        return {**clean, "PYTHONPATH": str(REPOSITORY), **settings}

    def run(
        self, *arguments: str, stdin: bytes | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            cwd=self.directory,
            env=self.environment(),
            timeout=timeout_s,
            check=False,
        )

    def ask(self, *arguments: str) -> Any:
        """What a command prints as JSON."""
        finished = self.run(*arguments, "--output", "json")
        assert finished.returncode == 0, finished.stderr.decode()
        return json.loads(finished.stdout)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.directory / f"{arguments[0]}-{len(self.running)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                self.command(*arguments), stdout=subprocess.PIPE, stderr=log, cwd=self.directory, env=self.environment()
            )
        self.running.append(process)
        return process

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.directory.glob("*.log"))

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.terminate()
        for process in self.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def wait_for_lag(self, lag: int) -> Any:
        """The status once ``total_lag`` is that."""
        newest: dict[str, Any] = {}

        def reached() -> bool:
            newest.update(self.ask("status"))
            return bool(newest["total_lag"] == lag)

        try:
            wait_until(reached, 60, f"the lag is {lag}")
        except TimeoutError as error:
            error.add_note(f"{newest}\n{self.logs()}")
            raise
        return newest


def write_config(directory: Path, kafka: KafkaServer, redis_url: str, bundle: Path) -> Path:
    """A driftline.toml with names of its own on the shared Kafka."""
    prefix = f"test-{uuid4().hex[:12]}-"
    config = directory / "cli.toml"
    config.write_text(
        f"""
        [kafka]
        bootstrap_servers = "{kafka.bootstrap_servers}"
        session_timeout_s = 6
        [redis]
        url = "{redis_url}"
        key_prefix = "{prefix}keys"
        [topics]
        sources = {{ "{prefix}clicks" = "click" }}
        interactions = "{prefix}interactions"
        recommendations = "{prefix}recommendations"
        dead_letters = "{prefix}dead"
        partitions = 3
        [ingest]
        group = "{prefix}ingest"
        [evolve]
        group = "{prefix}evolve"
        [model]
        bundle = "{bundle}"
        provider = "cpu"
        [http]
        port = 0
        [log]
        format = "console"
        """
    )
    return config


def prefix_of(terminal: Terminal) -> str:
    text = terminal.config.read_text()
    return text[text.index("test-") :].split("keys", 1)[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    metadata = {item: ItemMetadata(title=f"The title of {item}") for item in ITEMS}
    return write_pooling_bundle(tmp_path_factory.mktemp("bundle") / "pooling", ITEMS, dim=8, metadata=metadata)


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Not the session's, which every test may empty."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def events() -> list[dict[str, Any]]:
    """Two clicks or views a user, and a third that repeats the first."""
    found = []
    for turn in range(3):
        for user in range(USERS):
            repeated = 0 if turn == 2 else turn
            event = {
                "user_id": f"user-{user}",
                "item_id": ITEMS[(user + 7 * repeated) % len(ITEMS)],
                "event_id": f"event-{user}-{repeated}",
                "event_time": START_MS + repeated * 1000 + user,
            }
            found.append({**event, "type": "view"} if repeated == 1 else event)
    return found


EVENTS = events()
BAD_LINE = b"{this is no JSON"


def lines() -> list[bytes]:
    """As the app wrote them: not as any encoder of ours would."""
    written = [json.dumps(event, indent=None, separators=(" ,", " : ")).encode() for event in EVENTS]
    return [*written[:100], BAD_LINE, *written[100:]]


@dataclass(frozen=True)
class Ran:
    """A pipeline that got a file of events and has applied it; what the commands said on the way."""

    terminal: Terminal
    created: Any
    produced: Any
    status: Any


@pytest.fixture(scope="module")
def ran(
    kafka_session: KafkaServer,
    own_redis: RedisServer,
    bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ran]:
    if not kafka_session.is_running:
        kafka_session.start()
    directory = tmp_path_factory.mktemp("cli")
    terminal = Terminal(directory, write_config(directory, kafka_session, own_redis.url, bundle.path))
    try:
        created = terminal.ask("topics", "create")
        terminal.start("up")
        file = directory / "events.jsonl.gz"
        file.write_bytes(gzip.compress(b"\n" + b"\r\n".join(lines()) + b"\n\n"))
        produced = terminal.ask("produce", str(file), "--topic", f"{prefix_of(terminal)}clicks")
        yield Ran(terminal, created, produced, terminal.wait_for_lag(0))
    finally:
        terminal.end()


def test_topics_create_makes_what_is_missing_and_leaves_the_rest_alone(ran: Ran) -> None:
    prefix = prefix_of(ran.terminal)
    assert [(each["topic"], each["role"]) for each in ran.created] == [
        (f"{prefix}clicks", "source"),
        (f"{prefix}interactions", "interactions"),
        (f"{prefix}recommendations", "recommendations"),
        (f"{prefix}dead", "dead letters"),
    ]
    assert all(each["created"] and each["partitions"] == 3 for each in ran.created)
    assert not any(each["created"] for each in ran.terminal.ask("topics", "create"))


def test_interactions_are_kept_for_ever_and_dead_letters_may_be_larger_than_what_they_hold(
    ran: Ran, kafka_session: KafkaServer
) -> None:
    prefix = prefix_of(ran.terminal)
    assert topic_config(kafka_session, f"{prefix}interactions")["retention.ms"] == "-1"
    largest = int(topic_config(kafka_session, f"{prefix}clicks")["max.message.bytes"])
    assert int(topic_config(kafka_session, f"{prefix}dead")["max.message.bytes"]) > largest + 65_536
    described = {each["role"]: each for each in ran.terminal.ask("topics", "describe")}
    assert described["interactions"]["config"]["retention.ms"] == "-1"
    assert described["source"]["partitions"] == 3
    assert described["source"]["messages"] == len(lines())


def topic_config(kafka: KafkaServer, name: str) -> Mapping[str, str]:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    return {key: entry.value for key, entry in admin.describe_configs([resource])[resource].result().items()}


def test_produce_sends_each_line_as_it_is_with_the_user_as_its_key(ran: Ran, kafka_session: KafkaServer) -> None:
    assert ran.produced["events"] == 3 * USERS + 1
    assert ran.produced["without_key"] == 1
    assert ran.produced["empty_lines"] == 2
    found = read_all(kafka_session, f"{prefix_of(ran.terminal)}clicks", 3, len(lines()))
    expected = [(None if line == BAD_LINE else json.loads(line)["user_id"].encode(), line) for line in lines()]
    assert sorted(found, key=str) == sorted(expected, key=str)


def read_all(kafka: KafkaServer, topic: str, partitions: int, count: int) -> list[tuple[bytes | None, bytes]]:
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap_servers, "group.id": "reads", "enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])
    found: list[tuple[bytes | None, bytes]] = []
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        found += [(each.key(), each.value()) for each in cast("list[Any]", consumer.consume(1000, 0.1))]
    consumer.close()
    return found


def test_the_status_accounts_for_every_event_and_names_the_workers(ran: Ran, bundle: Bundle) -> None:
    prefix, status = prefix_of(ran.terminal), ran.status
    (clicks,) = status["raw"]
    assert clicks["topic"] == f"{prefix}clicks"
    assert (clicks["log_end"], clicks["applied"], clicks["lag"]) == (3 * USERS + 1, 3 * USERS + 1, 0)
    frames = status["interactions"]
    assert frames["lag"] == 0
    assert frames["applied"] == frames["log_end"] > 0
    assert status["watermarks"] == {str(each["partition"]): each["log_end"] - 1 for each in frames["offsets"]}
    assert status["dead_letters"]["log_end"] == 1
    assert status["recommendations"]["log_end"] >= USERS
    assert status["store_partitions"] == 3
    assert status["model"] == {"name": "pooling", "version": bundle.config.version, "error": None}
    assert [worker["partitions"] for worker in status["workers"]["ingest"]] == [{f"{prefix}clicks": [0, 1, 2]}]
    assert [worker["partitions"] for worker in status["workers"]["evolve"]] == [{f"{prefix}interactions": [0, 1, 2]}]
    table = ran.terminal.run("status").stdout.decode()
    assert "Total lag: 0" in table


def expected_window(user: int) -> list[dict[str, Any]]:
    own = [EVENTS[user], EVENTS[USERS + user]]
    return [
        {
            "item_id": event["item_id"],
            "type": event.get("type", "click"),
            "event_time": event["event_time"],
            "event_id": event["event_id"],
        }
        for event in own
    ]


def expected_vector(user: int, bundle: Bundle) -> Any:
    """The pooling model: the mean of the vectors of the window's items."""
    rows = [1 + ITEMS.index(event["item_id"]) for event in expected_window(user)]
    return bundle.item_vectors[rows].mean(axis=0)


def test_users_show_gives_window_vector_and_recommendations_with_titles(ran: Ran, bundle: Bundle) -> None:
    shown = ran.terminal.ask("users", "show", "user-17")
    titles = [event.pop("title") for event in shown["window"]]
    assert shown["window"] == expected_window(17)
    assert titles == [f"The title of {event['item_id']}" for event in expected_window(17)]
    vector = expected_vector(17, bundle)
    assert shown["vector_dim"] == 8
    assert shown["vector_norm"] == pytest.approx(float(np.linalg.norm(vector)), rel=1e-5)
    assert shown["model"] == bundle.config.version
    seen = {event["item_id"] for event in expected_window(17)}
    scores = {item: float(bundle.item_vectors[1 + n] @ vector) for n, item in enumerate(ITEMS) if item not in seen}
    best = sorted(scores, key=lambda item: -scores[item])[:10]
    assert [item["item_id"] for item in shown["recommendations"]] == best
    assert [item["rank"] for item in shown["recommendations"]] == list(range(1, 11))
    assert all(set(item["because"]) <= seen and item["because"] for item in shown["recommendations"])
    assert shown["recommendations"][0]["title"] == f"The title of {best[0]}"
    table = ran.terminal.run("users", "show", "user-17").stdout.decode()
    assert f"The title of {best[0]}" in table
    assert "event-17-1" in table


def test_users_explain_says_by_how_much_each_event_raised_each_item_of_the_list(ran: Ran, bundle: Bundle) -> None:
    explained = ran.terminal.ask("users", "explain", "user-17")
    shown = ran.terminal.ask("users", "show", "user-17")
    assert explained["recommendation_id"] == shown["recommendation_id"]
    assert (explained["model"], explained["strategy"]) == (bundle.config.version, "personal")
    # The second event is a second after the first.
    ages = [event.pop("age_s") for event in explained["window"]]
    assert ages == [1, 0]
    assert explained["window"] == shown["window"]
    first, second = (bundle.item_vectors[1 + ITEMS.index(event["item_id"])] for event in shown["window"])
    for item, listed in zip(explained["items"], shown["recommendations"], strict=True):
        assert all(item[name] == listed[name] for name in ("rank", "item_id", "title"))
        assert item["score"] == pytest.approx(listed["score"], abs=1e-6)
        # The mean of two vectors, less the other one alone, is half of their difference.
        by = float(bundle.item_vectors[1 + ITEMS.index(item["item_id"])] @ (first - second)) / 2
        assert item["contributions"] == pytest.approx([by, -by], abs=1e-6)

    seen = shown["window"][0]["item_id"]
    (other,) = ran.terminal.ask("users", "explain", "user-17", "--item", seen)["items"]
    assert (other["rank"], other["item_id"], len(other["contributions"])) == (None, seen, 2)
    best, by = explained["items"][0], explained["items"][0]["contributions"][0]
    table = ran.terminal.run("users", "explain", "user-17", "--top", "1").stdout.decode()
    assert best["title"] in table
    assert f"{by:+.4f}" in table
    assert f"{-by:+.4f}" in table


def test_what_cannot_be_explained_is_an_error_that_says_why(ran: Ran, tmp_path: Path) -> None:
    other = write_pooling_bundle(tmp_path / "other", ITEMS, dim=8, seed=1)
    for arguments, code, message in (
        (("nobody",), 1, "there is no user 'nobody'"),
        (("user-17", "--item", "no-such"), 2, "item 'no-such' is not among the 20 items of the model pooling"),
        (("user-17", "--bundle", str(other.path)), 2, f"version {other.config.version}: name the other bundle"),
    ):
        finished = ran.terminal.run("users", "explain", *arguments)
        assert finished.returncode == code
        assert message in finished.stderr.decode()
        assert "Traceback" not in finished.stderr.decode()


def test_titles_of_another_model_are_not_shown(ran: Ran, tmp_path: Path) -> None:
    other = write_pooling_bundle(tmp_path / "other", ITEMS, dim=8, seed=1)
    shown = ran.terminal.ask("users", "show", "user-17", "--bundle", str(other.path))
    assert {event["title"] for event in shown["window"]} == {None}


def test_a_user_that_is_not_there_is_an_error_and_no_traceback(ran: Ran) -> None:
    finished = ran.terminal.run("users", "show", "nobody")
    assert finished.returncode == 1
    assert "there is no user 'nobody'" in finished.stderr.decode()
    assert "Traceback" not in finished.stderr.decode()


def test_users_export_writes_every_user_once_as_json_lines_and_as_parquet(ran: Ran, bundle: Bundle) -> None:
    to_stdout = ran.terminal.run("users", "export")
    assert to_stdout.returncode == 0, to_stdout.stderr.decode()
    exported = [json.loads(line) for line in to_stdout.stdout.splitlines()]
    assert sorted(user["user_id"] for user in exported) == sorted(f"user-{n}" for n in range(USERS))
    for user in exported:
        number = int(user["user_id"].removeprefix("user-"))
        assert user["window"] == expected_window(number)
        assert user["vector"] == pytest.approx(expected_vector(number, bundle).tolist(), abs=1e-6)
        assert user["model"] == bundle.config.version
        assert user["recommendations"]["user_id"] == user["user_id"]
        assert len(user["recommendations"]["items"]) == 10
        assert 0 <= user["updated_at"] - user["recommendations"]["generated_at"] < 60_000

    file = ran.terminal.directory / "users.parquet"
    finished = ran.terminal.run("users", "export", "--format", "parquet", "--out", str(file))
    assert finished.returncode == 0, finished.stderr.decode()
    assert f"{USERS:,} users written" in finished.stderr.decode()
    rows = {row["user_id"]: row for row in parquet.read_table(file).to_pylist()}
    assert rows == {user["user_id"]: user for user in exported}
    assert not list(ran.terminal.directory.glob(".*.part"))


def test_recommendations_follow_reads_from_the_beginning_up_to_a_limit(ran: Ran) -> None:
    finished = ran.terminal.run("recommendations", "follow", "--from-beginning", "--limit", "5", "--output", "json")
    assert finished.returncode == 0
    found = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(found) == 5
    assert all(len(recommendation["items"]) == 10 for recommendation in found)
    own = ran.terminal.run("recommendations", "follow", "--from-beginning", "--limit", "1", "--user", "user-42")
    assert own.returncode == 0
    assert "user-42  " in own.stdout.decode()


def test_following_ends_quietly_with_ctrl_c(ran: Ran) -> None:
    process = ran.terminal.start("recommendations", "follow", "--from-beginning", "--user", "user-42", "-o", "json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["items"]
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0
    assert "Traceback" not in ran.terminal.logs()


def test_produce_to_a_topic_that_does_not_exist_sends_nothing_and_says_so(ran: Ran) -> None:
    finished = ran.terminal.run("produce", "-", "--topic", "no-such-topic", stdin=b'{"user_id": "a"}\n')
    assert finished.returncode == 12
    assert "no topic no-such-topic" in finished.stderr.decode()


def test_produce_refuses_a_rate_that_is_none(ran: Ran) -> None:
    finished = ran.terminal.run("produce", "-", "--topic", "clicks", "--rate", "nan", stdin=b"")
    assert finished.returncode == 2
    assert "--rate" in finished.stderr.decode()


def test_the_doctor_finds_nothing_failed_in_a_healthy_deployment(ran: Ran) -> None:
    diagnosis = ran.terminal.ask("doctor")
    assert diagnosis["ok"]
    verdicts = {check["name"]: check["verdict"] for check in diagnosis["checks"]}
    assert verdicts == {
        "settings": "ok", "kafka": "ok", "topics": "ok", "redis": "ok", "memory": "ok",
        "persistence": "warning",  # the test's Redis keeps nothing
        "bundle": "ok", "provider": "ok",
    }  # fmt: skip
    found = {check["name"]: check["found"] for check in diagnosis["checks"]}
    assert "CPUExecutionProvider" in found["provider"]


def test_the_doctor_names_what_is_away_and_looks_at_everything_else(ran: Ran) -> None:
    finished = ran.terminal.run("doctor", "--output", "json", "--redis-url", f"redis://127.0.0.1:{free_port()}/0")
    assert finished.returncode == 1
    diagnosis = json.loads(finished.stdout)
    checks = {check["name"]: check for check in diagnosis["checks"]}
    assert not diagnosis["ok"]
    assert checks["redis"]["verdict"] == "failed"
    assert "redis.url" in checks["redis"]["mend"]
    assert {name for name, check in checks.items() if check["verdict"] == "ok"} == {
        "settings", "kafka", "topics", "bundle", "provider",
    }  # fmt: skip
    table = ran.terminal.run("doctor", "--redis-url", f"redis://127.0.0.1:{free_port()}/0")
    assert table.returncode == 1
    assert "start Redis" in table.stdout.decode()
    assert "Traceback" not in table.stderr.decode()


def test_the_doctor_does_not_take_long_when_everything_is_away(ran: Ran) -> None:
    started = time.monotonic()
    away = ("--bootstrap-servers", f"127.0.0.1:{free_port()}", "--redis-url", f"redis://127.0.0.1:{free_port()}/0")
    finished = ran.terminal.run("doctor", "--output", "json", "--bundle", "nowhere", *away, timeout_s=40)
    took = time.monotonic() - started
    assert finished.returncode == 1
    verdicts = {check["name"]: check["verdict"] for check in json.loads(finished.stdout)["checks"]}
    assert verdicts == {
        "settings": "ok", "kafka": "failed", "topics": "skipped", "redis": "failed", "memory": "skipped",
        "persistence": "skipped", "bundle": "failed", "provider": "skipped",
    }  # fmt: skip
    assert took < 25  # ten seconds of asking Kafka, and a start on busy cores
    assert "Traceback" not in finished.stderr.decode()


def test_the_doctor_fails_a_redis_that_may_evict_watermarks(ran: Ran, own_redis: RedisServer) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            finished = ran.terminal.run("doctor", "--output", "json")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert finished.returncode == 1
    (failed,) = (check for check in json.loads(finished.stdout)["checks"] if check["verdict"] == "failed")
    assert failed["name"] == "memory"
    assert "noeviction" in failed["mend"]


@pytest.fixture
def own(kafka: KafkaServer, own_redis: RedisServer, bundle: Bundle, tmp_path: Path) -> Iterator[Terminal]:
    """A configuration of this test alone; nothing runs yet."""
    terminal = Terminal(tmp_path, write_config(tmp_path, kafka, own_redis.url, bundle.path))
    try:
        yield terminal
    finally:
        terminal.end()


def clicks_of(user: str, numbers: range) -> bytes:
    return b"".join(
        json.dumps(
            {
                "user_id": user,
                "item_id": ITEMS[n % len(ITEMS)],
                "event_id": f"{user}-{n}",
                "event_time": START_MS + n,
            }
        ).encode()
        + b"\n"
        for n in numbers
    )


def send(terminal: Terminal, user: str, numbers: range) -> None:
    topic = f"{prefix_of(terminal)}clicks"
    finished = terminal.run("produce", "-", "--topic", topic, stdin=clicks_of(user, numbers))
    assert finished.returncode == 0, finished.stderr.decode()


def make_anew(kafka: KafkaServer, terminal: Terminal, topic: str) -> None:
    """Delete a topic and make it again, as a person would; returns when it has its new id."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.delete_topics([topic])[topic].result()
    wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, 20, "the topic is gone")
    terminal.ask("topics", "create")


def window_ids(terminal: Terminal, user: str) -> list[str]:
    return [event["event_id"] for event in terminal.ask("users", "show", user)["window"]]


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    assert process.wait(20) == 0


def topic_id(terminal: Terminal, role: str) -> str:
    (found,) = (each["topic_id"] for each in terminal.ask("topics", "describe") if each["role"] == role)
    return str(found)


def test_a_raw_topic_made_anew_is_refused_until_it_is_adopted_and_none_of_its_events_is_lost(
    own: Terminal, kafka: KafkaServer
) -> None:
    own.ask("topics", "create")
    topic, group = f"{prefix_of(own)}clicks", f"{prefix_of(own)}ingest"
    old_id = topic_id(own, "source")
    evolve, ingest = own.start("evolve"), own.start("ingest")
    send(own, "ana", range(10))
    own.wait_for_lag(0)

    running = own.run("topics", "adopt", topic, "--yes")
    assert running.returncode == 2
    assert "stop ingest first" in running.stderr.decode()

    # Frozen, as a worker is in a long pause: else it may meet the moment when there is no such topic.
    ingest.send_signal(signal.SIGSTOP)
    make_anew(kafka, own, topic)
    # More than before, so that the old place lies inside of the new log: nothing but the id tells them apart.
    send(own, "ana", range(10, 30))
    ingest.send_signal(signal.SIGCONT)
    assert ingest.wait(40) == 20, own.logs()

    # Kafka 4 deletes a group's commits with the topic, a moment later, but an ingest that still runs may commit once more.
    wait_until(lambda: not own.ask("status")["raw"][0]["made_anew"], 60, "the commits are deleted")
    commit_anew(kafka, group, topic, 10, old_id)
    again = own.run("ingest")
    assert again.returncode == 20
    assert f"driftline topics adopt {topic}" in again.stderr.decode()
    (clicks,) = own.ask("status")["raw"]
    assert (clicks["made_anew"], clicks["lag"]) == (True, 20)

    unanswered = own.run("topics", "adopt", topic, stdin=b"n\n")
    assert unanswered.returncode == 1
    assert own.ask("status")["raw"][0]["made_anew"]
    adopted = own.ask("topics", "adopt", topic, "--yes")
    assert {change["after"] for change in adopted["changes"]} == {0}
    assert own.ask("topics", "adopt", topic, "--yes")["changes"] == []
    ingest = own.start("ingest")
    own.wait_for_lag(0)
    assert window_ids(own, "ana") == [f"ana-{n}" for n in range(30)]
    stopped(ingest)
    stopped(evolve)


def commit_anew(kafka: KafkaServer, group: str, topic: str, offset: int, metadata: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    positions = [TopicPartition(topic, number, offset, metadata) for number in range(3)]
    admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, positions)])[group].result()


def test_interactions_made_anew_are_refused_until_adopted_and_what_only_they_held_comes_again(
    own: Terminal, kafka: KafkaServer
) -> None:
    own.ask("topics", "create")
    topic = f"{prefix_of(own)}interactions"
    evolve, ingest = own.start("evolve"), own.start("ingest")
    send(own, "ana", range(10))
    own.wait_for_lag(0)
    stopped(evolve)
    send(own, "ana", range(10, 15))
    wait_until(lambda: own.ask("status")["raw"][0]["lag"] == 0, 30, "ingest has sent the frames")
    stopped(ingest)
    make_anew(kafka, own, topic)

    refused = own.run("evolve")
    assert refused.returncode == 20
    assert f"driftline topics adopt {topic}" in refused.stderr.decode()
    adopted = adopt_when_its_group_is_empty(own, topic, "--reingest")
    assert adopted["reingest"] == [f"{prefix_of(own)}clicks"]
    evolve, ingest = own.start("evolve"), own.start("ingest")
    send(own, "ana", range(15, 20))
    own.wait_for_lag(0)
    assert window_ids(own, "ana") == [f"ana-{n}" for n in range(20)]
    stopped(ingest)
    stopped(evolve)


def adopt_when_its_group_is_empty(terminal: Terminal, topic: str, *flags: str) -> Any:
    """An evolve that refused has left its group only once its session is over."""
    finished = []

    def adopted() -> bool:
        finished.append(terminal.run("topics", "adopt", topic, "--yes", *flags, "--output", "json"))
        return finished[-1].returncode == 0 or b"stop evolve first" not in finished[-1].stderr

    wait_until(adopted, 30, "the group is empty")
    assert finished[-1].returncode == 0, finished[-1].stderr.decode()
    return json.loads(finished[-1].stdout)
