from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from export.pooling import write_pooling_bundle
from models.bundle import Bundle
from models.ranking import Ranking, rank_items, unit_vectors
from models.rerank import item_topics, rerank_calibrated, rerank_dpp, rerank_mmr
from models.spec import IntArray, ItemMetadata, Vectors, WindowRule
from models.windows import WindowInputs
from streams.contracts.frame import Frame, Source
from streams.contracts.recommendation import Recommendation, Trigger, decode_recommendation, recommendation_id
from streams.errors import SettingsError
from streams.interest.encode import Encoder, open_scorer
from streams.interest.engine import (
    Engine,
    EngineRules,
    NotFiniteError,
    Rerank,
    StageSeconds,
    UserEvents,
    UserRow,
    UserUpdate,
)
from streams.interest.window import Arrival, InvalidState, decode_state
from tests.small_models import write_scored_bundle, write_variational_bundle
from tests.streams.interest.normal_oracle import box_muller

ITEMS = [f"i{number}" for number in range(30)]
NOW_MS = 1_767_225_600_000
SOURCE = Source("clicks", "id", 2)
NO_FRAME = Frame(1, [], [], [], [], [], [], [], [], [], {})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_pooling_bundle(
        tmp_path_factory.mktemp("engine") / "bundle", ITEMS, dim=8, window=WindowRule(max=6, keep=3)
    )


def engine_of(
    bundle: Bundle, *, k: int = 4, filter_seen: bool = True, because: int = 2, memory: int = 8, generation: str = "g1"
) -> Engine:
    return Engine(bundle, Encoder(bundle, "cpu"), EngineRules(k, filter_seen, because, memory, generation))


def arrival(item: str, offset: int, *, time_ms: int | None = None, event_id: str | None = None) -> Arrival:
    time_ms = 1000 * offset if time_ms is None else time_ms
    given = event_id is not None
    return Arrival(
        time_ms, event_id or f"clicks-2-{offset}", item, "click", given, SOURCE, offset, time_ms, NO_FRAME, 0
    )


def clicks(*items: str, start: int = 1) -> list[Arrival]:
    return [arrival(item, offset) for offset, item in enumerate(items, start)]


def evolve_one(engine: Engine, arrivals: Sequence[Arrival], before: UserRow | None = None) -> UserUpdate:
    state, vector = (None, None) if before is None else (before.state, before.vector)
    (update,) = engine.evolve([UserEvents("u1", state, vector, arrivals)], NOW_MS)
    return update


def row_of(update: UserUpdate) -> UserRow:
    assert update.row is not None
    return update.row


def list_of(row: UserRow) -> Recommendation:
    return decode_recommendation(row.recommendations)


Doubles = NDArray[np.float64]


def table(bundle: Bundle) -> dict[str, Doubles]:
    """Each item's vector in double precision, so that the arithmetic here is not that of the engine."""
    return {item: bundle.item_vectors[bundle.vocabulary.rows[item]].astype(np.float64) for item in ITEMS}


def cosine(a: Doubles, b: Doubles) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_a_new_users_row_is_the_mean_the_best_items_and_the_window(bundle: Bundle) -> None:
    of = table(bundle)
    update = evolve_one(engine_of(bundle), clicks("i3", "i7"))
    row = row_of(update)
    mean = (of["i3"] + of["i7"]) / 2
    np.testing.assert_allclose(np.frombuffer(row.vector, "<f4"), mean, atol=1e-6)
    assert (row.model, row.updated_at) == (bundle.config.version, NOW_MS)
    state = decode_state(row.state)
    assert (state.items, state.times, state.ids) == (["i3", "i7"], [1000, 2000], ["clicks-2-1", "clicks-2-2"])

    recommendation = list_of(row)
    best = sorted((item for item in ITEMS if item not in ("i3", "i7")), key=lambda item: -float(of[item] @ mean))[:4]
    assert [item.item_id for item in recommendation.items] == best
    assert [item.rank for item in recommendation.items] == [1, 2, 3, 4]
    assert [item.score for item in recommendation.items] == pytest.approx([of[item] @ mean for item in best], abs=1e-6)
    for item in recommendation.items:
        closest = sorted(("i3", "i7"), key=lambda seen: -cosine(of[seen], of[item.item_id]))
        assert item.because == closest


