"""A replayed log gives what live workers gave, row by row: real processes, a real Kafka, a real Redis, and the oracle."""

import heapq
import json
import random
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import psutil
import pytest
import redis

from deploy.local.servers import KafkaServer, RedisServer
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from streams.contracts.generation import Request
from streams.errors import DriftlineError
from streams.log.admin import LogAdmin
from streams.log.topics import Partition
from streams.services.backfill.planning import LEASE_MS, make_plan, open_target, record_plan
from streams.services.backfill.worker import FillingWorker, Limits
from streams.services.parts import open_engine
from streams.store.redis import RedisFilling
from tests.integration import crash_filler
from tests.integration.oracle import (
    Event,
    Log,
    Message,
    Model,
    Replay,
    Rule,
    check_close,
    check_rows,
    check_same_list,
    judge,
    read_frame,
    read_model,
    replay,
    window_of,
)
from tests.integration.pipeline import REFUSED, Names, Pipeline
from tests.integration.test_kills import simulated_events
from tests.integration.waiting import wait_until

RULE = Rule(longest=20, keep=10)
ITEMS = [f"item-{number}" for number in range(300)]
PARTITIONS: Final = 4
K: Final = 10
KILLED: Final = -signal.SIGKILL
USAGE: Final = 2
DATA: Final = 5
LOG_UNAVAILABLE: Final = 10
EVERY: Final = 5
Rows = dict[str, dict[str, bytes]]
Window = list[tuple[int, str, str, str]]
# How long something may take on a machine that is busy with other things.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "bundle"
    write_pooling_bundle(path, ITEMS, dim=16, window=WindowRule(max=RULE.longest, keep=RULE.keep))
    return path


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return read_model(bundle)


@dataclass(frozen=True)
class Live:
    """A log that live workers have applied, in generation g1; they are gone.

    Attributes:
        raw: All raw messages.
        rows: Of g1.
    """

    pipeline: Pipeline
    raw: list[Message]
    log: Log
    rows: Rows

    def backfill(self, generation: str, *arguments: str) -> dict[str, Any]:
        """Run the command to its end; what it prints."""
        done = self.pipeline.run("backfill", *arguments, "--generation", generation, "--output", "json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def rows_of(self, generation: str) -> Rows:
        prefix = f"{self.pipeline.names.key_prefix}:{generation}:"
        return {key: row for key, row in self.pipeline.rows().items() if key.startswith(prefix)}

    def everything(self) -> dict[bytes, Any]:
        """All that is in Redis."""
        with closing(self.redis()) as client:
            read: dict[Any, Any] = {b"string": client.get, b"hash": client.hgetall, b"set": client.smembers}
            return {key: read[client.type(key)](key) for key in client.scan_iter(count=1000)}

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.pipeline.settings().redis.url.get_secret_value())


