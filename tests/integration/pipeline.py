"""A pipeline of real processes on a real Kafka and a real Redis, and a supervisor that starts again what died.

    with Pipeline(directory, kafka, redis_url, Names.under(prefix), bundle) as pipeline:
        pipeline.create_topics()
        pipeline.start("ingest")
        pipeline.start("evolve")
        pipeline.produce(messages)
        pipeline.wait_until_applied(30)

When a test fails inside the block, the ends of the workers' logs are added to its error.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, cast

import psutil
import pytest
import redis
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition
from confluent_kafka import Producer as KafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.process import free_port
from streams.errors import LogError
from streams.log.admin import LogAdmin
from streams.log.topics import Partition
from streams.settings import KafkaSettings, Settings, load_settings
from tests.integration import crash_worker, oracle
from tests.integration.oracle import Message
from tests.integration.waiting import wait_until

REFUSED: Final = 20
SESSION_S: Final = 6
_REPOSITORY: Final = Path(__file__).parents[2]
_CHECK_EVERY_S: Final = 0.1
_LOG_LINES: Final = 25
_RAW_PARTITIONS: Final = 2


BAD_VALUES: Final = (
    b"{not json",
    b"[1, 2]",
    b'{"user_id": "u"}',
    b'{"user_id": "", "item_id": "item-1"}',
    b'{"user_id": "u", "item_id": 7}',
    b'{"user_id": "u", "item_id": "item-1", "value": NaN}',
    b'{"user_id": "u", "item_id": "item-1", "event_time": 1000}',
    b"\xff\xfe",
    None,
)
"""Messages that are no events."""


class Raw(NamedTuple):
    """What an app sends."""

    topic: str
    key: str
    value: bytes | None


@dataclass(frozen=True)
class Names:
    """Everything that must be a pipeline's own on a shared Kafka and Redis."""

    clicks: str
    views: str
    interactions: str
    recommendations: str
    dead_letters: str
    ingest_group: str
    evolve_group: str
    key_prefix: str

    @classmethod
    def under(cls, prefix: str) -> Self:
        parts = ("clicks", "views", "interactions", "recommendations", "dead", "ingest", "evolve", "keys")
        return cls(*(f"{prefix}{part}" for part in parts))

    def with_evolve_of(self, other: "Names") -> "Names":
        """The same raw topics, ingest and interactions, with the evolve group, output and keys of another."""
        return replace(
            self,
            recommendations=other.recommendations,
            evolve_group=other.evolve_group,
            key_prefix=other.key_prefix,
        )

    @property
    def types(self) -> dict[str, str]:
        """The type of an event that names none."""
        return {self.clicks: "click", self.views: "view"}


class Worker:
    """A place for one service process: it may be started, die, and be started again.

    Attributes:
        exits: Exit codes of the processes that ended here by themselves, oldest first; -9 is SIGKILL.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.exits: list[int] = []
        self.log = log
        self.restarts = True
        self._command = command
        self._next: Sequence[str] | None = None
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def next_time(self, command: Sequence[str]) -> None:
        """Let the next start be of ``command`` instead of the usual one."""
        self._next = command

    def start(self, command: Sequence[str] | None = None) -> None:
        """Start a process; ``command`` instead of the usual one this time."""
        command, self._next = command or self._next, None
        self._port = free_port()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command or self._command,
                cwd=self.log.parent,
                env={**self._environment, "DRIFTLINE_HTTP__PORT": str(self._port)},
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether /readyz says yes."""
        return self._get("/readyz") is not None

    def is_frozen(self) -> bool:
        """Whether the process is stopped by a signal."""
        return self.is_running and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels; 0 while the process does not answer."""
        text = self._get("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text or "")
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the running process."""
        assert self._process is not None
        self._process.send_signal(number)

    def collect(self) -> int | None:
        """The exit code of a process that ended since the last look."""
        if self._process is None or self._process.poll() is None:
            return None
        code, self._process = self._process.returncode, None
        self.exits.append(code)
        return code

    def stop(self, timeout_s: float = 15.0) -> int | None:
        """End the process in order (SIGTERM) and return its exit code; None where there is none."""
        self.ask_to_stop()
        return self.wait_for_end(timeout_s)

    def wait_for_end(self, timeout_s: float = 15.0) -> int | None:
        """The exit code of the process once it has ended; None where there is none."""
        return None if self._process is None else self._end(timeout_s)

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and do not wait."""
        self.restarts = False
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.restarts = False
        if self._process is not None:
            self._process.kill()
            self._end(10.0)

    def tail(self) -> str:
        """The end of what its processes wrote."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([f"--- {self.name}, exits {self.exits}, end of {self.log}", *lines[-_LOG_LINES:]])

    def _end(self, timeout_s: float) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def _get(self, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=2) as answer:
                return cast("bytes", answer.read()).decode()
        except urllib.error.HTTPError as error:
            error.close()
            return None
        except OSError:
            return None


