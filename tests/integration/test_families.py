"""Three families, live: the same log, and nothing changes but the bundle."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.local.servers import KafkaServer, RedisServer
from models.data.events import UserSequence, user_sequences
from models.synthetic import LogPlan, generate_log
from streams.contracts.recommendation import decode_recommendation
from tests.families import EVENTS, SEED, USERS, bundle_of, offline_scores
from tests.integration.pipeline import Names, Pipeline, Raw

K = 10
FAMILIES = ("sasrec", "vae", "text+id")

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Log:
    """What an app sent, ingested once for all models."""

    names: Names
    sequences: list[UserSequence]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, kafka_session: KafkaServer, redis_session: RedisServer) -> Log:
    events = list(generate_log(LogPlan(users=USERS, events=EVENTS, drift=0.5, seed=SEED)))
    names = Names.under("families-")
    any_bundle = bundle_of("popularity", tmp_path_factory.mktemp("any"))
    directory = tmp_path_factory.mktemp("ingest")
    with Pipeline(directory, kafka_session.bootstrap_servers, redis_session.url, names, any_bundle.path) as pipeline:
        pipeline.create_topics()
        pipeline.start("ingest")
        # All into one topic: of two, each is read as fast as can be, and a user's events would arrive out of order.
        pipeline.produce(
            Raw(
                names.clicks,
                event.user_id,
                json.dumps(
                    {
                        "user_id": event.user_id,
                        "item_id": event.item_id,
                        "type": event.type,
                        "event_id": event.event_id,
                        "event_time": event.time_ms,
                    }
                ).encode(),
            )
            for event in events
        )
        pipeline.wait_until(pipeline.is_ingested, 60, "everything is ingested")
        pipeline.stop()
    return Log(names, user_sequences(events))


@pytest.mark.parametrize("family", FAMILIES)
def test_live_recommendations_are_those_of_the_model_offline(
    family: str, log: Log, tmp_path: Path, kafka_session: KafkaServer, redis_session: RedisServer
) -> None:
    bundle = bundle_of(family, tmp_path)
    names = log.names.with_evolve_of(Names.under(f"families-{family.replace('+', '-')}-"))
    with Pipeline(tmp_path, kafka_session.bootstrap_servers, redis_session.url, names, bundle.path) as pipeline:
        pipeline.create_topics()
        pipeline.start("evolve")
        pipeline.wait_until(
            lambda: len(pipeline.rows()) == USERS and pipeline.is_applied(), 60, "everything is applied"
        )
        assert set(pipeline.stop()) == {0}
        rows = {key.rpartition(":")[2]: row for key, row in pipeline.rows().items()}
    assert set(rows) == {sequence.user_id for sequence in log.sequences}
    for sequence in log.sequences:
        row = rows[sequence.user_id]
        assert row["model"].decode() == bundle.config.version
        listed = [item.item_id for item in decode_recommendation(row["recommendations"]).items]
        expected = offline_scores(bundle, sequence)
        ranked = sorted(expected, key=lambda item_id: -expected[item_id])[:K]
        assert len(set(listed)) == K
        # Identical, but for items whose scores are equal to within float32.
        for live, offline in zip(listed, ranked, strict=True):
            assert live == offline or expected[live] == pytest.approx(expected[offline], rel=1e-5, abs=1e-6)
