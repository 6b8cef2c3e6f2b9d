"""One round: a pipeline with traffic on it, what faults may do to it, and the judgement afterwards."""

import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, NamedTuple, Self, TypeVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.local.servers import KafkaCluster
from streams.errors import LogError
from streams.log.topics import Partition
from tests.faults.stack import COPIES, RedisPair
from tests.faults.traffic import RULE, FaultNames, Traffic
from tests.faults.watcher import Watcher
from tests.integration import crash_worker
from tests.integration.oracle import Versions
from tests.integration.pipeline import Account, Pipeline, Worker

# How long anything may take before it counts as stuck, on a machine that is busy with other things.
PATIENCE_S: Final = 300.0
# How long a step of the protocol may not be reached: not each worker has batches of several partitions.
_STEP_S: Final = 60.0
_STOP_S: Final = 120.0
KILLED: Final = -signal.SIGKILL
# Bundles beside the one that a round begins with: one that may take its place, and one whose vectors are others.
OTHER_VERSION: Final = "second"
OTHER_SPACE: Final = "third"
# Kafka or Redis did not answer in time, and a restart helps: on a slow machine that needs no fault.
_SURROUNDINGS: Final = frozenset({10, 11, 12, 13, 15})
_PARTITIONS: Final = 8
_Answer = TypeVar("_Answer")
# Small frames and batches, so that a step is reached often, and a batch is of several partitions.
_SETTINGS: Final = {
    "INGEST__FRAME_EVENTS": "20",
    "EVOLVE__BATCH_USERS": "40",
    "TOPICS__REPLICATION_FACTOR": str(COPIES),
    "EVOLVE__SWEEP_USERS_PER_SECOND": "500",
}


class Entry(NamedTuple):
    """A line of the history.

    Attributes:
        at_s: Seconds after the round began.
    """

    at_s: float
    what: str


@dataclass
class Tally:
    """What was done.

    Attributes:
        kills: Workers that died by SIGKILL.
        zombies: Workers that were frozen until others had their partitions, and woken.
    """

    kills: int = 0
    zombies: int = 0