@contextmanager
def shown_if_it_fails(request: pytest.FixtureRequest, pipeline: "Pipeline") -> Iterator[None]:
    """For a fixture around its yield: where the test fails, the ends of the workers' logs are shown with it."""
    failed = request.session.testsfailed
    yield
    # A test's failure does not come through here as an exception; pytest shows what is written with it.
    if request.session.testsfailed > failed:
        sys.stdout.write(pipeline.tails())


class Account(NamedTuple):
    """What became of every raw message: applied + repeats + late + bad = raw.

    Attributes:
        resent_events, resent_letters, resent_recommendations: What crashes led to, and what is harmless: messages in
            a topic more than once.
    """

    raw: int
    users: int
    applied: int
    repeats: int
    late: int
    bad: int
    resent_events: int
    resent_letters: int
    resent_recommendations: int


class Load(threading.Thread):
    """Produces messages at a steady rate beside the test; waits for their acknowledgement at its end."""

    def __init__(self, pipeline: "Pipeline", messages: Sequence[Raw], per_second: float) -> None:
        super().__init__(name="load", daemon=True)
        self._pipeline = pipeline
        self._messages = messages
        self._per_second = per_second
        self._cancelled = threading.Event()
        self.sent = 0

    def run(self) -> None:
        started = time.monotonic()
        step = max(1, round(self._per_second / 20))
        for first in range(0, len(self._messages), step):
            due = started + first / self._per_second
            if self._cancelled.wait(max(0.0, due - time.monotonic())):
                return
            self._pipeline.send(self._messages[first : first + step])
            self.sent = min(first + step, len(self._messages))
        self._pipeline.flush()

    def finish(self, timeout_s: float = 60.0) -> None:
        """Wait until everything is produced."""
        self.join(timeout_s)
        assert not self.is_alive(), f"only {self.sent} of {len(self._messages)} messages produced in {timeout_s:g} s"

    def cancel(self) -> None:
        """Produce no more."""
        self._cancelled.set()
        self.join()