@pytest.fixture(scope="module")
def live(kafka_session: KafkaServer, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Hot users, repeats, late events and bad ones, through a real ingest and a real evolve."""
    if not kafka_session.is_running:
        kafka_session.start()
    directory = tmp_path_factory.mktemp("live")
    names = Names.under(f"backfill-{uuid4().hex[:8]}-")
    settings = {"INGEST__FRAME_EVENTS": "20", "EVOLVE__BATCH_USERS": "40"}
    with (
        RedisServer(directory / "redis") as server,
        Pipeline(
            directory, kafka_session.bootstrap_servers, server.url, names, bundle,
            partitions=PARTITIONS, settings=settings,
        ) as pipeline,
    ):  # fmt: skip
        pipeline.create_topics()
        pipeline.produce(simulated_events(names, 6000, seed=11))
        pipeline.start("ingest")
        pipeline.start("evolve")
        pipeline.wait_until_applied(120)
        pipeline.stop()
        yield Live(pipeline, pipeline.read(names.clicks, names.views), pipeline.read_log(), pipeline.rows())


def by_user(rows: Rows) -> Rows:
    return {key.partition(":user:")[2]: row for key, row in rows.items()}


def windows(rows: Rows) -> dict[str, Window]:
    return {user: window_of(row) for user, row in by_user(rows).items()}


def check_equal(found: Rows, expected: Rows) -> None:
    """The same users, windows, vectors and lists, whatever the generation."""
    assert by_user(found).keys() == by_user(expected).keys()
    for user, row in by_user(expected).items():
        other = by_user(found)[user]
        assert other["state"] == row["state"], user
        assert "trigger" not in other
        vectors = [np.frombuffer(each["vector"], "<f4") for each in (other, row)]
        check_close(vectors[0], vectors[1], f"vector of user {user}")
        lists = [json.loads(each["recommendations"]) for each in (other, row)]
        check_same_list(user, lists[0]["items"], lists[1]["items"])
        reasons = [{item["item_id"]: item["because"] for item in each["items"]} for each in lists]
        assert all(reasons[1].get(item, because) == because for item, because in reasons[0].items()), user
        assert lists[0]["trigger"] == lists[1]["trigger"], user


def replayed(events: list[Event]) -> dict[str, Window]:
    """Every user's window after these events, in this order."""
    of_users: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        of_users[event.user].append(event)
    return {user: replay(some, RULE).window for user, some in of_users.items()}


def in_order_of_time(raw: list[Message], types: dict[str, str]) -> list[Event]:
    """Again and again the oldest of the messages that come next in their partitions, those that are events."""
    logs: dict[tuple[str, int], list[Message]] = defaultdict(list)
    for message in raw:
        logs[message.topic, message.partition].append(message)
    merged = heapq.merge(*logs.values(), key=lambda message: (message.timestamp_ms, *message.place))
    return [event for message in merged if (event := judge(message, types)) is not None]


# Interactions


def test_a_backfill_with_two_workers_gives_what_live_workers_gave(live: Live, model: Model) -> None:
    found = live.backfill("whole", "--workers", "2", "--execute")
    rows = live.rows_of("whole")
    check_equal(rows, live.rows)
    outcomes = check_rows(rows, live.log, RULE, model, PARTITIONS, live.pipeline.names.key_prefix, K, "whole")
    counted = [found[name] for name in ("events", "repeats", "late", "bad")]
    assert counted == [outcomes.total(), outcomes["repeat"], outcomes["late"], 0]
    # Live workers would go on behind the last frame, with the same marks.
    with closing(live.redis()) as client:
        for number in range(PARTITIONS):
            keys = [f"{live.pipeline.names.key_prefix}:{name}:{{{number}}}:watermark" for name in ("whole", "g1")]
            assert client.hgetall(keys[0]) == client.hgetall(keys[1])
    assert {json.loads(row["recommendations"])["mode"] for row in rows.values()} == {"replay"}


def test_two_machines_share_the_work(live: Live) -> None:
    with ExitStack() as stack:
        command = ["-m", "streams.cli", "backfill", "--generation", "shared", "--workers", "1", "--execute"]
        machines = [stack.enter_context(live.pipeline.begin(command)) for _ in range(2)]
        outcomes = [machine.communicate(timeout=120) for machine in machines]
        assert [machine.returncode for machine in machines] == [0, 0], outcomes
    check_equal(live.rows_of("shared"), live.rows)


def begin(live: Live, generation: str, request: Request) -> None:
    """Record a plan, as the command does before it starts workers."""
    settings = live.pipeline.settings(REDIS__GENERATION=generation)
    with open_target(settings, "g1", is_named=False) as target:
        record_plan(target, make_plan(target, request, 2, 1_800_000_000_000))


def kill_until_done(live: Live, generation: str, rng: random.Random) -> int:
    """Two workers at a time that kill themselves, until two come to the end; returns how many died."""
    deaths = 0
    while True:
        # Sooner or later one gets to the end.
        writes = [str(rng.randint(1, 15 + deaths)) for _ in range(2)]
        with ExitStack() as stack:
            workers = [
                stack.enter_context(
                    live.pipeline.begin([str(Path(crash_filler.__file__)), each], REDIS__GENERATION=generation)
                )
                for each in writes
            ]
            outcomes = [worker.communicate(timeout=120) for worker in workers]
        codes = [worker.returncode for worker in workers]
        assert set(codes) <= {0, KILLED}, outcomes
        deaths += codes.count(KILLED)
        if 0 in codes:
            return deaths


def test_workers_that_are_killed_again_and_again_come_to_the_same(live: Live) -> None:
    seed = random.SystemRandom().randrange(10**6)
    begin(live, "killed", Request("interactions"))
    deaths = kill_until_done(live, "killed", random.Random(seed))
    sys.stdout.write(f"\nseed {seed}: {deaths} deaths\n")
    assert deaths
    check_equal(live.rows_of("killed"), live.rows)


def test_a_command_that_is_killed_goes_on_when_it_is_run_again(live: Live) -> None:
    command = ["-m", "streams.cli", "backfill", "--generation", "again", "--workers", "2", "--execute"]
    claims = f"{live.pipeline.names.key_prefix}:again:*:claim"
    with live.pipeline.begin(command) as running, closing(live.redis()) as client:
        wait_until(lambda: list(client.scan_iter(claims)) or running.poll() is not None, 60, "a worker has begun")
        for process in [*psutil.Process(running.pid).children(), psutil.Process(running.pid)]:
            process.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)
        assert running.returncode == KILLED
    assert live.backfill("again", "--workers", "2", "--execute")["begun_before"]
    check_equal(live.rows_of("again"), live.rows)


