"""A replayed log gives what live workers gave, row by row: real processes, a real Kafka, a real Redis, and the oracle."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from deploy.local.servers import KafkaServer, RedisServer
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from tests.integration.oracle import Log, Model, Rule, check_close, check_rows, read_model
from tests.integration.pipeline import Names, Pipeline
from tests.integration.test_kills import simulated_events

RULE = Rule(longest=20, keep=10)
ITEMS = [f"item-{number}" for number in range(300)]
K = 10
Rows = dict[str, dict[str, bytes]]
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
        rows: Of g1.
    """

    pipeline: Pipeline
    log: Log
    rows: Rows

    def backfill(self, name: str, *arguments: str) -> dict[str, Any]:
        """Run the command to its end; what it prints."""
        done = self.pipeline.run("backfill", "--generation", name, *arguments, "--output", "json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def rows_of(self, generation: str) -> Rows:
        prefix = f"{self.pipeline.names.key_prefix}:{generation}:"
        return {key: row for key, row in self.pipeline.rows().items() if key.startswith(prefix)}


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
        Pipeline(directory, kafka_session.bootstrap_servers, server.url, names, bundle, settings=settings) as pipeline,
    ):
        pipeline.create_topics()
        pipeline.produce(simulated_events(names, 6000, seed=11))
        pipeline.start("ingest")
        pipeline.start("evolve")
        pipeline.wait_until_applied(120)
        pipeline.stop()
        yield Live(pipeline, pipeline.read_log(), pipeline.rows())


def check_equal(found: Rows, expected: Rows) -> None:
    """The same users, windows, vectors and lists, whatever the generation."""
    by_user = [{key.partition(":user:")[2]: row for key, row in rows.items()} for rows in (found, expected)]
    assert by_user[0].keys() == by_user[1].keys()
    for user, row in by_user[1].items():
        other = by_user[0][user]
        assert other["state"] == row["state"], user
        assert "trigger" not in other
        vectors = [np.frombuffer(each["vector"], "<f4") for each in (other, row)]
        check_close(vectors[0], vectors[1], f"vector of user {user}")
        lists = [json.loads(each["recommendations"]) for each in (other, row)]
        named = [[(item["item_id"], item["because"]) for item in each["items"]] for each in lists]
        assert named[0] == named[1], user
        assert lists[0]["trigger"] == lists[1]["trigger"], user
        assert (lists[0]["mode"], lists[1]["mode"]) == ("replay", "live")


def test_a_backfill_with_two_workers_gives_what_live_workers_gave(live: Live, model: Model) -> None:
    found = live.backfill("whole", "--workers", "2", "--execute")
    rows = live.rows_of("whole")
    check_equal(rows, live.rows)
    outcomes = check_rows(rows, live.log, RULE, model, 4, live.pipeline.names.key_prefix, K, "whole")
    assert (found["events"], found["repeats"], found["late"]) == (
        outcomes.total(), outcomes["repeat"], outcomes["late"],
    )  # fmt: skip
    sys.stdout.write(f"\n{found['events']} events, {found['events_per_second']:.0f}/s\n")
