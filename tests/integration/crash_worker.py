"""A worker that dies, or freezes, at one step of the protocol: the real service, put together with wrappers.

    python crash_worker.py STEP CALL

does what `driftline evolve` (or `ingest`) does with the same environment, until STEP has been reached for the CALL-th
time; then it kills itself as a crash would (SIGKILL), stops itself as a frozen machine would (SIGSTOP), asks itself to stop
as a supervisor would (SIGTERM), or loses a frame on the way to Kafka.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client import CollectorRegistry

from streams.contracts.dead_letter import Headers
from streams.contracts.erasure import Erasure, Erasures
from streams.contracts.generation import Serving
from streams.errors import DeliveryFailed, DriftlineError
from streams.interest.engine import StageSeconds, UserEvents, UserRow, UserUpdate, UserWindow
from streams.interest.window import Advance, Arrival
from streams.log.producer import Producer
from streams.observe.health import Health
from streams.observe.http import serve_http
from streams.observe.logs import configure_logging
from streams.observe.metrics import EvolveMetrics, IngestMetrics
from streams.services.applier import EngineLike, Outbox, Received
from streams.services.evolve import Evolve
from streams.services.ingest import Ingest
from streams.services.parts import Parts, Served, open_served
from streams.settings import Settings, load_settings
from streams.store.protocol import Swap, SwapResult
from streams.store.redis import RedisErasures, RedisGenerations, RedisStore

AFTER_ENCODE = "after-encode"
AFTER_PRODUCE = "after-produce"
BETWEEN_SWAPS = "between-swaps"
AFTER_SWAP = "after-swap"
BEFORE_HANDOVER = "before-handover"
AFTER_HANDOVER = "after-handover"
AFTER_RECORD = "after-record"
AFTER_FORGET = "after-forget"
AFTER_ACK = "after-ack"
FREEZE_BEFORE_SWAP = "freeze-before-swap"
TERM_BEFORE_SWAP = "term-before-swap"
BEFORE_RAW_COMMIT = "before-raw-commit"
LOSE_FRAME = "lose-frame"
INGEST_STEPS = frozenset({BEFORE_RAW_COMMIT, LOSE_FRAME})

_SIGNALS = {FREEZE_BEFORE_SWAP: signal.SIGSTOP, TERM_BEFORE_SWAP: signal.SIGTERM}


def command(step: str, call: int) -> list[str]:
    """What to run for this."""
    return [sys.executable, __file__, step, str(call)]


@dataclass
class Fuse:
    """Ends, freezes or asks to stop this process at the ``call``-th time that ``step`` is reached."""

    step: str
    call: int

    def reached(self, step: str) -> bool:
        """Count a call of this step; True for the one that it must end at."""
        if step != self.step:
            return False
        self.call -= 1
        return self.call == 0

    def burn(self) -> None:
        """Do it."""
        os.kill(os.getpid(), _SIGNALS.get(self.step, signal.SIGKILL))

    def at(self, step: str) -> None:
        """Both of it."""
        if self.reached(step):
            self.burn()


class FusedEngine:
    """Dies when everything is encoded, and nothing of it has left the process."""

    def __init__(self, inner: EngineLike, fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    @property
    def model_name(self) -> str:
        return self._inner.model_name

    @property
    def model_version(self) -> str:
        return self._inner.model_version

    def encode(self, windows: Sequence[UserWindow], now_ms: int) -> list[UserRow]:
        return self._inner.encode(windows, now_ms)

    def verify(self) -> None:
        self._inner.verify()

    def advance(self, user: UserEvents) -> Advance[Arrival]:
        return self._inner.advance(user)

    def evolve(self, users: Sequence[UserEvents], now_ms: int, seconds: StageSeconds | None = None) -> list[UserUpdate]:
        updates = self._inner.evolve(users, now_ms, seconds)
        self._fuse.at(AFTER_ENCODE)
        return updates


class FusedOutbox:
    """Dies when the recommendations are acknowledged, and the store knows nothing of them; or so with a handover."""

    def __init__(self, inner: Outbox, fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse
        self._handed_over = False

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: Headers = (),
    ) -> None:
        self._handed_over = self._handed_over or partition >= 0
        self._inner.send(topic, value, key, partition, headers)

    def flush(self) -> None:
        if self._handed_over:
            self._fuse.at(BEFORE_HANDOVER)
        self._inner.flush()
        if self._handed_over:
            self._handed_over = False
            self._fuse.at(AFTER_HANDOVER)
        else:
            self._fuse.at(AFTER_PRODUCE)


class FusedStore(RedisStore):
    """Dies around a swap: before it, when one partition of several is written, or when all are."""

    fuse: Fuse

    def swap(self, swaps: Sequence[Swap]) -> Sequence[SwapResult]:
        self.fuse.at(FREEZE_BEFORE_SWAP)
        self.fuse.at(TERM_BEFORE_SWAP)
        if len(swaps) > 1 and self.fuse.reached(BETWEEN_SWAPS):
            super().swap(swaps[:1])
            self.fuse.burn()
        results = super().swap(swaps)
        self.fuse.at(AFTER_SWAP)
        return results


class FusedErasures(RedisErasures):
    """Dies when erasures are recorded, or when rows of other generations are gone as well, and the own ones are not."""

    fuse: Fuse

    def record(self, erasures: Erasures) -> None:
        super().record(erasures)
        self.fuse.at(AFTER_RECORD)

    def forget(self, erasures: Sequence[Erasure], topic_id: str, partitions: int) -> None:
        super().forget(erasures, topic_id, partitions)
        self.fuse.at(AFTER_FORGET)


class FusedEvolve(Evolve):
    """Dies when frames are acknowledged, and Kafka does not know that yet."""

    fuse: Fuse

    def _acknowledge(self, done: Sequence[Received]) -> None:
        super()._acknowledge(done)
        if done:
            self.fuse.at(AFTER_ACK)


class LossyFrames(Producer):
    """Loses a frame that was handed over, and says so, as librdkafka does when it has tried for long enough."""

    fuse: Fuse
    lost = False

    def send(self, topic: str, *message: Any, **more: Any) -> None:
        if self.fuse.reached(LOSE_FRAME):
            self.lost = True
            return
        super().send(topic, *message, **more)

    def flush(self) -> None:
        super().flush()
        if self.lost:
            raise DeliveryFailed("the test's own loss of a frame")


class FusedIngest(Ingest):
    """Loses a frame; or dies when frames are acknowledged by Kafka, and the raw offsets are not committed."""

    fuse: Fuse

    def __init__(self, settings: Settings, metrics: IngestMetrics, health: Health) -> None:
        super().__init__(settings, metrics, health)
        LossyFrames.fuse = self.fuse
        self._frames = LossyFrames(settings.kafka)

    def _commit(self, *, wait: bool) -> None:
        if self._uncommitted:
            self.fuse.at(BEFORE_RAW_COMMIT)
        super()._commit(wait=wait)


def run_evolve(settings: Settings, fuse: Fuse, health: Health, registry: CollectorRegistry) -> None:
    """As `driftline evolve`."""
    generations = RedisGenerations(settings.redis)

    def open_fused(serving: Serving) -> Served:
        served = open_served(settings, generations, serving)
        store = FusedStore(settings.redis, serving.generation)
        return replace(served, store=store, engine=FusedEngine(served.engine, fuse))

    outbox = FusedOutbox(Producer(settings.kafka), fuse)
    parts = Parts(generations.serving, open_fused, outbox, FusedErasures(settings.redis))
    FusedStore.fuse = FusedErasures.fuse = FusedEvolve.fuse = fuse
    asyncio.run(FusedEvolve(settings, parts, EvolveMetrics.on(registry), health).run())


def run_ingest(settings: Settings, fuse: Fuse, health: Health, registry: CollectorRegistry) -> None:
    """As `driftline ingest`."""
    FusedIngest.fuse = fuse
    service = FusedIngest(settings, IngestMetrics.on(registry), health)
    signal.signal(signal.SIGTERM, lambda *_: service.stop())
    service.run()


def main() -> None:
    """Read the step from the command line and the settings from the environment."""
    step, call = sys.argv[1:]
    run, service = (run_ingest, "ingest") if step in INGEST_STEPS else (run_evolve, "evolve")
    settings = load_settings({})
    configure_logging(settings.log.format, settings.log.level, service)
    registry = CollectorRegistry()
    health = Health(settings.evolve.stall_s)
    http = serve_http(settings.http.host, settings.http.port, default_port=0, health=health, registry=registry)
    if http is None:
        run(settings, Fuse(step, int(call)), health, registry)
        return
    with http:
        run(settings, Fuse(step, int(call)), health, registry)


if __name__ == "__main__":
    try:
        main()
    except DriftlineError as error:
        sys.exit(error.exit_code)
