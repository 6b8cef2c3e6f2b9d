"""What diversity costs: accuracy and diversity for every way of re-ranking and every trade-off."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.data.splits import Judged
from models.evaluation.diversity import Diversity, measure_diversity
from models.evaluation.full_ranking import best_items, queries_of
from models.evaluation.metrics import Interval, bootstrap_intervals, gain_table
from models.evaluation.recommender import Recommender
from models.ranking import Ranking, unit_vectors
from models.rerank import item_topics, rerank_calibrated, rerank_dpp, rerank_mmr
from models.spec import IntArray

TRADE_OFFS: Final = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
POOL: Final = 100
"""How many of the best items are re-ranked."""

K = 10


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One way of re-ranking.

    Attributes:
        method: "mmr", "dpp" or "calibrated".
        trade_off: 0 for relevance alone, to 1.
        figures: "hr@10", "ndcg@10" and "mrr@10" of the re-ranked lists, with intervals.
        diversity: How diverse they are.
    """

    method: str
    trade_off: float
    figures: dict[str, Interval]
    diversity: Diversity


def measure_frontier(
    recommender: Recommender,
    judged: Judged,
    counts: dict[str, int],
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[FrontierPoint, ...]:
    """Re-rank the best items of every user by every method and trade-off.

    A target that is not among the 10 items of a list counts as missed; so does one that the user had seen before, for
    it is not recommended.

    Args:
        recommender: The model.
        judged: Contexts and targets.
        counts: How often each item occurs in the training data.
        seed: Fixes the intervals.
        progress: Called after every batch of users and after every method and trade-off.

    Returns:
        The points, by method; "calibrated" only where the model's items have topics.

    Raises:
        DataError: Nobody is to be judged, or the model knows none of the items.
    """
    queries = queries_of(judged)
    pools = best_items(recommender, queries, POOL, progress)
    units = unit_vectors(recommender.item_vectors)
    topics = item_topics(recommender.metadata, recommender.vocabulary)
    methods: dict[str, Callable[[float], Ranking]] = {
        "mmr": lambda trade_off: rerank_mmr(pools.ranking, units, K, trade_off),
        "dpp": lambda trade_off: rerank_dpp(pools.ranking, units, K, trade_off),
    }
    if topics.names:
        methods["calibrated"] = lambda trade_off: rerank_calibrated(pools.ranking, pools.windows, topics, K, trade_off)
    targets = np.array([recommender.vocabulary.rows.get(item_id, 0) for item_id in queries.targets], np.int64)
    users = queries.users()
    points = []
    for method, rerank in methods.items():
        for trade_off in TRADE_OFFS:
            lists = rerank(trade_off).rows
            figures = bootstrap_intervals(gain_table(list_ranks(lists, targets), [K]), users, seed)
            diversity = measure_diversity(recommender, lists, pools.windows, counts)
            points.append(FrontierPoint(method, trade_off, figures, diversity))
            progress(0)
    return tuple(points)


def list_ranks(lists: IntArray, targets: IntArray) -> IntArray:
    """The place of each target in its list, from 1; one past the list's end where it is not in it.

    Args:
        lists: Item rows, shape (users, k), int64; -1 where a list is shorter.
        targets: The row of each user's target, shape (users,), int64; 0 for an unknown item.
    """
    found = lists == targets[:, None]
    ranks: IntArray = np.where(found.any(axis=1), found.argmax(axis=1) + 1, lists.shape[1] + 1)
    return ranks
