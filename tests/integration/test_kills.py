"""Nothing is lost and nothing counts twice, whatever dies: real processes, a real Kafka, a real Redis, and the oracle."""

import json
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from deploy.local.servers import KafkaServer, RedisServer
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from tests.integration.crash_worker import (
    AFTER_ACK,
    AFTER_ENCODE,
    AFTER_PRODUCE,
    AFTER_SWAP,
    BEFORE_RAW_COMMIT,
    BETWEEN_SWAPS,
    FREEZE_BEFORE_SWAP,
)
from tests.integration.oracle import Model, Rule, read_model, unsent
from tests.integration.pipeline import BAD_VALUES, REFUSED, Account, Names, Pipeline, Raw, Worker, shown_if_it_fails

RULE = Rule(longest=20, keep=10)
ITEMS = [f"item-{number}" for number in range(300)]
KILLED = -signal.SIGKILL
LOST_TAIL = 21
# How long something may take on a machine that is busy with other things; on an idle one no test needs 45 s.
pytestmark = pytest.mark.timeout(300)
# Small frames and batches, so that a step is reached often, and a batch is of several partitions.
SETTINGS = {"INGEST__FRAME_EVENTS": "20", "EVOLVE__BATCH_USERS": "40"}


def simulated_events(names: Names, count: int, seed: int) -> list[Raw]:
    """Clicks and views of 150 users, the first ones far busier, with repeats, late events and bad messages.

    Seven events in ten have no id of their own: only offsets can tell that they were sent again.
    """
    rng = random.Random(seed)
    users = [f"user-{number}" for number in range(150)]
    weights = [1 / (place + 3) for place in range(150)]
    messages: list[Raw] = []
    for number in range(count):
        topic = rng.choice((names.clicks, names.views))
        kind = rng.random()
        if kind < 0.01:
            messages.append(Raw(topic, f"bad-{number}", rng.choice(BAD_VALUES)))
            continue
        if kind < 0.03 and messages and messages[-1].topic == topic:
            messages.append(messages[-1])  # a client's retry
            continue
        delay = rng.randrange(300) if rng.random() < 0.15 else 0
        event = {
            "user_id": rng.choices(users, weights)[0],
            "item_id": rng.choice(ITEMS),
            "event_time": 1_700_000_000_000 + (number - delay) * 1000,
        }
        if rng.random() < 0.3:
            event["event_id"] = f"event-{number}-{seed}"
        # Views keyed by item: nothing may depend on how an app chooses its keys.
        key = event["user_id"] if topic == names.clicks else event["item_id"]
        messages.append(Raw(topic, str(key), json.dumps(event).encode()))
    return messages


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "bundle"
    write_pooling_bundle(path, ITEMS, dim=16, window=WindowRule(max=RULE.longest, keep=RULE.keep))
    return path


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return read_model(bundle)


@pytest.fixture(scope="module")
def logged(kafka_session: KafkaServer, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Names:
    """3,000 events that ingest has put into an interactions log, for tests that need evolve only."""
    if not kafka_session.is_running:
        kafka_session.start()
    names = Names.under(f"logged-{uuid4().hex[:8]}-")
    directory = tmp_path_factory.mktemp("logged")
    servers = kafka_session.bootstrap_servers
    with Pipeline(directory, servers, "redis://127.0.0.1:1/0", names, bundle, settings=SETTINGS) as pipeline:
        pipeline.create_topics()
        pipeline.produce(simulated_events(names, 3000, seed=1))
        pipeline.start("ingest")
        pipeline.wait_until(pipeline.is_ingested, 60, "ingest has committed every event")
    return names


@pytest.fixture
def names(topic_prefix: str) -> Names:
    return Names.under(topic_prefix)


@pytest.fixture
def pipeline(
    request: pytest.FixtureRequest,
    kafka: KafkaServer,
    redis_server: RedisServer,
    names: Names,
    bundle: Path,
    tmp_path: Path,
) -> Iterator[Pipeline]:
    """A pipeline with its topics on the session's Kafka and Redis; no worker is running."""
    with Pipeline(tmp_path, kafka.bootstrap_servers, redis_server.url, names, bundle, settings=SETTINGS) as opened:
        opened.create_topics()
        with shown_if_it_fails(request, opened):
            yield opened


def report(what: str, account: Account) -> None:
    """Shown by `pytest -s`, and with a failure."""
    sys.stdout.write(f"\n{what}: {account}\n")


STEPS = {
    AFTER_ENCODE: "recommendations are not sent yet",
    AFTER_PRODUCE: "recommendations are sent, rows not written",
    BETWEEN_SWAPS: "the first partition's rows are written, the others' not",
    AFTER_SWAP: "everything is written, nothing acknowledged",
    AFTER_ACK: "frames are acknowledged, but not committed",
}


@dataclass(frozen=True)
class Killed:
    """An evolve worker that was killed at one step, and started again.

    Attributes:
        frames: Applied when it died.
        unsent: Rows in Redis at that moment without their recommendation in Kafka.
    """

    pipeline: Pipeline
    worker: Worker
    code: int
    frames: int
    unsent: list[str]


@pytest.fixture(scope="module")
def killed(
    logged: Names, kafka_session: KafkaServer, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Killed]]:
    """One evolve worker for each step, side by side: each restart must wait until the dead worker's session is over."""
    directory = tmp_path_factory.mktemp("killed")
    with RedisServer(directory / "redis") as server, ExitStack() as stack:
        workers: dict[str, tuple[Pipeline, Worker]] = {}
        for step in STEPS:
            (directory / step).mkdir()
            own = logged.with_evolve_of(Names.under(f"{logged.key_prefix}-{step}-"))
            pipeline = stack.enter_context(
                Pipeline(directory / step, kafka_session.bootstrap_servers, server.url, own, bundle, settings=SETTINGS)
            )
            pipeline.create_topics()
            workers[step] = pipeline, pipeline.start_fused(step, 6)
        found = {}
        for step, (pipeline, worker) in workers.items():
            # Whoever is started next has to wait for the dead worker's session: nothing moves meanwhile.
            code = pipeline.wait_until_exit(worker)
            sent = pipeline.read(pipeline.names.recommendations)
            found[step] = Killed(pipeline, worker, code, pipeline.applied_frames(), unsent(sent, pipeline.rows()))
        yield found