def test_a_recommendation_says_where_it_came_from(bundle: Bundle) -> None:
    recommendation = list_of(row_of(evolve_one(engine_of(bundle), clicks("i3", "i7"))))
    trigger = Trigger("clicks-2-2", "click", "i7", 2000, "clicks", 2, 2, "id")
    assert recommendation.trigger == trigger
    assert recommendation.recommendation_id == recommendation_id("g1", bundle.config.version, "u1", trigger)
    assert (recommendation.user_id, recommendation.generated_at) == ("u1", NOW_MS)
    assert (recommendation.mode, recommendation.strategy) == ("live", "personal")
    assert (recommendation.model.name, recommendation.model.version) == ("pooling", bundle.config.version)
    assert (recommendation.vector.dim, recommendation.vector.drift) == (8, None)


def test_the_trigger_is_the_last_event_of_the_log_that_counted(bundle: Bundle) -> None:
    arrivals = [
        arrival("i1", 1, event_id="a"),
        arrival("i2", 2, time_ms=10, event_id="older"),
        arrival("i1", 3, event_id="a"),  # a repeat
    ]
    update = evolve_one(engine_of(bundle), arrivals)
    assert list_of(row_of(update)).trigger.event_id == "older"
    assert (len(update.applied), update.repeats, update.late) == (2, 1, 0)


def test_drift_is_the_cosine_distance_to_the_vector_before(bundle: Bundle) -> None:
    of = table(bundle)
    engine = engine_of(bundle)
    first = row_of(evolve_one(engine, clicks("i3")))
    second = row_of(evolve_one(engine, clicks("i7", start=2), first))
    drift = list_of(second).vector.drift
    assert drift == pytest.approx(1 - cosine(of["i3"], (of["i3"] + of["i7"]) / 2), abs=1e-6)


def test_no_drift_without_a_vector_of_the_same_space(bundle: Bundle) -> None:
    engine = engine_of(bundle)
    events = clicks("i3")
    for previous in (b"", b"\0" * 31, b"\0" * 32, b"\0" * 64):
        (update,) = engine.evolve([UserEvents("u1", None, previous, events)], NOW_MS)
        assert list_of(row_of(update)).vector.drift is None


def test_the_same_and_the_opposite_direction_drift_by_0_and_2(bundle: Bundle) -> None:
    of = bundle.item_vectors[bundle.vocabulary.rows["i3"]]
    engine = engine_of(bundle)
    users = [UserEvents("same", None, (7 * of).tobytes(), clicks("i3")), UserEvents("new", None, None, clicks("i3"))]
    users.append(UserEvents("opposite", None, (-2 * of).tobytes(), clicks("i3")))
    drifts = [list_of(row_of(update)).vector.drift for update in engine.evolve(users, NOW_MS)]
    assert drifts[0] == pytest.approx(0, abs=1e-6)
    assert drifts[1] is None
    assert drifts[2] == pytest.approx(2, abs=1e-6)
    assert all(drift is None or 0 <= drift <= 2 for drift in drifts)


def test_users_of_unknown_items_get_the_popular_ones_marked_as_such(bundle: Bundle) -> None:
    recommendation = list_of(row_of(evolve_one(engine_of(bundle), clicks("unknown", "never seen"))))
    assert recommendation.strategy == "popular"
    assert [(item.item_id, item.rank, item.score, item.because) for item in recommendation.items] == [
        ("i0", 1, None, []),
        ("i1", 2, None, []),
        ("i2", 3, None, []),
        ("i3", 4, None, []),
    ]
    # And their window is kept: the next model may know the items.
    assert decode_state(row_of(evolve_one(engine_of(bundle), clicks("unknown"))).state).items == ["unknown"]


def test_one_known_item_makes_the_list_personal(bundle: Bundle) -> None:
    recommendation = list_of(row_of(evolve_one(engine_of(bundle), clicks("unknown", "i5", "never seen"))))
    assert recommendation.strategy == "personal"
    assert {item.because[0] for item in recommendation.items} == {"i5"}


