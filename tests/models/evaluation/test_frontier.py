import string

import numpy as np
import pytest

from models.data.splits import Judged
from models.evaluation.frontier import TRADE_OFFS, list_ranks, measure_frontier
from models.spec import ItemMetadata
from tests.models.evaluation.toys import rank_by_loop, recommender, sequence

LETTERS = string.ascii_letters
TOPICS = {letter: ItemMetadata(letter, ("low" if letter.islower() else "high",)) for letter in LETTERS}


def judged() -> Judged:
    rng = np.random.default_rng(1)
    contexts = tuple(sequence(f"user-{n}", "".join(rng.choice(list(LETTERS[:40]), 8))) for n in range(40))
    return Judged(contexts, tuple(rng.choice(list(LETTERS[40:]), 40)))


def test_the_place_in_a_list_by_hand() -> None:
    lists = np.array([[4, 2, 9], [4, 2, 9], [4, 2, -1]])
    assert list_ranks(lists, np.array([2, 7, 0])).tolist() == [2, 4, 4]


def test_without_a_trade_off_every_method_is_the_plain_ranking_and_with_it_lists_get_more_diverse() -> None:
    model = recommender(LETTERS, dim=6, metadata=TOPICS)
    users = judged()
    points = measure_frontier(model, users, dict.fromkeys(LETTERS, 1))
    assert [(point.method, point.trade_off) for point in points] == [
        (method, trade_off) for method in ("mmr", "dpp", "calibrated") for trade_off in TRADE_OFFS
    ]
    ranks = [
        rank_by_loop(model, context.items, context.items, target)
        for context, target in zip(users.contexts, users.targets, strict=True)
    ]
    hits = sum(rank <= 10 for rank in ranks) / 40
    for point in points:
        if point.trade_off == 0.0:
            assert point.figures["hr@10"].mean == pytest.approx(hits)
    by_method = {name: [point.diversity for point in points if point.method == name] for name in ("mmr", "dpp")}
    for found in by_method.values():
        assert (found[-1].distance or 0.0) > (found[0].distance or 0.0) + 0.1
    calibrated = [point.diversity.miscalibration_nats or 0.0 for point in points if point.method == "calibrated"]
    assert calibrated[-1] < calibrated[0] / 2


def test_without_topics_there_is_nothing_to_calibrate() -> None:
    points = measure_frontier(recommender(LETTERS), judged(), {})
    assert {point.method for point in points} == {"mmr", "dpp"}