def test_a_worker_that_is_told_to_stop_writes_what_it_has(live: Live) -> None:
    begin(live, "stopped", Request("interactions"))
    settings = live.pipeline.settings(REDIS__GENERATION="stopped")
    engine, _ = open_engine(settings, mode="replay")
    answers = iter([False] * 4)
    partitions = range(PARTITIONS)
    with closing(RedisFilling(settings.redis, "stopped", "first", LEASE_MS)) as filling:
        # A window stays in memory until the end: none would be written by itself.
        limits = Limits(step_bytes=0, read_frames=5)
        with closing(FillingWorker(settings, engine, filling, lambda: next(answers, True), limits)) as worker:
            worker.run()
        assert sum(progress.events for progress in filling.progress(partitions).values()) > 0
        assert not any(progress.is_done for progress in filling.progress(partitions).values())
        assert not filling.is_claimed(partitions)
    assert live.backfill("stopped", "--execute")["begun_before"]
    check_equal(live.rows_of("stopped"), live.rows)


def test_a_command_that_is_interrupted_ends_with_its_workers(live: Live) -> None:
    begin(live, "interrupted", Request("interactions"))
    command = ["-m", "streams.cli", "backfill", "--generation", "interrupted", "--workers", "2", "--execute"]
    settings = live.pipeline.settings().redis
    with closing(RedisFilling(settings, "interrupted", "another machine", 600_000)) as filling:
        # Everything is being filled elsewhere, so the workers of this command wait.
        assert filling.claim(range(PARTITIONS))
        with live.pipeline.begin(command) as running:
            started = psutil.Process(running.pid)
            wait_until(lambda: len(started.children()) == 2, 60, "the workers are started")
            workers = started.children()
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=60)
        assert running.returncode == 128 + signal.SIGINT
        assert "the same command goes on from here" in errors
        assert not any(worker.is_running() for worker in workers)
        filling.release(range(PARTITIONS))


def test_a_generation_that_is_lost_while_it_is_filled_does_not_pass_for_a_filled_one(live: Live) -> None:
    begin(live, "lost", Request("interactions"))
    command = ["-m", "streams.cli", "backfill", "--generation", "lost", "--workers", "1", "--execute"]
    settings = live.pipeline.settings().redis
    with (
        closing(RedisFilling(settings, "lost", "another machine", 600_000)) as filling,
        closing(live.redis()) as client,
    ):
        assert filling.claim(range(PARTITIONS))
        with live.pipeline.begin(command) as running:
            wait_until(lambda: psutil.Process(running.pid).children(), 60, "the worker is started")
            client.delete(*client.scan_iter(f"{live.pipeline.names.key_prefix}:lost:*", count=1000))
            _, errors = running.communicate(timeout=60)
    assert running.returncode == REFUSED
    assert f"of {PARTITIONS} partitions of generation lost it is not recorded how far they are filled" in errors