def test_seen_items_may_come_again_when_the_filter_is_off(bundle: Bundle) -> None:
    of = table(bundle)
    recommendation = list_of(row_of(evolve_one(engine_of(bundle, filter_seen=False), clicks("i3"))))
    best = sorted(ITEMS, key=lambda item: -float(of[item] @ of["i3"]))[:4]
    assert [item.item_id for item in recommendation.items] == best
    assert "i3" in best


@pytest.mark.parametrize("k", [1, 29, 200])
def test_a_list_has_k_items_or_all_that_are_unseen(bundle: Bundle, k: int) -> None:
    recommendation = list_of(row_of(evolve_one(engine_of(bundle, k=k), clicks("i3"))))
    assert len(recommendation.items) == min(k, 29)
    assert len({item.item_id for item in recommendation.items}) == min(k, 29)


@pytest.mark.parametrize("because", [0, 1, 10])
def test_as_many_reasons_are_named_as_asked_for_and_there_are(bundle: Bundle, because: int) -> None:
    recommendation = list_of(row_of(evolve_one(engine_of(bundle, because=because), clicks("i3", "i4", "i3"))))
    assert {len(item.because) for item in recommendation.items} == {min(because, 2)}


def test_events_that_change_nothing_write_nothing(bundle: Bundle) -> None:
    engine = engine_of(bundle)
    row = row_of(evolve_one(engine, [arrival("i1", 1, event_id="a")]))
    update = evolve_one(engine, [arrival("i1", 2, event_id="a"), arrival("i1", 3, event_id="a")], row)
    assert (update.row, list(update.applied), update.repeats) == (None, [], 2)


def test_updates_are_in_the_order_of_the_users_although_some_have_nothing(bundle: Bundle) -> None:
    engine = engine_of(bundle)
    row = row_of(evolve_one(engine, [arrival("i1", 1, event_id="a")]))
    users = [
        UserEvents("u1", row.state, row.vector, [arrival("i1", 2, event_id="a")]),
        UserEvents("u2", None, None, clicks("i9")),
        UserEvents("u3", row.state, row.vector, [arrival("i1", 2, event_id="a")]),
        UserEvents("u4", None, None, clicks("i8")),
    ]
    updates = engine.evolve(users, NOW_MS)
    assert [(update.user_id, update.row is None) for update in updates] == [
        ("u1", True), ("u2", False), ("u3", True), ("u4", False),
    ]  # fmt: skip
    assert decode_state(row_of(updates[3]).state).items == ["i8"]
    assert engine.evolve([], NOW_MS) == []


def test_lists_do_not_depend_on_who_else_is_in_the_batch(bundle: Bundle) -> None:
    rng = np.random.default_rng(3)
    users = [
        UserEvents(
            f"u{number}",
            None,
            None,
            clicks(*[f"i{item}" for item in rng.integers(0, 33, rng.integers(1, 9))], start=number),
        )
        for number in range(200)
    ]
    together = engine_of(bundle).evolve(users, NOW_MS)
    for user, update in zip(users, together, strict=True):
        (alone,) = engine_of(bundle).evolve([user], NOW_MS)
        row, expected = row_of(update), row_of(alone)
        assert row.state == expected.state
        np.testing.assert_allclose(np.frombuffer(row.vector, "<f4"), np.frombuffer(expected.vector, "<f4"), atol=1e-6)
        ours, theirs = list_of(row), list_of(expected)
        assert ours.recommendation_id == theirs.recommendation_id
        assert [(item.item_id, item.because) for item in ours.items] == [
            (item.item_id, item.because) for item in theirs.items
        ]


def test_events_one_by_one_lead_to_the_list_that_they_lead_to_together(bundle: Bundle) -> None:
    engine = engine_of(bundle)
    events = clicks("i3", "i7", "unknown", "i9", "i1", "i2", "i4", "i5")
    row = None
    for event in events:
        row = row_of(evolve_one(engine, [event], row))
    together = row_of(evolve_one(engine, events))
    assert row is not None
    assert (row.state, row.vector) == (together.state, together.vector)
    ours, theirs = list_of(row), list_of(together)
    assert (ours.recommendation_id, ours.items) == (theirs.recommendation_id, theirs.items)