class Round:
    """Use it as a context: leaving it ends every process but the cluster.

    Attributes:
        kafka: For what an operator does to topics.
        rng: What faults choose by; the same seed, the same choices.
        history: What was done, and when.
        may_end_with: Exit codes that workers may have, by what was done to them.
    """

    def __init__(
        self,
        directory: Path,
        cluster: KafkaCluster,
        bundle: Path,
        seed: int,
        *,
        workers: Mapping[str, int],
        commands: Mapping[str, Sequence[str]] = MappingProxyType({}),
        per_second: float = 100.0,
    ) -> None:
        directory.mkdir()
        self.cluster = cluster
        self.seed = seed
        self.rng = random.Random(seed)
        self.names = FaultNames.under(f"round-{seed}-{random.SystemRandom().randrange(10**9)}-")
        self.history: list[Entry] = []
        self.tally = Tally()
        self.may_end_with = {0, KILLED, *_SURROUNDINGS}
        self.redis = RedisPair(directory)
        self.bundle = bundle
        self._directory = directory
        self._wanted = workers
        self._commands = commands
        self._per_second = per_second
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        servers = self.cluster.bootstrap_servers
        with ExitStack() as stack:
            stack.enter_context(self.redis)
            self.pipeline = stack.enter_context(
                Pipeline(
                    self._directory,
                    servers,
                    self.redis.url,
                    self.names,
                    self.bundle,
                    partitions=_PARTITIONS,
                    copies=COPIES,
                    settings={**_SETTINGS, "MODEL__REGISTRY": str(self._directory / "registry")},
                )
            )
            self.kafka = AdminClient({"bootstrap.servers": servers, "log_level": 0})
            self.ask(self.pipeline.create_topics, "there are topics")
            self.watcher = stack.enter_context(Watcher(servers, self.redis, self.names, _PARTITIONS))
            self.traffic = Traffic(self.pipeline, self.names, self.seed, self._per_second)
            stack.callback(self.traffic.cancel)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def begin(self) -> None:
        """Start the workers and then the traffic."""
        self._began_at = time.monotonic()
        started = [self.start(service) for service, count in self._wanted.items() for _ in range(count)]
        self.pipeline.wait_until_ready(*started, timeout_s=PATIENCE_S)
        self.traffic.start()
        # A partition that loses its first watermark looks like one of an emptied Redis, which evolve rightly refuses.
        self.wait_until(lambda: min(self.pipeline.watermarks().values()) >= 0, "every partition is begun")

    def note(self, what: str) -> None:
        """Write a line of the history."""
        self.history.append(Entry(time.monotonic() - self._began_at, what))

    # Waiting

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait while the supervisor goes on; Kafka or Redis being away counts as "not yet"."""

        def is_so() -> object:
            try:
                return condition()
            except KafkaException:
                return False

        self.pipeline.wait_until(is_so, timeout_s, what)

    def pass_time(self, seconds: float) -> None:
        """Wait for nothing but time: for faults that consist in it."""
        end = time.monotonic() + seconds
        self.wait_until(lambda: time.monotonic() >= end, f"{seconds:g} s are over", seconds + PATIENCE_S)

    def wait_for_traffic(self, events: int) -> None:
        """Let so many events be produced."""
        wanted = self.traffic.sent + events
        self.wait_until(lambda: self.traffic.sent >= wanted, f"{events} more events are produced")

    def wait_until_recovered(self) -> None:
        """Wait until everything is applied that was in the log at any kill."""
        self.wait_until(lambda: self.watcher.is_recovered, "what was in the log when workers were killed is applied")

    def wait_for_progress(self) -> None:
        """Wait until everything is applied that is in the raw topics now."""
        raw = self.ask(self.raw_ends, "Kafka tells where the raw topics end")
        self.wait_until(lambda: self.is_committed(raw), "ingest has committed what was in the raw topics")
        frames = self.ask(self.frame_ends, "Kafka tells where the frames end")
        self.wait_until(lambda: self._is_applied(frames), "evolve has applied what was in the log")

    def ask(self, question: Callable[[], _Answer], what: str) -> _Answer:
        """The answer, once Kafka and Redis give one."""
        answers: list[_Answer] = []

        def ask() -> bool:
            answers.append(question())
            return True

        self.wait_until(ask, what)
        return answers[0]

    def raw_ends(self) -> dict[Partition, int]:
        """Where each raw partition ends."""
        return self.pipeline.ends(self.pipeline.raw_partitions())

    def frame_ends(self) -> dict[int, int]:
        """Where each partition of `interactions` ends."""
        found = self.pipeline.ends(Partition(self.names.interactions, number) for number in range(_PARTITIONS))
        return {partition.number: end for partition, end in found.items()}

    def is_committed(self, raw: Mapping[Partition, int]) -> bool:
        """Whether ingest has committed so far."""
        committed = self.pipeline.committed_raw()
        return all((committed[place] or 0) >= end for place, end in raw.items())

    def _is_applied(self, frames: Mapping[int, int]) -> bool:
        watermarks = self.pipeline.watermarks()
        return all(watermarks[number] >= end - 1 for number, end in frames.items())

    def operate(self, *arguments: str, refused: Sequence[str] = ()) -> bool:
        """Run a command until it works: Kafka or Redis may not be well yet.

        Args:
            refused: What it may say in refusing for good; then False is returned.
        """
        answers: list[bool] = []

        def is_answered() -> bool:
            finished = self.pipeline.run(*arguments, timeout_s=PATIENCE_S)
            assert "Traceback" not in finished.stderr, finished.stderr
            if finished.returncode == 0:
                answers.append(True)
            elif any(words in " ".join(finished.stderr.split()) for words in refused):
                answers.append(False)
            return bool(answers)

        self.wait_until(is_answered, f"driftline {' '.join(arguments)} works")
        return answers[0]

    # Workers

    def workers(self, service: str = "") -> list[Worker]:
        """Those of a service that the supervisor keeps running."""
        return [w for w in self.pipeline.workers if w.restarts and w.name.startswith(service)]

    def start(self, service: str) -> Worker:
        """Start a worker."""
        return self.pipeline.start(service, command=self._commands.get(service))

    def kill(self, *victims: Worker) -> None:
        """SIGKILL, all at the same time; the time to recover from each is measured."""
        killed = [worker for worker in victims if worker.is_running]
        for worker in killed:
            worker.signal(signal.SIGKILL)
        at = time.monotonic()
        self.tally.kills += len(killed)
        try:
            ends, raw = self.frame_ends(), self.raw_ends()
        except LogError:
            return  # Kafka is away: what was in the log is not known
        for worker in killed:
            if worker.name.startswith("ingest"):
                self.watcher.killed(at, raw, None)
            else:
                self.watcher.killed(at, {}, ends)

    def replace(self, worker: Worker, command: list[str]) -> None:
        """Kill a worker, and let the supervisor start something else in its place, once."""
        worker.next_time(command)
        self.kill(worker)

    def ends_at(self, worker: Worker, step: str, call: int) -> int | None:
        """Let the worker come to its end at a step; returns the exit code, None if it never came to that step."""
        before = len(worker.exits)
        self.replace(worker, crash_worker.command(step, call))
        try:
            self.wait_until(lambda: len(worker.exits) > before + 1, f"{worker.name} ends at {step}", _STEP_S)
        except TimeoutError:
            self.note(f"{worker.name} did not come to {step}")
            self.kill(worker)
            return None
        code = worker.exits[before + 1]
        if code == KILLED:
            self.tally.kills += 1
        return code

    def stop_in_order(self, *workers: Worker) -> list[int | None]:
        """SIGTERM, all at the same time, and start none again; returns their exit codes."""
        for worker in workers:
            worker.ask_to_stop()
        return [worker.wait_for_end(_STOP_S) for worker in workers]

    # The end

    def finish(self) -> None:
        """Wait until nothing moves any more and every worker is well, and stop everything in order."""
        self.traffic.stop()
        self.pipeline.wait_until_applied(PATIENCE_S)
        self.pipeline.wait_until_ready(*self.workers(), timeout_s=PATIENCE_S)
        self.watcher.stop()
        workers = self.workers()
        for worker, code in zip(workers, self.stop_in_order(*workers), strict=True):
            worker.exits.append(KILLED if code is None else code)

    def delete_topics(self) -> None:
        """Spare the brokers what is not looked at any more."""
        names = self.names
        topics = [*names.types, names.interactions, names.recommendations, names.dead_letters]
        for future in self.kafka.delete_topics(topics).values():
            with suppress(KafkaException):
                future.result()

    def judge(self, model: Versions) -> Account:
        """Compare everything with the oracle.

        Raises:
            AssertionError: Something is not as it must be.
        """
        assert not self.watcher.violations, "; ".join(self.watcher.violations[:5])
        log = self.ask(self.pipeline.read_log, "the topics can be read")
        account = self.ask(lambda: self.pipeline.check(RULE, model, log=log), "everything that was written can be read")
        self.watcher.check_samples(log, RULE)
        for worker in self.pipeline.workers:
            unexpected = set(worker.exits) - self.may_end_with
            assert not unexpected, (
                f"{worker.name} ended with {worker.exits}: nothing was done that explains {unexpected}"
            )
        return account