@pytest.mark.parametrize("step", STEPS)
def test_evolve_killed_at_any_step_loses_nothing_and_counts_nothing_twice(
    step: str, killed: dict[str, Killed], model: Model
) -> None:
    found = killed[step]
    assert found.code == KILLED
    assert found.unsent == []
    assert found.frames > 0
    found.pipeline.wait_until_applied(90)
    assert found.frames < found.pipeline.applied_frames()
    account = found.pipeline.check(RULE, model)
    report(f"killed when {STEPS[step]}", account)
    if step in {AFTER_ENCODE, AFTER_SWAP, AFTER_ACK}:
        assert account.resent_recommendations == 0
    assert found.worker.exits == [KILLED]


def test_ingest_killed_between_send_and_commit_sends_again_what_evolve_then_drops(
    pipeline: Pipeline, names: Names, model: Model
) -> None:
    ingest = pipeline.start_fused(BEFORE_RAW_COMMIT, 4)
    pipeline.wait_until_ready(ingest, pipeline.start("evolve"))
    load = pipeline.load(simulated_events(names, 2000, seed=2), per_second=800)
    assert pipeline.wait_until_exit(ingest) == KILLED
    load.finish()
    pipeline.wait_until_applied(90)
    account = pipeline.check(RULE, model)
    report("ingest killed", account)
    assert account.resent_events > 0
    assert ingest.exits == [KILLED]


def test_workers_join_and_leave_under_load(pipeline: Pipeline, names: Names, model: Model) -> None:
    first = [pipeline.start("ingest"), pipeline.start("evolve")]
    pipeline.wait_until_ready(*first)
    load = pipeline.load(simulated_events(names, 4000, seed=3), per_second=400)
    pipeline.wait_until(pipeline.applied_frames, 60, "the first frames are applied")
    second = [pipeline.start("ingest"), pipeline.start("evolve")]
    pipeline.wait_until_ready(*second)
    pipeline.wait_until(
        lambda: second[1].metric("driftline_evolve_frames_total") > 3, 60, "the second evolve applies frames"
    )
    assert [worker.stop() for worker in first] == [0, 0]
    load.finish()
    pipeline.wait_until_applied(90)
    report("join and leave", pipeline.check(RULE, model))
    assert [worker.exits for worker in pipeline.workers] == [[], [], [], []]


def test_a_worker_frozen_past_its_session_and_woken_does_not_overwrite_its_successor(
    kafka: KafkaServer,
    redis_server: RedisServer,
    logged: Names,
    names: Names,
    bundle: Path,
    model: Model,
    tmp_path: Path,
) -> None:
    own = logged.with_evolve_of(names)
    with Pipeline(tmp_path, kafka.bootstrap_servers, redis_server.url, own, bundle, settings=SETTINGS) as pipeline:
        pipeline.create_topics()
        frozen = pipeline.start_fused(FREEZE_BEFORE_SWAP, 6)
        pipeline.wait_until(frozen.is_frozen, 60, "the first worker is frozen")
        pipeline.start("evolve")
        pipeline.wait_until_applied(90)
        pipeline.check(RULE, model)
        frozen.signal(signal.SIGCONT)
        pipeline.wait_until(
            lambda: frozen.metric("driftline_evolve_stale_swaps_total") > 0 or frozen.exits,
            60,
            "the woken worker finds its swap refused",
        )
        pipeline.wait_until_ready(frozen)
        account = pipeline.check(RULE, model)
        report(f"frozen, exits {frozen.exits}", account)


