"""Another generation is filled, compared and activated while events come in: real processes, Kafka and Redis."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy.local.servers import KafkaServer, RedisServer
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from tests.integration import crash_worker
from tests.integration.oracle import Message, Model, Rule, check_recommendations, check_rows, read_model
from tests.integration.pipeline import Names, Pipeline, shown_if_it_fails
from tests.integration.test_kills import simulated_events

RULE = Rule(longest=20, keep=10)
WINDOW = WindowRule(max=RULE.longest, keep=RULE.keep)
ITEMS = [f"item-{number}" for number in range(300)]
K = 10
NOT_FIT = 3
USAGE = 2
BUNDLE = 4
# How long something may take on a machine that is busy with other things.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of other vectors."""
    folder = tmp_path_factory.mktemp("models")
    for name, dim in (("old", 16), ("new", 24)):
        write_pooling_bundle(folder / name, ITEMS, dim=dim, seed=dim, window=WINDOW)
    return {name: folder / name for name in ("old", "new")}


@pytest.fixture
def pipeline(
    request: pytest.FixtureRequest,
    kafka: KafkaServer,
    redis_server: RedisServer,
    topic_prefix: str,
    bundles: dict[str, Path],
    tmp_path: Path,
) -> Iterator[Pipeline]:
    settings = {"INGEST__FRAME_EVENTS": "20", "EVOLVE__BATCH_USERS": "40"}
    names = Names.under(topic_prefix)
    with Pipeline(
        tmp_path, kafka.bootstrap_servers, redis_server.url, names, bundles["old"], settings=settings
    ) as opened:
        opened.create_topics()
        with shown_if_it_fails(request, opened):
            yield opened


