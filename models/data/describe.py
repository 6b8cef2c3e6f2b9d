"""What a log looks like, in figures."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise

import msgspec
import numpy as np

from models.data.events import Log, UserSequence, item_counts
from models.spec import IntArray


class Spread(msgspec.Struct, frozen=True):
    """How a quantity is spread: its least and greatest value, its median and what nine of ten do not exceed."""

    min: float
    median: float
    p90: float
    max: float


class LogDescription(msgspec.Struct, frozen=True):
    """A log in figures.

    Attributes:
        users: Users with at least one event.
        items: Items with at least one event.
        events: Events, those left out as repeats not counted.
        density: Share of all pairs of a user and an item that occur.
        types: Events of each type, most often first.
        one_event_users: Users with a single event: they train nothing and judge nothing.
        repeats: Events left out because their user had one with the same event id.
        returns: Share of events whose item the same user had before.
        ties: Share of events at the same millisecond as their user's event before; None without times.
        events_per_user: Its spread over users.
        first_ms: The oldest event, milliseconds since 1970; None without times.
        last_ms: The newest.
        gap_seconds: The spread of the time between a user's event and the one before; None without times, or without a
            second event of anyone.
        top_1_percent: Share of the events that the most popular 1 % of items have, at least one item.
        top_10_percent: Likewise for 10 %.
        gini: Gini coefficient of item popularity: 0 if all items are equally popular, near 1 if one has everything.
    """

    users: int
    items: int
    events: int
    density: float
    types: dict[str, int]
    one_event_users: int
    repeats: int
    returns: float
    ties: float | None
    events_per_user: Spread
    first_ms: int | None
    last_ms: int | None
    gap_seconds: Spread | None
    top_1_percent: float
    top_10_percent: float
    gini: float


def describe_log(log: Log, sequences: Sequence[UserSequence]) -> LogDescription:
    """Describe a log.

    Args:
        log: At least one event.
        sequences: Its users' events, `user_sequences(log.events)`.
    """
    events = len(log.events)
    counts = np.fromiter(item_counts(sequences).values(), np.int64)
    lengths = np.fromiter(map(len, sequences), np.int64)
    pairs = sum(len(set(sequence.items)) for sequence in sequences)
    types = Counter(chain.from_iterable(sequence.types for sequence in sequences))
    gaps = np.fromiter((b - a for sequence in sequences for a, b in pairwise(sequence.times)), np.int64)
    times = [time for sequence in sequences for time in (sequence.times[0], sequence.times[-1])]
    return LogDescription(
        users=len(sequences),
        items=len(counts),
        events=events,
        density=pairs / (len(sequences) * len(counts)),
        types=dict(sorted(types.items(), key=lambda pair: (-pair[1], pair[0]))),
        one_event_users=int((lengths == 1).sum()),
        repeats=log.repeats,
        returns=1 - pairs / events,
        ties=int((gaps == 0).sum()) / events if log.timed else None,
        events_per_user=_spread(lengths),
        first_ms=min(times) if log.timed else None,
        last_ms=max(times) if log.timed else None,
        gap_seconds=_spread(gaps, 1_000) if log.timed and len(gaps) else None,
        top_1_percent=_share_of_top(counts, 100),
        top_10_percent=_share_of_top(counts, 10),
        gini=gini(counts),
    )


def gini(counts: IntArray) -> float:
    """The Gini coefficient of counts, by the formula for sorted values x_1 <= ... <= x_n (Dixon et al., 1987).

    G = sum_i (2 i - n - 1) x_i / (n sum_i x_i)

    Args:
        counts: Shape (n,), not negative, not all 0.
    """
    ordered = np.sort(counts)
    n = len(ordered)
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float(weights @ ordered / (n * ordered.sum()))


def _share_of_top(counts: IntArray, fraction: int) -> float:
    """The share that the first 1/`fraction` of the counts, most often first, have of their sum."""
    top = max(1, len(counts) // fraction)
    return float(counts[:top].sum() / counts.sum())


def _spread(values: IntArray, unit: int = 1) -> Spread:
    least, median, most_of, greatest = np.quantile(values, (0, 0.5, 0.9, 1)) / unit
    return Spread(float(least), float(median), float(most_of), float(greatest))