def test_another_generation_makes_other_ids_of_the_same_lists(bundle: Bundle) -> None:
    first = list_of(row_of(evolve_one(engine_of(bundle), clicks("i3"))))
    second = list_of(row_of(evolve_one(engine_of(bundle, generation="g2"), clicks("i3"))))
    assert first.items == second.items
    assert first.recommendation_id != second.recommendation_id


def test_a_state_that_cannot_be_read_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InvalidState):
        engine_of(bundle).evolve([UserEvents("u1", b"not a state", None, clicks("i3"))], NOW_MS)


class GivesNan:
    """An encoder that computes no number for a window whose newest item is in row 3."""

    def encode(self, inputs: WindowInputs) -> Vectors:
        vectors = np.ones((len(inputs), 8), np.float32)
        vectors[inputs.items[:, 0] == 3] = np.nan
        return vectors

    def encode_posterior(self, inputs: WindowInputs) -> tuple[Vectors, Vectors]:
        vectors = np.ones((len(inputs), 8), np.float32)
        return vectors, self.encode(inputs)

    def verify(self) -> None:
        return None


def test_a_vector_that_is_no_number_is_an_error_and_is_never_ranked(bundle: Bundle) -> None:
    engine = Engine(bundle, GivesNan(), EngineRules(4, True, 2, 8, "g1"))
    assert len(row_of(evolve_one(engine, clicks("i1"))).vector) == 32
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        evolve_one(engine, clicks("i2"))  # its row is 3


def test_the_time_of_each_stage_is_added_up(bundle: Bundle) -> None:
    seconds = StageSeconds()
    engine_of(bundle).evolve([UserEvents("u1", None, None, clicks("i3"))], NOW_MS, seconds)
    assert min(seconds.advance, seconds.encode, seconds.rank, seconds.recommend) > 0


def test_the_engine_names_its_model(bundle: Bundle, tmp_path: Path) -> None:
    other = write_pooling_bundle(tmp_path / "other", ITEMS, dim=8, seed=1)
    assert engine_of(bundle).model_name == "pooling"
    assert engine_of(bundle).model_version == bundle.config.version != engine_of(other).model_version


# Scorers


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_scored_bundle(
        tmp_path_factory.mktemp("engine") / "scored",
        ITEMS,
        candidates=6,
        metadata={item: ItemMetadata(item, (f"topic {number % 3}",)) for number, item in enumerate(ITEMS)},
    )


def scored_engine(
    bundle: Bundle, *, k: int = 4, rerank: Rerank = "none", pool: int = 100, diversity: float = 0.0
) -> Engine:
    rules = EngineRules(k, True, 2, 8, "g1", rerank=rerank, rerank_pool=pool, diversity=diversity)
    return Engine(bundle, Encoder(bundle, "cpu"), rules, open_scorer(bundle, "cpu"))


def ids_of(row: UserRow) -> list[str]:
    return [item.item_id for item in list_of(row).items]


def test_candidates_are_retrieved_by_dot_product_and_the_list_is_the_scorers(scored: Bundle) -> None:
    of = table(scored)
    mean = (of["i3"] + of["i7"]) / 2
    unseen = [item for item in ITEMS if item not in ("i3", "i7")]
    candidates = sorted(unseen, key=lambda item: -float(of[item] @ mean))[:6]
    gaps = {item: float(((of[item] - mean) ** 2).sum()) for item in unseen}
    best = sorted(candidates, key=gaps.__getitem__)[:4]
    row = row_of(evolve_one(scored_engine(scored), clicks("i3", "i7")))
    assert ids_of(row) == best
    assert [item.score for item in list_of(row).items] == pytest.approx([-gaps[item] for item in best], abs=1e-5)
    # Neither what all items would give nor what dot products would.
    assert best != sorted(unseen, key=gaps.__getitem__)[:4]
    assert best != candidates[:4]


