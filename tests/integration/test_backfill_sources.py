"""Ranges of offsets, and the readers of a replay, on a real Kafka."""

import json
from collections import Counter
from contextlib import closing
from typing import Any, Final

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from deploy.local.servers import KafkaServer
from streams.errors import LogGap, LogUnavailable, TopicMissing, UsageError
from streams.log.admin import LogAdmin
from streams.log.readers import ExtentsReader, RangeReader
from streams.log.topics import Extent, Message, Partition
from streams.services.backfill.events import Count, SourceEvent
from streams.services.backfill.ranges import Range, resolve
from streams.services.backfill.raw import RawSource, merged
from streams.settings import KafkaSettings, Settings, TopicSettings
from tests.integration.waiting import wait_until

TIME_MS: Final = 1_767_225_600_000  # 2026-01-01T00:00:00Z


class Log:
    """Topics of two partitions on a Kafka, and what tests do with them."""

    def __init__(self, servers: str, *names: str) -> None:
        self.settings = KafkaSettings(bootstrap_servers=servers)
        self._servers = servers
        with LogAdmin(self.settings) as admin:
            for name in names:
                # The broker's own default would delete what is dated so long ago.
                admin.create_topic(name, 2, 1, {"retention.ms": "-1"})
            # The brokers know of them a moment later.
            wait_until(lambda: len(admin.existing_topics(names)) == len(names), 60, "the topics are there")
            self.topics = admin.topics(names)

    def send(self, partition: Partition, *messages: tuple[int, bytes | None]) -> None:
        """Append values with their timestamps."""
        producer = Producer({"bootstrap.servers": self._servers, "enable.idempotence": True})
        failures: list[object] = []
        for timestamp_ms, value in messages:
            producer.produce(
                partition.topic, value, partition=partition.number, timestamp=timestamp_ms,
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )  # fmt: skip
        assert producer.flush(60) == 0
        assert failures == []

    def delete_before(self, partition: Partition, offset: int) -> None:
        """Cut the beginning of a log off, as retention does."""
        admin = AdminClient({"bootstrap.servers": self._servers})
        place = TopicPartition(*partition, offset)
        admin.delete_records([place])[place].result(60)

    def resolve(self, name: str, wanted: Range) -> dict[Partition, Extent]:
        with LogAdmin(self.settings) as admin:
            return resolve(admin, self.topics[name], wanted)

    def reader(self, partition: Partition, start: int, end: int) -> RangeReader:
        return RangeReader(self.settings, partition, start, end)


class Clock:
    """Stands still until it is given a step."""

    def __init__(self) -> None:
        self.now = self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def offsets(reader: ExtentsReader, count: int = 1000) -> list[int]:
    found: list[Message] = []
    while reader.unfinished:
        found += reader.read(count, 1.0)
    assert reader.read(count, 1.0) == []
    return [message.offset for message in found]


def test_times_and_offsets_bound_what_is_read(kafka: KafkaServer, topic_prefix: str) -> None:
    name = f"{topic_prefix}interactions"
    log = Log(kafka.bootstrap_servers, name)
    p0, p1 = Partition(name, 0), Partition(name, 1)
    log.send(p0, *((TIME_MS + 1000 * n, b"%d" % n) for n in range(10)))
    log.send(p1, (TIME_MS + 4500, b"late"))

    assert log.resolve(name, Range()) == {p0: Extent(0, 10), p1: Extent(0, 1)}
    between = Range(TIME_MS + 3000, TIME_MS + 6001)
    assert log.resolve(name, between) == {p0: Extent(3, 7), p1: Extent(0, 1)}
    assert log.resolve(name, Range(TIME_MS + 4501)) == {p0: Extent(5, 10), p1: Extent(1, 1)}
    assert log.resolve(name, Range(TIME_MS + 3_600_000)) == {p0: Extent(10, 10), p1: Extent(1, 1)}
    assert log.resolve(name, Range(to_datetime=TIME_MS)) == {p0: Extent(0, 0), p1: Extent(0, 0)}
    log.delete_before(p0, 4)
    assert log.resolve(name, Range(from_offsets={0: 4})) == {p0: Extent(4, 10), p1: Extent(0, 1)}
    assert log.resolve(name, Range(TIME_MS)) == {p0: Extent(4, 10), p1: Extent(0, 1)}
    with pytest.raises(UsageError, match="its log starts at 4 and ends at 10"):
        log.resolve(name, Range(from_offsets={0: 3}))
    with LogAdmin(log.settings) as admin, pytest.raises(TopicMissing):
        admin.offsets_at([Partition(f"{name}-none", 0)], TIME_MS)


