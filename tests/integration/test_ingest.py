"""Ingest between a real Kafka's topics. What comes out is read with a plain consumer and plain MessagePack."""

import random
import threading
import zlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # 2.16
from prometheus_client import CollectorRegistry

from deploy.local.servers import KafkaServer
from streams.errors import DriftlineError, TopicMissing
from streams.log.admin import LogAdmin
from streams.observe.health import Health
from streams.observe.metrics import IngestMetrics
from streams.services.ingest import Ingest
from streams.services.topics import create_missing_topics
from streams.settings import IngestSettings, KafkaSettings, Settings, TopicSettings
from tests.integration.strange_headers import Strange, send_strange
from tests.integration.waiting import wait_until

PARTITIONS = 3
# 2026-01-01T00:00:00Z, in milliseconds
TIME_MS = 1_767_225_600_000
Headers = Sequence[tuple[str, bytes | None]]


class Raw(NamedTuple):
    """A message to send, or as it was found."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()


class Found(NamedTuple):
    """A message of a topic."""

    partition: int
    offset: int
    raw: Raw


class Packed(NamedTuple):
    """One event of a frame, taken apart without any code of ours: the columns are those of the README's table."""

    topic: str
    partition: int
    offset: int
    user: str
    item: str
    type: str
    time_ms: int
    event_id: str | None
    extra: Any


class Topics:
    """The topics of one test, and plain clients on them."""

    def __init__(self, kafka: KafkaServer, prefix: str, **ingest: Any) -> None:
        self.servers = kafka.bootstrap_servers
        self.settings = Settings(
            kafka=KafkaSettings(bootstrap_servers=self.servers, session_timeout_s=6),
            topics=TopicSettings(
                sources={f"{prefix}clicks": "click", f"{prefix}views": "view"},
                interactions=f"{prefix}interactions",
                recommendations=f"{prefix}recommendations",
                dead_letters=f"{prefix}events.dlq",
                partitions=PARTITIONS,
            ),
            ingest=IngestSettings(group=f"{prefix}ingest", **ingest),
        )
        self.clicks, self.views = f"{prefix}clicks", f"{prefix}views"
        self.interactions = self.settings.topics.interactions
        self.dead_letters = self.settings.topics.dead_letters
        self.create()

    def create(self) -> None:
        """Make those that are not there."""
        with LogAdmin(self.settings.kafka) as admin:
            create_missing_topics(self.settings, admin)

    def delete(self, topic: str) -> None:
        admin = AdminClient({"bootstrap.servers": self.servers})
        admin.delete_topics([topic])[topic].result()
        wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, 20, f"{topic} is gone")

    def send(self, topic: str, *messages: Raw, partition: int = 0, timestamp_ms: int = 0) -> None:
        producer = Producer({"bootstrap.servers": self.servers, "message.max.bytes": 2_000_000})
        failures: list[object] = []
        for message in messages:
            producer.produce(
                topic, message.value, message.key, partition, headers=list(message.headers), timestamp=timestamp_ms,
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )  # fmt: skip
        assert producer.flush(30) == 0
        assert failures == []

    def read(self, topic: str) -> list[Found]:
        """Everything in a topic, in order within a partition."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "tests", "enable.auto.commit": False})
        try:
            found = []
            for partition in range(len(consumer.list_topics(topic, timeout=10).topics[topic].partitions)):
                position = TopicPartition(topic, partition, OFFSET_BEGINNING)
                _, end = consumer.get_watermark_offsets(position, timeout=10)
                consumer.assign([position])
                at = 0
                while at < end:
                    message = consumer.poll(10)
                    assert message is not None
                    if message.error() is not None:
                        raise KafkaException(message.error())
                    offset = message.offset()
                    assert offset is not None
                    at = offset + 1
                    found.append(Found(partition, offset, Raw(message.value(), message.key(), message.headers() or [])))  # type: ignore[arg-type]
            return found
        finally:
            consumer.close()

    def frames(self) -> list[tuple[int, list[Packed]]]:
        """The frames of `interactions`, with their partitions."""
        frames = []
        for found in self.read(self.interactions):
            version, sources, source, offsets, _, users, items, types, times, ids, extras = msgspec.msgpack.decode(
                found.raw.value or b""
            )
            assert version == 1
            frames.append(
                (
                    found.partition,
                    [
                        Packed(
                            sources[source[i]][0], sources[source[i]][2], offsets[i], users[i], items[i], types[i],
                            times[i], ids[i], extras.get(i),
                        )
                        for i in range(len(users))
                    ],
                )
            )  # fmt: skip
        return frames

    def events(self) -> list[Packed]:
        """The events of all frames, in the order of each partition."""
        return [event for _, frame in self.frames() for event in frame]

    def committed(self) -> dict[tuple[str, int], int]:
        """What the group of ingest has recorded; partitions without a record left out."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": self.settings.ingest.group})
        try:
            wanted = [TopicPartition(topic, n) for topic in (self.clicks, self.views) for n in range(PARTITIONS)]
            found = consumer.committed(wanted, timeout=10)
            return {(each.topic, each.partition): each.offset for each in found if each.offset >= 0}
        finally:
            consumer.close()


