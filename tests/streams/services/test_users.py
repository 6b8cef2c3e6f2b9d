from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pyarrow import parquet

from export.pooling import OPSET, write_pooling_bundle
from models.bundle import Bundle, GoldenScores, write_bundle
from models.spec import ItemMetadata
from streams.contracts.recommendation import (
    ModelName,
    Recommendation,
    RecommendedItem,
    Trigger,
    VectorSummary,
    encode_recommendation,
)
from streams.errors import BundleError, StateRefused, UsageError
from streams.interest.engine import UserRow
from streams.interest.window import UserState, encode_state
from streams.services.export import ROWS_A_GROUP, write_jsonl, write_parquet
from streams.services.users import UnknownUser, each_user, explain_user
from streams.settings import ModelSettings, Settings
from streams.store.memory import MemoryStore
from streams.store.protocol import Swap, UserRecord, Watermark


def record(user_id: str, *, drift: float | None = 0.25, score: float | None = 1.5) -> UserRecord:
    recommendation = Recommendation(
        "0" * 32,
        user_id,
        2000,
        "live",
        "personal",
        Trigger("e2", "view", "b", 1500, "clicks", 1, 7),
        ModelName("pooling", "v1"),
        VectorSummary(2, drift),
        [RecommendedItem("c", 1, score, ["a", "b"])],
    )
    state = UserState(1, ["a", "b"], ["click", "view"], [1000, 1500], ["e1", "e2"], False, b"")
    vector = np.array([0.5, -1.25], "<f4").tobytes()
    return UserRecord(
        user_id, 0, UserRow(vector, encode_recommendation(recommendation), encode_state(state), "v1", 2001)
    )


EXPECTED = {
    "user_id": "ana",
    "window": [
        {"item_id": "a", "type": "click", "event_time": 1000, "event_id": "e1"},
        {"item_id": "b", "type": "view", "event_time": 1500, "event_id": "e2"},
    ],
    "vector": [0.5, -1.25],
    "recommendations": {
        "recommendation_id": "0" * 32,
        "user_id": "ana",
        "generated_at": 2000,
        "mode": "live",
        "strategy": "personal",
        "trigger": {
            "event_id": "e2",
            "type": "view",
            "item_id": "b",
            "event_time": 1500,
            "topic": "clicks",
            "partition": 1,
            "offset": 7,
            "topic_id": "",
        },
        "model": {"name": "pooling", "version": "v1"},
        "vector": {"dim": 2, "drift": 0.25},
        "items": [{"item_id": "c", "rank": 1, "score": 1.5, "because": ["a", "b"]}],
    },
    "model": "v1",
    "updated_at": 2001,
}


def test_a_user_is_exported_with_window_vector_and_whole_recommendation() -> None:
    assert [msgspec.to_builtins(user) for user in each_user([record("ana")])] == [EXPECTED]


def test_a_user_that_a_scan_gives_twice_is_written_once() -> None:
    again = record("ana")
    newer = replace(again, row=replace(again.row, updated_at=9999))
    found = [(user.user_id, user.updated_at) for user in each_user([record("ana"), record("bo"), newer])]
    assert found == [("ana", 2001), ("bo", 2001)]


def test_a_row_of_another_version_is_refused_by_name_and_not_left_out() -> None:
    found = record("ana")
    broken = replace(found, row=replace(found.row, state=b"\xc1"))
    with pytest.raises(StateRefused, match="'ana'"):
        list(each_user([broken]))


def test_both_formats_hold_the_same_missing_numbers_too(tmp_path: Path) -> None:
    users = list(each_user([record("ana"), record("bo", drift=None, score=None)]))
    with (tmp_path / "users.jsonl").open("wb") as out:
        write_jsonl(users, out)
    with (tmp_path / "users.parquet").open("wb") as out:
        write_parquet(users, out)
    lines = [msgspec.json.decode(line) for line in (tmp_path / "users.jsonl").read_bytes().splitlines()]
    assert lines[0] == EXPECTED
    assert lines[1]["recommendations"]["vector"]["drift"] is None
    assert parquet.read_table(tmp_path / "users.parquet").to_pylist() == lines


def test_parquet_is_written_in_groups_of_rows(tmp_path: Path) -> None:
    with (tmp_path / "users.parquet").open("wb") as out:
        write_parquet(each_user(record(f"user-{n}") for n in range(ROWS_A_GROUP + 1)), out)
    written = parquet.ParquetFile(tmp_path / "users.parquet").metadata
    assert [written.row_group(n).num_rows for n in range(written.num_row_groups)] == [ROWS_A_GROUP, 1]


