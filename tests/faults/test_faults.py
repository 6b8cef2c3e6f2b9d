"""The short form of `make faults`: some faults on the real thing, and the oracle; and that the oracle finds what is wrong."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deploy.local.servers import KafkaCluster
from streams.errors import LogUnavailable, TopicMissing
from streams.log.admin import LogAdmin
from streams.log.topics import Partition
from streams.settings import KafkaSettings
from tests.faults import mutants
from tests.faults.campaign import Report, run_round, write_bundles
from tests.faults.round import KILLED, Round
from tests.faults.stack import cluster_in
from tests.integration.oracle import Versions
from tests.integration.waiting import wait_until

SEED = 20
# Those that a year of running a cluster brings.
FAULTS = ("kill", "broker-killed", "freeze", "redis-failed-over-behind", "frame-too-large")
# On an idle machine the first test takes a minute and a half.
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Three brokers; and nothing that a test started is left when they are gone."""
    before = set(psutil.Process().children(recursive=True))
    with cluster_in(tmp_path_factory.mktemp("kafka")) as running:
        yield running
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Versions]:
    return write_bundles(tmp_path_factory.mktemp("model"))


def test_nothing_is_lost_and_nothing_counts_twice_whatever_happens(
    cluster: KafkaCluster, bundle: tuple[Path, Versions], tmp_path: Path
) -> None:
    report = Report(SEED)
    run_round(report, tmp_path / "round", cluster, *bundle, SEED, FAULTS, workers={"ingest": 2, "evolve": 2})
    history = "\n".join(f"{entry.at_s:7.1f} s  {entry.what}" for entry in report.history)
    sys.stdout.write(f"\n{report.verdict}\n{history}\n")
    assert report.violation is None, f"{report.violation}\n{report.log}"


def test_topics_and_ends_are_known_again_soon_after_the_broker_is_lost_that_was_asked(cluster: KafkaCluster) -> None:
    with LogAdmin(KafkaSettings(bootstrap_servers=cluster.bootstrap_servers)) as admin:
        admin.create_topic("led", 6, 3, {"min.insync.replicas": "2"})
        led = [Partition("led", number) for number in range(6)]
        wait_until(lambda: is_answered(admin, led), 120, "topics and ends are known")
        # It leads some of the six partitions too.
        cluster.brokers[admin._admin.list_topics(timeout=30).controller_id - 1].kill()
        wait_until(lambda: is_answered(admin, led), 120, "topics and ends are known without that broker")
        cluster.start()


def is_answered(admin: LogAdmin, partitions: list[Partition]) -> bool:
    with suppress(LogUnavailable, TopicMissing):
        return admin.topics(["led"])["led"].partitions == len(admin.extents(partitions))
    return False


def test_an_ingest_that_commits_before_it_sends_is_found_out(
    cluster: KafkaCluster, bundle: tuple[Path, Versions], tmp_path: Path
) -> None:
    path, model = bundle
    commands = {"ingest": mutants.command("commits-first", call=3)}
    with Round(tmp_path / "round", cluster, path, SEED, workers={"ingest": 1, "evolve": 1}, commands=commands) as on:
        on.begin()
        ingest = on.workers("ingest")[0]
        on.wait_until(lambda: KILLED in ingest.exits, "ingest dies between its commit and its send")
        on.finish()
        with pytest.raises(AssertionError, match="events are not in the log"):
            on.judge(model)
