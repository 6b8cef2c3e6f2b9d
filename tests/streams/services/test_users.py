from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pyarrow import parquet

from streams.contracts.recommendation import (
    ModelName,
    Recommendation,
    RecommendedItem,
    Trigger,
    VectorSummary,
    encode_recommendation,
)
from streams.errors import StateRefused
from streams.interest.engine import UserRow
from streams.interest.window import UserState, encode_state
from streams.services.export import ROWS_A_GROUP, write_jsonl, write_parquet
from streams.services.users import each_user
from streams.store.protocol import UserRecord


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