def test_a_part_of_the_log_is_what_its_options_say(live: Live) -> None:
    pipeline = live.pipeline
    frames = pipeline.read(pipeline.names.interactions)
    # The whole of partition 0, nothing of partition 1, all but the first three frames of the others.
    ends = {frame.partition: frame.offset + 1 for frame in frames}
    offsets = f"1:{ends[1]},2:3,3:3"
    found = live.backfill("part", "--from-offsets", offsets, "--workers", "1", "--execute")
    starts = {0: 0, 1: ends[1], 2: 3, 3: 3}
    assert found["reads"] == [
        f"{pipeline.names.interactions} partition {number}, offsets {starts[number]} to {ends[number]}"
        for number in range(PARTITIONS)
    ]
    assert found["records"] == sum(ends[number] - starts[number] for number in range(PARTITIONS))
    kept = [frame for frame in frames if frame.offset >= starts[frame.partition]]
    assert windows(live.rows_of("part")) == replayed([event for frame in kept for event in read_frame(frame, {})])


def test_a_dry_run_says_what_would_be_read_and_writes_nothing(live: Live) -> None:
    before = live.everything()
    found = live.backfill("dry", "--workers", "2")
    assert live.everything() == before
    partitions = [Partition(live.pipeline.names.interactions, number) for number in range(PARTITIONS)]
    frames = len(live.pipeline.read(live.pipeline.names.interactions))
    assert len(found["reads"]) == len(partitions)
    assert (found["executed"], found["begun_before"], found["records"]) == (False, False, frames)
    assert found["events"] is None
    # A sample of frames, most of which are not full.
    events = sum(map(len, live.log.events.values()))
    assert events / 3 < found["expected_events"] < events * 3
    text = live.pipeline.run("backfill", "--generation", "dry", "--from-datetime", "2100-01-01T00:00:00")
    assert "0 frames to read, about 0 events" in text.stdout
    assert "Nothing was written: --execute does it" in text.stdout


# Raw topics and files


def test_raw_topics_are_replayed_in_the_order_of_time(live: Live) -> None:
    names = live.pipeline.names
    found = live.backfill("raw", "--raw", names.clicks, "--raw", names.views, "--workers", "2", "--execute")
    events = in_order_of_time(live.raw, names.types)
    assert windows(live.rows_of("raw")) == replayed(events)
    assert (found["records"], found["events"], found["bad"]) == (len(live.raw), len(events), len(live.log.bad))
    # It lacks every frame, and none brings it anything.
    compared = json.loads(live.pipeline.run("generations", "compare", "raw", "--output", "json").stdout)
    assert (compared["moving"], compared["compared"]) == (0, len(live.rows))
    # Killed or not.
    begin(live, "raw-killed", Request("raw", (names.clicks, names.views)))
    seed = random.SystemRandom().randrange(10**6)
    assert kill_until_done(live, "raw-killed", random.Random(seed)), seed
    check_equal(live.rows_of("raw-killed"), live.rows_of("raw"))


def test_files_are_replayed_line_by_line(live: Live, tmp_path: Path) -> None:
    pulled = live.pipeline.run("data", "pull", "--out", str(tmp_path / "log.jsonl.gz"))
    assert pulled.returncode == 0, pulled.stderr
    found = live.backfill("files", str(tmp_path), "--workers", "2", "--execute")
    # What was sent twice is in the file once, and has its id there.
    assert windows(live.rows_of("files")) == windows(live.rows)
    assert (found["events"], found["repeats"], found["bad"]) == (found["records"], 0, 0)
    begin(live, "files-killed", Request("files", (str(tmp_path),), default_type="click"))
    seed = random.SystemRandom().randrange(10**6)
    assert kill_until_done(live, "files-killed", random.Random(seed)), seed
    check_equal(live.rows_of("files-killed"), live.rows_of("files"))


