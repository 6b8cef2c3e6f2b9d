"""How good a ranking is, over all items, with those that the user had already seen left out; and how sure that is.

Full ranking: Krichene and Rendle (2020) show that ranking against a sample of items gives other winners.
Intervals are percentile bootstraps over users (Efron and Tibshirani, 1993, chapter 13): the events of one user depend
on each other, so users are what is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.spec import IntArray, Vectors

Gains = npt.NDArray[np.float64]
"""What each prediction is worth, shape (n,)."""

MISSED: Final = 2**62
"""The rank of a target that the model does not know: no cut-off reaches it, however few items the model has."""

RESAMPLES: Final = 1_000
LEVEL: Final = 0.95

# Numbers drawn at a time: the memory of the bootstrap, 8 bytes each.
_DRAWN: Final = 4_000_000


def target_ranks(scores: Vectors, targets: IntArray, seen: Sequence[IntArray]) -> IntArray:
    """The rank of each user's target among all items that the user has not seen.

    Ties count against us: an item with the target's score ranks before it, and so does one whose score is NaN. A
    target that the user saw before is ranked all the same.

    Args:
        scores: Shape (users, items + 1), float32; column 0 is padding and left out.
        targets: The row of each user's target, shape (users,), int64, from 1.
        seen: For each user the item rows to leave out, shape (n_i,), int64; padding among them does no harm.

    Returns:
        Ranks from 1, shape (users,), int64.
    """
    users = np.arange(len(targets))
    before = ~(scores < scores[users, targets][:, None])
    before[:, 0] = False
    if len(seen):
        before[np.repeat(users, list(map(len, seen))), np.concatenate(seen)] = False
    before[users, targets] = False
    ranks: IntArray = before.sum(axis=1, dtype=np.int64) + 1
    return ranks


def hit_gains(ranks: IntArray, k: int) -> Gains:
    """1 for each target ranked k or better. With one relevant item a prediction, HR@k and Recall@k are one figure."""
    return (ranks <= k).astype(np.float64)


def ndcg_gains(ranks: IntArray, k: int) -> Gains:
    """1 / log2(1 + rank) up to k (Järvelin and Kekäläinen, 2002, with one relevant item)."""
    gains: Gains = np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)
    return gains


def reciprocal_gains(ranks: IntArray, k: int) -> Gains:
    """1 / rank up to k."""
    gains: Gains = np.where(ranks <= k, 1.0 / ranks, 0.0)
    return gains


GAINS: Final[Mapping[str, Callable[[IntArray, int], Gains]]] = {
    "hr": hit_gains,
    "ndcg": ndcg_gains,
    "mrr": reciprocal_gains,
}
"""The metrics by the names that figures carry before the @."""


def hit_rate(ranks: IntArray, k: int) -> float:
    """HR@k: the share of targets ranked k or better."""
    return float(hit_gains(ranks, k).mean())


def ndcg(ranks: IntArray, k: int) -> float:
    """NDCG@k: the mean of `ndcg_gains`."""
    return float(ndcg_gains(ranks, k).mean())


def mrr(ranks: IntArray, k: int) -> float:
    """MRR@k: the mean of `reciprocal_gains`."""
    return float(reciprocal_gains(ranks, k).mean())


def gain_table(ranks: IntArray, cutoffs: Sequence[int]) -> dict[str, Gains]:
    """The gains of every metric at every cut-off: "hr@5", "ndcg@5", "mrr@5", "hr@10" and so on."""
    return {f"{name}@{k}": gains(ranks, k) for k in cutoffs for name, gains in GAINS.items()}


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and between what bounds it lies with 95 % confidence."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one model is than another on the same predictions.

    Attributes:
        interval: The mean difference of the gains.
        p_value: Two-sided: how often resampling turns the sign, `RESAMPLES` draws; never below 2 / (RESAMPLES + 1).
    """

    interval: Interval
    p_value: float


def bootstrap_intervals(gains: Mapping[str, Gains], users: IntArray, seed: int = 0) -> dict[str, Interval]:
    """The mean of each metric with its percentile bootstrap interval over users.

    Args:
        gains: Metric name to gains, each of shape (n,), n at least 1.
        users: The number of the user of each prediction, shape (n,), int64, from 0.
        seed: Fixes what is drawn.

    Returns:
        Metric name to interval.
    """
    table = np.stack(list(gains.values()), axis=1)
    resampled = _resampled_means(table, users, seed)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    means = table.mean(axis=0)
    return {
        name: Interval(float(means[column]), float(low[column]), float(high[column]))
        for column, name in enumerate(gains)
    }


def paired_difference(first: Gains, second: Gains, users: IntArray, seed: int = 0) -> Difference:
    """How much more the first model gains than the second: a paired bootstrap over users.

    Args:
        first: Gains of one model, shape (n,), n at least 1.
        second: Gains of the other for the same predictions, shape (n,).
        users: The number of the user of each prediction, shape (n,), int64, from 0.
        seed: Fixes what is drawn.
    """
    resampled = _resampled_means((first - second)[:, None], users, seed)[:, 0]
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # One added to both counts: the sample itself is a draw, and no p-value is 0 (Davison and Hinkley, 1997, section 4.2).
    rarer = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p_value = min(1.0, 2.0 * (1 + rarer) / (1 + RESAMPLES))
    return Difference(Interval(float((first - second).mean()), float(low), float(high)), p_value)


def _resampled_means(table: Gains, users: IntArray, seed: int) -> Gains:
    """The mean of each column in each resample, shape (RESAMPLES, columns)."""
    count = int(users.max()) + 1
    events = np.bincount(users, minlength=count).astype(np.float64)
    sums = np.stack([np.bincount(users, column, minlength=count) for column in table.T], axis=1)
    rng = np.random.default_rng(seed)
    parts = []
    step = max(1, _DRAWN // count)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        parts.append((weights @ sums) / (weights @ events)[:, None])
    return np.concatenate(parts)
