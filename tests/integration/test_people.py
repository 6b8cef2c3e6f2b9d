"""Erasing and identifying on a real Kafka and Redis, with workers killed around both, against plain sequential Python.

The oracle shares no code with the engine but that of `oracle.py`, which shares none either: it reads the interactions log
from its beginning, partition by partition, and does with each event what README says.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import pytest
import redis

from deploy.local.servers import KafkaServer, RedisServer
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from tests.integration.crash_worker import (
    AFTER_FORGET,
    AFTER_HANDOVER,
    AFTER_RECORD,
    AFTER_SWAP,
    BEFORE_HANDOVER,
)
from tests.integration.oracle import Event, Message, Replay, Rule, partition_of, unsent, window_of
from tests.integration.pipeline import Names, Pipeline, Raw, Worker
from tests.integration.waiting import wait_until

RULE = Rule(longest=20, keep=10)
ITEMS = [f"item-{number}" for number in range(100)]
KILLED = -signal.SIGKILL
PARTITIONS = 4
# How long something may take on a machine that is busy with other things.
pytestmark = pytest.mark.timeout(600)
# Small frames and batches, so that a step is reached often.
SETTINGS = {"INGEST__FRAME_EVENTS": "10", "EVOLVE__BATCH_USERS": "20"}
START_MS = 1_700_000_000_000


def simulated_people(names: Names, count: int, seed: int) -> list[Raw]:
    """What 40 people and their 40 devices do; devices turn out to be people, and people ask to be erased."""
    rng = random.Random(seed)
    messages = []
    for number in range(count):
        person, device = f"person-{rng.randrange(40)}", f"device-{rng.randrange(40)}"
        kind = rng.random()
        if kind < 0.03:
            asked = {"user_id": person, "type": "$erase"}
            key = person
        elif kind < 0.10:
            asked = {"user_id": person, "type": "$identify", "anonymous_id": device}
            key = device
        else:
            key = rng.choice((person, device))
            asked = {"user_id": key, "item_id": rng.choice(ITEMS)}
            if rng.random() < 0.3:
                asked["event_id"] = f"event-{number}-{seed}"
        late_ms = rng.randrange(300_000) if rng.random() < 0.15 else 0
        value = {**asked, "event_time": START_MS + number * 1000 - late_ms}
        messages.append(Raw(rng.choice((names.clicks, names.views)), key, json.dumps(value).encode()))
    return messages


# The oracle


class Read(NamedTuple):
    """An event of a frame, with its source, and when it came into Kafka."""

    event: Event
    source: tuple[str, str, int]
    offset: int
    appended_ms: int


def read_frame(message: Message) -> Iterator[Read]:
    """A frame's events; that of an app's that has no id gets its place for one."""
    version, sources, source, offsets, appended, users, items, types, times, ids, _ = msgspec.msgpack.decode(
        message.value or b""
    )
    assert version == 1
    for row, offset in enumerate(offsets):
        topic, topic_id, partition = sources[source[row]]
        shown = f"{topic}-{partition}-{offset}" if ids[row] is None else ids[row]
        place = (topic, partition, offset)
        event = Event(users[row], items[row], types[row], times[row], shown, ids[row] is not None, place)
        yield Read(event, (topic, topic_id, partition), offset, appended[row])


@dataclass
class People:
    """What the log leads to.

    Attributes:
        windows: Of everybody who has one.
        erased_ms: When each of the erased was, the last time.
        handed_over: By the partition that it comes from what each `$identify` must hand over, in order.
        handovers: By the partition that they come from the events in handovers, by their offset; each as it came first.
        ended: `$erase` and `$identify` events that had something to end.
    """

    windows: dict[str, Replay] = field(default_factory=dict)
    erased_ms: dict[str, int] = field(default_factory=dict)
    handed_over: dict[int, list[tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(list))
    handovers: dict[int, dict[int, tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(dict))
    again: int = 0

    def take(self, one: Read, partition: int, interactions: str) -> None:
        """An event that was not taken before."""
        event, user = one.event, one.event.user
        if event.place[0] == interactions:
            self.handovers[event.place[1]][one.offset] = (user, *event.entry)
        else:
            assert partition == partition_of(user, PARTITIONS)
        if event.type == "$erase":
            self.windows.pop(user, None)
            self.erased_ms[user] = max(one.appended_ms, self.erased_ms.get(user, 0))
        elif one.appended_ms <= self.erased_ms.get(user, 0):
            return
        elif event.type == "$identify":
            window = self.windows.pop(user, None)
            if window is not None:
                self.handed_over[partition] += [(event.item, *entry) for entry in window.window]
        else:
            self.windows.setdefault(user, Replay(RULE)).add(event)


def follow(frames: Iterable[Message], interactions: str) -> People:
    """Read the log: each event counts where it lies first."""
    people = People()
    seen: set[tuple[int, tuple[str, str, int], int]] = set()
    for message in frames:
        for one in read_frame(message):
            place = (message.partition, one.source, one.offset)
            if place in seen:
                people.again += 1
                continue
            seen.add(place)
            people.take(one, message.partition, interactions)
    return people


def check(pipeline: Pipeline, client: redis.Redis) -> People:
    """Compare everything in Redis with the oracle; call it when everything is applied."""
    names = pipeline.names
    people = follow(pipeline.read(names.interactions), names.interactions)
    assert len(people.erased_ms) > 5
    assert sum(map(len, people.handed_over.values())) > 20
    for partition in range(PARTITIONS):
        handed = people.handovers[partition]
        assert [handed[offset] for offset in sorted(handed)] == people.handed_over[partition]
    rows = {key.partition(":user:")[2]: row for key, row in pipeline.rows().items()}
    assert rows.keys() == people.windows.keys()
    for user, expected in people.windows.items():
        assert window_of(rows[user]) == expected.window, user
        assert expected.last is not None
        trigger = json.loads(rows[user]["recommendations"])["trigger"]
        assert (trigger["topic"], trigger["partition"], trigger["offset"]) == expected.last.place, user
    recorded: Any = client.hgetall(f"{names.key_prefix}:erasures")
    assert {digest.decode(): int(time_ms) for digest, time_ms in recorded.items()} == {
        blake2b(user.encode(), digest_size=16).hexdigest(): time_ms for user, time_ms in people.erased_ms.items()
    }
    assert not any(user.encode() in key for key in client.scan_iter(f"{names.key_prefix}:erasures*") for user in rows)
    # A backfill's lists are nobody's news.
    live = {key: row for key, row in pipeline.rows().items() if json.loads(row["recommendations"])["mode"] == "live"}
    assert unsent(pipeline.read(names.recommendations), live) == []
    return people


# The rows of another generation


def put_row_elsewhere(client: redis.Redis, key_prefix: str, user: str) -> str:
    """A row in a generation that nobody serves or fills; returns its key."""
    record = {
        "name": "g2", "model_name": "other", "model": "0123456789ab", "space": "s", "bundle": "/models/other",
        "created_ms": 1, "origin": "backfill",
    }  # fmt: skip
    client.hset(f"{key_prefix}:generations", "g2", json.dumps(record))
    client.set(f"{key_prefix}:g2:partitions", PARTITIONS)
    key = f"{key_prefix}:g2:{{{partition_of(user, PARTITIONS)}}}:user:{user}"
    client.hset(key, "state", b"of before")
    return key


# Fixtures


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "bundle"
    write_pooling_bundle(path, ITEMS, dim=8, window=WindowRule(max=RULE.longest, keep=RULE.keep))
    return path


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as opened:
        yield opened


@pytest.fixture
def pipeline(
    kafka: KafkaServer, redis_server: RedisServer, topic_prefix: str, bundle: Path, tmp_path: Path
) -> Iterator[Pipeline]:
    names = Names.under(topic_prefix)
    with Pipeline(tmp_path, kafka.bootstrap_servers, redis_server.url, names, bundle, settings=SETTINGS) as opened:
        opened.create_topics()
        yield opened


STEPS = (BEFORE_HANDOVER, AFTER_HANDOVER, AFTER_RECORD, AFTER_FORGET, AFTER_SWAP)


@pytest.fixture(scope="module")
def killed(
    kafka_session: KafkaServer, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, tuple[Pipeline, Worker, redis.Redis]]]:
    """One evolve worker for each step, side by side on one log: what one hands over the others find in it too."""
    if not kafka_session.is_running:
        kafka_session.start()
    logged = Names.under(f"people-{uuid4().hex[:8]}-")
    directory = tmp_path_factory.mktemp("killed")
    servers = kafka_session.bootstrap_servers
    with RedisServer(directory / "redis") as server, ExitStack() as stack:
        with Pipeline(directory, servers, server.url, logged, bundle, settings=SETTINGS) as ingesting:
            ingesting.create_topics()
            ingesting.produce(simulated_people(logged, 1500, seed=1))
            ingesting.start("ingest")
            ingesting.wait_until(ingesting.is_ingested, 60, "ingest has committed every event")
        client = stack.enter_context(redis.Redis.from_url(server.url))
        found = {}
        for step in STEPS:
            (directory / step).mkdir()
            own = logged.with_evolve_of(Names.under(f"{logged.key_prefix}-{step}-"))
            pipeline = stack.enter_context(
                Pipeline(directory / step, servers, server.url, own, bundle, settings=SETTINGS)
            )
            pipeline.create_topics()
            found[step] = pipeline, pipeline.start_fused(step, 3), client
        for pipeline, worker, _ in found.values():
            assert pipeline.wait_until_exit(worker) == KILLED
        yield found


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_around_a_handover_or_an_erasure_leaves_each_done_once(
    step: str, killed: Mapping[str, tuple[Pipeline, Worker, redis.Redis]]
) -> None:
    # All of them: each may still hand over what the others then read.
    for pipeline, _, _ in killed.values():
        pipeline.wait_until(
            lambda: all(each.is_applied() for each, _, _ in killed.values()), 120, "every worker has applied the log"
        )
    pipeline, worker, client = killed[step]
    people = check(pipeline, client)
    assert people.again > 0
    assert worker.exits == [KILLED]


def test_random_kills_under_load(pipeline: Pipeline, client: redis.Redis) -> None:
    seed = random.SystemRandom().randrange(10**6)
    sys.stdout.write(f"\nseed {seed}\n")
    rng = random.Random(seed)
    elsewhere = put_row_elsewhere(client, pipeline.names.key_prefix, "person-0")
    workers = [pipeline.start(service) for service in ("ingest", "evolve", "evolve")]
    pipeline.wait_until_ready(*workers)
    messages = simulated_people(pipeline.names, 3000, seed)
    load = pipeline.load(messages, per_second=250)
    for at in sorted(rng.sample(range(200, 2800), 6)):
        pipeline.wait_until(lambda at=at: load.sent >= at, 60, f"{at} events are produced")  # type: ignore[misc]
        victim = rng.choice(workers)
        if victim.is_running:
            victim.signal(signal.SIGKILL)
    load.finish()
    pipeline.produce([Raw(pipeline.names.clicks, "person-0", b'{"user_id":"person-0","type":"$erase"}')])
    pipeline.wait_until_applied(120)
    assert not client.exists(elsewhere)
    people = check(pipeline, client)
    exits = [worker.exits for worker in workers]
    sys.stdout.write(f"people {len(people.windows)}, erased {len(people.erased_ms)}, exits {exits}\n")
    assert {code for codes in exits for code in codes} <= {KILLED}


def test_a_generation_that_is_filled_ahead_of_live_workers_leaves_to_them_what_only_they_do(
    pipeline: Pipeline, client: redis.Redis
) -> None:
    names = pipeline.names
    pipeline.wait_until_ready(pipeline.start("ingest"))
    # So that every partition begins with frames that ask for nothing.
    pipeline.produce(click(names, f"person-{number}", "item-1") for number in range(40))
    pipeline.wait_until(pipeline.is_ingested, 60, "the first events are in the log of frames")
    pipeline.produce(simulated_people(names, 1500, seed=6))
    pipeline.wait_until(pipeline.is_ingested, 60, "everything is in the log of frames")
    filled = asked(pipeline, "backfill", "--generation", "g2", "--execute")
    frames = len(pipeline.read(pipeline.names.interactions))
    asked(pipeline, "generations", "activate", "g2")
    taken = pipeline.applied_frames()
    assert 0 < taken < frames  # up to the first that asks for more
    assert filled["events"] > 0
    pipeline.start("evolve")
    pipeline.wait_until_applied(120)
    check(pipeline, client)


# The command


def driftline(pipeline: Pipeline, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", *arguments],
        env=pipeline.environment,
        cwd=pipeline.directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def asked(pipeline: Pipeline, *arguments: str) -> Any:
    finished = driftline(pipeline, *arguments, "--output", "json")
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def users(pipeline: Pipeline) -> set[str]:
    return {key.partition(":user:")[2] for key in pipeline.rows()}


def click(names: Names, user: str, item: str) -> Raw:
    return Raw(names.clicks, user, json.dumps({"user_id": user, "item_id": item}).encode())


def test_a_person_is_erased_by_a_command_and_begins_anew(pipeline: Pipeline, client: redis.Redis) -> None:
    names = pipeline.names
    elsewhere = put_row_elsewhere(client, names.key_prefix, "ana")
    client.hset(elsewhere, "state", msgspec.msgpack.encode([1, ["item-9"], ["click"], [1], ["e9"], False, b""]))
    pipeline.produce([click(names, "ana", "item-1"), click(names, "bea", "item-2")])
    services = [pipeline.start("ingest"), pipeline.start("evolve")]
    pipeline.wait_until(lambda: len(pipeline.rows()) == 3, 60, "both users have rows")

    dry = asked(pipeline, "erase", "ana")
    digest = blake2b(b"ana", digest_size=16).hexdigest()
    assert dry == {
        "executed": False, "user_digest": digest, "generations": ["g1", "g2"], "topic": names.clicks, "erased_at": None,
    }  # fmt: skip
    assert len(pipeline.rows()) == 3

    done = asked(pipeline, "erase", "ana", "--execute")
    assert (done["executed"], done["generations"]) == (True, ["g1", "g2"])
    assert users(pipeline) == {"bea"}
    assert client.hgetall(f"{names.key_prefix}:erasures") == {digest.encode(): str(done["erased_at"]).encode()}
    assert asked(pipeline, "erase", "ana")["generations"] == []

    pipeline.produce([click(names, "ana", "item-3")])
    pipeline.wait_until(lambda: users(pipeline) == {"ana", "bea"}, 60, "ana has a row again")
    (row,) = (row for key, row in pipeline.rows().items() if key.endswith(":ana"))
    assert [item for _, _, item, _ in window_of(row)] == ["item-3"]

    # With nobody there to do it, the command says so; it is done when somebody comes.
    for service in services:
        service.stop()
    late = driftline(pipeline, "erase", "ana", "--execute", "--timeout", "1")
    assert late.returncode == 1
    assert "after 1 s generation g1 still has the row" in late.stderr.replace("\n", " ")
    pipeline.start("ingest")
    pipeline.start("evolve")
    pipeline.wait_until(lambda: users(pipeline) == {"bea"}, 60, "ana's row is gone")


def test_a_backfill_of_raw_topics_or_files_merges_and_erases_as_live_workers_do(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    names = pipeline.names

    def identify(user: str, device: str) -> Raw:
        value = {"user_id": user, "type": "$identify", "anonymous_id": device}
        return Raw(names.clicks, device, json.dumps(value).encode())

    pipeline.start("ingest")
    pipeline.start("evolve")
    devices = [f"device-{number}" for number in range(8)]
    pipeline.produce(click(names, device, f"item-{number}") for number, device in enumerate(devices))
    # Wherever its partition is, at least one device is another partition's.
    pipeline.produce([click(names, "ana", "item-20"), click(names, "bea", "item-21"), click(names, "cleo", "item-22")])
    pipeline.produce(
        identify(user, device) for user, device in zip(["ana", "bea", "cleo", "dora"] * 2, devices, strict=True)
    )
    pipeline.produce(click(names, device, "item-30") for device in devices[:2])
    pipeline.wait_until_applied(120)
    # What is erased is what bea has by now, with what was handed over.
    pipeline.produce([Raw(names.clicks, "bea", b'{"user_id":"bea","type":"$erase"}'), identify("erwin", "cleo")])
    # Kafka may have acknowledged it within the millisecond, and what comes within that one is left out too.
    asked_ms = time.time() * 1000
    wait_until(lambda: time.time() * 1000 >= asked_ms + 1, 60, "the next millisecond")
    pipeline.produce([click(names, "bea", "item-40")])
    pipeline.wait_until_applied(120)
    pipeline.stop()

    def windows(generation: str) -> dict[str, Any]:
        mine = f"{names.key_prefix}:{generation}:"
        return {key.partition(":user:")[2]: window_of(row) for key, row in pipeline.rows().items() if mine in key}

    live = windows("g1")
    items = {user: {item for _, _, item, _ in window} for user, window in live.items()}
    assert items == {
        "ana": {"item-20", "item-0", "item-4"},
        "bea": {"item-40"},
        "erwin": {"item-22", "item-2", "item-6"},
        "dora": {"item-3", "item-7"},
        **{device: {"item-30"} for device in devices[:2]},
    }
    asked(pipeline, "backfill", "--raw", names.clicks, "--generation", "raw", "--workers", "2", "--execute")
    assert windows("raw") == live
    with (tmp_path / "log.jsonl").open("wb") as file:
        for message in sorted(pipeline.read(names.clicks), key=lambda each: (each.timestamp_ms, *each.place)):
            event = {**json.loads(message.value or b""), "event_time": message.timestamp_ms}
            file.write(json.dumps(event).encode() + b"\n")
    asked(pipeline, "backfill", str(file.name), "--generation", "files", "--workers", "2", "--execute")
    # There an event without an id is named by its line.
    assert {user: {item for _, _, item, _ in window} for user, window in windows("files").items()} == items


def test_a_person_with_a_pseudonym_is_found_and_erased_by_the_id(
    kafka: KafkaServer,
    redis_server: RedisServer,
    client: redis.Redis,
    topic_prefix: str,
    bundle: Path,
    tmp_path: Path,
) -> None:
    names = Names.under(topic_prefix)
    key = tmp_path / "pseudonyms.key"
    key.touch(0o600)
    key.write_text("a key of at least 16 bytes\n")
    settings = {**SETTINGS, "INGEST__PSEUDONYM_KEY_FILE": str(key)}
    with Pipeline(tmp_path, kafka.bootstrap_servers, redis_server.url, names, bundle, settings=settings) as pipeline:
        pipeline.create_topics()
        pipeline.produce(
            [
                click(names, "device-of-ana", "item-1"),
                Raw(
                    names.clicks,
                    "device-of-ana",
                    b'{"user_id":"ana","type":"$identify","anonymous_id":"device-of-ana"}',
                ),
            ]
        )
        pipeline.start("ingest")
        pipeline.start("evolve")
        pseudonym = blake2b(b"ana", key=b"a key of at least 16 bytes", digest_size=16).hexdigest()
        pipeline.wait_until(lambda: users(pipeline) == {pseudonym}, 60, "the window is ana's")
        shown = asked(pipeline, "users", "show", "ana")
        assert (shown["user_id"], [event["item_id"] for event in shown["window"]]) == (pseudonym, ["item-1"])
        sent = [*pipeline.read(names.interactions), *pipeline.read(names.recommendations)]
        assert not any(b"ana" in (message.value or b"") + (message.key or b"") for message in sent)
        asked(pipeline, "backfill", "--raw", names.clicks, "--generation", "g2", "--execute")
        assert [key.partition(":user:")[2] for key in pipeline.rows()] == [pseudonym] * 2
        assert asked(pipeline, "erase", "ana", "--execute")["generations"] == ["g1", "g2"]
        assert users(pipeline) == set()
        assert not list(client.scan_iter("*ana*"))