@pytest.mark.parametrize("k", [6, 7, 29, 200])
def test_a_list_longer_than_the_candidates_has_as_many_scored_as_it_needs(scored: Bundle, k: int) -> None:
    found = ids_of(row_of(evolve_one(scored_engine(scored, k=k), clicks("i3"))))
    assert len(set(found)) == len(found) == min(k, 29)
    assert set(found) <= set(ITEMS) - {"i3"}


class OneScore:
    """A scorer that has the same to say of everything."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.verified = 0

    def score(self, vectors: Vectors, candidates: IntArray) -> Vectors:
        return np.full(candidates.shape, self.value, np.float32)

    def verify(self) -> None:
        self.verified += 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_an_error(scored: Bundle, value: float) -> None:
    engine = Engine(scored, Encoder(scored, "cpu"), EngineRules(4, True, 2, 8, "g1"), OneScore(value))
    with pytest.raises(NotFiniteError, match="the scorer gave a score that is NaN or infinity"):
        evolve_one(engine, clicks("i3"))


def test_the_scorer_is_verified_with_the_encoder(scored: Bundle) -> None:
    scorer = OneScore(0.0)
    Engine(scored, Encoder(scored, "cpu"), EngineRules(4, True, 2, 8, "g1"), scorer).verify()
    assert scorer.verified == 1


def test_an_engine_without_its_scorer_is_not_made_nor_one_with_a_scorer_too_many(
    bundle: Bundle, scored: Bundle
) -> None:
    rules = EngineRules(4, True, 2, 8, "g1")
    with pytest.raises(ValueError, match="a scorer belongs to an engine if and only if its bundle has one"):
        Engine(scored, Encoder(scored, "cpu"), rules)
    with pytest.raises(ValueError, match="a scorer belongs to an engine if and only if its bundle has one"):
        Engine(bundle, Encoder(bundle, "cpu"), rules, OneScore(0.0))


# Exploration


@pytest.fixture(scope="module")
def variational(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_variational_bundle(tmp_path_factory.mktemp("engine") / "variational", ITEMS)


def exploring(bundle: Bundle, exploration: float) -> Engine:
    return Engine(bundle, Encoder(bundle, "cpu"), EngineRules(4, True, 2, 8, "g1", exploration=exploration))


@pytest.mark.parametrize("exploration", [0.5, 1.0, 3.0])
def test_exploring_ranks_by_a_sample_that_follows_from_the_recommendations_id(
    variational: Bundle, exploration: float
) -> None:
    of = table(variational)
    mean = (of["i3"] + of["i7"]) / 2
    row = row_of(evolve_one(exploring(variational, exploration), clicks("i3", "i7")))
    noise = np.array(box_muller(list_of(row).recommendation_id, 8))
    sample = mean + exploration * np.abs(mean) * noise
    best = sorted((item for item in ITEMS if item not in ("i3", "i7")), key=lambda item: -float(of[item] @ sample))
    assert ids_of(row) == best[:4]
    # What is kept and measured is the mean.
    np.testing.assert_allclose(np.frombuffer(row.vector, "<f4"), mean, atol=1e-6)


def test_a_replay_gives_the_identical_list_for_the_identical_id_and_another_event_another_list(
    variational: Bundle,
) -> None:
    live, replay = exploring(variational, 1.0), exploring(variational, 1.0)
    first = row_of(evolve_one(live, clicks("i3", "i7")))
    row = None
    for event in clicks("i3", "i7"):
        row = row_of(evolve_one(replay, [event], row))
    assert row is not None
    assert list_of(row).recommendation_id == list_of(first).recommendation_id
    assert list_of(row).items == list_of(first).items
    # The same vector after another event: another id, and so another sample.
    lists = {tuple(ids_of(row_of(evolve_one(live, clicks("i3", "i7", start=start))))) for start in range(1, 9)}
    assert len(lists) > 1


def test_exploration_of_0_is_the_list_of_the_vector(variational: Bundle) -> None:
    assert ids_of(row_of(evolve_one(exploring(variational, 0.0), clicks("i3", "i7")))) == ids_of(
        row_of(evolve_one(engine_of(variational), clicks("i3", "i7")))
    )


def test_exploration_with_a_model_that_is_not_variational_is_refused(bundle: Bundle) -> None:
    with pytest.raises(
        SettingsError, match=r"recommendations\.exploration is 0\.5, but the model 'pooling' of .* is not"
    ):
        exploring(bundle, 0.5)


def test_a_deviation_that_is_no_number_is_an_error(variational: Bundle) -> None:
    engine = Engine(variational, GivesNan(), EngineRules(4, True, 2, 8, "g1", exploration=1.0))
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        evolve_one(engine, clicks("i2"))  # its row is 3


# Re-ranking

RERANKERS: tuple[Rerank, ...] = tuple(name for name in get_args(Rerank) if name != "none")


@pytest.mark.parametrize("rerank", RERANKERS)
def test_a_diversity_of_0_gives_the_list_of_no_reranking(scored: Bundle, rerank: Rerank) -> None:
    # Also with a pool of more than the 6 that are scored.
    for pool in (4, 8, 100):
        plain = row_of(evolve_one(scored_engine(scored), clicks("i3", "i7")))
        reranked = row_of(evolve_one(scored_engine(scored, rerank=rerank, pool=pool), clicks("i3", "i7")))
        assert list_of(reranked).items == list_of(plain).items


@pytest.mark.parametrize("rerank", RERANKERS)
def test_a_list_is_chosen_from_the_pool_by_the_method_that_was_asked_for(
    scored: Bundle, tmp_path: Path, rerank: Rerank
) -> None:
    plain = write_pooling_bundle(tmp_path / "bundle", ITEMS, dim=8, metadata=scored.metadata)
    rules = EngineRules(4, True, 2, 8, "g1", rerank=rerank, rerank_pool=12, diversity=0.6)
    row = row_of(evolve_one(Engine(plain, Encoder(plain, "cpu"), rules), clicks("i3", "i7")))
    vector = np.frombuffer(row.vector, "<f4")[None]
    window = np.array([[plain.vocabulary.rows["i3"], plain.vocabulary.rows["i7"]]])
    pool = rank_items(vector, plain.item_vectors, window, 12)
    topics = item_topics(plain.metadata, plain.vocabulary)
    unit = unit_vectors(plain.item_vectors)
    expected = {
        "mmr": rerank_mmr(pool, unit, 4, 0.6),
        "dpp": rerank_dpp(pool, unit, 4, 0.6),
        "calibrated": rerank_calibrated(pool, window, topics, 4, 0.6),
    }[rerank]
    assert [(item.item_id, item.score) for item in list_of(row).items] == _pairs(plain, expected)
    assert ids_of(row) != [plain.vocabulary.ids[best] for best in pool.rows[0, :4].tolist()]


def _pairs(bundle: Bundle, ranking: Ranking) -> list[tuple[str, float]]:
    return [
        (bundle.vocabulary.ids[row], score)
        for row, score in zip(ranking.rows[0].tolist(), ranking.scores[0].tolist(), strict=True)
    ]


@pytest.mark.parametrize("rerank", RERANKERS)
def test_scored_candidates_are_reranked_by_their_scores(scored: Bundle, rerank: Rerank) -> None:
    plain = ids_of(row_of(evolve_one(scored_engine(scored, k=10), clicks("i3", "i7"))))
    row = row_of(evolve_one(scored_engine(scored, rerank=rerank, diversity=0.7), clicks("i3", "i7")))
    assert set(ids_of(row)) < set(plain)
    assert ids_of(row) != plain[:4]


@pytest.mark.parametrize("rerank", RERANKERS)
def test_a_user_with_fewer_unseen_items_than_the_pool_gets_them_all(scored: Bundle, rerank: Rerank) -> None:
    found = ids_of(row_of(evolve_one(scored_engine(scored, k=50, rerank=rerank, diversity=0.5), clicks("i3"))))
    assert sorted(found) == sorted(set(ITEMS) - {"i3"})


def test_calibrating_to_topics_that_the_bundle_does_not_name_is_refused(bundle: Bundle) -> None:
    rules = EngineRules(4, True, 2, 8, "g1", rerank="calibrated")
    with pytest.raises(SettingsError, match=r"recommendations\.rerank is calibrated, but the bundle .* names no topic"):
        Engine(bundle, Encoder(bundle, "cpu"), rules)
