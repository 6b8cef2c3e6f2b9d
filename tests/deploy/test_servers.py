"""The local servers keep the promises that the integration tests and `make stack` rest on."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic  # confluent_kafka.admin has it too, but not for type checkers
from redis import Redis

from deploy.local.servers import KafkaCluster, KafkaServer, RedisServer, ServerError
from tests.integration.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def create_topic(server: KafkaServer | KafkaCluster, topic: str, copies: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": server.bootstrap_servers, "log_level": 0})
    for created in admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=copies)]).values():
        created.result()


def produce(server: KafkaServer | KafkaCluster, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": server.bootstrap_servers, "log_level": 0})
    producer.produce(topic, value)
    if producer.flush(30):
        raise TimeoutError(f"{value!r} was not delivered to {topic} within 30 s")


def read(server: KafkaServer | KafkaCluster, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer(
        {
            "bootstrap.servers": server.bootstrap_servers,
            "group.id": f"{topic}-reader",
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    consumer.subscribe([topic])
    try:
        return [message.value() for message in consumer.consume(count, timeout=30)]
    finally:
        consumer.close()


def is_alive(pid: int) -> bool:
    # A process that ended and that nobody has waited for yet is still listed, as a zombie.
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_kafka_keeps_its_messages_and_port_over_a_kill_and_a_restart(kafka: KafkaServer) -> None:
    create_topic(kafka, "kept-over-kill")
    produce(kafka, "kept-over-kill", b"before")
    address, first_pid = kafka.bootstrap_servers, kafka.pid

    kafka.kill()
    assert not is_alive(first_pid)
    kafka.start()

    assert kafka.bootstrap_servers == address
    produce(kafka, "kept-over-kill", b"after")
    assert read(kafka, "kept-over-kill", 2) == [b"before", b"after"]


def test_kafka_keeps_its_messages_and_port_over_a_stop_and_a_new_object(tmp_path: Path) -> None:
    with KafkaServer(tmp_path) as first:
        create_topic(first, "kept-over-stop")
        produce(first, "kept-over-stop", b"before")
        address = first.bootstrap_servers
    with KafkaServer(tmp_path) as second:
        assert second.bootstrap_servers == address
        assert read(second, "kept-over-stop", 1) == [b"before"]


def test_kafka_refuses_topics_that_nobody_created(kafka: KafkaServer) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.list_topics("never-created", timeout=10)
    assert "never-created" not in admin.list_topics(timeout=10).topics


def test_both_listen_on_the_loopback_address_only(kafka: KafkaServer, redis_server: RedisServer) -> None:
    for server in (kafka, redis_server):
        listening = [c.laddr.ip for c in psutil.Process(server.pid).net_connections("inet") if c.status == "LISTEN"]
        assert listening
        # Java's sockets are IPv6 ones that hold the mapped IPv4 address.
        assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("kind", [KafkaServer, RedisServer])
def test_a_port_in_use_is_reported(
    kind: type[KafkaServer] | type[RedisServer], tmp_path: Path, taken_port: int
) -> None:
    with pytest.raises(ServerError, match=rf"cannot listen on 127\.0\.0\.1:{taken_port}: another process does"):
        kind(tmp_path, port=taken_port).start()


def test_a_directory_in_use_is_reported(redis_server: RedisServer) -> None:
    with pytest.raises(ServerError, match="another server is running on it"):
        RedisServer(redis_server.directory).start()
    with Redis.from_url(redis_server.url) as client:
        assert client.ping()


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"(?s)ended with status 1.*redis\.log.*no-such-setting"):
        RedisServer(tmp_path, arguments=("--no-such-setting", "1")).start()


def test_missing_kafka_jars_name_the_command_that_fetches_them(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no Kafka jars in .*empty; `make test`"):
        KafkaServer(tmp_path, jars=tmp_path / "empty").start()


def test_asking_for_the_port_before_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"call start\(\) first"):
        _ = RedisServer(tmp_path).url


def test_redis_keeps_its_data_over_a_stop_that_saves(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.set("user", "kept")
        redis_server.stop(save=True)
        redis_server.start()
        assert client.get("user") == b"kept"


def test_redis_forgets_what_came_after_the_last_save_over_a_kill(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.set("user", "saved")
        redis_server.stop(save=True)
        redis_server.start()
        client.set("user", "lost")
        redis_server.kill()
        redis_server.start()
        assert client.get("user") == b"saved"


def test_restoring_a_snapshot_brings_back_the_older_state(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.set("user", "first")
        first = redis_server.snapshot()
        client.set("user", "second")
        second = redis_server.snapshot()
        client.set("user", "third")

        redis_server.restore(first)
        assert client.get("user") == b"first"
        redis_server.restore(second)
        assert client.get("user") == b"second"


def test_redis_with_an_append_only_file_keeps_its_data_over_a_kill_and_refuses_to_restore(tmp_path: Path) -> None:
    arguments = ("--appendonly", "yes", "--appendfsync", "always")
    with RedisServer(tmp_path, arguments=arguments) as server, Redis.from_url(server.url) as client:
        client.set("user", "kept")
        snapshot = server.snapshot()
        server.kill()
        server.start()
        assert client.get("user") == b"kept"
        with pytest.raises(ServerError, match="append-only file"):
            server.restore(snapshot)


# Starts a Redis in a thread that ends before the server does, prints its process ids, and waits to be killed.
OWNER = """
import os, sys, threading
from pathlib import Path
from deploy.local.servers import RedisServer

