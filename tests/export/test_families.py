"""One interface: every family goes through the same commands into the same engine."""

import pytest

from models.bundle import Bundle
from models.data.events import UserSequence, user_sequences
from models.networks import NAMES
from models.synthetic import LogPlan, generate_log
from streams.contracts.frame import Frame, Source
from streams.contracts.recommendation import decode_recommendation
from streams.interest.encode import Encoder, open_scorer
from streams.interest.engine import Engine, EngineRules, UserEvents
from streams.interest.window import Arrival
from tests.families import EVENTS, LONGEST, SEED, USERS, bundle_of, offline_scores

K = 5
NOW_MS = 1_767_225_600_000
SOURCE = Source("clicks", "id", 0)
NO_FRAME = Frame(1, [], [], [], [], [], [], [], [], [], {})


@pytest.fixture(scope="module", params=NAMES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sequences() -> list[UserSequence]:
    return user_sequences(generate_log(LogPlan(users=USERS, events=EVENTS, drift=0.5, seed=SEED)))


def test_export_compared_windows_of_every_length_with_the_network(bundle: Bundle) -> None:
    assert bundle.manifest.parity.windows > 4 * (LONGEST + 1)
    assert bundle.manifest.parity.max_abs_difference <= 1e-4
    assert bundle.manifest.metrics["ndcg@10"] <= bundle.manifest.metrics["hr@10"]


def test_the_engine_recommends_what_the_models_scores_say(bundle: Bundle, sequences: list[UserSequence]) -> None:
    encoder = Encoder(bundle, "cpu")
    engine = Engine(bundle, encoder, EngineRules(K, True, 1, 8, "g1"), open_scorer(bundle, "cpu"))
    updates = engine.evolve([UserEvents(s.user_id, None, None, _arrivals(s)) for s in sequences], NOW_MS)

    for sequence, update in zip(sequences, updates, strict=True):
        assert update.row is not None
        listed = decode_recommendation(update.row.recommendations).items
        expected = offline_scores(bundle, sequence)
        ranked = sorted(expected, key=lambda item_id: -expected[item_id])
        # Two items may tie to within float32: what counts is that no listed item scores below the k-th best.
        border = expected[ranked[K - 1]] - 1e-4 * max(1.0, abs(expected[ranked[K - 1]]))
        assert len({item.item_id for item in listed}) == K
        assert all(expected[item.item_id] >= border for item in listed)
        assert [item.score for item in listed] == pytest.approx(
            [expected[item.item_id] for item in listed], rel=1e-3, abs=1e-4
        )


def test_a_family_whose_score_is_no_dot_product_ships_a_scorer_and_only_such(bundle: Bundle) -> None:
    assert (bundle.scorer_path is not None) == (bundle.config.name == "ncf")


def _arrivals(sequence: UserSequence) -> list[Arrival]:
    return [
        Arrival(time, f"{sequence.user_id}-{place:03}", item, kind, True, SOURCE, place, time, NO_FRAME, 0)
        for place, (item, kind, time) in enumerate(zip(sequence.items, sequence.types, sequence.times, strict=True))
    ]
