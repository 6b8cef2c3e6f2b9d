import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streams.observe.metrics import BatchHistogram, EvolveMetrics, IngestMetrics, new_registry


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample as Prometheus would read it, by name and labels as written, but for times of creation."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_ingest_counts_what_it_is_told() -> None:
    registry = CollectorRegistry()
    metrics = IngestMetrics.on(registry)
    metrics.events.labels("accepted").inc(998)
    metrics.events.labels("dead_lettered").inc(2)
    metrics.dead_letters.labels("invalid_utf8").inc(2)
    metrics.frames.inc(8)
    metrics.frame_events.observe(120)
    metrics.batch_seconds.observe(0.02)
    metrics.produce_seconds.observe(0.003)
    metrics.lag_events.set(42)
    found = samples(registry)
    assert found["driftline_ingest_events_total{outcome=accepted}"] == 998
    assert found["driftline_ingest_events_total{outcome=dead_lettered}"] == 2
    assert found["driftline_ingest_dead_letters_total{reason=invalid_utf8}"] == 2
    assert found["driftline_ingest_frames_total"] == 8
    assert found["driftline_ingest_frame_events_bucket{le=100.0}"] == 0
    assert found["driftline_ingest_frame_events_bucket{le=300.0}"] == 1
    assert found["driftline_ingest_batch_seconds_sum"] == 0.02
    assert found["driftline_ingest_produce_seconds_count"] == 1
    assert found["driftline_ingest_lag_events"] == 42


def test_evolve_counts_what_it_is_told() -> None:
    registry = CollectorRegistry()
    metrics = EvolveMetrics.on(registry)
    metrics.events.labels("repeat").inc(3)
    metrics.retries.labels("store_swap").inc()
    metrics.stale_swaps.inc()
    metrics.users.inc(512)
    metrics.batch_users.observe(512)
    metrics.event_to_vector_seconds.observe_many(np.array([0.002, 0.2]))
    metrics.lag_frames.set(7)
    metrics.model.info({"version": "sasrec-1", "provider": "cpu"})
    found = samples(registry)
    assert found["driftline_evolve_events_total{outcome=repeat}"] == 3
    assert found["driftline_evolve_retries_total{operation=store_swap}"] == 1
    assert found["driftline_evolve_stale_swaps_total"] == 1
    assert found["driftline_evolve_users_total"] == 512
    assert found["driftline_evolve_batch_users_bucket{le=512.0}"] == 1
    assert found["driftline_evolve_event_to_vector_seconds_count"] == 2
    assert found["driftline_evolve_lag_frames"] == 7
    assert found["driftline_evolve_model_info{provider=cpu}{version=sasrec-1}"] == 1


def test_every_known_outcome_is_there_at_zero_before_anything_happened() -> None:
    registry = CollectorRegistry()
    IngestMetrics.on(registry)
    EvolveMetrics.on(registry)
    found = samples(registry)
    for name in (
        "driftline_ingest_events_total{outcome=accepted}",
        "driftline_ingest_events_total{outcome=dead_lettered}",
        *(
            f"driftline_evolve_events_total{{outcome={outcome}}}"
            for outcome in ("applied", "repeat", "resent", "late", "dead_lettered")
        ),
        *(
            f"driftline_evolve_retries_total{{operation={operation}}}"
            for operation in ("store_open", "store_read", "store_swap", "produce")
        ),
    ):
        assert found[name] == 0, name


def test_a_registry_refuses_the_same_metrics_twice() -> None:
    registry = CollectorRegistry()
    EvolveMetrics.on(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        EvolveMetrics.on(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        BatchHistogram("driftline_evolve_event_to_vector_seconds", "x", buckets=(1.0,), registry=registry)


def test_a_new_registry_measures_the_process() -> None:
    assert samples(new_registry())["process_resident_memory_bytes"] > 1_000_000


def test_a_batch_of_observations_falls_into_the_buckets_that_a_hand_count_gives() -> None:
    registry = CollectorRegistry()
    histogram = BatchHistogram("wait_seconds", "x", buckets=(0.1, 1.0, 10.0), registry=registry)
    # A value equal to a bound counts below it; -3 counts as 0; 11 and 500 are above every bound.
    histogram.observe_many(np.array([0.05, 0.1, 0.5, 1.0, 2.0, 11.0, 500.0, -3.0]))
    histogram.observe_many(np.array([]))
    histogram.observe(10.0)
    histogram.observe(-1.0)
    assert samples(registry) == {
        "wait_seconds_bucket{le=0.1}": 4,
        "wait_seconds_bucket{le=1.0}": 6,
        "wait_seconds_bucket{le=10.0}": 8,
        "wait_seconds_bucket{le=+Inf}": 10,
        "wait_seconds_count": 10,
        "wait_seconds_sum": pytest.approx(0.05 + 0.1 + 0.5 + 1 + 2 + 11 + 500 + 10),
    }


@given(st.lists(st.one_of(st.floats(0, 100), st.sampled_from([0.001, 0.5, 60.0]))))
def test_many_observations_at_once_are_written_as_prometheus_client_writes_one_by_one(values: list[float]) -> None:
    buckets = (0.001, 0.25, 0.5, 10.0, 60.0)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    BatchHistogram("wait_seconds", "x", buckets=buckets, registry=ours).observe_many(np.array(values))
    oracle = Histogram("wait_seconds", "x", buckets=buckets, registry=theirs)
    for value in values:
        oracle.observe(value)
    found, expected = samples(ours), samples(theirs)
    assert math.isclose(found.pop("wait_seconds_sum"), expected.pop("wait_seconds_sum"), abs_tol=1e-9)
    assert found == expected
