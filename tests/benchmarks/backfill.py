"""Replaying a log: how many times as fast as live workers get through the same one, and in how much memory."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from streams.contracts.event import Event
from streams.contracts.frame import FrameBuilder, Source, encode_frame, partition_of
from streams.log.producer import Producer
from streams.log.topics import Topic
from tests.benchmarks.catch_up import Backlog, live_rate
from tests.benchmarks.report import Figure, Goal
from tests.benchmarks.rig import BenchmarkFailed, Rig
from tests.benchmarks.workload import EVENT_TYPE, ITEMS, PARTITIONS, activity, item_ids

_ROOT: Final = Path(__file__).resolve().parents[2]
_WORKERS: Final = 2
# What ingest makes of a backlog: a batch of events, spread over the partitions, is a frame of each.
_BATCH_EVENTS: Final = 5000
_MEBIBYTE: Final = 1024 * 1024
_FIRST_MS: Final = 1_767_225_600_000
_WATCH_S: Final = 0.1
# An event to the next, of all users together: ten a second.
_STEP_MS: Final = 100


def measure(
    rig: Rig,
    bundle: Path,
    model: str,
    *,
    runs: int,
    events: int,
    users: int,
    live_seconds: float,
    say: Callable[[str], None],
) -> list[Figure]:
    """Replay a log of so many events of so many users, in turn with a live worker that catches up on it."""
    backfill = Figure("Backfill", f"{_WORKERS} workers, {events:,} events of {users:,} users", model, "events/s")
    live = Figure("Backfill", "a live worker on the same log", model, "events/s")
    times = Figure("Backfill", "times as fast as live", model, "×", goal=Goal("least", 20))
    memory = Figure("Backfill", "a worker, peak resident", model, "MiB")
    backlog = write_log(rig, events, users)
    say(f"a log of {events:,} events is written")
    for run in range(runs):
        live.runs.append(live_rate(rig, backlog, bundle, live_seconds))
        rate, peak_bytes = _backfill(rig, backlog, bundle)
        backfill.runs.append(rate)
        memory.runs.append(peak_bytes / _MEBIBYTE)
        times.runs.append(rate / live.runs[-1])
        say(
            f"backfill, run {run + 1} of {runs}: {rate:,.0f} events/s, live {live.runs[-1]:,.0f}: {times.runs[-1]:.1f}×; "
            f"{memory.runs[-1]:,.0f} MiB a worker"
        )
    return [backfill, live, times, memory]


def write_log(rig: Rig, events: int, users: int) -> Backlog:
    """Write frames as ingest writes them when it catches up, of raw topics that there need not be."""
    interactions = rig.topic("interactions")
    producer = Producer(rig.settings().kafka)
    sources = [Source("clicks", "", number) for number in range(PARTITIONS)]
    builders = [FrameBuilder(_BATCH_EVENTS, 10 * _MEBIBYTE) for _ in sources]
    offsets = [0] * PARTITIONS
    time_ms = _FIRST_MS
    for batch in _batches(events, users):
        for user, item in batch:
            partition = partition_of(user, PARTITIONS)
            time_ms += _STEP_MS
            event = Event(user, item, session_id="session-00000000", value=1.0)
            builders[partition].add(event, sources[partition], offsets[partition], time_ms, EVENT_TYPE, time_ms, 150)
            offsets[partition] += 1
        for partition, builder in enumerate(builders):
            for frame in builder.take():
                producer.send(interactions.name, encode_frame(frame), partition=partition)
        producer.poll()
    producer.flush()
    return Backlog(Topic("clicks", "", PARTITIONS), interactions, events)


def _batches(events: int, users: int) -> Iterator[list[tuple[str, str]]]:
    """Who does what, some thousands at a time; activity and popularity fall as in the other benchmarks."""
    rng = np.random.default_rng(5)
    user_ids = [f"user-{number:08}" for number in range(users)]
    items = item_ids()
    until = np.cumsum(activity(users))
    for first in range(0, events, _BATCH_EVENTS):
        count = min(_BATCH_EVENTS, events - first)
        chosen = np.searchsorted(until, rng.random(count) * until[-1]).tolist()
        yield [
            (user_ids[user], items[item])
            for user, item in zip(chosen, rng.integers(0, ITEMS, count).tolist(), strict=True)
        ]


def _backfill(rig: Rig, backlog: Backlog, bundle: Path) -> tuple[float, int]:
    """Events a second of one backfill, from its start to its end, and the most that one of its workers took of memory."""
    generation = rig.name("replayed")
    environment = rig.environment(backlog.raw.name, backlog.interactions.name, rig.topic("recommendations").name)
    command = [
        sys.executable, "-m", "streams.cli", "backfill", "--generation", generation, "--workers", str(_WORKERS),
        "--bundle", str(bundle), "--execute", "--output", "json",
    ]  # fmt: skip
    peak_bytes = 0
    with subprocess.Popen(
        command,
        cwd=_ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None:
            peak_bytes = max(peak_bytes, _peak_bytes(process.pid))
            time.sleep(_WATCH_S)
        printed = "" if process.stdout is None else process.stdout.read()
    if process.returncode != 0:
        raise BenchmarkFailed(f"driftline backfill ended with status {process.returncode}")
    found = json.loads(printed)
    if found["events"] != backlog.events:
        raise BenchmarkFailed(f"driftline backfill replayed {found['events']} events of {backlog.events}")
    return float(found["events_per_second"]), peak_bytes


def _peak_bytes(command: int) -> int:
    """The most that one of a command's children has taken of memory so far."""
    peak = 0
    try:
        for child in psutil.Process(command).children():
            status = Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8")
            found = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
            peak = max(peak, int(found.split()[1]) * 1024)
    except (psutil.Error, OSError):
        pass  # it has just ended
    return peak
