"""`driftline data pull`: what apps sent, back as a log to train on."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from prometheus_client import CollectorRegistry

from deploy.local.servers import KafkaServer, RedisServer
from models.data.events import Log
from models.data.readers import read_events
from streams.log.admin import LogAdmin
from streams.observe.health import Health
from streams.observe.metrics import IngestMetrics
from streams.services.ingest import Ingest
from streams.services.topics import create_missing_topics
from streams.settings import IngestSettings, KafkaSettings, Settings, TopicSettings
from tests.integration.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
START_MS = 1_700_000_000_000
USERS = 50


def sent() -> list[dict[str, Any]]:
    """Three events a user; the third repeats the id of the first."""
    return [
        {
            "user_id": f"user-{user}",
            "item_id": f"item-{(user + 3 * turn) % 7}",
            "type": ("view", "buy", "view")[turn],
            "event_id": f"{user}-{turn % 2}",
            "event_time": START_MS + 1000 * turn + user,
            "context": {"page": turn},
        }
        for turn in range(3)
        for user in range(USERS)
    ]


def ingest_everything(settings: Settings, group: str, events: int) -> None:
    registry = CollectorRegistry()
    of_group = settings.model_copy(update={"ingest": IngestSettings(group=group)})
    ingest = Ingest(of_group, IngestMetrics.on(registry), Health(30.0))
    thread = threading.Thread(target=ingest.run, name="ingest", daemon=True)
    thread.start()
    try:
        wait_until(
            lambda: registry.get_sample_value("driftline_ingest_events_total", {"outcome": "accepted"}) == events,
            60,
            "everything is ingested",
        )
    finally:
        ingest.stop()
        thread.join(60)


def pull(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    return subprocess.run(
        [
            *(sys.executable, "-m", "streams.cli", "data", "pull", "--out", str(out)),
            *("--config", str(config), "--output", "json"),
        ],
        env={**clean, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_what_was_sent_comes_back_once_as_a_log_that_training_reads(
    kafka: KafkaServer, redis_server: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    clicks, interactions = f"{topic_prefix}clicks", f"{topic_prefix}interactions"
    config = tmp_path / "pull.toml"
    config.write_text(
        f'[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n[topics]\ninteractions = "{interactions}"\n'
        f'[redis]\nurl = "{redis_server.url}"\n'
    )
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, session_timeout_s=6),
        topics=TopicSettings(
            sources={clicks: "click"},
            interactions=interactions,
            recommendations=f"{topic_prefix}recommendations",
            dead_letters=f"{topic_prefix}dead",
            partitions=3,
        ),
    )
    with LogAdmin(settings.kafka) as admin:
        create_missing_topics(settings, admin)

    empty = pull(config, tmp_path / "empty.jsonl")
    assert empty.returncode == 5
    assert f"{interactions} holds no event" in empty.stderr.replace("\n", " ")
    assert list(tmp_path.iterdir()) == [config]

    events = sent()
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for event in events:
        producer.produce(clicks, json.dumps(event).encode(), event["user_id"])
    assert producer.flush(30) == 0
    # Two groups: the second sends every frame again, as an ingest does that crashed before its first commit.
    for run in range(2):
        ingest_everything(settings, f"{topic_prefix}ingest-{run}", len(events))

    expected = {
        (event["user_id"], event["item_id"], event["type"], event["event_time"], event["event_id"])
        for event in events[: 2 * USERS]
    }
    for name in ("log.parquet", "log.jsonl.gz"):
        out = tmp_path / name
        finished = pull(config, out)
        assert finished.returncode == 0, finished.stderr
        found = json.loads(finished.stdout)
        assert found == {
            "path": str(out), "events": 2 * USERS, "frames": found["frames"], "resent": 3 * USERS, "repeats": USERS,
            "erased": 0, "invalid_frames": 0, "deleted_frames": 0,
        }  # fmt: skip
        log = read_events(out)
        assert len(log.events) == len(expected)
        assert {(e.user_id, e.item_id, e.type, e.time_ms, e.event_id) for e in log.events} == expected
        assert log == Log(log.events, timed=True, repeats=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl.gz", "log.parquet", "pull.toml"]