class Running:
    """Ingest in a thread, until the block ends."""

    def __init__(self, topics: Topics) -> None:
        self.registry = CollectorRegistry()
        self.health = Health(30.0)
        self.ingest = Ingest(topics.settings, IngestMetrics.on(self.registry), self.health)
        self.error: DriftlineError | None = None
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def _run(self) -> None:
        try:
            self.ingest.run()
        except DriftlineError as error:
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ingest.stop()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "ingest did not stop"

    def count(self, outcome: str) -> float:
        return self.registry.get_sample_value("driftline_ingest_events_total", {"outcome": outcome}) or 0.0

    def reasons(self) -> Mapping[str, float]:
        """Dead letters by reason."""
        return {
            sample.labels["reason"]: sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "driftline_ingest_dead_letters_total"
        }

    def wait_for(self, accepted: int, dead_lettered: int = 0) -> None:
        wait_until(
            lambda: self.error or (self.count("accepted") >= accepted and self.count("dead_lettered") >= dead_lettered),
            60,
            f"{accepted} events are accepted and {dead_lettered} dead-lettered",
        )
        if self.error is not None:
            raise self.error


@pytest.fixture
def topics(kafka: KafkaServer, topic_prefix: str) -> Topics:
    return Topics(kafka, topic_prefix)


def event(user: str, item: str, **fields: object) -> Raw:
    return Raw(msgspec.json.encode({"user_id": user, "item_id": item, **fields}))