server = RedisServer(Path(sys.argv[1]))
starter = threading.Thread(target=server.start)
starter.start()
starter.join()
if "fork" in sys.argv and os.fork() == 0:
    # What multiprocessing leaves behind: a child that holds a copy of everything that its parent had open.
    threading.Event().wait()
print(server.pid, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("leaving", ["nothing", "fork"])
def test_a_server_does_not_outlive_the_process_that_started_it(tmp_path: Path, leaving: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), leaving],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        text=True,
        start_new_session=True,
    )
    try:
        assert owner.stdout is not None
        with owner.stdout as output:
            server_pid = int(output.readline())
        tether_pid = psutil.Process(server_pid).ppid()
        assert is_alive(server_pid)  # although the thread that started it is gone

        owner.kill()
        owner.wait()

        wait_until(lambda: not is_alive(server_pid), 20, "the server is gone")
        wait_until(lambda: not is_alive(tether_pid), 20, "its tether is gone")
    finally:
        if leaving == "fork":
            os.killpg(owner.pid, signal.SIGKILL)
    with RedisServer(tmp_path) as restarted:
        assert restarted.is_running


def test_a_server_ends_with_its_tether(redis_server: RedisServer) -> None:
    pid = redis_server.pid
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), 20, "the server is gone")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_stack_prints_its_addresses_and_leaves_nothing_running(tmp_path: Path, how: signal.Signals) -> None:
    stack = subprocess.Popen(
        [sys.executable, "-m", "deploy.local.stack", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        text=True,
    )
    try:
        assert stack.stdout is not None
        exports = dict(stack.stdout.readline().removeprefix("export ").strip().split("=", 1) for _ in range(2))
        servers = psutil.Process(stack.pid).children(recursive=True)
        with Redis.from_url(exports["DRIFTLINE_REDIS__URL"]) as client:
            assert client.config_get("save") == {"save": "60 1"}
        admin = AdminClient({"bootstrap.servers": exports["DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS"], "log_level": 0})
        assert admin.list_topics(timeout=10).topics == {}

        stack.send_signal(how)
        stack.communicate(timeout=60)
    finally:
        stack.kill()
    assert stack.returncode == 0
    assert len(servers) == 4  # two servers, each under its tether
    assert not [server for server in servers if is_alive(server.pid)]


def test_a_cluster_of_three_takes_writes_while_one_is_away(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path) as cluster:
        create_topic(cluster, "copied", copies=3)
        produce(cluster, "copied", b"before")
        cluster.brokers[0].kill()
        produce(cluster, "copied", b"meanwhile")
        cluster.start()
        assert all(broker.is_running for broker in cluster.brokers)
        assert read(cluster, "copied", 2) == [b"before", b"meanwhile"]