def test_redis_back_at_an_older_snapshot_is_noticed_and_the_log_is_read_again_from_there(
    kafka: KafkaServer, names: Names, bundle: Path, model: Model, tmp_path: Path
) -> None:
    with (
        RedisServer(tmp_path / "redis") as server,
        Pipeline(tmp_path, kafka.bootstrap_servers, server.url, names, bundle, settings=SETTINGS) as pipeline,
    ):
        pipeline.create_topics()
        pipeline.start("ingest")
        evolve = pipeline.start("evolve")
        load = pipeline.load(simulated_events(names, 3000, seed=4), per_second=500)
        pipeline.wait_until(lambda: pipeline.applied_frames() > 20, 60, "20 frames are applied")
        snapshot = server.snapshot()
        older = pipeline.applied_frames()
        pipeline.wait_until(lambda: pipeline.applied_frames() > older + 20, 60, "20 more are applied")
        server.restore(snapshot)
        assert pipeline.wait_until_exit(evolve) == LOST_TAIL
        load.finish()
        pipeline.wait_until_applied(90)
        report("older snapshot under load", pipeline.check(RULE, model))

        # Nothing arrives any more that could show it.
        server.restore(snapshot)
        assert pipeline.wait_until_exit(evolve) == LOST_TAIL
        pipeline.wait_until_applied(90)
        report("older snapshot, no load", pipeline.check(RULE, model))
        assert evolve.exits == [LOST_TAIL, LOST_TAIL]


def test_a_redis_emptied_under_a_worker_is_refused_at_its_restart_and_rebuilt_on_demand(
    pipeline: Pipeline, names: Names, redis_server: RedisServer, model: Model
) -> None:
    pipeline.start("ingest")
    evolve = pipeline.start("evolve")
    load = pipeline.load(simulated_events(names, 3000, seed=5), per_second=400)
    pipeline.wait_until(lambda: all(pipeline.committed_frames().values()), 60, "every partition has a commit")
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    assert pipeline.wait_until_exit(evolve) == LOST_TAIL
    assert pipeline.wait_until_exit(evolve) == REFUSED
    assert "driftline evolve --rebuild" in evolve.log.read_text()
    assert pipeline.rows() == {}

    load.finish()
    pipeline.start("evolve", "--rebuild")
    pipeline.wait_until_applied(90)
    report("rebuilt", pipeline.check(RULE, model))


def test_a_worker_that_starts_while_redis_has_no_memory_says_so_and_serves_once_it_has(
    pipeline: Pipeline, redis_server: RedisServer
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory", 1)
        try:
            evolve = pipeline.start("evolve")
            pipeline.wait_until(
                lambda: evolve.metric("driftline_evolve_retries_total", operation="store_open") > 0,
                60,
                "evolve has asked Redis in vain",
            )
            assert not evolve.is_ready()
        finally:
            client.config_set("maxmemory", 0)
    pipeline.wait_until_ready(evolve)
    assert evolve.exits == []


def test_kafka_killed_and_started_again_under_load(
    redis_server: RedisServer, names: Names, bundle: Path, model: Model, tmp_path: Path
) -> None:
    with (
        KafkaServer(tmp_path / "kafka") as server,
        Pipeline(tmp_path, server.bootstrap_servers, redis_server.url, names, bundle, settings=SETTINGS) as pipeline,
    ):
        pipeline.create_topics()
        workers = [pipeline.start("ingest"), pipeline.start("evolve")]
        load = pipeline.load(simulated_events(names, 3000, seed=7), per_second=400)
        pipeline.wait_until(lambda: pipeline.applied_frames() > 20, 60, "20 frames are applied")
        server.kill()
        server.start()
        load.finish()
        pipeline.wait_until_applied(90)
        report(f"kafka restarted, exits {[worker.exits for worker in workers]}", pipeline.check(RULE, model))


def test_random_kills_of_everything_under_load(pipeline: Pipeline, names: Names, model: Model) -> None:
    seed = random.SystemRandom().randrange(10**6)
    sys.stdout.write(f"\nseed {seed}\n")
    rng = random.Random(seed)
    workers = [pipeline.start(service) for service in ("ingest", "ingest", "evolve", "evolve")]
    pipeline.wait_until_ready(*workers)
    load = pipeline.load(simulated_events(names, 5000, seed), per_second=250)
    kills_at = sorted(rng.sample(range(200, 4800), 10))
    for at in kills_at:
        pipeline.wait_until(lambda at=at: load.sent >= at, 30, f"{at} events are produced")  # type: ignore[misc]
        victim = rng.choice(workers)
        if victim.is_running:
            victim.signal(signal.SIGKILL)
    load.finish()
    pipeline.wait_until_applied(90)
    account = pipeline.check(RULE, model)
    exits = [worker.exits for worker in workers]
    report(f"random kills, seed {seed}, exits {exits}", account)
    assert {code for codes in exits for code in codes} == {KILLED}