class Pipeline:
    """Topics, workers and what they wrote. Use it as a context: leaving it ends every process.

    Args:
        directory: For the workers' logs.
        copies: Of each topic; with three, a write counts once two brokers have it.
        settings: More settings by variable without the prefix, such as {"EVOLVE__BATCH_USERS": "32"}.

    Attributes:
        environment: Of the workers, and for commands.
        generation: Whose watermarks and rows are waited for and checked; None: of the one that is served.
        deleted, deleted_ids: What was in raw topics that were deleted and made anew, as `oracle.check_log` takes it.
    """

    def __init__(
        self,
        directory: Path,
        bootstrap_servers: str,
        redis_url: str,
        names: Names,
        bundle: Path,
        *,
        partitions: int = 4,
        copies: int = 1,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.names = names
        self.partitions = partitions
        self.copies = copies
        self.workers: list[Worker] = []
        self.generation: str | None = None
        self.deleted: list[Message] = []
        self.deleted_ids: dict[str, str] = {}
        self._servers = bootstrap_servers
        self._loads: list[Load] = []
        self._undelivered: list[str] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")},
            "PYTHONPATH": str(_REPOSITORY),
            "DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            "DRIFTLINE_KAFKA__SESSION_TIMEOUT_S": str(SESSION_S),
            "DRIFTLINE_REDIS__URL": redis_url,
            "DRIFTLINE_REDIS__KEY_PREFIX": names.key_prefix,
            "DRIFTLINE_TOPICS__SOURCES": json.dumps(names.types),
            "DRIFTLINE_TOPICS__INTERACTIONS": names.interactions,
            "DRIFTLINE_TOPICS__RECOMMENDATIONS": names.recommendations,
            "DRIFTLINE_TOPICS__DEAD_LETTERS": names.dead_letters,
            "DRIFTLINE_INGEST__GROUP": names.ingest_group,
            "DRIFTLINE_EVOLVE__GROUP": names.evolve_group,
            "DRIFTLINE_MODEL__BUNDLE": str(bundle),
            "DRIFTLINE_MODEL__PROVIDER": "cpu",
            "DRIFTLINE_LOG__FORMAT": "console",
            **{f"DRIFTLINE_{name}": value for name, value in (settings or {}).items()},
        }
        self._admin = LogAdmin(KafkaSettings(bootstrap_servers=bootstrap_servers), names.ingest_group)
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=5)
        self._producer = KafkaProducer(
            {"bootstrap.servers": bootstrap_servers, "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        for load in self._loads:
            load.cancel()
        for worker in self.workers:
            worker.kill()
        self._admin.close()
        self._redis.close()
        if error is not None:
            error.add_note(self.tails())

    def tails(self) -> str:
        """The ends of all workers' logs."""
        return "\n".join(worker.tail() for worker in self.workers)

    # Topics

    def create_topics(self) -> None:
        """Make those that do not exist: two partitions each, the interactions as many as asked for."""
        names = self.names
        for name in (*names.types, names.recommendations, names.dead_letters):
            self.create_topic(name, _RAW_PARTITIONS)
        self.create_topic(names.interactions, self.partitions)

    def create_topic(self, name: str, partitions: int) -> None:
        """Make a topic if it does not exist."""
        self._admin.create_topic(name, partitions, self.copies, {"min.insync.replicas": str(max(1, self.copies - 1))})

    def topic_id(self, name: str) -> str:
        """Kafka's own id of a topic."""
        return self._admin.topics([name])[name].topic_id

    def produce(self, messages: Iterable[Raw]) -> None:
        """Produce and wait until Kafka has everything."""
        self.send(messages)
        self.flush()

    def send(self, messages: Iterable[Raw]) -> None:
        """Hand messages to the producer."""
        for message in messages:
            while True:
                try:
                    self._producer.produce(message.topic, message.value, message.key, on_delivery=self._delivered)
                except BufferError:
                    self._producer.poll(0.1)
                else:
                    break
        self._producer.poll(0)

    def producer_knows(self, topic: str, partitions: int) -> bool:
        """Whether the producer sees so many partitions of a topic, each with a leader; it asks Kafka anew."""
        found = self._producer.list_topics(topic, timeout=10).topics[topic].partitions.values()
        return len(found) == partitions and all(partition.leader >= 0 for partition in found)

    def flush(self) -> None:
        """Wait until Kafka has what was sent."""
        self._producer.flush()
        assert not self._undelivered, f"the test's own messages did not reach Kafka: {self._undelivered[:3]}"

    def load(self, messages: Sequence[Raw], per_second: float) -> Load:
        """Start producing beside the test."""
        load = Load(self, messages, per_second)
        self._loads.append(load)
        load.start()
        return load

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self._undelivered.append(str(error))

    def read(self, *topics: str) -> list[Message]:
        """Everything that is in the topics, each partition in its order."""
        wanted = [
            Partition(topic, number)
            for topic, found in self._admin.topics(topics).items()
            for number in range(found.partitions)
        ]
        ends = {partition: extent.end for partition, extent in self._admin.extents(wanted).items() if extent.end}
        consumer = Consumer({"bootstrap.servers": self._servers, "group.id": "reads", "enable.auto.commit": False})
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for topic, number in ends])
        messages: list[Message] = []
        while ends:
            for found in cast("list[Any]", consumer.consume(5000, 0.1)):
                if found.error() is not None:
                    raise KafkaException(found.error())
                place = Partition(found.topic(), found.partition())
                messages.append(
                    Message(
                        *place, found.offset(), found.timestamp()[1], found.key(), found.value(), found.headers() or ()
                    )
                )
                if found.offset() + 1 >= ends.get(place, 0):
                    ends.pop(place, None)
        consumer.close()
        return messages

    # Workers

    def start(
        self, service: str, *arguments: str, restarts: bool = True, command: Sequence[str] | None = None
    ) -> Worker:
        """Start `driftline ingest` or `driftline evolve`.

        Args:
            command: To run instead, each time.
            restarts: Start it again when it dies, as a supervisor would (a refusal, exit code 20, aside).
        """
        worker = self._worker(service, command or [sys.executable, "-m", "streams.cli", service, *arguments])
        worker.restarts = restarts
        worker.start()
        return worker

    def start_fused(self, step: str, call: int) -> Worker:
        """Start a worker that dies at a step of `crash_worker`; what the supervisor starts after it is a normal one."""
        service = "ingest" if step in crash_worker.INGEST_STEPS else "evolve"
        worker = self._worker(service, [sys.executable, "-m", "streams.cli", service])
        worker.start(crash_worker.command(step, call))
        return worker

    def run(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run `driftline` with these arguments to its end, as an operator would."""
        return subprocess.run(
            [sys.executable, "-m", "streams.cli", *arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def settings(self, **environment: str) -> Settings:
        """What its processes are set to, with some variables of one's own (without the prefix)."""
        more = {f"DRIFTLINE_{name}": value for name, value in environment.items()}
        return load_settings(environ={**self.environment, **more})

    def begin(self, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Start a Python program with the workers' settings; whoever starts it ends it."""
        more = {f"DRIFTLINE_{name}": value for name, value in environment.items()}
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.directory,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _worker(self, service: str, command: Sequence[str]) -> Worker:
        name = f"{service}-{len(self.workers)}"
        worker = Worker(name, command, self.environment, self.directory / f"{name}.log")
        self.workers.append(worker)
        return worker

    def tend(self) -> None:
        """Start again what died."""
        for worker in self.workers:
            code = worker.collect()
            if code is not None and worker.restarts and code != REFUSED:
                worker.start()

    def stop(self) -> list[int]:
        """End every process in order, all at the same time; returns their exit codes."""
        for worker in self.workers:
            worker.ask_to_stop()
        codes = [worker.wait_for_end() for worker in self.workers]
        return [code for code in codes if code is not None]

    # Waiting

    def wait_until(self, condition: Callable[[], object], timeout_s: float, message: str) -> None:
        """Wait for a condition while the supervisor goes on; Kafka or Redis being away counts as "not yet"."""
        checked_at = 0.0

        def ask() -> bool:
            nonlocal checked_at
            # Every answer costs Kafka or Redis some work, on the same two cores that the workers need.
            if time.monotonic() - checked_at < _CHECK_EVERY_S:
                return False
            self.tend()
            try:
                return bool(condition())
            except (LogError, redis.RedisError):
                return False
            finally:
                checked_at = time.monotonic()

        wait_until(ask, timeout_s, message)

    def wait_until_ready(self, *workers: Worker, timeout_s: float = 60.0) -> None:
        """Wait for /readyz of every worker."""
        names = ", ".join(worker.name for worker in workers)
        self.wait_until(lambda: all(w.is_ready() for w in workers), timeout_s, f"{names} is ready")

    def wait_until_exit(self, worker: Worker, timeout_s: float = 60.0) -> int:
        """Wait until a process of this worker ends by itself; returns its exit code."""
        before = len(worker.exits)
        self.wait_until(lambda: len(worker.exits) > before, timeout_s, f"{worker.name} ends")
        return worker.exits[before]

    def wait_until_applied(self, timeout_s: float) -> None:
        """Wait until every raw event is committed by ingest and every frame is below the watermark."""
        self.wait_until(self.is_applied, timeout_s, "everything is applied")

    def raw_partitions(self) -> list[Partition]:
        """Of every raw topic."""
        return [Partition(topic, number) for topic in self.names.types for number in range(_RAW_PARTITIONS)]

    def is_ingested(self) -> bool:
        """Whether ingest has committed every raw event."""
        committed = self.committed_raw()
        return all((committed[p] or 0) >= end for p, end in self.ends(self.raw_partitions()).items())

    def committed_raw(self) -> dict[Partition, int | None]:
        """The next offset that ingest has committed of each raw partition."""
        return self._admin.committed(self.raw_partitions())

    def ids_of_committed(self, topic: str) -> set[str | None]:
        """The ids of the raw topic that ingest's commits are of; None for a partition without a commit."""
        partitions = [partition for partition in self.raw_partitions() if partition.topic == topic]
        found = self._admin.committed_positions(partitions).values()
        return {None if position is None else position.topic_id for position in found}

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Where the log of each partition ends."""
        return {partition: extent.end for partition, extent in self._admin.extents(partitions).items()}

    def is_applied(self) -> bool:
        """Whether nothing waits anywhere. The raw topics first: what they lead to is then in the log."""
        if not self.is_ingested():
            return False
        frames = [Partition(self.names.interactions, number) for number in range(self.partitions)]
        ends = {partition.number: extent.end for partition, extent in self._admin.extents(frames).items()}
        return self.watermarks() == {number: end - 1 for number, end in ends.items()}

    def watermarks(self) -> dict[int, int]:
        """The offset of the last applied frame of each partition, -1 before the first."""
        found, served = {}, self.served()
        for number in range(self.partitions):
            offset = self._redis.hget(f"{self.names.key_prefix}:{served}:{{{number}}}:watermark", "offset")
            found[number] = -1 if offset is None else int(cast("bytes", offset))
        return found

    def applied_frames(self) -> int:
        """Frames applied so far, over all partitions."""
        return sum(offset + 1 for offset in self.watermarks().values())

    def committed_frames(self) -> dict[int, int]:
        """Of each partition the offset that the evolve group has committed; 0 without one."""
        frames = [Partition(self.names.interactions, number) for number in range(self.partitions)]
        with LogAdmin(KafkaSettings(bootstrap_servers=self._servers), self.names.evolve_group) as admin:
            return {partition.number: offset or 0 for partition, offset in admin.committed(frames).items()}

    def rows(self) -> dict[str, dict[str, bytes]]:
        """Every user's hash by its key."""
        pattern = f"{self.names.key_prefix}:*:user:*"
        keys = list(self._redis.scan_iter(match=pattern, count=1000))
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            hashes = cast("list[dict[bytes, bytes]]", pipe.execute())
        return {
            key.decode(): {name.decode(): value for name, value in fields.items()}
            for key, fields in zip(keys, hashes, strict=True)
        }

    def served(self) -> str:
        """The generation that is looked at."""
        if self.generation is not None:
            return self.generation
        raw = self._redis.get(f"{self.names.key_prefix}:generation")
        return "g1" if raw is None else str(json.loads(cast("bytes", raw))["generation"])

    def served_rows(self) -> dict[str, dict[str, bytes]]:
        """Those of `generation`."""
        prefix = f"{self.names.key_prefix}:{self.served()}:"
        return {key: row for key, row in self.rows().items() if key.startswith(prefix)}

    # The oracle

    def read_log(self) -> oracle.Log:
        """The interactions log, compared with the raw topics."""
        names = self.names
        return oracle.check_log(
            [*self.deleted, *self.read(*names.types)],
            self.read(names.interactions),
            self.partitions,
            names.types,
            self.deleted_ids,
        )

    def check(
        self, rule: oracle.Rule, model: oracle.Model | oracle.Versions, k: int = 10, log: oracle.Log | None = None
    ) -> "Account":
        """Compare everything that was written with the oracle; call it when everything is applied.

        Args:
            log: What `read_log` gave, where nothing was produced since.
        """
        names = self.names
        log = self.read_log() if log is None else log
        rows = self.served_rows()
        outcomes = oracle.check_rows(rows, log, rule, model, self.partitions, names.key_prefix, k, self.served())
        assert log.raw_count == outcomes.total() + len(log.bad)
        return Account(
            raw=log.raw_count,
            users=len(rows),
            applied=outcomes["applied"],
            repeats=outcomes["repeat"],
            late=outcomes["late"],
            bad=len(log.bad),
            resent_events=log.resent,
            resent_letters=oracle.check_dead_letters(self.read(names.dead_letters), log),
            resent_recommendations=oracle.check_recommendations(
                self.read(names.recommendations), rows, log, rule, model, k
            ),
        )
