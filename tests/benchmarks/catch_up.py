"""Catching up from the log: how many events a second, when there is nothing to wait for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streams.log.readers import TailReader
from streams.log.topics import Topic
from streams.store.redis import RedisStore
from tests.benchmarks.interference import processor_seconds
from tests.benchmarks.report import Figure, Goal
from tests.benchmarks.rig import Assistant, BenchmarkFailed, Rig, Service, applied, wait_for

_POLL_S = 0.02
# The first part of every run is warm-up: imports, the group's join, caches, the first calls of the model.
_WARM_SHARE = 0.15
# Of a backlog that is not applied to its end.
_WARM_EVENTS = 40_000


@dataclass(frozen=True, slots=True)
class Backlog:
    """Raw events that wait in Kafka, and the frames that a real ingest made of them."""

    raw: Topic
    interactions: Topic
    events: int


def produce_backlog(rig: Rig, generator: Assistant, events: int) -> Backlog:
    """Send raw events, and let ingest pack them."""
    raw, interactions = rig.topic("clicks"), rig.topic("interactions")
    generator.ask(topic=raw.name, events=events)
    with rig.driftline("ingest", rig.environment(raw.name, interactions.name)) as ingest:
        _wait_until_still(rig, interactions, ingest)
    return Backlog(raw, interactions, events)


def measure(
    rig: Rig,
    generator: Assistant,
    bundle: Path,
    model: str,
    *,
    runs: int,
    events: int,
    stock_seconds: float,
    say: Callable[[str], None],
) -> list[Figure]:
    """Catch up from frames, from raw events, and with the stock agent, in turn."""
    backlog = produce_backlog(rig, generator, events)
    frames = Figure("Catching up", "evolve, from interactions", model, "events/s")
    whole = Figure("Catching up", "ingest and evolve, from raw events", model, "events/s")
    frames.goal = Goal("ratio", 15) if model == "pooling" else None
    cost = Figure("Catching up", "processor time an event, all processes", model, "µs")
    for run in range(runs):
        frames.runs.append(_from_frames(rig, backlog, bundle))
        whole.runs.append(_from_raw(rig, backlog, bundle, cost))
        rate = _stock(rig, backlog, bundle, stock_seconds, cost)
        frames.stock.append(rate)
        whole.stock.append(rate)
        say(
            f"catching up, run {run + 1} of {runs}: {frames.runs[-1]:,.0f} from frames, "
            f"{whole.runs[-1]:,.0f} from raw events, stock {rate:,.0f} events/s; processor time "
            f"an event {cost.runs[-1]:,.0f}, stock {cost.stock[-1]:,.0f} µs"
        )
    return [frames, whole, cost]


def _from_frames(rig: Rig, backlog: Backlog, bundle: Path) -> float:
    rig.fill(bundle)
    environment = rig.environment(backlog.raw.name, backlog.interactions.name, rig.topic("recommendations").name)
    store = RedisStore(rig.settings(backlog.raw.name, backlog.interactions.name).redis)
    with rig.driftline("evolve", environment, "--bundle", str(bundle)) as evolve:
        return _rate(lambda: applied(store), evolve, backlog.events)


def live_rate(rig: Rig, backlog: Backlog, bundle: Path, seconds: float) -> float:
    """Events a second of a live worker that catches up for so long, or until it has."""
    rig.fill(bundle)
    environment = rig.environment(backlog.raw.name, backlog.interactions.name, rig.topic("recommendations").name)
    store = RedisStore(rig.settings(backlog.raw.name, backlog.interactions.name).redis)
    with rig.driftline("evolve", environment, "--bundle", str(bundle)) as evolve:
        warm = min(_WARM_EVENTS, backlog.events * _WARM_SHARE)
        wait_for(lambda: evolve.check() or applied(store) >= warm, "evolve is warm", 60.0)
        started, before = time.perf_counter(), applied(store)
        while applied(store) < backlog.events and time.perf_counter() - started < seconds:
            evolve.check()
            time.sleep(_POLL_S)
        return (applied(store) - before) / (time.perf_counter() - started)


def _from_raw(rig: Rig, backlog: Backlog, bundle: Path, cost: Figure) -> float:
    rig.fill(bundle)
    interactions = rig.topic("interactions")
    environment = rig.environment(backlog.raw.name, interactions.name, rig.topic("recommendations").name)
    store = RedisStore(rig.settings(backlog.raw.name, interactions.name).redis)
    with rig.driftline("evolve", environment, "--bundle", str(bundle)) as evolve, rig.driftline("ingest", environment):
        # Both have started by now, and ingest has read for some milliseconds.
        used = processor_seconds()
        # Ends a poll late at most; begins with the first frame, as Kafka's timestamp has it.
        wait_for(lambda: evolve.check() or applied(store) >= backlog.events, "the backlog is applied", 120.0)
        ended = time.time()
        cost.runs.append((processor_seconds() - used) * 1e6 / backlog.events)
    reader = TailReader(rig.settings(backlog.raw.name, interactions.name).kafka, [interactions], from_beginning=True)
    first = min(message.timestamp_ms for message in reader.read(backlog.events, 2.0))
    reader.close()
    return backlog.events / (ended - first / 1000)


def _stock(rig: Rig, backlog: Backlog, bundle: Path, seconds: float, cost: Figure) -> float:
    rig.fill(bundle)
    recommendations = rig.topic("recommendations")
    environment = rig.environment(backlog.raw.name, backlog.interactions.name, recommendations.name)
    arguments = ["-m", "tests.benchmarks.stock_agent"]
    with rig.process("stock", arguments, {**environment, "DRIFTLINE_MODEL__BUNDLE": str(bundle)}) as agent:
        # One recommendation an event.
        wait_for(lambda: agent.check() or rig.end(recommendations) >= 500, "the stock agent is warm", 60.0)
        started, before, used = time.perf_counter(), rig.end(recommendations), processor_seconds()
        time.sleep(seconds)
        after, ended = rig.end(recommendations), time.perf_counter()
        cost.stock.append((processor_seconds() - used) * 1e6 / (after - before))
    if after >= backlog.events:
        raise BenchmarkFailed(f"the stock agent applied all of {backlog.events} events: make the backlog larger")
    return (after - before) / (ended - started)


def _rate(progress: Callable[[], int], service: Service, events: int) -> float:
    wait_for(lambda: service.check() or progress() >= events * _WARM_SHARE, f"{service.name} is warm", 60.0)
    started, before = time.perf_counter(), progress()
    while progress() < events:
        service.check()
        if time.perf_counter() - started > 120:
            raise BenchmarkFailed(f"{service.name} applied {progress()} of {events} events in two minutes")
        time.sleep(_POLL_S)
    return (events - before) / (time.perf_counter() - started)


def _wait_until_still(rig: Rig, topic: Topic, service: Service) -> None:
    """Wait until nothing has been written for a while."""
    end, since = -1, time.monotonic()
    while end <= 0 or time.monotonic() - since < 1.5:
        service.check()
        found = rig.end(topic)
        if found != end:
            end, since = found, time.monotonic()
        time.sleep(0.1)