def test_a_range_is_read_from_its_start_up_to_its_end(kafka: KafkaServer, topic_prefix: str) -> None:
    name = f"{topic_prefix}interactions"
    log = Log(kafka.bootstrap_servers, name)
    p0 = Partition(name, 0)
    # More than one fetch.
    log.send(p0, *((TIME_MS + n, b"x" * 20_000) for n in range(500)))

    with closing(log.reader(p0, 3, 490)) as reader:
        assert offsets(reader, 100) == list(range(3, 490))
    with closing(log.reader(p0, 7, 7)) as reader:
        assert offsets(reader) == []

    # What was there when the range was found and is not any more.
    log.delete_before(p0, 10)
    gone = f"{name} partition 0 has no message at offset 3: its log now starts at 10"
    with closing(log.reader(p0, 3, 490)) as reader, pytest.raises(LogGap, match=gone):
        offsets(reader)
    # A log that was made anew, and is shorter.
    with closing(log.reader(p0, 900, 910)) as reader, pytest.raises(LogGap, match=r"at offset 900: .* ends at 500"):
        offsets(reader)
    # The end of a range lies beyond that of the log, and nothing comes: no eternal wait.
    clock = Clock()
    with closing(RangeReader(log.settings, p0, 498, 510, clock)) as reader:
        found: list[Message] = []
        while len(found) < 2:
            found += reader.read(10, 1.0)
        clock.step = 31.0
        with pytest.raises(LogUnavailable, match=f"still to come: {name} partition 0 at offset 500"):
            reader.read(10, 0.01)


def test_offsets_without_a_message_are_passed_over_or_refused(kafka: KafkaServer, topic_prefix: str) -> None:
    name = f"{topic_prefix}clicks"
    log = Log(kafka.bootstrap_servers, name)
    p0 = Partition(name, 0)
    # A transaction ends with a marker, which takes an offset: 2 and 4 here.
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": f"{topic_prefix}app"})
    producer.init_transactions(60)
    for values in ([b"0", b"1"], [b"3"]):
        producer.begin_transaction()
        for value in values:
            producer.produce(name, value, partition=0)
        producer.commit_transaction(60)
    extents = {p0: Extent(0, 5)}
    with LogAdmin(log.settings) as admin:
        # The last marker is written after the commit is acknowledged.
        wait_until(lambda: admin.extents([p0]) == extents, 60, "the log ends after the last marker")
    with closing(ExtentsReader(log.settings, extents)) as reader:
        assert offsets(reader) == [0, 1, 3]
    with closing(log.reader(p0, 0, 5)) as reader, pytest.raises(LogGap, match=r"at offset 2: .* has offset 3"):
        offsets(reader)


def event(user: str, item: str, **fields: Any) -> bytes:
    return json.dumps({"user_id": user, "item_id": item, **fields}).encode()


def settings_of(log: Log, **types: str) -> Settings:
    return Settings(kafka=log.settings, topics=TopicSettings(sources=types))


