from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.pooling import write_pooling_bundle
from models.bundle import Bundle
from models.spec import Vectors, WindowRule
from models.windows import WindowInputs
from streams.contracts.frame import Frame, Source
from streams.contracts.recommendation import Recommendation, Trigger, decode_recommendation, recommendation_id
from streams.interest.encode import Encoder
from streams.interest.engine import Engine, EngineRules, NotFiniteError, StageSeconds, UserEvents, UserRow, UserUpdate
from streams.interest.window import Arrival, InvalidState, decode_state

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
    trigger = Trigger("clicks-2-2", "click", "i7", 2000, "clicks", 2, 2)
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
