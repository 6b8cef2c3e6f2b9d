"""Prequential evaluation: every event of a timestamped log is predicted before the model sees it.

Each from the user's state as of then (Dawid, 1984; Gama, Sebastião and Rodrigues, 2013): this is what live serving gives.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import chain

import numpy as np

from models.data.events import UserSequence
from models.errors import DataError
from models.evaluation.full_ranking import Progress, Queries, judge
from models.evaluation.metrics import GAINS, Gains, Interval, bootstrap_intervals
from models.evaluation.recommender import Recommender
from models.spec import IntArray, WindowRule

K = 10

_DAY_MS = 86_400_000
_MOST_BUCKETS = 30
_KNOWN = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200)


class Seen(StrEnum):
    """Which items are left out of a ranking."""

    window = "window"
    history = "history"


def window_starts(known: IntArray, rule: WindowRule) -> IntArray:
    """Where the window begins that a user has after a number of events, all of which came in time order.

    Events are appended; a window that would exceed `rule.max` is cut to its newest `rule.keep`. So it is cut at event
    max + 1 for the first time, and then whenever it has grown again from keep to max + 1. With max 4 and keep 2:

        known   0  1  2  3  4  5  6  7  8  9
        start   0  0  0  0  0  3  3  3  6  6

    Args:
        known: Events so far, any shape, int64.
        rule: The window rule.

    Returns:
        How many of the oldest events are gone, in the shape of `known`.
    """
    length = rule.keep + (known - rule.max - 1) % (rule.max + 1 - rule.keep)
    starts: IntArray = np.where(known <= rule.max, 0, known - length)
    return starts


def replay_queries(
    sequences: Sequence[UserSequence],
    rule: WindowRule,
    *,
    start_ms: int = 0,
    seen: Seen = Seen.window,
    sample: int | None = None,
    seed: int = 0,
) -> tuple[Queries, IntArray]:
    """One query an event: the user's window right before it, by the window rule of live serving.

    Args:
        sequences: All events of all users.
        rule: The model's window rule.
        start_ms: Events before it are known, but not predicted; milliseconds since the epoch.
        seen: Leave out the items of the window, as live serving does, or everything that the user ever touched.
        sample: Predict only so many events, drawn at random, in time order too.
        seed: Fixes the draw.

    Returns:
        The queries in time order over all users, and the time of each event, milliseconds since the epoch.

    Raises:
        DataError: No event is at `start_ms` or later.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    number = np.repeat(np.arange(len(sequences)), lengths)
    place = np.arange(len(number)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    times = np.fromiter(chain.from_iterable(sequence.times for sequence in sequences), np.int64, len(number))
    chosen = np.flatnonzero(times >= start_ms)
    if not len(chosen):
        newest = _iso(int(times.max())) if len(times) else "never"
        raise DataError(
            f"no event is at {_iso(start_ms)} or later, so there is nothing to replay: the newest is of {newest}. "
            "Choose an earlier start"
        )
    if sample is not None and sample < len(chosen):
        chosen = np.random.default_rng(seed).choice(chosen, sample, replace=False)
    chosen = chosen[np.lexsort((chosen, times[chosen]))]
    number, place = number[chosen], place[chosen]
    starts = window_starts(place, rule)
    queries = Queries(
        sequences=tuple(sequences),
        sequence=number,
        start=starts,
        stop=place,
        seen_start=starts if seen is Seen.window else np.zeros_like(place),
        seen_stop=place,
        targets=tuple(sequences[user].items[at] for user, at in zip(number.tolist(), place.tolist(), strict=True)),
    )
    return queries, times[chosen]


@dataclass(frozen=True, slots=True)
class Bucket:
    """The figures of some of the events.

    Attributes:
        label: The first day of the bucket, or how many events were known.
        events: How many.
        figures: "hr@10", "ndcg@10" and "mrr@10", means.
    """

    label: str
    events: int
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay found.

    Attributes:
        start: The first event predicted, ISO 8601.
        events: Events predicted.
        users: Users that they are of.
        seen: What was left out.
        figures: "hr@10", "ndcg@10" and "mrr@10" over all, with intervals.
        by_time: The same over time, in whole days; buckets without an event are not there.
        by_known: The same by how many events of the user came before.
    """

    start: str
    events: int
    users: int
    seen: Seen
    figures: dict[str, Interval]
    by_time: tuple[Bucket, ...]
    by_known: tuple[Bucket, ...]


def replay_log(
    recommender: Recommender,
    sequences: Sequence[UserSequence],
    *,
    start_ms: int = 0,
    seen: Seen = Seen.window,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Replay:
    """Replay a log through a model whose parameters stay as they are.

    A user's first event is predicted too, from nothing: the model then recommends what is popular, if it knows.

    Args:
        recommender: The model.
        sequences: All events of all users, with times.
        start_ms: Events before it are known, but not predicted; milliseconds since the epoch.
        seen: Leave out the items of the window, as live serving does, or everything that the user ever touched.
        sample: Predict only so many events, drawn at random.
        seed: Fixes the draw and the intervals.
        progress: Called after every batch.

    Raises:
        DataError: Nothing to replay, or the model knows none of the items.
    """
    queries, times = replay_queries(
        sequences, recommender.window, start_ms=start_ms, seen=seen, sample=sample, seed=seed
    )
    ranks = judge(recommender, queries, progress).ranks
    gains = {f"{name}@{K}": measure(ranks, K) for name, measure in GAINS.items()}
    users = queries.users()
    days = times // _DAY_MS
    width = int(np.ceil((days.max() - days.min() + 1) / _MOST_BUCKETS))
    first = days.min() + (days - days.min()) // width * width
    at_least = np.array(_KNOWN)[np.searchsorted(_KNOWN, queries.stop, side="right") - 1]
    return Replay(
        start=_iso(int(times[0])),
        events=len(queries),
        users=int(users.max()) + 1,
        seen=seen,
        figures=bootstrap_intervals(gains, users, seed),
        by_time=_buckets(gains, first, lambda day: _iso(day * _DAY_MS)[:10]),
        by_known=_buckets(gains, at_least, _known_label),
    )


def newest_tenth(sequences: Sequence[UserSequence]) -> int:
    """The time from which on the newest tenth of all events happened, milliseconds since the epoch."""
    times = np.sort(np.fromiter(chain.from_iterable(sequence.times for sequence in sequences), np.int64))
    return int(times[len(times) * 9 // 10])


def _buckets(gains: Mapping[str, Gains], keys: IntArray, label: Callable[[int], str]) -> tuple[Bucket, ...]:
    """The mean gains of the events of each key, in the order of the keys."""
    found, number = np.unique(keys, return_inverse=True)
    counts = np.bincount(number)
    means = {name: np.bincount(number, gain) / counts for name, gain in gains.items()}
    return tuple(
        Bucket(label(int(key)), int(counts[place]), {name: float(mean[place]) for name, mean in means.items()})
        for place, key in enumerate(found)
    )


def _known_label(least: int) -> str:
    place = _KNOWN.index(least)
    if place + 1 == len(_KNOWN):
        return f"{least} or more"
    most = _KNOWN[place + 1] - 1
    return f"{least}" if most == least else f"{least}–{most}"


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="seconds")
