"""What it is worth to be fresh: how accuracy falls when the user's newest events have not arrived yet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.data.splits import Judged
from models.errors import DataError
from models.evaluation.full_ranking import judge, queries_of
from models.evaluation.metrics import Difference, Interval, bootstrap_intervals, gain_table, paired_difference
from models.evaluation.recommender import Recommender

HIDDEN: Final = (0, 1, 2, 3, 5, 10)
"""How many of the newest events are hidden."""

K = 10


@dataclass(frozen=True, slots=True)
class Staleness:
    """Accuracy with some of the newest events hidden.

    Attributes:
        hidden: How many.
        figures: "hr@10", "ndcg@10" and "mrr@10" with intervals.
        lost: How much NDCG@10 is lower than with nothing hidden, same users.
    """

    hidden: int
    figures: dict[str, Interval]
    lost: Difference


@dataclass(frozen=True, slots=True)
class Freshness:
    """Accuracy by how stale the vectors are.

    Attributes:
        users: Users judged, the same in every line: those with more events than are ever hidden.
        lines: One for each of `HIDDEN`.
    """

    users: int
    lines: tuple[Staleness, ...]


def measure_freshness(
    recommender: Recommender, judged: Judged, *, seed: int = 0, progress: Callable[[int], None] = lambda _: None
) -> Freshness:
    """Hide the newest events before each target and see how much worse it is predicted.

    The items of hidden events are left out of the ranking all the same: what differs between the lines is the vector
    alone, and not how many items compete.

    Args:
        recommender: The model.
        judged: Contexts and targets.
        seed: Fixes the intervals.
        progress: Called after every batch, `len(HIDDEN)` times for each user in all.

    Raises:
        DataError: No user has enough events.
    """
    enough = [place for place, context in enumerate(judged.contexts) if len(context) > HIDDEN[-1]]
    if not enough:
        raise DataError(
            f"freshness hides up to {HIDDEN[-1]} events of a user, and no user has {HIDDEN[-1] + 1} before the event "
            "that is predicted. Use a longer log"
        )
    chosen = Judged(tuple(judged.contexts[place] for place in enough), tuple(judged.targets[place] for place in enough))
    users = queries_of(chosen).users()
    gains = [gain_table(judge(recommender, queries_of(chosen, hidden), progress).ranks, [K]) for hidden in HIDDEN]
    fresh = gains[0][f"ndcg@{K}"]
    return Freshness(
        users=len(np.unique(users)),
        lines=tuple(
            Staleness(
                hidden,
                bootstrap_intervals(found, users, seed),
                paired_difference(fresh, found[f"ndcg@{K}"], users, seed),
            )
            for hidden, found in zip(HIDDEN, gains, strict=True)
        ),
    )