def test_files_whose_users_are_merged_and_erased_are_shared_by_workers_all_the_same(live: Live, tmp_path: Path) -> None:
    rng = random.Random(3)
    path = tmp_path / "people.jsonl"
    # Each window's events, each with the users whose it was and when it came to them.
    held: dict[str, list[tuple[Event, dict[str, int]]]] = defaultdict(list)
    erased_ms: dict[str, int] = {}
    with path.open("w") as file:
        for number in range(1, 3001):
            user, other = rng.sample([f"someone-{number}" for number in range(80)], 2)
            time_ms = 1_767_225_600_000 + number * 1000
            asked = rng.choices(["click", "$identify", "$erase"], [30, 2, 1])[0]
            value: dict[str, object] = {"user_id": user, "type": asked, "event_time": time_ms}
            if asked == "$erase":
                held[user] = []
                erased_ms[user] = time_ms
            elif asked == "$identify":
                value |= {"user_id": other, "anonymous_id": user}
                held[other] += [(event, {**whose, other: time_ms}) for event, whose in held.pop(user, [])]
            else:
                value["item_id"] = item = rng.choice(ITEMS)
                place = (path.name, 0, number)
                event = Event(user, item, asked, time_ms, f"{path.name}-0-{number}", False, place)
                held[user].append((event, {user: time_ms}))
            file.write(json.dumps(value) + "\n")
    kept = {
        user: [event for event, whose in events if all(at > erased_ms.get(one, 0) for one, at in whose.items())]
        for user, events in held.items()
    }
    # In the order of the file, whosever they were at first.
    expected = {
        user: replay(sorted(events, key=lambda event: event.place), RULE).window
        for user, events in kept.items()
        if events
    }
    begin(live, "people-killed", Request("files", (str(path),), default_type="click"))
    seed = random.SystemRandom().randrange(10**6)
    assert kill_until_done(live, "people-killed", random.Random(seed)), seed
    assert windows(live.rows_of("people-killed")) == expected
    # And with erasures that are recorded by now.
    found = live.backfill("people", str(path), "--workers", "2", "--execute")
    assert windows(live.rows_of("people")) == expected
    assert (found["events"], found["bad"]) == (sum(map(len, kept.values())), 0)


def test_a_file_that_changed_since_is_refused(live: Live, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"user_id": "u", "item_id": "item-1", "event_time": 1700000000000}\n')
    begin(live, "changed", Request("files", (str(path),), default_type="click"))
    path.write_text("")
    done = live.pipeline.run("backfill", "--generation", "changed", str(path), "--execute")
    assert done.returncode == DATA
    assert "log.jsonl has 0 bytes, and 67 when the backfill was begun" in done.stderr


# Lists on the way


def test_lists_are_sent_after_every_so_many_events_of_a_user(live: Live, model: Model, topic_prefix: str) -> None:
    pipeline = live.pipeline
    topic = f"{topic_prefix}replayed"
    with LogAdmin(pipeline.settings().kafka) as admin:
        admin.create_topic(topic, 2, 1, {})
    before = sent_live(pipeline)
    begin(live, "lists", Request("interactions", recommendations=topic, every=EVERY))
    worker = pipeline.begin([str(Path(crash_filler.__file__)), "1000000000"], REDIS__GENERATION="lists")
    with worker:
        worker.communicate(timeout=120)
    assert worker.returncode == 0
    check_equal(live.rows_of("lists"), live.rows)
    lists = [json.loads(message.value or b"") for message in pipeline.read(topic)]
    assert {each["mode"] for each in lists} == {"replay"}
    assert len({each["recommendation_id"] for each in lists}) == len(lists)
    of_users: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in lists:
        of_users[each["user_id"]].append(each)
    for user, events in live.log.events.items():
        state = Replay(RULE)
        applied = 0
        triggers = {
            tuple(each["trigger"][name] for name in ("topic", "partition", "offset")): each for each in of_users[user]
        }
        for event in events:
            if not state.add(event):
                continue
            applied += 1
            sent = triggers.pop(event.place, None)
            if sent is not None:
                assert applied >= EVERY  # or more, for some are applied at a time
                applied = 0
                model.check_list([item for _, _, item, _ in state.window], sent["items"], K, f"list of {user}")
        assert not triggers, f"lists of {user} after events that were not applied"
        assert applied < EVERY, f"user {user} was due for a list"
    assert sent_live(pipeline) == before


def sent_live(pipeline: Pipeline) -> list[Message]:
    """The live recommendations by their places: between partitions no reader gives them in a fixed order."""
    return sorted(pipeline.read(pipeline.names.recommendations), key=lambda message: message.place)


# Going on, and refusals


