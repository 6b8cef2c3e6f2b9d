"""The servers and processes that a benchmark runs on: a real Kafka, a real Redis, and services as their own processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from redis import Redis

from deploy.local.process import ServerProcess, free_port
from deploy.local.servers import KafkaServer, RedisServer
from models.bundle import Bundle, read_bundle
from streams.errors import LogUnavailable
from streams.log.admin import LogAdmin
from streams.log.topics import Partition, Topic
from streams.services.parts import open_engine
from streams.settings import Settings, load_settings
from streams.store.redis import RedisStore
from tests.benchmarks.workload import PARTITIONS, fill_store

_ROOT: Final = Path(__file__).resolve().parents[2]
_START_S: Final = 60.0
GENERATION: Final = "bench"


class BenchmarkFailed(RuntimeError):
    """A figure could not be measured; the message says what did not happen."""


class Rig(AbstractContextManager["Rig"]):
    """One Kafka and one Redis for all runs; each run has topics, groups and a filled Redis of its own.

    Args:
        broker: More settings of the broker.
    """

    def __init__(self, directory: Path, broker: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        # The servers' children inherit the environment; settings of the person's own must not reach them.
        for name in [name for name in os.environ if name.startswith("DRIFTLINE_")]:
            del os.environ[name]
        self.kafka = KafkaServer(directory / "kafka", properties=broker)
        self.redis = RedisServer(directory / "redis")
        self._snapshots: dict[Path, Path] = {}
        self._count = 0

    def __enter__(self) -> Self:
        self.kafka.start()
        try:
            self.redis.start()
        except BaseException:
            self.kafka.stop()
            raise
        settings = self.settings()
        self.admin = LogAdmin(settings.kafka)
        self.admin.create_topic(settings.topics.dead_letters, 1, 1, {})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.admin.close()
        self.redis.stop(save=False)
        self.kafka.stop()

    def name(self, stem: str) -> str:
        """A name that no topic or group had before."""
        self._count += 1
        return f"{stem}-{self._count}"

    def topic(self, stem: str, config: Mapping[str, str] = MappingProxyType({})) -> Topic:
        """Make a topic with a new name, and wait until the broker answers for all of it."""
        name = self.name(stem)
        self.admin.create_topic(name, PARTITIONS, 1, config)
        wait_for(lambda: self._is_ready(name), f"topic {name} has leaders")
        return self.admin.topics([name])[name]

    def end(self, topic: Topic) -> int:
        """How many messages were ever written to a topic."""
        partitions = [Partition(topic.name, number) for number in range(topic.partitions)]
        return sum(extent.end for extent in self.admin.extents(partitions).values())

    def environment(
        self, raw: str = "clicks", interactions: str = "interactions", recommendations: str = "recommendations"
    ) -> dict[str, str]:
        """The settings of one run, as variables; consumer groups are new."""
        return {
            "DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "DRIFTLINE_REDIS__URL": self.redis.url,
            "DRIFTLINE_REDIS__GENERATION": GENERATION,
            "DRIFTLINE_TOPICS__SOURCES": json.dumps({raw: "click"}),
            "DRIFTLINE_TOPICS__INTERACTIONS": interactions,
            "DRIFTLINE_TOPICS__RECOMMENDATIONS": recommendations,
            "DRIFTLINE_INGEST__GROUP": self.name("ingest"),
            "DRIFTLINE_EVOLVE__GROUP": self.name("evolve"),
            "DRIFTLINE_LOG__FORMAT": "json",
        }

    def settings(self, raw: str = "clicks", interactions: str = "interactions") -> Settings:
        """The same settings for this process."""
        return load_settings(environ=self.environment(raw, interactions))

    def fill(self, bundle: Path) -> None:
        """Put Redis back to where every run begins: every user has a full window, no partition a watermark."""
        if bundle in self._snapshots:
            self.redis.restore(self._snapshots[bundle])
            return
        settings = load_settings(
            {"model.bundle": bundle}, environ=self.environment()
        )  # fmt: skip
        store = RedisStore(settings.redis)
        engine, _ = open_engine(settings)
        with Redis.from_url(self.redis.url) as client:
            client.flushall()
            fill_store(store, engine, read_bundle(bundle), round(time.time() * 1000))
            for partition in range(PARTITIONS):
                client.delete(f"{settings.redis.key_prefix}:{GENERATION}:{{{partition}}}:watermark")
        store.close()
        self._snapshots[bundle] = self.redis.snapshot()

    def _is_ready(self, name: str) -> bool:
        try:
            for topic in self.admin.existing_topics([name]).values():
                self.end(topic)
                return True
        except LogUnavailable:
            pass
        return False

    @contextmanager
    def driftline(self, command: str, environment: Mapping[str, str], *flags: str) -> Iterator["Service"]:
        """Run `driftline COMMAND` as its own process until the block ends."""
        port = free_port()
        with self.process(
            command,
            ["-m", "streams.cli", command, *flags],
            {**environment, "DRIFTLINE_HTTP__PORT": str(port)},
            f"http://127.0.0.1:{port}/readyz",
        ) as service:
            yield service

    @contextmanager
    def process(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], ready: str | None = None
    ) -> Iterator["Service"]:
        """Run Python with these arguments until the block ends; wait for `ready` to answer 200 first."""
        directory = self.directory / self.name(name)
        directory.mkdir()
        process = ServerProcess(
            name,
            [sys.executable, *arguments],
            directory=directory,
            log=directory / "log",
            environment={**environment, "PYTHONPATH": str(_ROOT)},
        )
        service = Service(name, process)
        try:
            if ready is not None:
                wait_for(lambda: service.check() or _answers(ready), f"{name} is ready", _START_S)
            yield service
            service.check()
        finally:
            process.kill()


class Service:
    """A running process of a benchmark."""

    def __init__(self, name: str, process: ServerProcess) -> None:
        self.name = name
        self._process = process
        self.pid = process.pid

    def check(self) -> bool:
        """False while it runs.

        Raises:
            BenchmarkFailed: It has ended.
        """
        if self._process.exit_code() is not None:
            raise BenchmarkFailed(f"{self.name} ended in the middle of a run.\n{self._process.log_tail()}")
        return False

    def resident_bytes(self) -> int:
        """Its resident set."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def processor_seconds(self) -> float:
        """Processor time that it has used, user and system."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


class Assistant(AbstractContextManager["Assistant"]):
    """A child that takes one JSON object a line on its standard input and answers with one; it ends with its input."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        self.answer()

    def tell(self, **request: Any) -> None:
        """Send a request; `answer` waits for what it leads to."""
        if self._process.stdin is None:
            raise BenchmarkFailed("the child has no input; this is a bug")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            raise BenchmarkFailed(f"{self._process.args!r} ended with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        self.tell(**request)
        return self.answer()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Ask until it is so.

    Raises:
        BenchmarkFailed: It was not so in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"waited {timeout_s:g} s in vain until {what}")
        time.sleep(0.02)


def applied(store: RedisStore) -> int:
    """How many raw events are in Redis, by the watermarks.

    The raw topic is keyed by user and has as many partitions as `interactions`, so a partition's mark is the offset of
    the newest event applied there and no other partition has events of it.
    """
    watermarks = store.read_watermarks(range(PARTITIONS))
    return sum(
        offset + 1 for watermark in watermarks.values() if watermark is not None for offset in watermark.marks.values()
    )


def bundle_items(path: Path) -> tuple[Bundle, tuple[str, ...]]:
    """A bundle and the ids of its items."""
    bundle = read_bundle(path)
    return bundle, tuple(bundle.vocabulary.ids[1:])


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2.0) as response:
            return int(response.status) == 200
    except (URLError, OSError):
        return False
