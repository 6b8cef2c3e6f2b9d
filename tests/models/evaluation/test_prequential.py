import random
import string
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.events import UserSequence
from models.errors import DataError
from models.evaluation.prequential import Seen, newest_tenth, replay_log, replay_queries, window_starts
from models.spec import WindowRule
from streams.contracts.frame import Frame, Source
from streams.interest.window import EMPTY_STATE, Arrival, advance_window
from tests.models.evaluation.toys import rank_by_loop, recommender, sequence

KNOWN = string.ascii_lowercase[:15]
DAY = 86_400_000
SOURCE = Source("clicks", "id", 0)
NO_FRAME = Frame(1, [], [], [], [], [], [], [], [], [], {})
RULES = st.integers(1, 12).flatmap(lambda most: st.builds(WindowRule, st.just(most), st.integers(1, most)))


def test_a_window_begins_as_the_table_of_the_docstring_says() -> None:
    starts = window_starts(np.arange(10), WindowRule(max=4, keep=2))
    assert starts.tolist() == [0, 0, 0, 0, 0, 3, 3, 3, 6, 6]


def arrival(place: int) -> Arrival:
    """The event of a place, in time order."""
    return Arrival(
        1_000 * place, f"{place:06d}", f"item-{place}", "click", False, SOURCE, place, 1_000 * place, NO_FRAME, 0
    )


@given(RULES, st.integers(0, 40))
def test_windows_are_those_of_live_serving(rule: WindowRule, events: int) -> None:
    state = EMPTY_STATE
    for known in range(events + 1):
        start = int(window_starts(np.array([known]), rule)[0])
        assert state.items == [f"item-{place}" for place in range(start, known)]
        state = advance_window(state, [arrival(known)], rule, 0).state


def log_at_random(seed: int) -> list[UserSequence]:
    rng = random.Random(seed)
    users = []
    for number in range(8):
        events = rng.randint(1, 25)
        times = sorted(rng.randrange(20 * DAY) for _ in range(events))
        users.append(sequence(f"user-{number}", "".join(rng.choices(KNOWN + "X", k=events)), times))
    return users


def replay_by_loop(users: list[UserSequence], rule: WindowRule, start_ms: int) -> list[tuple[int, str, list[str], str]]:
    """Every event in time order: its time, its user, the window right before it, its item."""
    windows: dict[str, list[str]] = {}
    found = []
    events = [(time, user.user_id, item) for user in users for time, item in zip(user.times, user.items, strict=True)]
    for time, user_id, item in sorted(events, key=lambda event: event[0]):
        window = windows.setdefault(user_id, [])
        if time >= start_ms:
            found.append((time, user_id, list(window), item))
        window.append(item)
        if len(window) > rule.max:
            del window[: -rule.keep]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_predicts_every_event_from_what_was_known_right_before_it(seed: int) -> None:
    users, rule = log_at_random(seed), WindowRule(6, 3)
    model = recommender(KNOWN, rule=rule, popular="fig")
    found = replay_log(model, users, start_ms=5 * DAY)
    expected = replay_by_loop(users, rule, 5 * DAY)
    ranks = [rank_by_loop(model, window, window, item) for _, _, window, item in expected]
    assert found.events == len(expected)
    assert found.users == len({user_id for _, user_id, _, _ in expected})
    assert found.figures["hr@10"].mean == pytest.approx(sum(rank <= 10 for rank in ranks) / len(ranks))
    gains = [1 / np.log2(1 + rank) if rank <= 10 else 0.0 for rank in ranks]
    assert found.figures["ndcg@10"].mean == pytest.approx(sum(gains) / len(ranks))
    by_day: dict[str, list[float]] = {}
    for (time, *_), gain in zip(expected, gains, strict=True):
        by_day.setdefault(datetime.fromtimestamp(time / 1_000, UTC).date().isoformat(), []).append(gain)
    assert [(bucket.label, bucket.events) for bucket in found.by_time] == [(day, len(g)) for day, g in by_day.items()]
    assert [bucket.figures["ndcg@10"] for bucket in found.by_time] == pytest.approx(
        [sum(day) / len(day) for day in by_day.values()]
    )


def test_the_queries_are_in_time_order_over_all_users() -> None:
    users = log_at_random(9)
    queries, times = replay_queries(users, WindowRule(4, 2))
    assert times.tolist() == sorted(time for user in users for time in user.times)
    assert list(queries.targets) == [item for _, _, _, item in replay_by_loop(users, WindowRule(4, 2), 0)]


def test_what_is_left_out_is_the_window_or_all_ever_touched() -> None:
    users = [sequence("ana", "abcde")]
    live, _ = replay_queries(users, WindowRule(2, 1))
    history, _ = replay_queries(users, WindowRule(2, 1), seen=Seen.history)
    assert list(zip(live.seen_start.tolist(), live.seen_stop.tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 2), (2, 3), (2, 4),
    ]  # fmt: skip
    assert list(zip(history.seen_start.tolist(), history.seen_stop.tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 2), (0, 3), (0, 4),
    ]  # fmt: skip
    assert (live.start == history.start).all()


def test_a_sample_is_part_of_the_replay_and_its_seed_fixes_it() -> None:
    users = log_at_random(4)
    whole, _ = replay_queries(users, WindowRule(4, 2))
    every = {(user, at) for user, at in zip(whole.sequence.tolist(), whole.stop.tolist(), strict=True)}
    parts = []
    for seed in (1, 1, 2):
        queries, times = replay_queries(users, WindowRule(4, 2), sample=10, seed=seed)
        parts.append(list(zip(queries.sequence.tolist(), queries.stop.tolist(), strict=True)))
        assert times.tolist() == sorted(times.tolist())
    assert parts[0] == parts[1] != parts[2]
    assert len(set(parts[0])) == 10
    assert set(parts[0]) <= every


def test_buckets_by_events_known_and_by_whole_days() -> None:
    # 61 days in at most 30 buckets: three days each, the first beginning with the first event.
    users = [sequence("ana", "abca", [0, DAY, 2 * DAY, 60 * DAY]), sequence("bo", "a", [5 * DAY])]
    found = replay_log(recommender("abcd"), users)
    assert [(bucket.label, bucket.events) for bucket in found.by_known] == [("0", 2), ("1", 1), ("2", 1), ("3–4", 1)]
    assert [(bucket.label, bucket.events) for bucket in found.by_time] == [
        ("1970-01-01", 3), ("1970-01-04", 1), ("1970-03-02", 1),
    ]  # fmt: skip
    assert found.start == "1970-01-01T00:00:00+00:00"
    assert (found.events, found.users) == (5, 2)


def test_many_events_known_are_one_bucket() -> None:
    found = replay_log(recommender("abcd"), [sequence("ana", "abcd" * 60)], start_ms=199 * 1_000)
    assert [(bucket.label, bucket.events) for bucket in found.by_known] == [("100–199", 1), ("200 or more", 40)]


def test_the_newest_tenth_begins_where_nine_tenths_end() -> None:
    users = [sequence("ana", "abcde", range(0, 50, 10)), sequence("bo", "abcde", range(5, 55, 10))]
    assert newest_tenth(users) == 45


def test_a_start_after_the_last_event_is_refused_with_its_time() -> None:
    with pytest.raises(DataError, match=r"no event is at 1970-01-02T00:00:00\+00:00 or later.*newest is of 1970-01-01"):
        replay_log(recommender("abcd"), [sequence("ana", "abc")], start_ms=DAY)