def test_a_filled_generation_goes_on_with_what_came_since(live: Live, tmp_path: Path) -> None:
    pipeline = live.pipeline
    names = pipeline.names
    # All that they need to have been filled with, so that the test may run alone.
    pulled = pipeline.run("data", "pull", "--out", str(tmp_path / "log.parquet"))
    assert pulled.returncode == 0, pulled.stderr
    live.backfill("old", "--execute")
    live.backfill("old-raw", "--raw", names.clicks, "--raw", names.views, "--execute")
    live.backfill("old-files", str(tmp_path / "log.parquet"), "--execute")
    pipeline.produce(simulated_events(names, 1000, seed=12))
    pipeline.start("ingest")
    pipeline.start("evolve")
    pipeline.wait_until_applied(120)
    pipeline.stop()
    rows = live.rows_of("g1")
    assert windows(rows) != windows(live.rows)
    for generation in ("old", "old-raw", "old-files"):
        assert live.backfill(generation, "--execute")["events"] > 0
    check_equal(live.rows_of("old"), rows)
    assert windows(live.rows_of("old-files")) == windows(rows)
    # In another order, so a window may have been cut elsewhere; but the newest events are there, and each once.
    log = pipeline.read_log()
    for user, window in windows(live.rows_of("old-raw")).items():
        newest = sorted({event.entry for event in log.events[user]})[-RULE.keep :]
        assert window[-RULE.keep :] == newest, user
    # Nothing is left to do.
    again = live.backfill("old", "--execute")
    assert (again["records"], again["events"]) == (0, 0)
    check_equal(live.rows_of("old"), rows)


def test_while_redis_is_away_the_workers_wait(live: Live) -> None:
    command = ["-m", "streams.cli", "backfill", "--generation", "waits", "--workers", "2", "--execute"]
    claims = f"{live.pipeline.names.key_prefix}:waits:*:claim"
    with live.pipeline.begin(command, REDIS__TIMEOUT_S="0.5") as running, closing(live.redis()) as client:
        wait_until(lambda: list(client.scan_iter(claims)) or running.poll() is not None, 60, "a worker has begun")
        client.client_pause(2_000, all=True)
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    assert windows(live.rows_of("waits")) == windows(live.rows_of("g1"))


def test_without_kafka_it_ends_and_says_so(live: Live) -> None:
    done = live.pipeline.run("backfill", "--generation", "nowhere", "--bootstrap-servers", "127.0.0.1:1")
    assert done.returncode == LOG_UNAVAILABLE
    assert "Kafka at 127.0.0.1:1 did not" in done.stderr


def refused(live: Live, generation: str, request: Request, **environment: str) -> str:
    """Why a request is not planned."""
    settings = live.pipeline.settings(REDIS__GENERATION=generation, **environment)
    named = "MODEL__BUNDLE" in environment
    with pytest.raises(DriftlineError) as error, open_target(settings, "g1", is_named=named) as target:
        make_plan(target, request, 2, 1_800_000_000_000)
    return str(error.value)


def test_what_cannot_be_filled_is_refused_with_the_remedy(live: Live, tmp_path: Path) -> None:
    names = live.pipeline.names
    everything = Request("interactions")
    before = live.everything()
    assert "generation g1 is the one that is served" in refused(live, "g1", everything)
    assert f"topic {names.interactions} is none of the raw topics" in refused(
        live, "x", Request("raw", (names.interactions,))
    )
    assert "there is no topic nowhere for the replayed lists" in refused(
        live, "x", Request("interactions", recommendations="nowhere", every=5)
    )
    assert live.everything() == before

    begin(live, "busy", everything)
    other = refused(live, "busy", Request("raw", (names.clicks,), by_duration="P7D"))
    assert "busy is being filled by another command: driftline backfill --generation busy." in other
    write_pooling_bundle(tmp_path / "other", [*ITEMS, "new"], dim=16)
    model = refused(live, "busy", everything, MODEL__BUNDLE=str(tmp_path / "other"))
    assert "generation busy holds vectors of the model pooling" in model

    live.backfill("done", "--execute")
    for request in (Request("raw", (names.clicks,)), Request("interactions", to_datetime="2026-01-01T00:00:00")):
        assert "generation done is filled already" in refused(live, "done", request)
    # Its watermark is lost with a partition's rows.
    with closing(live.redis()) as client:
        client.delete(f"{names.key_prefix}:done:{{2}}:watermark")
    assert f"watermarks for some partitions of {names.interactions} and none for 2" in refused(live, "done", everything)

    name = live.pipeline.run("backfill", "--generation", "not a name")
    assert (name.returncode, name.stdout) == (USAGE, "")
    assert "redis.generation" in name.stderr
