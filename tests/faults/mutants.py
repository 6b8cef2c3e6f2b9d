"""Engines that are broken on purpose, each at one promise of the protocol: the harness must find every one.

    python mutants.py MUTANT SERVICE [CALL]

does what `driftline SERVICE` does with the same environment, wrongly. Where it is wrong it dawdles, so that whatever happens
at a random moment is likely to happen there; with CALL it dies there, the CALL-th time.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from prometheus_client import CollectorRegistry

from streams.contracts.dead_letter import DeadLetter
from streams.contracts.frame import Frame
from streams.contracts.generation import Serving
from streams.log.topics import Message, Partition
from streams.observe.health import Health
from streams.observe.http import serve_http
from streams.observe.logs import configure_logging
from streams.observe.metrics import EvolveMetrics, IngestMetrics
from streams.services.evolve import Evolve
from streams.services.ingest import Ingest
from streams.services.parts import Served, open_parts
from streams.settings import load_settings
from streams.store.protocol import Swap, SwapResult, Watermark
from streams.store.redis import RedisStore

_DAWDLE_S: Final = 0.5


class Weakness:
    """The moment in which a mutant is wrong."""

    def __init__(self, call: int) -> None:
        self._call = call

    def pass_by(self) -> None:
        """Dawdle there, or die."""
        self._call -= 1
        if self._call == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_DAWDLE_S)


class CommitsFirst(Ingest):
    """Commits what it has read before it sends it: who dies in between loses it."""

    weakness: Weakness

    def _pack(self, messages: Sequence[Message]) -> tuple[dict[int, list[Frame]], list[DeadLetter]]:
        packed = super()._pack(messages)
        self._reader.commit({Partition(m.topic, m.partition): m.offset + 1 for m in messages}, wait=True)
        self.weakness.pass_by()
        return packed


class SwapsBlindly(RedisStore):
    """Writes whatever the watermark says: who was away for a while overwrites what others wrote meanwhile."""

    weakness: Weakness

    def swap(self, swaps: Sequence[Swap]) -> Sequence[SwapResult]:
        self.weakness.pass_by()
        found = self.read_watermarks([swap.partition for swap in swaps])
        blind = [
            replace(swap, expected=None if (mark := found[swap.partition]) is None else mark.offset) for swap in swaps
        ]
        return super().swap(blind)


class ForgetsMarks(RedisStore):
    """Never knows which raw events were applied already: what ingest sends again counts again."""

    weakness: Weakness

    def read_watermarks(self, partitions: Sequence[int]) -> Mapping[int, Watermark | None]:
        found = super().read_watermarks(partitions)
        return {p: None if mark is None else replace(mark, marks={}) for p, mark in found.items()}


MUTANTS: Final = {"commits-first": "ingest", "swaps-blindly": "evolve", "forgets-marks": "evolve"}


def commands(mutant: str) -> dict[str, list[str]]:
    """What to run instead of the services."""
    service = MUTANTS[mutant]
    return {service: command(mutant)}


def command(mutant: str, call: int = 0) -> list[str]:
    """What to run; with ``call`` it dies where it is wrong, the ``call``-th time."""
    return [sys.executable, __file__, mutant, str(call)]


def main() -> None:
    """Read the mutant from the command line and the settings from the environment."""
    mutant, weakness = sys.argv[1], Weakness(int(sys.argv[2]))
    service = MUTANTS[mutant]
    settings = load_settings({})
    configure_logging(settings.log.format, settings.log.level, service)
    registry, health = CollectorRegistry(), Health(settings.evolve.stall_s)
    http = serve_http(settings.http.host, settings.http.port, default_port=0, health=health, registry=registry)
    if http is None:
        return
    with http:
        if service == "ingest":
            CommitsFirst.weakness = weakness
            ingest = CommitsFirst(settings, IngestMetrics.on(registry), health)
            signal.signal(signal.SIGTERM, lambda *_: ingest.stop())
            ingest.run()
            return
        kind = SwapsBlindly if mutant == "swaps-blindly" else ForgetsMarks
        kind.weakness = weakness
        parts = open_parts(settings)

        def open_broken(serving: Serving) -> Served:
            return replace(parts.open(serving), store=kind(settings.redis, serving.generation))

        broken = replace(parts, open=open_broken)
        asyncio.run(Evolve(settings, broken, EvolveMetrics.on(registry), health).run())


if __name__ == "__main__":
    main()
