"""`driftline deadletters`: letters go back to where they came from, once, and a hopeless one is not looped."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from prometheus_client import CollectorRegistry

from deploy.local.servers import KafkaServer, RedisServer
from streams.contracts.frame import decode_frame
from streams.log.admin import LogAdmin
from streams.log.readers import TailReader
from streams.log.topics import Message
from streams.observe.health import Health
from streams.observe.metrics import IngestMetrics
from streams.services.ingest import Ingest
from streams.services.pull import read_to_end
from streams.services.topics import create_missing_topics, partitions_of
from streams.settings import IngestSettings, KafkaSettings, Settings, TopicSettings
from tests.integration.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
# An hour ago: Kafka may delete what is older than its retention, also when it has just come.
TIME_MS = round(time.time() * 1000) - 3_600_000


@contextmanager
def ingesting(settings: Settings, group: str, max_event_bytes: int) -> Iterator[CollectorRegistry]:
    registry = CollectorRegistry()
    ingest = Ingest(
        settings.model_copy(update={"ingest": IngestSettings(group=group, max_event_bytes=max_event_bytes)}),
        IngestMetrics.on(registry),
        Health(30.0),
    )
    thread = threading.Thread(target=ingest.run, name="ingest", daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        ingest.stop()
        thread.join(60)
    assert not thread.is_alive(), "ingest did not stop"


def wait_for(registry: CollectorRegistry, accepted: int, dead_lettered: int) -> None:
    def count(outcome: str) -> float:
        return registry.get_sample_value("driftline_ingest_events_total", {"outcome": outcome}) or 0.0

    wait_until(
        lambda: (count("accepted"), count("dead_lettered")) == (accepted, dead_lettered),
        60,
        f"{accepted} events are accepted and {dead_lettered} dead-lettered",
    )


def read(settings: Settings, name: str) -> list[Message]:
    with LogAdmin(settings.kafka) as admin:
        topic = admin.topics([name])[name]
        extents = admin.extents(partitions_of(topic))
    reader = TailReader(settings.kafka, [topic], from_beginning=True)
    try:
        return list(read_to_end(reader, extents))
    finally:
        reader.close()


def ask(config: Path, *arguments: str, code: int = 0) -> Any:
    """What `driftline deadletters` prints as JSON, and that it ends with this code."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "streams.cli", "deadletters", *arguments),
            *("--config", str(config), "--output", "json"),
        ],
        env={**clean, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == code, finished.stderr
    return json.loads(finished.stdout)


def test_a_letter_whose_cause_has_passed_gets_in_and_a_hopeless_one_comes_back_once(
    kafka: KafkaServer, redis_server: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    clicks, dead_letters = f"{topic_prefix}clicks", f"{topic_prefix}dead"
    config = tmp_path / "driftline.toml"
    config.write_text(
        f'[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n[redis]\nurl = "{redis_server.url}"\n'
        f'[topics]\nsources = {{"{clicks}" = "click"}}\ndead_letters = "{dead_letters}"\n'
    )
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, session_timeout_s=6),
        topics=TopicSettings(
            sources={clicks: "click"},
            interactions=f"{topic_prefix}interactions",
            recommendations=f"{topic_prefix}recommendations",
            dead_letters=dead_letters,
            partitions=2,
        ),
    )
    with LogAdmin(settings.kafka) as admin:
        create_missing_topics(settings, admin)
    large = json.dumps({"user_id": "ana", "item_id": "large", "context": {"page": "x" * 500}}).encode()
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "message.max.bytes": 2_000_000})
    # Kafka's limit is 1,048,588 bytes with everything around it; noise, for what compresses well would pass any limit.
    huge = random.Random(0).randbytes(1_048_480)
    for value in (large, b"hopeless", b'{"user_id":"ana","item_id":"small"}', huge):
        producer.produce(clicks, value, b"a key", 1, headers=[("trace", b"\xff")], timestamp=TIME_MS)
    assert producer.flush(30) == 0

    with ingesting(settings, f"{topic_prefix}ingest", max_event_bytes=256) as registry:
        wait_for(registry, accepted=1, dead_lettered=3)
    listed = ask(config, "list")
    assert (listed["matching"], listed["others"]) == (3, 0)
    assert listed["by_reason"] == {"too_large": 2, "not_json": 1}
    assert {letter["source"]["offset"] for letter in listed["letters"]} == {0, 1, 3}

    planned = {"matching": 3, "to_send": {clicks: 3}, "left_out": {}, "not_reached": 0}
    assert ask(config, "replay") == {"executed": False, "sent": 0, "refused": {}, **planned}
    assert len(read(settings, clicks)) == 4
    # One header more, and the huge one is larger than its topic allows; the others go all the same.
    done = ask(config, "replay", "--execute", code=13)
    ((refused, why),) = done.pop("refused").items()
    assert done == {"executed": True, "sent": 2, **planned}
    assert "too large" in why
    sent_back = [message for message in read(settings, clicks) if message.offset > 3]
    assert {message.value for message in sent_back} == {large, b"hopeless"}
    for message in sent_back:
        assert (message.partition, message.key, message.timestamp_ms) == (1, b"a key", TIME_MS)
        assert [name for name, _ in message.headers] == ["trace", "driftline-replayed"]

    with ingesting(settings, f"{topic_prefix}ingest", max_event_bytes=65_536) as registry:
        wait_for(registry, accepted=1, dead_lettered=1)
    frames = [decode_frame(message.value or b"") for message in read(settings, settings.topics.interactions)]
    # The event had no time of its own: it is dated by when it was first sent.
    assert [(frame.item, frame.time_ms) for frame in frames] == [(["small"], [TIME_MS]), (["large"], [TIME_MS])]

    assert ask(config, "replay", "--reason", "not_json", "--reason", "too_large") == {
        "executed": False, "matching": 4, "to_send": {clicks: 1}, "sent": 0, "refused": {}, "not_reached": 0,
        "left_out": {"sent_back_before": 2, "too_often": 1},
    }  # fmt: skip
    (hopeless,) = (letter for letter in ask(config, "list", "--reason", "not_json")["letters"] if letter["replays"])
    assert refused in {f"{letter['partition']}:{letter['offset']}" for letter in listed["letters"]}
    shown = ask(config, "show", f"{hopeless['partition']}:{hopeless['offset']}")
    assert shown["letter"] == hopeless
    assert (shown["value"]["text"], shown["timestamp"]) == ("hopeless", TIME_MS)
