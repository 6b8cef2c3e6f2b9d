"""Models side by side: accuracy with intervals, size, speed, and which differences are more than luck."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from models.data.splits import Judged
from models.evaluation.full_ranking import judge, queries_of
from models.evaluation.metrics import Difference, Interval, bootstrap_intervals, gain_table, paired_difference
from models.evaluation.recommender import Recommender
from models.windows import WindowInputs

CUTOFFS: Final = (5, 10, 20)
LENGTHS: Final = (50, 200)
"""Events a window at which the encoder's speed is measured."""

_BATCH: Final = 128
_REPEATS: Final = 5
_LONG_ENOUGH_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model does among others.

    Attributes:
        name: What people call it.
        version: Tells models of one name apart.
        source: Where it was read from.
        items: How many items it ranks.
        unknown_targets: Share of the targets that it does not know; each counts as missed.
        figures: "hr@5" to "mrr@20", with intervals. HR@k is Recall@k too: one item is relevant.
        behind: How much lower its NDCG@10 is than the best model's on the same users; None for the best.
        size_bytes: Its parameters on disk: encoder, item vectors, scorer.
        users_per_second: What the encoder does at each of `LENGTHS`, batches of 128 on one thread; None where its
            window is shorter.
    """

    name: str
    version: str
    source: str
    items: int
    unknown_targets: float
    figures: dict[str, Interval]
    behind: Difference | None
    size_bytes: int
    users_per_second: dict[int, float | None]


def compare_models(
    recommenders: Sequence[tuple[str, Recommender]],
    judged: Judged,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Standing, ...]:
    """Judge models on the same users.

    Args:
        recommenders: Where each was read from, and the model; at least one.
        judged: Contexts and targets.
        seed: Fixes the intervals.
        progress: Called after every batch.

    Returns:
        Best NDCG@10 first.

    Raises:
        DataError: Nobody is to be judged, or a model knows none of the items.
    """
    queries = queries_of(judged)
    users = queries.users()
    gains = [gain_table(judge(recommender, queries, progress).ranks, CUTOFFS) for _, recommender in recommenders]
    order = sorted(range(len(gains)), key=lambda place: -float(gains[place]["ndcg@10"].mean()))
    best = gains[order[0]]["ndcg@10"]
    standings = []
    for place in order:
        source, recommender = recommenders[place]
        standings.append(
            Standing(
                name=recommender.name,
                version=recommender.version,
                source=source,
                items=len(recommender.vocabulary),
                unknown_targets=float(
                    np.mean([item_id not in recommender.vocabulary.rows for item_id in queries.targets])
                ),
                figures=bootstrap_intervals(gains[place], users, seed),
                behind=None if place == order[0] else paired_difference(best, gains[place]["ndcg@10"], users, seed),
                size_bytes=recommender.size_bytes,
                users_per_second={length: encoder_speed(recommender, length) for length in LENGTHS},
            )
        )
    return tuple(standings)


def encoder_speed(recommender: Recommender, length: int) -> float | None:
    """Users a second that the encoder does with windows of a length, the median of five; None if its window is shorter.

    Each of the five is at least a tenth of a second long.
    """
    if recommender.window.max < length:
        return None
    rng = np.random.default_rng(0)
    shape = (_BATCH, length)
    inputs = WindowInputs(
        items=rng.integers(1, len(recommender.vocabulary) + 1, shape),
        types=rng.integers(1, len(recommender.types) + 2, shape),
        ages=np.ascontiguousarray(np.sort(rng.exponential(3_600.0, shape).astype(np.float32), axis=1)[:, ::-1]),
        lengths=np.full(_BATCH, length, np.int64),
    )
    recommender.encode(inputs)  # the first call makes plans and takes memory
    rates = []
    for _ in range(_REPEATS):
        calls, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < _LONG_ENOUGH_SECONDS or not calls:
            recommender.encode(inputs)
            calls += 1
        rates.append(calls * _BATCH / seconds)
    return median(rates)