def test_raw_topics_are_merged_and_decoded_as_ingest_does(kafka: KafkaServer, topic_prefix: str) -> None:
    clicks, views = f"{topic_prefix}clicks", f"{topic_prefix}views"
    log = Log(kafka.bootstrap_servers, clicks, views)
    day_ms = 24 * 3600 * 1000
    log.send(
        Partition(clicks, 0),
        (TIME_MS, event("u", "left out")),
        (TIME_MS + 10, event("u", "a", event_id="e1", event_time="2025-12-31T00:00:00Z")),
        (TIME_MS + 40, b"no event"),
        (TIME_MS + 50, event("u", "b", event_time=TIME_MS + 50 + day_ms + 1)),
        (TIME_MS + 60, event("u", "c", event_time=TIME_MS + 60 + day_ms)),
    )
    log.send(Partition(clicks, 1), (TIME_MS + 30, event("v", "d", type="buy")), (TIME_MS + 20, event("v", "e")))
    log.send(Partition(views, 1), (TIME_MS + 30, event("w", "f")), (TIME_MS + 70, None))
    extents = {**log.resolve(clicks, Range(from_offsets={0: 1})), **log.resolve(views, Range())}
    # What is sent later does not change what is read.
    log.send(Partition(clicks, 0), (TIME_MS + 1, event("u", "later")))
    settings = settings_of(log, **{clicks: "click", views: "view"})
    source = RawSource(settings, log.topics, extents)

    def place(name: str, partition: int, offset: int) -> tuple[str, str, int, int]:
        return name, log.topics[name].topic_id, partition, offset

    expected = [
        SourceEvent("u", "a", "click", TIME_MS - day_ms, "e1", True, *place(clicks, 0, 1), 0, TIME_MS + 10),
        SourceEvent("v", "d", "buy", TIME_MS + 30, f"{clicks}-1-0", False, *place(clicks, 1, 0), 1, TIME_MS + 30),
        SourceEvent("v", "e", "click", TIME_MS + 20, f"{clicks}-1-1", False, *place(clicks, 1, 1), 2, TIME_MS + 20),
        SourceEvent("w", "f", "view", TIME_MS + 30, f"{views}-1-0", False, *place(views, 1, 0), 3, TIME_MS + 30),
        SourceEvent(
            "u", "c", "click", TIME_MS + 60 + day_ms, f"{clicks}-0-4", False, *place(clicks, 0, 4), 6, TIME_MS + 60
        ),
    ]
    assert source.count() == Count(8, is_exact=True)
    [batch] = source.read()
    assert (batch.next, batch.events, batch.bad) == (8, expected, [4, 5, 7])
    assert dict(source.bad.by_reason) == {"not_json": 1, "absurd_time": 1, "null_value": 1}
    assert source.bad.examples[0].startswith(f"{clicks} partition 0 offset 2: not valid JSON")
    # In the order of the merge the fifth, the sixth and the last are bad.
    for skip, first in enumerate([0, 1, 2, 3, 4, 4, 4, 5, 5]):
        [later] = RawSource(settings, log.topics, extents).read(skip)
        assert (later.next, later.events) == (8, expected[first:])

    log.delete_before(Partition(clicks, 0), 3)
    with pytest.raises(LogGap, match=f"{clicks} partition 0 has no message at offset 1: its log now starts at 3"):
        list(RawSource(settings, log.topics, extents).read())


def test_partitions_far_apart_in_time_are_read_whole_with_little_memory(kafka: KafkaServer, topic_prefix: str) -> None:
    name = f"{topic_prefix}clicks"
    log = Log(kafka.bootstrap_servers, name)
    p0, p1 = Partition(name, 0), Partition(name, 1)
    count = 20_000
    # All of one partition comes before all of the other, which is paused and taken up again many times.
    log.send(p0, *((TIME_MS + count + n, b"x" * 100) for n in range(count)))
    log.send(p1, *((TIME_MS + n, b"x" * 100) for n in range(count)))
    extents = log.resolve(name, Range())
    with closing(ExtentsReader(log.settings, extents)) as reader:
        found = [(message.partition, message.offset) for message in merged(reader, max_messages=4000)]
    assert found == [(1, n) for n in range(count)] + [(0, n) for n in range(count)]


def test_small_fetches_keep_partitions_abreast(kafka: KafkaServer, topic_prefix: str) -> None:
    name = f"{topic_prefix}clicks"
    log = Log(kafka.bootstrap_servers, name)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    # Kafka hands out what was sent together in one piece, however small a fetch is.
    for _ in range(40):
        for number in (0, 1) * 20:
            producer.produce(name, b"x" * 400, partition=number)
        assert producer.flush(60) == 0
    read, apart = Counter[int](), 0
    with closing(ExtentsReader(log.settings, log.resolve(name, Range()), fetch_bytes=16 * 1024)) as reader:
        while reader.unfinished:
            for message in reader.read(100, 0.1):
                read[message.partition] += 1
                apart = max(apart, abs(read[0] - read[1]))
    assert read == {0: 800, 1: 800}
    assert apart < 200
