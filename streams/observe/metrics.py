"""What the services measure, named for Prometheus: a unit in every name, and every known label from the start.

Cost of prometheus-client 0.26, best of five on one core of a 2.8 GHz Xeon: `Histogram.observe` 1.0 µs, `Counter.inc`
0.4 µs, `labels(...)` 1.0 µs more. So everything here is reported once a batch, never once an event; the freshness of
events, which needs one observation each, goes through `BatchHistogram`: 10 µs for 512 of them, where single calls take
500.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_STAGE_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_FRESHNESS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FRAME_EVENTS: Final = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
_BATCH_USERS: Final = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096)


class BatchHistogram(Collector):
    """A histogram that takes many observations at once; prometheus-client's own takes one.

    Args:
        name: With its unit at the end, such as "driftline_evolve_event_to_vector_seconds".
        documentation: One sentence.
        buckets: Upper bounds, ascending, without infinity.
        registry: Where it is collected.
    """

    def __init__(self, name: str, documentation: str, *, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds: NDArray[np.float64] = np.asarray(buckets, dtype=np.float64)
        self._labels = [*(str(float(bound)) for bound in buckets), "+Inf"]
        self._counts: NDArray[np.int64] = np.zeros(len(self._labels), dtype=np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe_many(self, values: NDArray[np.float64]) -> None:
        """Count every value, shape (n,). One below zero, as from an app whose clock is ahead, counts as zero."""
        values = np.maximum(values, 0.0)
        # "left": a value equal to a bound belongs below it, as in Prometheus ("le").
        counts = np.bincount(np.searchsorted(self._bounds, values, side="left"), minlength=len(self._labels))
        total = float(values.sum())
        with self._lock:
            self._counts += counts
            self._sum += total

    def observe(self, value: float) -> None:
        """Count one value."""
        value = max(value, 0.0)
        place = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[place] += 1
            self._sum += value

    def describe(self) -> Iterable[Metric]:
        """Return the family without samples: a registry refuses a second metric of the same name by it."""
        return [HistogramMetricFamily(self._name, self._documentation)]

    def collect(self) -> Iterable[Metric]:
        """Return the family with its samples as they are now."""
        with self._lock:
            cumulative, total = np.cumsum(self._counts), self._sum
        buckets = [(label, float(count)) for label, count in zip(self._labels, cumulative, strict=True)]
        return [HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)]


@dataclass(frozen=True)
class IngestMetrics:
    """What ingest measures.

    Attributes:
        events: By `outcome`: accepted, dead_lettered.
        dead_letters: By `reason`, the short codes of `streams.contracts.event`.
        frames: Frames sent.
        frame_events: Events a frame.
        batch_seconds: From a batch's first event read to its commit.
        produce_seconds: From the first frame of a batch sent to the last acknowledged.
        lag_events: Raw events in Kafka that are not read yet.
    """

    events: Counter
    dead_letters: Counter
    frames: Counter
    frame_events: Histogram
    batch_seconds: Histogram
    produce_seconds: Histogram
    lag_events: Gauge

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Self:
        """Make them on a registry, which must not have them yet."""
        prefix = "driftline_ingest"
        return cls(
            events=_by(
                "outcome",
                ("accepted", "dead_lettered"),
                Counter(f"{prefix}_events_total", "Raw events read.", ["outcome"], registry=registry),
            ),
            dead_letters=Counter(f"{prefix}_dead_letters_total", "Dead letters.", ["reason"], registry=registry),
            frames=Counter(f"{prefix}_frames_total", "Frames sent.", registry=registry),
            frame_events=Histogram(
                f"{prefix}_frame_events", "Events a frame.", buckets=_FRAME_EVENTS, registry=registry
            ),
            batch_seconds=_stage(f"{prefix}_batch_seconds", "From a batch's first event read to its commit.", registry),
            produce_seconds=_stage(f"{prefix}_produce_seconds", "From frames sent to all acknowledged.", registry),
            lag_events=Gauge(f"{prefix}_lag_events", "Raw events in Kafka that are not read yet.", registry=registry),
        )


@dataclass(frozen=True)
class EvolveMetrics:
    """What evolve measures.

    Attributes:
        events: By `outcome`: applied; repeat (an app sent it twice); resent (ingest did); late (older than a full
            window); erased (its user was, after it); control (it asks for something: `$erase`, `$identify`);
            dead_lettered.
        handed_over_events: In windows that became part of other users'; each is counted once more by its outcome there.
        dead_letters: By `reason`.
        users: Rows written.
        frames: Frames applied.
        recommendations: Recommendations acknowledged by Kafka.
        retries: By `operation`: store_open (at the start), store_read, store_swap, produce. One for each failed try that is
            repeated in place.
        swept_users: Rows of users without new events, encoded again because another model's version had written them.
        stale_swaps: Swaps that Redis refused because another worker had moved the watermark.
        batch_users: Users a batch.
        encode_seconds: Of one batch, as the other stages.
        rank_seconds: See above.
        store_read_seconds: See above.
        store_swap_seconds: See above.
        produce_seconds: From recommendations sent to all acknowledged.
        event_to_vector_seconds: From an event's time to its vector in Redis; replayed events count too.
        lag_frames: Frames in Kafka that are not applied yet.
        model: Labels of the model that serves, as `driftline_evolve_model_info`; set with `model.info({...})`.
    """

    events: Counter
    handed_over_events: Counter
    dead_letters: Counter
    users: Counter
    frames: Counter
    recommendations: Counter
    retries: Counter
    swept_users: Counter
    stale_swaps: Counter
    batch_users: Histogram
    encode_seconds: Histogram
    rank_seconds: Histogram
    store_read_seconds: Histogram
    store_swap_seconds: Histogram
    produce_seconds: Histogram
    event_to_vector_seconds: BatchHistogram
    lag_frames: Gauge
    model: Info

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Self:
        """Make them on a registry, which must not have them yet."""
        prefix = "driftline_evolve"
        return cls(
            events=_by(
                "outcome",
                ("applied", "repeat", "resent", "late", "erased", "control", "dead_lettered"),
                Counter(f"{prefix}_events_total", "Events taken from frames.", ["outcome"], registry=registry),
            ),
            handed_over_events=Counter(
                f"{prefix}_handed_over_events_total",
                "Events in windows that became part of other users' windows.",
                registry=registry,
            ),
            dead_letters=Counter(f"{prefix}_dead_letters_total", "Dead letters.", ["reason"], registry=registry),
            users=Counter(f"{prefix}_users_total", "Rows written.", registry=registry),
            frames=Counter(f"{prefix}_frames_total", "Frames applied.", registry=registry),
            recommendations=Counter(f"{prefix}_recommendations_total", "Recommendations sent.", registry=registry),
            retries=_by(
                "operation",
                ("store_open", "store_read", "store_swap", "produce"),
                Counter(f"{prefix}_retries_total", "Tries repeated in place.", ["operation"], registry=registry),
            ),
            swept_users=Counter(
                f"{prefix}_swept_users_total", "Rows of another model's version encoded again.", registry=registry
            ),
            stale_swaps=Counter(
                f"{prefix}_stale_swaps_total", "Swaps refused: another worker was first.", registry=registry
            ),
            batch_users=Histogram(f"{prefix}_batch_users", "Users a batch.", buckets=_BATCH_USERS, registry=registry),
            encode_seconds=_stage(f"{prefix}_encode_seconds", "Encoding one batch.", registry),
            rank_seconds=_stage(f"{prefix}_rank_seconds", "Ranking items for one batch.", registry),
            store_read_seconds=_stage(f"{prefix}_store_read_seconds", "Reading the rows of one batch.", registry),
            store_swap_seconds=_stage(f"{prefix}_store_swap_seconds", "Writing the rows of one batch.", registry),
            produce_seconds=_stage(f"{prefix}_produce_seconds", "From one batch sent to all acknowledged.", registry),
            event_to_vector_seconds=BatchHistogram(
                f"{prefix}_event_to_vector_seconds",
                "From an event's time to its vector in Redis.",
                buckets=_FRESHNESS_SECONDS,
                registry=registry,
            ),
            lag_frames=Gauge(f"{prefix}_lag_frames", "Frames in Kafka that are not applied yet.", registry=registry),
            model=Info(f"{prefix}_model", "The model that serves.", registry=registry),
        )


def new_registry() -> CollectorRegistry:
    """Return a registry that has the process's own figures: CPU seconds, resident bytes, open files (Linux)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


def _stage(name: str, documentation: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, documentation, buckets=_STAGE_SECONDS, registry=registry)


def _by(label: str, values: Iterable[str], counter: Counter) -> Counter:
    """Make the series of each value now, at zero: Prometheus does not see the first increase of a series that is new."""
    for value in values:
        counter.labels(**{label: value})
    return counter