BAD = [
    (Raw(b"\xff\x00 not json", b"\x00key", [("trace", b"\xfe"), ("empty", None), ("trace", b"2")]), "invalid_utf8"),
    (Raw(None, b"tombstone"), "null_value"),
    (Raw(b"[1]", None, [("__streams.errors.exception", b"of an earlier death")]), "not_an_object"),
    (Raw(b""), "not_json"),
    (Raw(b'{"user_id":"u1"}'), "missing_field"),
    (Raw(b'{"user_id":"u1","item_id":""}'), "bad_length"),
    (Raw(b'{"user_id":"u1","item_id":"i1","value":NaN}'), "not_json"),
    (Raw(rb'{"user_id":"u\u0000","item_id":"i1"}'), "nul"),
    (Raw(b'{"user_id":"u1","item_id":"i1","event_time":1767225600}'), "absurd_time"),
    (Raw(b'{"user_id":"u1","item_id":"i1","x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"), "too_deep"),
    (Raw(b'{"user_id":"u1","item_id":"i1","x":"' + bytes(range(65, 91)) * 4000 + b'"}', b"k"), "too_large"),
]


def test_bad_events_are_buried_untouched_and_the_others_go_on_in_order(topics: Topics) -> None:
    mixed = []
    for number, (bad, _) in enumerate(BAD):
        mixed += [event("anna", f"i{number}", event_time=TIME_MS + number), bad]
    topics.send(topics.clicks, *mixed)
    with Running(topics) as running:
        running.wait_for(accepted=len(BAD), dead_lettered=len(BAD))
    letters = sorted(topics.read(topics.dead_letters), key=lambda found: offset_of(found.raw))
    assert len(letters) == len(BAD)
    for number, (letter, (bad, reason)) in enumerate(zip(letters, BAD, strict=True)):
        assert (letter.raw.value, letter.raw.key) == (bad.value, bad.key)
        assert list(letter.raw.headers[: len(bad.headers)]) == list(bad.headers)
        ours = letter.raw.headers[len(bad.headers) :]
        assert [name for name, _ in ours] == [
            f"__streams.errors.{name}"
            for name in ("exception", "message", "topic", "partition", "offset", "stage", "timestamp")
        ]
        values = dict(ours)
        assert values["__streams.errors.exception"] == reason.encode()
        assert values["__streams.errors.message"]
        assert values["__streams.errors.topic"] == topics.clicks.encode()
        assert values["__streams.errors.partition"] == b"0"
        assert values["__streams.errors.offset"] == str(2 * number + 1).encode()
        stage = b"validate" if reason == "absurd_time" else b"decode"
        assert values["__streams.errors.stage"] == stage
    assert [(one.offset, one.item) for one in topics.events()] == [(2 * n, f"i{n}") for n in range(len(BAD))]
    assert running.reasons() == {reason: [r for _, r in BAD].count(reason) for _, reason in BAD}
    assert topics.committed()[topics.clicks, 0] == 2 * len(BAD)


def offset_of(raw: Raw) -> int:
    return int(dict(raw.headers)["__streams.errors.offset"] or b"-1")


def test_control_events_go_to_the_partition_of_the_user_whose_window_they_are_for(topics: Topics) -> None:
    asked = [
        {"user_id": "ana", "type": "$erase"},
        {"user_id": "ana", "type": "$identify", "anonymous_id": "device-17"},
        {"user_id": "ana", "type": "$forget"},
    ]
    topics.send(topics.clicks, *[Raw(msgspec.json.encode(each)) for each in asked])
    with Running(topics) as running:
        running.wait_for(accepted=2, dead_lettered=1)
    assert running.reasons() == {"reserved_type": 1}
    assert {(partition, one.user, one.item, one.type) for partition, frame in topics.frames() for one in frame} == {
        (zlib.crc32(b"ana") % PARTITIONS, "ana", "", "$erase"),
        (zlib.crc32(b"device-17") % PARTITIONS, "device-17", "ana", "$identify"),
    }


def test_with_a_key_no_id_gets_behind_ingest_except_in_dead_letters(
    kafka: KafkaServer, topic_prefix: str, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("0123456789abcdef\n")
    topics = Topics(kafka, topic_prefix, pseudonym_key_file=key)
    ana, device = (
        blake2b(each, key=b"0123456789abcdef", digest_size=16).hexdigest() for each in (b"ana", b"device-17")
    )
    bad = Raw(b'{"user_id":"ana","item_id":""}')
    topics.send(
        topics.clicks,
        event("ana", "i1", anonymous_id="device-17"),
        bad,
        Raw(b'{"user_id":"ana","type":"$identify","anonymous_id":"device-17"}'),
        Raw(b'{"user_id":"ana","type":"$erase"}'),
    )
    with Running(topics) as running:
        running.wait_for(accepted=3, dead_lettered=1)
    assert {(one.user, one.item) for one in topics.events()} == {(ana, "i1"), (device, ana), (ana, "")}
    for partition, frame in topics.frames():
        assert {zlib.crc32(one.user.encode()) % PARTITIONS for one in frame} == {partition}
    frames = b"".join(found.raw.value or b"" for found in topics.read(topics.interactions))
    assert b"ana" not in frames
    assert b"device-17" not in frames
    (letter,) = topics.read(topics.dead_letters)
    assert letter.raw.value == bad.value


def test_a_header_whose_name_is_not_utf8_harms_neither_its_message_nor_the_others(topics: Topics) -> None:
    strange = [(b"first", b"1"), (b"\xff\xfe", b"2"), (b"last", None)]
    # Python checks less of a call that has run often.
    topics.send(topics.clicks, *[event("anna", f"before-{number}") for number in range(100)])
    send_strange(
        topics.servers,
        topics.clicks,
        0,
        [
            Strange(b'{"user_id":"anna","item_id":"i1"}', b"k", strange),
            Strange(b"not json", b"k", strange),
            Strange(b'{"user_id":"anna","item_id":"i2"}', b"k", []),
        ],
    )
    with Running(topics) as running:
        running.wait_for(accepted=102, dead_lettered=1)
    assert [one.item for one in topics.events()[100:]] == ["i1", "i2"]
    (letter,) = topics.read(topics.dead_letters)
    assert (letter.raw.value, letter.raw.key) == (b"not json", b"k")
    # The client cannot read any of the headers then; the letter says so.
    assert letter.raw.headers[0] == ("driftline-headers-left-out", b"the name of a header is not UTF-8")
    assert [name for name, _ in letter.raw.headers[1:3]] == ["__streams.errors.exception", "__streams.errors.message"]


def test_an_event_as_large_as_kafka_allows_still_fits_into_the_dead_letter_topic(topics: Topics) -> None:
    # The broker's limit is 1,048,588 bytes with everything around it, and the letter has our headers too. Noise, for
    # what compresses well would pass any limit.
    large = Raw(random.Random(0).randbytes(1_048_400))
    topics.send(topics.clicks, large, event("anna", "i1"))
    with Running(topics) as running:
        running.wait_for(accepted=1, dead_lettered=1)
    (letter,) = topics.read(topics.dead_letters)
    assert letter.raw.value == large.value


def test_frames_hold_each_users_events_where_crc32_puts_them(topics: Topics) -> None:
    users = [f"user-{number}" for number in range(30)]
    topics.send(topics.clicks, *[event(user, f"i{n}") for n in range(5) for user in users], partition=1)
    with Running(topics) as running:
        running.wait_for(accepted=150)
    items: dict[str, list[str]] = {}
    for partition, frame in topics.frames():
        for one in frame:
            assert partition == zlib.crc32(one.user.encode()) % PARTITIONS
            items.setdefault(one.user, []).append(one.item)
    assert items == {user: [f"i{n}" for n in range(5)] for user in users}


def test_what_an_app_leaves_out_is_filled_in_and_what_it_gives_is_kept(topics: Topics) -> None:
    topics.send(topics.clicks, event("anna", "i1"), partition=2, timestamp_ms=TIME_MS)
    topics.send(
        topics.views,
        event("anna", "i2", event_time="2026-01-01T01:00:00+01:00"),
        event("anna", "i3", type="buy", event_id="e3", event_time=TIME_MS + 5, value=2.5, context={"page": 1}),
        partition=1,
    )
    with Running(topics) as running:
        running.wait_for(accepted=3)
    clicked, viewed, bought = sorted(topics.events(), key=lambda one: one.item)
    # Id None: derived by whoever reads the frame, from topic, partition and offset.
    assert clicked == Packed(topics.clicks, 2, 0, "anna", "i1", "click", TIME_MS, None, None)
    assert viewed == Packed(topics.views, 1, 0, "anna", "i2", "view", TIME_MS, None, None)
    extra = [None, 2.5, None, None, '{"page":1}']
    assert bought == Packed(topics.views, 1, 1, "anna", "i3", "buy", TIME_MS + 5, "e3", extra)


def test_frames_respect_their_bounds(kafka: KafkaServer, topic_prefix: str) -> None:
    topics = Topics(kafka, topic_prefix, frame_events=7, frame_bytes=4096, max_event_bytes=4000, batch_events=500)
    topics.send(topics.clicks, *[event(f"u{n % 50}", f"i{n}", context={"x": "y" * (n % 900)}) for n in range(1000)])
    with Running(topics) as running:
        running.wait_for(accepted=1000)
    frames = topics.frames()
    assert {len(frame) for _, frame in frames} <= set(range(1, 8))
    assert max(len(found.raw.value or b"") for found in topics.read(topics.interactions)) <= 4096
    for partition in range(PARTITIONS):
        offsets = [one.offset for at, frame in frames if at == partition for one in frame]
        assert offsets == sorted(set(offsets))
    assert sorted(one.offset for _, frame in frames for one in frame) == list(range(1000))


def test_a_frame_holds_at_most_256_users(topics: Topics) -> None:
    topics.send(topics.clicks, *[event(f"u{n}", "i1") for n in range(3000)])
    with Running(topics) as running:
        running.wait_for(accepted=3000)
    frames = topics.frames()
    assert max(len({one.user for one in frame}) for _, frame in frames) <= 256
    assert sorted(one.offset for _, frame in frames for one in frame) == list(range(3000))


def test_a_second_run_goes_on_where_the_first_one_stopped(topics: Topics) -> None:
    topics.send(topics.clicks, event("anna", "i1"), event("anna", "i2"))
    with Running(topics) as running:
        running.wait_for(accepted=2)
    assert topics.committed() == {(topics.clicks, 0): 2}
    topics.send(topics.clicks, event("anna", "i3"))
    with Running(topics) as running:
        running.wait_for(accepted=1)
    assert [one.item for one in topics.events()] == ["i1", "i2", "i3"]


def test_while_the_dead_letter_topic_is_gone_ingest_waits_and_nothing_is_lost(topics: Topics) -> None:
    topics.send(topics.clicks, event("anna", "i1"))
    with Running(topics) as running:
        running.wait_for(accepted=1)
        assert running.health.ready().ok
        wait_until(lambda: topics.committed() == {(topics.clicks, 0): 1}, 20, "the first event is committed")
        topics.delete(topics.dead_letters)
        topics.send(topics.clicks, event("anna", "i2"), Raw(b"bad 1"), event("anna", "i3"), Raw(b"bad 2"))
        wait_until(lambda: not running.health.ready().ok, 60, "ingest is not ready")
        (reason,) = running.health.ready().reasons
        assert f"the dead-letter topic {topics.dead_letters} can't be written" in reason
        topics.send(topics.clicks, event("anna", "i4"), Raw(b"bad 3"))
        # Neither the bad event nor what stands beside it has been passed over.
        assert topics.committed() == {(topics.clicks, 0): 1}
        assert running.health.live().ok, "a restart would not help, so liveness must not ask for one"

        topics.create()
        running.wait_for(accepted=4, dead_lettered=3)
        wait_until(lambda: running.health.ready().ok, 20, "ingest is ready again")
    assert {found.raw.value for found in topics.read(topics.dead_letters)} == {b"bad 1", b"bad 2", b"bad 3"}
    assert [one.item for one in topics.events()] == ["i1", "i2", "i3", "i4"]
    assert topics.committed() == {(topics.clicks, 0): 7}


def test_ingest_that_is_told_to_stop_while_it_waits_commits_nothing_of_the_batch(topics: Topics) -> None:
    with Running(topics) as running:
        topics.send(topics.clicks, event("anna", "i1"))
        running.wait_for(accepted=1)
        topics.delete(topics.dead_letters)
        topics.send(topics.clicks, Raw(b"bad"), event("anna", "i2"))
        wait_until(lambda: not running.health.ready().ok, 60, "ingest is not ready")
    assert topics.committed() == {(topics.clicks, 0): 1}
    topics.create()
    with Running(topics) as running:
        running.wait_for(accepted=1, dead_lettered=1)
    assert [one.item for one in topics.events()] == ["i1", "i2"]
    assert [found.raw.value for found in topics.read(topics.dead_letters)] == [b"bad"]


def test_a_dead_letter_topic_that_takes_only_small_messages_blocks_and_drops_nothing(
    kafka: KafkaServer, topic_prefix: str
) -> None:
    topics = Topics(kafka, topic_prefix)
    topics.delete(topics.dead_letters)
    admin = AdminClient({"bootstrap.servers": topics.servers})
    small = NewTopic(topics.dead_letters, 1, 1, config={"max.message.bytes": "500"})
    admin.create_topics([small])[topics.dead_letters].result()
    topics.send(topics.clicks, Raw(msgspec.json.encode({"x": list(range(1000))})))
    with Running(topics) as running:
        wait_until(lambda: running.error or not running.health.ready().ok, 60, "ingest is not ready")
        reasons = wait_until(
            lambda: [one for one in running.health.ready().reasons if "can't be written" in one], 60, "it says why"
        )
        assert topics.dead_letters in reasons[0]
    assert topics.committed() == {}


def test_a_topic_that_is_missing_is_named_at_the_start(topics: Topics) -> None:
    topics.delete(topics.interactions)
    with pytest.raises(TopicMissing) as caught:
        Running(topics)
    assert topics.interactions in str(caught.value)
    assert "`driftline topics create` makes the topics" in str(caught.value)
