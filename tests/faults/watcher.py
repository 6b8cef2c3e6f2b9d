"""Looks at Redis all the time while faults happen: what must hold at every moment, and how long recoveries take."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from redis import Redis
from redis.exceptions import RedisError

from streams.errors import LogError
from streams.log.admin import LogAdmin
from streams.log.topics import Partition
from streams.settings import KafkaSettings
from tests.faults.stack import RedisPair
from tests.faults.traffic import USERS, FaultNames
from tests.integration.oracle import Log, Replay, Rule, partition_of, window_of

_EVERY_S: Final = 0.05
_COMMITS_EVERY_S: Final = 0.25
# Hot users have the most to lose; as many are looked at each time.
_WATCHED: Final = USERS[:12]
_AT_A_TIME: Final = 3


class Sample(NamedTuple):
    """A user's row as it was in the moment in which a frame was the last that was applied.

    Attributes:
        frame: The watermark of the user's partition, -1 before the first.
        state: None: there is no row.
    """

    user: str
    frame: int
    state: bytes | None


class _Recovery(NamedTuple):
    """A kill, and how far the logs were then.

    Attributes:
        raw: What ingest must have committed before frames count; nothing where it was evolve that was killed.
        frames: What must be applied; None until `raw` is committed.
    """

    killed_at: float
    raw: Mapping[Partition, int]
    frames: Mapping[int, int] | None


class Watcher(threading.Thread):
    """Reads watermarks and rows some twenty times a second, past the workers' proxy. Use it as a context.

    Attributes:
        violations: What must never be and was seen.
        recoveries_s: For each kill the time until everything that was in the log then was applied. That is not the killed
            worker's partitions only but all of them, so at least as long.
    """

    def __init__(self, servers: str, redis: RedisPair, names: FaultNames, partitions: int) -> None:
        super().__init__(name="watcher", daemon=True)
        self.violations: list[str] = []
        self.recoveries_s: list[float] = []
        self._redis = redis
        self._names = names
        self._partitions = partitions
        self._admin = LogAdmin(KafkaSettings(bootstrap_servers=servers), names.ingest_group)
        self._samples: set[Sample] = set()
        self._highest: dict[tuple[str, int], int] = {}
        self._is_losing = False
        self._losses = 0
        self._pending: list[_Recovery] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._turns = 0
        self._committed_at = 0.0

    def __enter__(self) -> "Watcher":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._admin.close()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        try:
            self._look_until_stopped()
        # In this thread nobody would see it, and a round that nobody watched would pass.
        except Exception as error:  # noqa: BLE001
            self.violations.append(f"the watcher broke: {error!r}")

    def _look_until_stopped(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            # Away, frozen or loading: nothing can be seen.
            with suppress(RedisError), self._redis.client() as client:
                self._look_while_it_is_primary(client)

    def killed(self, at: float, raw: Mapping[Partition, int], frames: Mapping[int, int] | None) -> None:
        """Measure the recovery from a kill."""
        with self._lock:
            self._pending.append(_Recovery(at, raw, frames))

    @property
    def is_recovered(self) -> bool:
        """Whether everything is applied that was in the log at any kill."""
        return not self._pending

    @contextmanager
    def lost_tail(self) -> Iterator[None]:
        """Redis loses its newest writes meanwhile, so that watermarks may be lower afterwards than they were before."""
        self._is_losing = True
        try:
            yield
        finally:
            with self._lock:
                self._highest = {}
                self._losses += 1
                self._is_losing = False

    def check_samples(self, log: Log, rule: Rule) -> int:
        """Check that every row, whenever it was looked at, was what the frames up to its watermark make of it.

        Returns:
            How many rows were checked.
        """
        by_user: dict[str, list[Sample]] = defaultdict(list)
        for sample in self._samples:
            by_user[sample.user].append(sample)
        for user, samples in by_user.items():
            replay, events = Replay(rule), iter(log.events[user])
            event = next(events, None)
            for sample in sorted(samples, key=lambda sample: sample.frame):
                while event is not None and log.frames[event.place] <= sample.frame:
                    replay.add(event)
                    event = next(events, None)
                found = [] if sample.state is None else window_of({"state": sample.state})
                assert found == replay.window, (
                    f"the row of {user} was not what the frames up to its watermark {sample.frame} make of it: "
                    f"{found}, expected {replay.window}"
                )
        return len(self._samples)

    def _look_while_it_is_primary(self, client: Redis) -> None:
        server = self._redis.primary
        while server is self._redis.primary and not self._stopping.wait(_EVERY_S):
            losses = self._losses
            generation, watermarks, states = self._look(client)
            with self._lock:
                # One that was read before a loss and one after it do not compare.
                if losses == self._losses and not self._is_losing:
                    self._check(generation, watermarks)
            self._samples.update(
                Sample(user, watermarks[partition_of(user, self._partitions)], state) for user, state in states.items()
            )
            self._measure(watermarks)

    def _look(self, client: Redis) -> tuple[str, dict[int, int], dict[str, bytes | None]]:
        """The generation that is served, its watermarks, and the rows of some users, as of one moment."""
        self._turns += 1
        first = self._turns * _AT_A_TIME % len(_WATCHED)
        users = _WATCHED[first : first + _AT_A_TIME]
        raw: Any = client.get(f"{self._names.key_prefix}:generation")
        generation = "g1" if raw is None else str(json.loads(raw)["generation"])
        prefix = f"{self._names.key_prefix}:{generation}"
        with client.pipeline(transaction=True) as pipe:
            for number in range(self._partitions):
                pipe.hget(f"{prefix}:{{{number}}}:watermark", "offset")
            for user in users:
                pipe.hget(f"{prefix}:{{{partition_of(user, self._partitions)}}}:user:{user}", "state")
            found: Sequence[bytes | None] = pipe.execute()
        offsets = [-1 if offset is None else int(offset) for offset in found[: self._partitions]]
        return generation, dict(enumerate(offsets)), dict(zip(users, found[self._partitions :], strict=True))

    def _check(self, generation: str, watermarks: Mapping[int, int]) -> None:
        for number, offset in watermarks.items():
            before = self._highest.get((generation, number), -1)
            if offset < before:
                self.violations.append(
                    f"the watermark of partition {number} of {generation} went back from {before} to {offset}"
                )
            self._highest[generation, number] = offset

    def _measure(self, watermarks: Mapping[int, int]) -> None:
        with self._lock:
            pending = list(self._pending)
        committed = self._commits() if any(recovery.frames is None for recovery in pending) else None
        left = []
        for recovery in pending:
            if recovery.frames is None and committed is not None and _reaches(committed.raw, recovery.raw):
                recovery = recovery._replace(frames=committed.frames)  # noqa: PLW2901
            if recovery.frames is not None and all(watermarks[n] >= end - 1 for n, end in recovery.frames.items()):
                self.recoveries_s.append(time.monotonic() - recovery.killed_at)
            else:
                left.append(recovery)
        with self._lock:
            self._pending[: len(pending)] = left

    def _commits(self) -> "_Commits | None":
        """What ingest has committed, and the frames that this has led to; None where it is not time, or Kafka is away."""
        now = time.monotonic()
        if now - self._committed_at < _COMMITS_EVERY_S:
            return None
        self._committed_at = now
        raw = [Partition(topic, number) for topic in self._names.types for number in range(2)]
        frames = [Partition(self._names.interactions, number) for number in range(self._partitions)]
        try:
            committed = {place: offset or 0 for place, offset in self._admin.committed(raw).items()}
            ends = {place.number: extent.end for place, extent in self._admin.extents(frames).items()}
        except LogError:
            return None
        return _Commits(committed, ends)


class _Commits(NamedTuple):
    raw: Mapping[Partition, int]
    frames: Mapping[int, int]


def _reaches(committed: Mapping[Partition, int], wanted: Mapping[Partition, int]) -> bool:
    return all(committed[place] >= end for place, end in wanted.items())
