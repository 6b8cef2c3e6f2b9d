"""How sequences are split to learn and to judge."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from models.data.events import UserSequence
from models.errors import DataError


@dataclass(frozen=True, slots=True)
class Judged:
    """Sequences to continue, and the item that each went on with.

    Attributes:
        contexts: What was known before, at least one event each.
        targets: The item of the event that came next. It may be one that the context holds already.
    """

    contexts: tuple[UserSequence, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """What is learned from, what chooses among models, and what judges the chosen one.

    Attributes:
        train: What is learned from; none of it is a target of the other two.
        validation: Chooses the epoch and the settings.
        test: Looked at once.
    """

    train: tuple[UserSequence, ...]
    validation: Judged
    test: Judged


@dataclass(frozen=True, slots=True)
class HeldOutItems:
    """Sequences without some of their items, and what judges how well these are found all the same.

    Attributes:
        items: The items held out, in order of their ids.
        sequences: What may be learned from. None has a held-out item.
        judged: Contexts without held-out items that went on with one.
    """

    items: tuple[str, ...]
    sequences: tuple[UserSequence, ...]
    judged: Judged


def leave_one_out(sequences: Sequence[UserSequence]) -> Split:
    """Of each user the last event tests and the one before validates (Kang and McAuley, 2018).

    A user with fewer than three events is in `train` whole and judges nothing. Comparable with most published tables; but
    what a user does in June trains the model that is judged on another's May (Ji et al., 2023). `global_time` does not do
    that.

    Raises:
        DataError: No user has three events, so nothing could be judged.
    """
    judged = [sequence for sequence in sequences if len(sequence) >= 3]
    if not judged:
        raise DataError("no user has three events or more, so no event can be held out to judge a model. Use more data")
    return Split(
        train=tuple(s.part(0, len(s) - 2) if len(s) >= 3 else s for s in sequences),
        validation=Judged(tuple(s.part(0, len(s) - 2) for s in judged), tuple(s.items[-2] for s in judged)),
        test=Judged(tuple(s.part(0, len(s) - 1) for s in judged), tuple(s.items[-1] for s in judged)),
    )


def global_time(
    sequences: Sequence[UserSequence], *, timed: bool, validation_from: float = 0.8, test_from: float = 0.9
) -> Split:
    """Split all users at the same two points in time, so that nothing later than a target is learned from.

    The temporal global split of Meng et al. (2020), against the leakage that Ji et al. (2023) measure in splits by user.
    The points are quantiles of all event times; an event at a point comes after it. `train` is every event before the
    first. A user with an event between the points validates: with the first of these as target, given everything of that
    user before the first point. A user with an event after the second point tests likewise, given everything before the
    second. So each user counts once, as in leave-one-out, and the model is asked for what comes next at the point at
    which it was trained; how it does on the events after that is for a replay in time order. A user without an event
    before a point has nothing to go on from and is not judged there.

    With quantiles 0.5 and 0.75 and the times

        u: 1 2 5 8      train u: 1 2      validation u: 1 2 → 5      test u: 1 2 5 → 8
        v: 3 4 6 7            v: 3 4                 v: 3 4 → 6           v: 3 4 6 → 7

    the points are 5 and 7.

    Args:
        sequences: Users' events, oldest first.
        timed: Whether the times are real, `Log.timed`.
        validation_from: The quantile of the first point.
        test_from: The quantile of the second.

    Raises:
        DataError: The source has no times, the quantiles are out of order, or a part would be empty.
    """
    if not timed:
        raise DataError("this log has no times, so it cannot be split by time. Use leave-one-out, or a log with times")
    if not 0 < validation_from < test_from < 1:
        raise DataError(
            f"a split by time needs 0 < validation_from < test_from < 1, not {validation_from:g} and {test_from:g}"
        )
    times = np.sort(np.fromiter(chain.from_iterable(sequence.times for sequence in sequences), np.int64))
    if not len(times):
        raise DataError("there is no event to split. Use more data")
    first, second = (int(times[int(len(times) * share)]) for share in (validation_from, test_from))
    parts: tuple[list[UserSequence], list[tuple[UserSequence, str]], list[tuple[UserSequence, str]]] = ([], [], [])
    train, validation, test = parts
    for sequence in sequences:
        before_first, before_second = bisect_left(sequence.times, first), bisect_left(sequence.times, second)
        if before_first:
            train.append(sequence.part(0, before_first))
            if before_first < before_second:
                validation.append((sequence.part(0, before_first), sequence.items[before_first]))
        if 0 < before_second < len(sequence):
            test.append((sequence.part(0, before_second), sequence.items[before_second]))
    for name, part in zip(("to train on", "to validate with", "to test with"), parts, strict=True):
        if not part:
            raise DataError(
                f"split at {first} and {second} ms, this log leaves nothing {name}: users need events before and after "
                "each point. Choose other quantiles, or use more data"
            )
    return Split(tuple(train), _judged(validation), _judged(test))


def hold_out_items(sequences: Sequence[UserSequence], share: float, seed: int) -> HeldOutItems:
    """Take items out of the sequences as if they had never been shown, to judge how a model finds new ones.

    Items are drawn at random, each as likely as any other. A user's last event of a held-out item is a target, given the
    user's events before it that are of other items; without such events there is nothing to go on from, and the user is
    not judged. Of a user who is judged, nothing after the target may be learned from.

    Args:
        sequences: Users' events, oldest first.
        share: Of the items, above 0 and below 1; at least one is drawn and one left.
        seed: Fixes which.

    Raises:
        DataError: `share` is out of range, there are fewer than two items, or nobody could be judged.
    """
    if not 0 < share < 1:
        raise DataError(f"the share of items to hold out must lie between 0 and 1, not {share:g}")
    catalogue = sorted(set(chain.from_iterable(sequence.items for sequence in sequences)))
    if len(catalogue) < 2:
        raise DataError(f"{len(catalogue)} item is too few to hold one out. Use more data")
    count = min(max(1, round(share * len(catalogue))), len(catalogue) - 1)
    drawn = np.random.default_rng(seed).choice(len(catalogue), count, replace=False)
    items = tuple(catalogue[place] for place in sorted(drawn))
    held_out = frozenset(items)

    kept: list[UserSequence] = []
    judged: list[tuple[UserSequence, str]] = []
    for sequence in sequences:
        target = next((place for place in reversed(range(len(sequence))) if sequence.items[place] in held_out), None)
        if target is None:
            kept.append(sequence)
            continue
        context = _without(sequence.part(0, target), held_out)
        if len(context):
            kept.append(context)
            judged.append((context, sequence.items[target]))
        elif target + 1 < len(sequence):
            kept.append(sequence.part(target + 1, len(sequence)))
    if not judged:
        raise DataError(
            f"no user has one of the {count} items held out after an event of another, so nobody could be judged. "
            "Hold out more, or use more data"
        )
    return HeldOutItems(items, tuple(kept), _judged(judged))


def _without(sequence: UserSequence, items: frozenset[str]) -> UserSequence:
    places = [place for place, item_id in enumerate(sequence.items) if item_id not in items]
    return UserSequence(
        sequence.user_id,
        tuple(sequence.items[place] for place in places),
        tuple(sequence.types[place] for place in places),
        tuple(sequence.times[place] for place in places),
    )


def _judged(cases: Sequence[tuple[UserSequence, str]]) -> Judged:
    return Judged(tuple(context for context, _ in cases), tuple(target for _, target in cases))
