import math

import numpy as np
import pytest

from models.evaluation.metrics import (
    RESAMPLES,
    bootstrap_intervals,
    gain_table,
    hit_rate,
    mrr,
    ndcg,
    paired_difference,
    target_ranks,
)

NOTHING_SEEN = np.array([], np.int64)


def ranks(scores: list[list[float]], targets: list[int], seen: list[list[int]]) -> list[int]:
    rows = [np.array(user, np.int64) for user in seen]
    return list(target_ranks(np.array(scores, np.float32), np.array(targets, np.int64), rows))


def test_ranks_by_a_table_worked_out_by_hand() -> None:
    #          padding  1    2    3    4
    scores = [
        [99.0, 0.9, 0.5, 0.7, 0.1],  # target 3: only item 1 is better
        [99.0, 0.9, 0.5, 0.7, 0.1],  # target 3, item 1 seen: first
        [99.0, 0.9, 0.5, 0.7, 0.1],  # target 4, nothing seen: last
        [99.0, 0.5, 0.5, 0.5, 0.5],  # target 1, all tied: ties count against us
        [99.0, 0.5, 0.9, 0.5, 0.1],  # target 1, item 3 ties, item 2 is better but seen
    ]
    assert ranks(scores, [3, 3, 4, 1, 1], [[], [1], [], [], [2]]) == [2, 1, 4, 4, 2]


def test_a_target_that_was_seen_before_is_ranked_all_the_same() -> None:
    assert ranks([[0.0, 0.9, 0.5]], [2], [[1, 2]]) == [1]


def test_a_score_that_is_no_number_counts_against_us() -> None:
    nan = math.nan
    assert ranks([[0.0, nan, 0.5, 0.4], [0.0, 0.1, nan, 0.2]], [2, 2], [[], []]) == [2, 3]


def test_hit_rate_and_ndcg_by_hand() -> None:
    found = np.array([1, 2, 3, 11], np.int64)
    assert hit_rate(found, 10) == 0.75
    assert hit_rate(found, 1) == 0.25
    # 1/log2(2) + 1/log2(3) + 1/log2(4) + 0, over four users.
    assert ndcg(found, 10) == pytest.approx((1.0 + 0.63092975 + 0.5) / 4)
    assert ndcg(np.array([10], np.int64), 10) == pytest.approx(0.28906483)


# Scores of twelve items for six users without ties, and each user's one relevant item, counted from 1.
SCORES = [
    [5, 1, 9, 3, 7, 11, 2, 8, 4, 6, 12, 10],
    [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    [3, 6, 9, 12, 2, 5, 8, 11, 1, 4, 7, 10],
    [7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6],
    [2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11],
]
TARGETS = [6, 3, 1, 2, 7, 10]
# What ranx 0.3.21 (Bassani, 2022) gives for them: hit_rate@k, ndcg@k, mrr@k. It is not run here: numba compiles it for a
# minute. Its recall@k is its hit_rate@k, to the last digit.
RANX = {
    1: (0.0, 0.0, 0.0),
    3: (0.3333333333333333, 0.18848829226190958, 0.13888888888888887),
    5: (0.3333333333333333, 0.18848829226190958, 0.13888888888888887),
    10: (0.6666666666666666, 0.3034117123354688, 0.19047619047619047),
}
RANX_NDCG_10_BY_USER = [0.6309297535714575, 0.5, 0.0, 0.3333333333333333, 0.0, 0.3562071871080222]


@pytest.mark.parametrize("k", RANX)
def test_figures_are_those_of_ranx(k: int) -> None:
    found = np.array(ranks([[0.0, *user] for user in SCORES], TARGETS, [[]] * 6), np.int64)
    assert (hit_rate(found, k), ndcg(found, k), mrr(found, k)) == pytest.approx(RANX[k])
    gains = gain_table(found, [k])
    assert [gains[name].mean() for name in (f"hr@{k}", f"ndcg@{k}", f"mrr@{k}")] == pytest.approx(list(RANX[k]))


def test_the_gain_of_each_user_is_that_of_ranx() -> None:
    found = np.array(ranks([[0.0, *user] for user in SCORES], TARGETS, [[]] * 6), np.int64)
    assert gain_table(found, [10])["ndcg@10"].tolist() == pytest.approx(RANX_NDCG_10_BY_USER)


def test_an_interval_is_as_wide_as_the_binomial_distribution_says() -> None:
    # 3 of 10 of 2,000 users hit: the standard error is sqrt(0.3 * 0.7 / 2000).
    gains = np.tile([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], 200)
    interval = bootstrap_intervals({"hr@10": gains}, np.arange(2_000))["hr@10"]
    error = math.sqrt(0.3 * 0.7 / 2_000)
    assert interval.mean == pytest.approx(0.3)
    assert interval.low == pytest.approx(0.3 - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(0.3 + 1.96 * error, abs=0.15 * error)


def test_what_is_drawn_are_users_and_not_events() -> None:
    gains = np.random.default_rng(0).random(300)
    users = np.arange(300)
    alone = bootstrap_intervals({"x": gains}, users)["x"]
    # Every user's event nine times over tells nothing new; as events of 2,700 users it would narrow the interval to a third.
    repeated = bootstrap_intervals({"x": np.repeat(gains, 9)}, np.repeat(users, 9))["x"]
    assert (repeated.low, repeated.mean, repeated.high) == pytest.approx((alone.low, alone.mean, alone.high))
    as_events = bootstrap_intervals({"x": np.repeat(gains, 9)}, np.arange(2_700))["x"]
    assert (as_events.high - as_events.low) / (alone.high - alone.low) == pytest.approx(1 / 3, abs=0.04)


def test_a_user_with_more_events_weighs_more() -> None:
    # One user with three hits, one with one miss: each resample is of 0, 1 or 2 of the first.
    interval = bootstrap_intervals({"x": np.array([1.0, 1.0, 1.0, 0.0])}, np.array([0, 0, 0, 1]))["x"]
    assert (interval.mean, interval.low, interval.high) == (0.75, 0.0, 1.0)


def test_a_seed_fixes_the_interval() -> None:
    gains = {"x": np.random.default_rng(1).random(50)}
    assert bootstrap_intervals(gains, np.arange(50), seed=1) == bootstrap_intervals(gains, np.arange(50), seed=1)
    assert bootstrap_intervals(gains, np.arange(50), seed=1) != bootstrap_intervals(gains, np.arange(50), seed=2)


def test_a_difference_that_every_user_shows_is_no_luck_though_users_differ_much() -> None:
    first = np.random.default_rng(2).random(100)
    found = paired_difference(first, first - 0.125, np.arange(100))
    assert (found.interval.mean, found.interval.low, found.interval.high) == pytest.approx((0.125, 0.125, 0.125))
    assert found.p_value == pytest.approx(2 / (RESAMPLES + 1))


def test_models_that_are_alike_do_not_differ() -> None:
    gains = np.random.default_rng(3).random(100)
    found = paired_difference(gains, gains.copy(), np.arange(100))
    assert (found.interval.mean, found.p_value) == (0.0, 1.0)
    noisy = paired_difference(gains, gains[::-1].copy(), np.arange(100))
    assert noisy.interval.mean == pytest.approx(0.0, abs=1e-12)
    assert noisy.p_value > 0.8
