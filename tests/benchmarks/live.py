"""Live: how many events a second can be kept up with, and how fresh vectors are at a given rate."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Final

import numpy as np

from streams.log.topics import Topic
from streams.store.redis import RedisStore
from tests.benchmarks.report import Figure, Goal
from tests.benchmarks.rig import GENERATION, Assistant, BenchmarkFailed, Rig, Service, applied, wait_for
from tests.benchmarks.workload import watched_users

_SAMPLE_S: Final = 0.25
# A rate is kept up with if, over the second half of a step, less than half a second of events waits on average, and
# what waits grows by less than a twentieth of what comes in.
_MOST_WAITING_S: Final = 0.5
_MOST_GROWTH: Final = 0.05
# The top rate is looked for in steps of this factor.
_STEP: Final = 0.92
_FLOOR: Final = 50.0
# Events a second that the reader looks at: enough for a p99 in some seconds, too few to cost much.
_WATCHED_A_SECOND: Final = 80.0
_MOST_WATCHED: Final = 0.25
# At a new rate batches need a moment to find their size.
_SETTLE_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Something that takes raw events and leaves vectors in Redis, running and warm."""

    rig: Rig
    raw: Topic
    services: Sequence[Service]
    done: Callable[[], int]

    def waiting(self) -> int:
        """Raw events that are in Kafka and not in Redis."""
        for service in self.services:
            service.check()
        done = self.done()
        return self.rig.end(self.raw) - done


@contextmanager
def driftline(rig: Rig, bundle: Path) -> Iterator[Pipeline]:
    """One ingest and one evolve."""
    rig.fill(bundle)
    raw, interactions, recommendations = rig.topic("clicks"), rig.topic("interactions"), rig.topic("recommendations")
    environment = rig.environment(raw.name, interactions.name, recommendations.name)
    store = RedisStore(rig.settings().redis)
    with ExitStack() as stack:
        services = [
            stack.enter_context(rig.driftline("evolve", environment, "--bundle", str(bundle))),
            stack.enter_context(rig.driftline("ingest", environment)),
        ]
        yield Pipeline(rig, raw, services, lambda: applied(store))
        for service in services:
            service.check()
    store.close()


@contextmanager
def stock(rig: Rig, bundle: Path) -> Iterator[Pipeline]:
    """The stock agent."""
    rig.fill(bundle)
    raw, recommendations = rig.topic("clicks"), rig.topic("recommendations")
    environment = rig.environment(raw.name, recommendations=recommendations.name)
    environment["DRIFTLINE_MODEL__BUNDLE"] = str(bundle)
    with rig.process("stock", ["-m", "tests.benchmarks.stock_agent"], environment) as agent:
        # One recommendation an event, and it comes after the row.
        yield Pipeline(rig, raw, [agent], lambda: rig.end(recommendations))


@dataclass(frozen=True, slots=True)
class Step:
    """What came of sending at one rate for a while.

    Attributes:
        rate: Events a second that the generator really sent.
        applied: Events a second that were applied in the second half.
        kept_up: Whether what waited stayed small and did not grow.
    """

    rate: float
    applied: float
    kept_up: bool


def warm_broker(rig: Rig, generator: Assistant, bundle: Path, seconds: float) -> None:
    """Give a fresh broker the requests of a whole pipeline, until its compiler has seen them often enough.

    Measured at 1,000 events a second: a broker takes more than a core for most of its first minute, two thirds of one later.
    """
    with driftline(rig, bundle) as pipeline:
        generator.ask(topic=pipeline.raw.name, rate=1000, seconds=seconds)
        _drain(pipeline)


def top_rates(
    rig: Rig, generator: Assistant, bundle: Path, model: str, *, runs: int, seconds: float, say: Callable[[str], None]
) -> Figure:
    """The top sustainable rate of both, in turn, by the same procedure."""
    figure = Figure("Live", "top sustainable rate", model, "events/s")
    figure.goal = Goal("ratio", 5) if model == "pooling" else None
    ours, stocks = 4000.0, 800.0
    for run in range(runs):
        with driftline(rig, bundle) as pipeline:
            ours = top_rate(pipeline, generator, ours, seconds)
        figure.runs.append(ours)
        with stock(rig, bundle) as pipeline:
            stocks = top_rate(pipeline, generator, stocks, seconds)
        figure.stock.append(stocks)
        say(f"live, run {run + 1} of {runs}: {ours:,.0f}, stock {stocks:,.0f} events/s")
        ours, stocks = ours * 1.1, stocks * 1.1
    return figure


