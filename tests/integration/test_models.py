"""Another version of the model takes over in place while events come in: real processes, Kafka and Redis."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.servers import KafkaServer, RedisServer
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from tests.integration.oracle import Doubled, Model, Rule, check_rows, read_model
from tests.integration.pipeline import Names, Pipeline, shown_if_it_fails
from tests.integration.test_generations import command, refusal
from tests.integration.test_kills import simulated_events
from tests.small_models import write_doubled_bundle

RULE = Rule(longest=20, keep=10)
WINDOW = WindowRule(max=RULE.longest, keep=RULE.keep)
ITEMS = [f"item-{number}" for number in range(300)]
K = 10
USAGE = 2
BUNDLE = 4
# How long something may take on a machine that is busy with other things.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions with the same items, and a model of other items' vectors."""
    folder = tmp_path_factory.mktemp("models")
    write_pooling_bundle(folder / "first", ITEMS, dim=16, window=WINDOW)
    write_doubled_bundle(folder / "second", ITEMS, dim=16, window=WINDOW)
    write_pooling_bundle(folder / "other", ITEMS, dim=8, window=WINDOW)
    return {name: folder / name for name in ("first", "second", "other")}


@pytest.fixture
def pipeline(
    request: pytest.FixtureRequest,
    kafka: KafkaServer,
    redis_server: RedisServer,
    topic_prefix: str,
    bundles: dict[str, Path],
    tmp_path: Path,
) -> Iterator[Pipeline]:
    settings = {
        "INGEST__FRAME_EVENTS": "20",
        "EVOLVE__BATCH_USERS": "40",
        "MODEL__REGISTRY": str(tmp_path / "registry"),
        "EVOLVE__SWEEP_USERS_PER_SECOND": "1000",
    }
    names = Names.under(topic_prefix)
    with Pipeline(
        tmp_path, kafka.bootstrap_servers, redis_server.url, names, bundles["first"], settings=settings
    ) as opened:
        opened.create_topics()
        with shown_if_it_fails(request, opened):
            yield opened


def version_of(bundle: Path) -> str:
    version: str = json.loads((bundle / "config.json").read_text())["version"]
    return version


def check(pipeline: Pipeline, model: Model) -> None:
    log = pipeline.read_log()
    outcomes = check_rows(pipeline.rows(), log, RULE, model, pipeline.partitions, pipeline.names.key_prefix, K)
    assert log.raw_count == outcomes.total() + len(log.bad)


def versions_in(pipeline: Pipeline) -> set[str]:
    return {row["model"].decode() for row in pipeline.rows().values()}


def test_a_version_takes_over_in_place_under_load_and_is_rolled_back(
    pipeline: Pipeline, bundles: dict[str, Path]
) -> None:
    first = read_model(bundles["first"])
    old, new = version_of(bundles["first"]), version_of(bundles["second"])
    workers = [pipeline.start(service) for service in ("ingest", "evolve", "evolve")]
    pipeline.wait_until_ready(*workers)
    # Users that nothing is heard of again: their rows follow in the background.
    pipeline.produce(simulated_events(pipeline.names, 2000, seed=31))
    pipeline.wait_until_applied(90)
    load = pipeline.load(simulated_events(pipeline.names, 50_000, seed=32), per_second=100)

    assert command(pipeline, "model", "publish", str(bundles["second"]))["version"] == new
    assert [(each["version"], each["fits"]) for each in command(pipeline, "model", "list")] == [(new, "in place")]
    served = command(pipeline, "model", "activate", new)
    assert (served["model"], served["previous_model"], served["generation"]) == (new, old, "g1")
    workers[1].signal(signal.SIGKILL)
    load.cancel()
    pipeline.flush()
    pipeline.wait_until_applied(120)
    pipeline.wait_until(lambda: versions_in(pipeline) == {new}, 120, "every row is of the new version")
    check(pipeline, Doubled(first.rows, first.vectors))
    sent = [json.loads(message.value or b"") for message in pipeline.read(pipeline.names.recommendations)]
    assert {each["model"]["version"] for each in sent} >= {old}
    assert "version " + new + " is served already" in refusal(pipeline, USAGE, "model", "activate", new)

    assert command(pipeline, "model", "rollback")["model"] == old
    pipeline.produce(simulated_events(pipeline.names, 300, seed=33))
    pipeline.wait_until_applied(90)
    pipeline.wait_until(lambda: versions_in(pipeline) == {old}, 120, "every row is of the old version again")
    check(pipeline, first)

    # Back again before anybody has looked for what the one between wrote.
    command(pipeline, "model", "activate", new)
    pipeline.produce(simulated_events(pipeline.names, 300, seed=38))
    pipeline.wait_until(lambda: new in versions_in(pipeline), 60, "some rows are of the new version")
    command(pipeline, "model", "rollback")
    pipeline.wait_until_applied(90)
    pipeline.wait_until(lambda: versions_in(pipeline) == {old}, 120, "no row is of the new version any more")
    check(pipeline, first)
    assert [worker.exits for worker in workers] == [[], [-signal.SIGKILL], []]


def test_what_is_broken_or_of_another_space_never_gets_in_and_the_live_one_goes_on(
    pipeline: Pipeline, bundles: dict[str, Path], tmp_path: Path
) -> None:
    first = read_model(bundles["first"])
    workers = [pipeline.start(service) for service in ("ingest", "evolve")]
    pipeline.wait_until_ready(*workers)
    pipeline.produce(simulated_events(pipeline.names, 500, seed=34))
    pipeline.wait_until_applied(90)

    other = version_of(bundles["other"])
    command(pipeline, "model", "publish", str(bundles["other"]))
    says = refusal(pipeline, 20, "model", "activate", other)
    assert "driftline backfill --generation NAME --bundle" in says

    # A byte is changed: of the bundle before it is published, and of the copy in the registry after.
    tampered = tmp_path / "tampered"
    shutil.copytree(bundles["second"], tampered)
    flip(tampered / "encoder.onnx")
    assert "encoder.onnx" in refusal(pipeline, BUNDLE, "model", "publish", str(tampered))
    new = command(pipeline, "model", "publish", str(bundles["second"]))["version"]
    flip(tmp_path / "registry" / new / "items.npy")
    assert "items.npy" in refusal(pipeline, BUNDLE, "model", "activate", new)
    fits = {each["version"]: each["fits"] for each in command(pipeline, "model", "list")}
    assert fits == {other: "backfill", new: "broken"}

    assert "no version 0000" in refusal(pipeline, USAGE, "model", "activate", "0000")
    assert "nothing to go back to" in refusal(pipeline, USAGE, "model", "rollback")
    pipeline.produce(simulated_events(pipeline.names, 300, seed=35))
    pipeline.wait_until_applied(90)
    check(pipeline, first)
    assert [worker.exits for worker in workers] == [[], []]


def flip(file: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
