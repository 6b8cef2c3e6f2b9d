import math

import numpy as np
import pytest

from models.evaluation.metrics import hit_rate, ndcg, target_ranks

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