def test_no_user_at_all_is_a_file_with_columns_and_no_rows(tmp_path: Path) -> None:
    with (tmp_path / "users.parquet").open("wb") as out:
        write_parquet([], out)
    table = parquet.read_table(tmp_path / "users.parquet")
    assert table.num_rows == 0
    assert table.column_names == list(EXPECTED)


ITEMS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    titles = {item: ItemMetadata(title=f"The {item}") for item in ITEMS[:4]}
    return write_pooling_bundle(tmp_path_factory.mktemp("users") / "bundle", ITEMS, dim=4, metadata=titles)


def settings_of(bundle: Bundle) -> Settings:
    return Settings(model=ModelSettings(bundle=bundle.path, provider="cpu"))


def store_of(bundle: Bundle, window: Sequence[str], listed: Sequence[str], strategy: str = "personal") -> MemoryStore:
    """A store in which ana has looked at these items, a minute apart, and was recommended those."""
    found = record("ana")
    recommendation = recommending(found, listed, strategy)
    times = [60_000 * place for place in range(len(window))]
    ids = [f"e{place}" for place in range(len(window))]
    state = UserState(1, list(window), ["view"] * len(window), times, ids, False, b"")
    row = replace(
        found.row,
        state=encode_state(state),
        recommendations=encode_recommendation(recommendation),
        model=bundle.config.version,
    )
    store = MemoryStore()
    store.set_partitions(1)
    store.swap([Swap(0, None, Watermark(0, "id", 1), {"ana": row})])
    return store


def recommending(found: UserRecord, listed: Sequence[str], strategy: str) -> Recommendation:
    items = [RecommendedItem(item, rank, 1.5, []) for rank, item in enumerate(listed, 1)]
    recommendation = msgspec.json.decode(found.row.recommendations, type=Recommendation)
    return msgspec.structs.replace(recommendation, items=items, strategy=strategy)


def without_each(bundle: Bundle, window: Sequence[str], item: str) -> list[float]:
    """What the mean of the window's vectors scores the item with all events, less what it does without each."""
    of = dict(zip(ITEMS, bundle.item_vectors[1:].astype(np.float64), strict=True))

    def score(items: Sequence[str]) -> float:
        return float(np.mean([of[seen] @ of[item] for seen in items if seen in of] or [0.0]))

    return [score(window) - score([*window[:place], *window[place + 1 :]]) for place in range(len(window))]


def test_each_item_of_the_list_is_explained_by_every_event_of_the_window(bundle: Bundle) -> None:
    window = ["a", "b", "a", "e"]
    found = explain_user(settings_of(bundle), store_of(bundle, window, ["d", "c"]), "ana")
    assert (found.user_id, found.model, found.strategy) == ("ana", bundle.config.version, "personal")
    assert found.recommendation_id == "0" * 32
    assert [(event.item_id, event.event_id, event.title, event.age_s) for event in found.window] == [
        ("a", "e0", "The a", 180), ("b", "e1", "The b", 120), ("a", "e2", "The a", 60), ("e", "e3", None, 0),
    ]  # fmt: skip
    assert [(item.rank, item.item_id, item.title) for item in found.items] == [(1, "d", "The d"), (2, "c", "The c")]
    for item in found.items:
        assert item.contributions == pytest.approx(without_each(bundle, window, item.item_id), abs=1e-6)
    of = dict(zip(ITEMS, bundle.item_vectors[1:].astype(np.float64), strict=True))
    mean = (2 * of["a"] + of["b"] + of["e"]) / 4
    assert [item.score for item in found.items] == pytest.approx([mean @ of["d"], mean @ of["c"]], abs=1e-6)


def test_ages_are_those_that_the_model_was_told_and_missing_where_it_was_told_nothing(bundle: Bundle) -> None:
    found = explain_user(settings_of(bundle), store_of(bundle, ["new", "a", "b", "newer"], ["d"]), "ana")
    assert [event.age_s for event in found.window] == [None, 60, 0, None]
    expected = without_each(bundle, ["new", "a", "b", "newer"], "d")
    assert found.items[0].contributions == pytest.approx(expected, abs=1e-6)
    assert (found.items[0].contributions[0], found.items[0].contributions[3]) == (0, 0)


