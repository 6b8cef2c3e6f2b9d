"""Changing what is served while events come: how long recommendations stay away."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Final

from redis import Redis

from export.pooling import write_pooling_bundle
from streams.log.readers import ExtentsReader
from streams.log.topics import Partition, Topic
from tests.benchmarks.report import Figure, Goal
from tests.benchmarks.rig import GENERATION, Assistant, BenchmarkFailed, Rig
from tests.benchmarks.workload import PARTITIONS, item_ids
from tests.small_models import write_doubled_bundle

_ROOT: Final = Path(__file__).resolve().parents[2]
_RATE: Final = 500.0
# Longer than everything that is done meanwhile.
_SENDING_S: Final = 150.0
_WARM_UP_S: Final = 15.0
# What is looked at: from the command's start on, and what comes of it after its end.
_AFTER_S: Final = 8.0
_NOTHING: Final = "nothing is changed"
_IN_PLACE: Final = "another version takes over in place"
_FORTH: Final = "another generation is activated"
_BACK: Final = "the one before is activated again"


def measure(rig: Rig, generator: Assistant, model: str, *, runs: int, say: Callable[[str], None]) -> list[Figure]:
    """The longest time without a recommendation in any partition: while nothing is changed, and around each change."""
    first, second, other = (rig.directory / name for name in ("first", "second", "other"))
    config = write_pooling_bundle(first, item_ids()).config
    write_doubled_bundle(second, item_ids(), dim=config.dim, window=config.window)
    write_pooling_bundle(other, item_ids(), dim=config.dim - 8)
    figures = {
        what: Figure("Change", f"longest silence of a partition, {what}", model, "ms", goal=Goal("value", 1000))
        for what in (_NOTHING, _IN_PLACE, _FORTH, _BACK)
    }
    for run in range(runs):
        found = _silences_ms(rig, generator, first, second, other)
        for what, silence_ms in found.items():
            figures[what].runs.append(silence_ms)
        said = "; ".join(f"{what} {silence_ms:,.0f} ms" for what, silence_ms in found.items())
        say(f"change, run {run + 1} of {runs}, at {_RATE:,.0f} events/s: {said}")
    return list(figures.values())


def _silences_ms(rig: Rig, generator: Assistant, first: Path, second: Path, other: Path) -> dict[str, float]:
    with Redis.from_url(rig.redis.url) as client:
        client.flushall()
    raw, interactions = rig.topic("clicks"), rig.topic("interactions")
    # When the broker has them, not when they were handed to a producer.
    recommendations = rig.topic("recommendations", {"message.timestamp.type": "LogAppendTime"})
    environment = {
        **rig.environment(raw.name, interactions.name, recommendations.name),
        "DRIFTLINE_MODEL__BUNDLE": str(first),
        "DRIFTLINE_MODEL__REGISTRY": str(rig.directory / rig.name("registry")),
    }
    generation = rig.name("other")

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "streams.cli", *arguments],
            cwd=_ROOT,
            env={**os.environ, **environment, "PYTHONPATH": str(_ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BenchmarkFailed(f"driftline {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    looked_at: dict[str, tuple[float, float]] = {}

    def look(what: str, *arguments: str) -> None:
        since = time.time()
        if arguments:
            command(*arguments)
        time.sleep(_AFTER_S)
        looked_at[what] = since, time.time()

    with ExitStack() as stack:
        for service in ("evolve", "evolve", "ingest"):
            stack.enter_context(rig.driftline(service, environment))
        began = time.monotonic()
        generator.tell(topic=raw.name, rate=_RATE, seconds=_SENDING_S)
        time.sleep(_WARM_UP_S)
        look(_NOTHING)
        version = json.loads(command("model", "publish", str(second), "--output", "json"))["version"]
        look(_IN_PLACE, "model", "activate", version)
        command("backfill", "--generation", generation, "--bundle", str(other), "--workers", "1", "--execute")
        look(_FORTH, "generations", "activate", generation)
        command("backfill", "--generation", GENERATION, "--workers", "1", "--execute")
        look(_BACK, "generations", "activate", GENERATION)
        if time.monotonic() - began > _SENDING_S:
            raise BenchmarkFailed(f"the changes took longer than the {_SENDING_S:g} s in which events came")
        generator.answer()
    times = _times(rig, recommendations)
    return {
        what: max(_longest_silence_s(of_partition, *span) for of_partition in times) * 1000
        for what, span in looked_at.items()
    }


def _times(rig: Rig, topic: Topic) -> list[list[float]]:
    """When the broker got each message of a topic, in seconds since 1970, for each partition."""
    extents = rig.admin.extents([Partition(topic.name, number) for number in range(PARTITIONS)])
    times: list[list[float]] = [[] for _ in range(PARTITIONS)]
    with closing(ExtentsReader(rig.settings().kafka, extents)) as reader:
        while reader.unfinished:
            for message in reader.read(5000, 0.1):
                times[message.partition].append(message.timestamp_ms / 1000)
    return times


def _longest_silence_s(times: Sequence[float], since: float, until: float) -> float:
    inside = [since, *(each for each in times if since <= each <= until), until]
    return max(later - earlier for earlier, later in pairwise(inside))
