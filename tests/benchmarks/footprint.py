"""What it costs to run: memory of Redis and of each process, and how long one script call holds Redis."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from redis import Redis

from streams.contracts.frame import partition_of
from streams.store.protocol import Swap, Watermark
from streams.store.redis import RedisStore
from tests.benchmarks.live import driftline, stock
from tests.benchmarks.report import Figure, Goal
from tests.benchmarks.rig import Assistant, Rig, wait_for
from tests.benchmarks.workload import PARTITIONS, USERS, user_ids

_ROWS: Final = 256
_ROUNDS: Final = 12
_MEBIBYTE: Final = 1024 * 1024


def memory(
    rig: Rig, generator: Assistant, bundle: Path, model: str, *, runs: int, say: Callable[[str], None]
) -> list[Figure]:
    """Redis's bytes a user with a full window, and the resident size of each process under load."""
    a_user = Figure("Memory", "Redis, a user", model, "bytes")
    processes = {name: Figure("Memory", f"{name}, resident", model, "MiB") for name in ("ingest", "evolve")}
    for run in range(runs):
        with driftline(rig, bundle) as pipeline:
            with Redis.from_url(rig.redis.url) as client:
                a_user.runs.append(_bytes_a_user(client))
            generator.ask(topic=pipeline.raw.name, events=20_000)
            wait_for(lambda waiting=pipeline.waiting: waiting() <= 0, "what was sent is applied", 60.0)  # type: ignore[misc]
            for service in pipeline.services:
                processes[service.name].runs.append(service.resident_bytes() / _MEBIBYTE)
        with stock(rig, bundle) as pipeline:
            generator.ask(topic=pipeline.raw.name, events=500)
            wait_for(lambda waiting=pipeline.waiting: waiting() <= 0, "what was sent is applied", 60.0)  # type: ignore[misc]
            processes["evolve"].stock.append(pipeline.services[0].resident_bytes() / _MEBIBYTE)
        say(
            f"memory, run {run + 1} of {runs}: {a_user.runs[-1]:,.0f} bytes a user, "
            + ", ".join(f"{name} {figure.runs[-1]:,.0f} MiB" for name, figure in processes.items())
        )
    return [a_user, *processes.values()]


def script(rig: Rig, bundle: Path, model: str, *, runs: int, say: Callable[[str], None]) -> list[Figure]:
    """How long one compare-and-swap of 256 users holds Redis, by Redis's own clock."""
    average = Figure("Script", f"one swap of {_ROWS} users, mean", model, "ms", goal=Goal("value", 5))
    longest = Figure("Script", f"one swap of {_ROWS} users, longest", model, "ms")
    rig.fill(bundle)
    store = RedisStore(rig.settings().redis)
    store.set_partitions(PARTITIONS)
    users: dict[int, list[str]] = {}
    for user in user_ids():
        users.setdefault(partition_of(user, PARTITIONS), []).append(user)
    rows = {
        partition: {
            record.user_id: record.row for user in some[:_ROWS] if (record := store.read_user(user)) is not None
        }
        for partition, some in users.items()
    }
    with Redis.from_url(rig.redis.url) as client:
        client.config_set("slowlog-max-len", 10_000)
        for run in range(runs + 1):  # the first is warm-up
            client.config_resetstat()
            client.slowlog_reset()
            client.config_set("slowlog-log-slower-than", 0)
            for turn in range(_ROUNDS):
                for partition, of_partition in rows.items():
                    offset = run * _ROUNDS + turn
                    expected = offset - 1 if offset else None
                    store.swap([Swap(partition, expected, Watermark(offset, "", PARTITIONS), of_partition)])
            client.config_set("slowlog-log-slower-than", 10_000)
            statistics: Any = client.info("commandstats")
            slow: Any = client.slowlog_get(10_000)
            calls = [entry["duration"] / 1000 for entry in slow if entry["command"].startswith(b"EVALSHA")]
            if run:
                average.runs.append(statistics["cmdstat_evalsha"]["usec_per_call"] / 1000)
                longest.runs.append(max(calls))
                say(f"script, run {run} of {runs}: mean {average.runs[-1]:.2f} ms, longest {longest.runs[-1]:.2f} ms")
    store.close()
    return [average, longest]


def _bytes_a_user(client: Any) -> float:
    """What 20,000 users add to an empty Redis: rows, keys and their share of the tables."""
    information = client.info("memory")
    return float(information["used_memory"] - information["used_memory_startup"]) / USERS
