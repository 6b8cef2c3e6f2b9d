from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from models.data.events import LoggedEvent, UserSequence, item_counts, user_sequences
from models.data.readers import read_log
from models.data.splits import leave_one_out
from models.errors import DataError
from models.training.segments import training_segments


def sequence(user_id: str, items: str) -> UserSequence:
    return UserSequence(user_id, tuple(items), ("click",) * len(items), tuple(range(len(items))))


def test_a_log_is_read_with_either_form_of_time_and_the_defaults_of_event_v1(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"user_id": "u", "item_id": "a", "type": "view", "event_time": "1970-01-01T01:00:02.5+01:00", "event_id": "e"}\n'
        "\n"
        '{"user_id": "u", "item_id": "b", "event_time": 1700000000000, "extra": {"ignored": true}}\n'
    )
    assert read_log(log) == [
        LoggedEvent("u", "a", "view", 2_500, "e"),
        LoggedEvent("u", "b", "click", 1_700_000_000_000, "000000000003"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not json", "JSON is malformed"),
        ('{"user_id": "u", "event_time": 1}', "missing required field `item_id`"),
        ('{"user_id": "", "item_id": "a", "event_time": 1}', r"user_id"),
        ('{"user_id": "u", "item_id": "a"}', "missing required field `event_time`"),
        ('{"user_id": "u", "item_id": "a", "event_time": "yesterday"}', "event_time"),
        ('{"user_id": "u", "item_id": "a", "event_time": "2026-01-01T00:00:00"}', "event_time"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_problem(tmp_path: Path, line: str, problem: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"user_id": "u", "item_id": "a", "event_time": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"log\.jsonl, line 2: not an event: .*{problem}"):
        read_log(log)


def test_a_log_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: No such file"):
        read_log(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no event"):
        read_log(tmp_path / "empty.jsonl")


def test_a_users_events_are_ordered_by_time_and_then_by_event_id() -> None:
    events = [
        LoggedEvent("v", "z", "click", 5, "1"),
        LoggedEvent("u", "c", "click", 9, "1"),
        LoggedEvent("u", "b", "view", 4, "2"),
        LoggedEvent("u", "a", "click", 4, "1"),
    ]
    assert user_sequences(events) == [
        UserSequence("u", ("a", "b", "c"), ("click", "view", "click"), (4, 4, 9)),
        UserSequence("v", ("z",), ("click",), (5,)),
    ]


def test_the_last_event_tests_the_one_before_validates_and_neither_is_trained_on() -> None:
    split = leave_one_out([sequence("u", "abcd"), sequence("v", "xy")])
    assert [s.items for s in split.train] == [("a", "b"), ("x", "y")]
    assert [s.items for s in split.validation.contexts] == [("a", "b")]
    assert split.validation.targets == ("c",)
    assert [s.items for s in split.test.contexts] == [("a", "b", "c")]
    assert split.test.targets == ("d",)


def test_a_log_with_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(DataError, match="three events or more"):
        leave_one_out([sequence("u", "ab")])


def test_items_are_counted_most_frequent_first_and_equal_counts_by_id() -> None:
    assert list(item_counts([sequence("u", "cba"), sequence("v", "cb")]).items()) == [("b", 2), ("c", 2), ("a", 1)]


def test_a_sequence_that_fits_is_one_segment_and_one_event_is_none() -> None:
    rng = np.random.default_rng(0)
    assert training_segments([sequence("u", "abcde"), sequence("v", "a")], 4, rng) == [sequence("u", "abcde")]


def test_segments_of_a_long_sequence_make_every_event_a_target_at_most_once() -> None:
    long = sequence("u", "".join(chr(65 + i) for i in range(23)))
    targets: Counter[str] = Counter()
    for seed in range(40):
        segments = training_segments([long], 5, np.random.default_rng(seed))
        assert all(2 <= len(segment) <= 6 for segment in segments)
        found = Counter(item for segment in segments for item in segment.items[1:])
        assert max(found.values()) == 1
        targets += found
    # All but the very first event, over the epochs.
    assert set(targets) == set(long.items[1:])