def test_one_item_may_be_explained_in_the_list_or_not(bundle: Bundle) -> None:
    store = store_of(bundle, ["a", "b"], ["d", "c"])
    (listed,) = explain_user(settings_of(bundle), store, "ana", "c").items
    assert (listed.rank, listed.item_id) == (2, "c")
    (other,) = explain_user(settings_of(bundle), store, "ana", "e").items
    assert (other.rank, other.item_id, other.title) == (None, "e", None)
    assert other.contributions == pytest.approx(without_each(bundle, ["a", "b"], "e"), abs=1e-6)


def test_of_the_popular_list_no_event_is_the_reason(bundle: Bundle) -> None:
    store = store_of(bundle, ["new", "newer"], ["a", "b"], "popular")
    found = explain_user(settings_of(bundle), store, "ana")
    assert found.strategy == "popular"
    assert [event.age_s for event in found.window] == [None, None]
    assert [(item.rank, item.item_id, item.score, item.contributions) for item in found.items] == [
        (1, "a", None, [0, 0]),
        (2, "b", None, [0, 0]),
    ]


def with_scorer(bundle: Bundle, path: Path) -> Bundle:
    """The same model, but an item's score is its row times the sum of the vector's numbers."""
    inputs = [
        helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", bundle.config.dim]),
        helper.make_tensor_value_info("candidates", TensorProto.INT64, ["batch", "n"]),
    ]
    nodes = [
        helper.make_node("ReduceSum", ["vector", "axis"], ["sums"]),
        helper.make_node("Cast", ["candidates"], ["rows"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sums", "rows"], ["scores"]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "n"])]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    graph = helper.make_graph(nodes, "scorer", inputs, outputs, initializer=[axis])
    scorer: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    vectors = bundle.golden.vectors
    candidates = np.tile(np.array([[1, 3]], np.int64), (len(vectors), 1))
    scores = (vectors.sum(axis=1, keepdims=True) * candidates).astype(np.float32)
    return write_bundle(
        path,
        config=msgspec.structs.replace(bundle.config, candidates=3),
        encoder=bundle.encoder_path.read_bytes(),
        vocabulary=bundle.vocabulary,
        item_vectors=bundle.item_vectors,
        metadata=bundle.metadata,
        golden=replace(bundle.golden, scores=GoldenScores(candidates, scores)),
        provenance=bundle.manifest,
        scorer=scorer.SerializeToString(),
    )


def test_a_model_that_scores_by_itself_is_explained_by_its_own_scores(bundle: Bundle, tmp_path: Path) -> None:
    scored = with_scorer(bundle, tmp_path / "scored")
    found = explain_user(settings_of(scored), store_of(scored, ["a", "b"], ["d", "c"]), "ana")
    a, b = (float(vector.astype(np.float64).sum()) for vector in bundle.item_vectors[1:3])
    # The sum of a mean is the mean of the sums; d is row 4, c row 3.
    for item, row in zip(found.items, (4, 3), strict=True):
        assert item.score == pytest.approx(row * (a + b) / 2, abs=1e-5)
        assert item.contributions == pytest.approx([row * (a - b) / 2, row * (b - a) / 2], abs=1e-5)


def test_a_list_of_another_model_is_not_explained(bundle: Bundle, tmp_path: Path) -> None:
    other = write_pooling_bundle(tmp_path / "other", ITEMS, dim=4, seed=1)
    with pytest.raises(UsageError) as caught:
        explain_user(settings_of(other), store_of(bundle, ["a"], ["b"]), "ana")
    message = str(caught.value)
    assert f"user 'ana' was made with model version {bundle.config.version}" in message
    assert f"{other.path} is version {other.config.version}" in message
    assert "--bundle" in message


def test_nothing_is_explained_without_the_user_the_item_or_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    store = store_of(bundle, ["a"], ["b"])
    with pytest.raises(UnknownUser, match="there is no user 'bo'"):
        explain_user(settings_of(bundle), store, "bo")
    with pytest.raises(UsageError, match="item 'new' is not among the 5 items"):
        explain_user(settings_of(bundle), store, "ana", "new")
    with pytest.raises(BundleError, match="no model bundle at"):
        explain_user(Settings(model=ModelSettings(bundle=tmp_path / "none", provider="cpu")), store, "ana")