def freshness(
    rig: Rig,
    generator: Assistant,
    bundle: Path,
    model: str,
    *,
    runs: int,
    seconds: float,
    rates: Sequence[float],
    top: Figure | None,
    say: Callable[[str], None],
) -> list[Figure]:
    """How long from an event produced to its vector read, at each rate and at 80 % of the top rate."""
    wanted = [(f"{rate:,.0f} events/s", rate, rate) for rate in rates]
    if top is not None:
        wanted.append((f"80 % of top ({0.8 * top.value:,.0f}; stock {0.8 * median(top.stock):,.0f})",
                       0.8 * top.value, 0.8 * median(top.stock)))  # fmt: skip
    # A rate beyond what the stock agent keeps up with has no freshness: it grows as long as one measures.
    within = 0.0 if top is None else 0.8 * median(top.stock)
    figures = {}
    for name, rate, _ in wanted:
        goals = {50: Goal("value", 20), 99: Goal("value", 100)} if rate == 1000 and model == "pooling" else {}
        for percentile in (50, 99):
            figures[name, percentile] = Figure(
                "Freshness", f"{name}, p{percentile}", model, "ms", goal=goals.get(percentile)
            )
    with Assistant("tests.benchmarks.reader", f"127.0.0.1:{rig.redis.port}", key_prefix(rig)) as reader:
        for run in range(runs):
            for opening, is_stock in ((driftline, False), (stock, True)):
                chosen = [(name, theirs if is_stock else ours) for name, ours, theirs in wanted]
                if is_stock:
                    chosen = [(name, rate) for name, rate in chosen if rate <= within]
                if not chosen:
                    continue
                with opening(rig, bundle) as pipeline:
                    _warm_up(pipeline, generator)
                    for name, rate in chosen:
                        found = _freshness_ms(pipeline, generator, reader, rate, seconds)
                        for percentile in (50, 99):
                            figure = figures[name, percentile]
                            (figure.stock if is_stock else figure.runs).append(float(np.percentile(found, percentile)))
                        p50, p99 = np.percentile(found, [50, 99])
                        say(
                            f"freshness, run {run + 1} of {runs}, {'stock' if is_stock else 'Driftline'} at "
                            f"{rate:,.0f} events/s: p50 {p50:.1f} ms, p99 {p99:.1f} ms of {len(found)} events"
                        )
    return list(figures.values())


def _freshness_ms(
    pipeline: Pipeline, generator: Assistant, reader: Assistant, rate: float, seconds: float
) -> Sequence[float]:
    users = watched_users(min(_MOST_WATCHED, _WATCHED_A_SECOND / rate))
    generator.tell(topic=pipeline.raw.name, rate=rate, seconds=seconds + _SETTLE_S)
    time.sleep(_SETTLE_S)
    reader.ask(users=users)
    generator.answer()
    _drain(pipeline)
    found: list[float] = reader.ask(stop=True)["freshness_ms"]
    if not found:
        raise BenchmarkFailed(f"none of {len(users)} watched users' vectors changed at {rate:,.0f} events/s")
    return found


def top_rate(pipeline: Pipeline, generator: Assistant, guess: float, seconds: float) -> float:
    """The highest rate that is kept up with.

    Goes up until a rate is too high; what was applied then is nearly the top; goes down until a rate is kept up with.
    """
    _warm_up(pipeline, generator)
    best = 0.0
    rate = guess
    while (step := _step(pipeline, generator, rate, seconds)).kept_up:
        best, rate = step.rate, rate * 1.4
    # Under overload batches are larger and cheaper than they ever are without, so this is a little too high.
    rate = min(step.applied, step.rate * _STEP)
    while rate > max(best, _FLOOR):
        step = _step(pipeline, generator, rate, seconds)
        if step.kept_up:
            return step.rate
        rate *= _STEP
    if not best:
        raise BenchmarkFailed(f"not even {_FLOOR:g} events a second are kept up with")
    return best


def _step(pipeline: Pipeline, generator: Assistant, rate: float, seconds: float) -> Step:
    started = time.perf_counter()
    generator.tell(topic=pipeline.raw.name, rate=rate, seconds=seconds)
    samples = []
    while (elapsed := time.perf_counter() - started) < seconds:
        if elapsed >= seconds / 2:
            samples.append((time.perf_counter(), pipeline.done(), pipeline.waiting()))
        time.sleep(_SAMPLE_S)
    sent = generator.answer()
    _drain(pipeline)
    times, done, waiting = zip(*samples, strict=True)
    real = sent["sent"] / sent["seconds"]
    span = times[-1] - times[0]
    middle = len(waiting) // 2
    growth = (mean(waiting[middle:]) - mean(waiting[:middle])) / (span / 2)
    kept_up = mean(waiting) <= real * _MOST_WAITING_S and growth <= real * _MOST_GROWTH
    return Step(real, (done[-1] - done[0]) / span, kept_up)


def _warm_up(pipeline: Pipeline, generator: Assistant) -> None:
    generator.ask(topic=pipeline.raw.name, rate=300, seconds=3.0)
    _drain(pipeline)


def _drain(pipeline: Pipeline) -> None:
    wait_for(lambda: pipeline.waiting() <= 0, "what was sent is applied", 60.0)


def key_prefix(rig: Rig) -> str:
    """What the keys of every row begin with."""
    return f"{rig.settings().redis.key_prefix}:{GENERATION}"