def command(pipeline: Pipeline, *arguments: str) -> Any:
    """What a command prints as JSON."""
    done = pipeline.run(*arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refusal(pipeline: Pipeline, code: int, *arguments: str) -> str:
    """What a command that ends with this code says."""
    done = pipeline.run(*arguments)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def check_generation(pipeline: Pipeline, model: Model, sent: list[Message]) -> None:
    """Every window, vector and list of the generation, and every list that was sent of its model."""
    log = pipeline.read_log()
    rows = pipeline.served_rows()
    outcomes = check_rows(rows, log, RULE, model, pipeline.partitions, pipeline.names.key_prefix, K, pipeline.served())
    assert log.raw_count == outcomes.total() + len(log.bad)
    live = {key: row for key, row in rows.items() if json.loads(row["recommendations"])["mode"] == "live"}
    check_recommendations(sent, live, log, RULE, model, K)


def sent_with(pipeline: Pipeline, bundle: Path) -> list[Message]:
    """The recommendations that were made with a model."""
    version = json.loads((bundle / "config.json").read_text())["version"]
    return [
        message
        for message in pipeline.read(pipeline.names.recommendations)
        if json.loads(message.value or b"")["model"]["version"] == version
    ]


def test_another_model_takes_over_under_load_and_the_old_one_again_and_no_event_is_lost_or_counts_twice(
    pipeline: Pipeline, bundles: dict[str, Path]
) -> None:
    old, new = (read_model(bundles[name]) for name in ("old", "new"))
    workers = [pipeline.start(service) for service in ("ingest", "evolve", "evolve")]
    pipeline.wait_until_ready(*workers)
    # More than will be needed, however slow the machine: what was sent is what counts.
    load = pipeline.load(simulated_events(pipeline.names, 50_000, seed=21), per_second=200)
    pipeline.wait_until(lambda: pipeline.applied_frames() > 40, 60, "some frames are applied")

    # Filled beside; what comes meanwhile is for live workers to read again.
    command(pipeline, "backfill", "--generation", "g2", "--bundle", str(bundles["new"]), "--workers", "1", "--execute")
    found = command(pipeline, "generations", "compare", "g2", "--samples", "2")
    assert (found["here"], found["there"], found["distances"]) == ("g1", "g2", None)
    assert len(found["samples"]) == 2
    done = command(pipeline, "generations", "activate", "g2")
    served, compared = done["serving"], done["comparison"]
    assert (served["generation"], served["previous_generation"]) == ("g2", "g1")
    # Events came between the two: whom they are of cannot be compared, and whoever can is the same on both sides.
    assert done["lag"] > 0
    assert compared["moving"] > 0
    assert (compared["missing_there"], compared["missing_here"], compared["differing_windows"]) == (0, 0, 0)
    listed = {each["name"]: each["state"] for each in command(pipeline, "generations", "list")}
    assert listed == {"g1": "previous", "g2": "live"}

    # One dies in the midst of it, and what the supervisor starts in its place serves the new one.
    before = pipeline.applied_frames()
    workers[1].signal(signal.SIGKILL)
    pipeline.wait_until(lambda: pipeline.applied_frames() > before + 5, 90, "the new generation moves on")
    shown = json.loads(pipeline.run("users", "show", "user-0", "--output", "json").stdout)
    assert shown["vector_dim"] == 24

    load.cancel()
    pipeline.flush()
    pipeline.wait_until_applied(120)
    assert sent_with(pipeline, bundles["new"])
    check_generation(pipeline, new, sent_with(pipeline, bundles["new"]))

    # Back: the old one lacks what came since, so it is refused until that is read.
    assert "g1 is not activated" in refusal(pipeline, NOT_FIT, "generations", "activate", "g1", "--max-lag", "0")
    command(pipeline, "backfill", "--generation", "g1", "--execute")
    command(pipeline, "generations", "activate", "g1", "--max-lag", "0", "--max-missing", "0", "--max-differing", "0")
    pipeline.produce(simulated_events(pipeline.names, 500, seed=22))
    pipeline.wait_until_applied(120)
    check_generation(pipeline, old, sent_with(pipeline, bundles["old"]))
    assert [worker.exits for worker in workers] == [[], [-signal.SIGKILL], []]

    # Dropped in steps; nothing of it is left.
    keys = command(pipeline, "generations", "drop", "g2", "--yes")["keys"]
    assert keys > 100
    assert {key.split(":")[1] for key in pipeline.rows()} == {"g1"}
    assert [each["name"] for each in command(pipeline, "generations", "list")] == ["g1"]


def test_a_generation_of_which_most_partitions_never_had_a_frame_is_gone_back_to(
    pipeline: Pipeline, bundles: dict[str, Path]
) -> None:
    # The first worker dies with one partition begun and the others not.
    with pipeline.begin(crash_worker.command(crash_worker.BETWEEN_SWAPS, 1)[1:]) as dying:
        output = dying.communicate(timeout=120)
    assert dying.returncode == -signal.SIGKILL, output
    ingest, evolve = pipeline.start("ingest"), pipeline.start("evolve")
    pipeline.wait_until_ready(ingest, evolve)
    of_all = simulated_events(pipeline.names, 600, seed=25)
    of_one = [one for one in of_all if b'"user-0"' in (one.value or b"")]
    assert len(of_one) > 20
    pipeline.produce(of_one)
    pipeline.wait_until_applied(90)
    assert sorted(pipeline.watermarks().values())[:3] == [-1, -1, -1]

    command(pipeline, "backfill", "--generation", "g2", "--bundle", str(bundles["new"]), "--execute")
    for name in ("g2", "g1", "g2"):  # forth, back at once, and forth again
        found = command(pipeline, "generations", "activate", name)
        assert (found["serving"]["generation"], found["lag"]) == (name, 0)
    pipeline.produce(of_all)
    pipeline.wait_until_applied(90)
    assert min(pipeline.watermarks().values()) >= 0
    new = bundles["new"]
    check_generation(pipeline, read_model(new), sent_with(pipeline, new))

    # Every partition has got frames since.
    command(pipeline, "backfill", "--generation", "g1", "--execute")
    command(pipeline, "generations", "activate", "g1", "--max-lag", "0", "--max-missing", "0", "--max-differing", "0")
    pipeline.produce(simulated_events(pipeline.names, 300, seed=26))
    pipeline.wait_until_applied(90)
    old = bundles["old"]
    check_generation(pipeline, read_model(old), sent_with(pipeline, old))


def test_what_is_not_fit_is_not_activated_and_the_live_one_goes_on(
    pipeline: Pipeline, bundles: dict[str, Path], redis_server: RedisServer, tmp_path: Path
) -> None:
    old = read_model(bundles["old"])
    workers = [pipeline.start(service) for service in ("ingest", "evolve")]
    pipeline.wait_until_ready(*workers)
    pipeline.produce(simulated_events(pipeline.names, 1500, seed=23))
    pipeline.wait_until_applied(90)
    assert "g1 is served already" in refusal(pipeline, USAGE, "generations", "activate", "g1")
    assert "g1 is served; activate another" in refusal(pipeline, USAGE, "generations", "drop", "g1", "--yes")
    assert "there is no generation g9; there are: g1" in refusal(pipeline, USAGE, "generations", "activate", "g9")
    assert "there is no generation g9" in refusal(pipeline, USAGE, "generations", "compare", "g9")

    # Only the second half of the log.
    half = ",".join(f"{partition}:{offset // 2}" for partition, offset in pipeline.watermarks().items())
    bundle = tmp_path / "bundle"
    write_pooling_bundle(bundle, ITEMS, dim=8, window=WINDOW)
    command(pipeline, "backfill", "--generation", "half", "--bundle", str(bundle), "--from-offsets", half, "--execute")
    assert "another window in it" in refusal(pipeline, NOT_FIT, "generations", "activate", "half")

    # Its model is damaged since.
    items = bundle / "items.npy"
    damaged = bytearray(items.read_bytes())
    damaged[-1] ^= 1
    items.write_bytes(bytes(damaged))
    assert "items.npy" in refusal(pipeline, BUNDLE, "generations", "activate", "half", "--ignore-limits")

    pipeline.generation = "g1"
    # Whatever else writes the pointer: a worker that cannot load the model says so, and goes on with the one before.
    with redis.Redis.from_url(redis_server.url) as client:
        client.set(f"{pipeline.names.key_prefix}:generation", json.dumps({"generation": "half", "model": "0" * 12}))
    pipeline.wait_until(lambda: not workers[1].is_ready(), 60, "the worker says that it cannot follow")
    pipeline.produce(simulated_events(pipeline.names, 500, seed=24))
    pipeline.wait_until_applied(90)
    check_generation(pipeline, old, sent_with(pipeline, bundles["old"]))
    assert "what was activated can't be served here" in workers[1].log.read_text()
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete(f"{pipeline.names.key_prefix}:generation")
    pipeline.wait_until_ready(workers[1])
    assert [worker.exits for worker in workers] == [[], []]


def test_a_model_of_another_space_does_not_start_on_a_generation_that_is_there(
    pipeline: Pipeline, bundles: dict[str, Path]
) -> None:
    evolve = pipeline.start("evolve")
    pipeline.wait_until_ready(evolve)
    assert evolve.stop() == 0
    says = refusal(pipeline, 20, "evolve", "--bundle", str(bundles["new"]))
    assert "driftline backfill --generation NAME --bundle" in says
