"""How good a ranking is, over all items, with those that the user had already seen left out.

Full ranking: Krichene and Rendle (2020) show that ranking against a sample of items gives other winners.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.spec import IntArray, Vectors


def target_ranks(scores: Vectors, targets: IntArray, seen: Sequence[IntArray]) -> IntArray:
    """The rank of each user's target among all items that the user has not seen.

    Ties count against us: an item with the target's score ranks before it, and so does one whose score is NaN. A
    target that the user saw before is ranked all the same.

    Args:
        scores: Shape (users, items + 1), float32; column 0 is padding and left out.
        targets: The row of each user's target, shape (users,), int64, from 1.
        seen: For each user the item rows to leave out, shape (n_i,), int64.

    Returns:
        Ranks from 1, shape (users,), int64.
    """
    users = np.arange(len(targets))
    before = ~(scores < scores[users, targets][:, None])
    before[:, 0] = False
    for user, rows in enumerate(seen):
        before[user, rows] = False
    before[users, targets] = False
    ranks: IntArray = 1 + before.sum(axis=1, dtype=np.int64)
    return ranks


def hit_rate(ranks: IntArray, k: int) -> float:
    """HR@k: the share of targets ranked k or better."""
    return float((ranks <= k).mean())


def ndcg(ranks: IntArray, k: int) -> float:
    """NDCG@k with one relevant item a user (Järvelin and Kekäläinen, 2002): the mean of 1 / log2(1 + rank) up to k."""
    gains: npt.NDArray[np.float64] = np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)
    return float(gains.mean())
