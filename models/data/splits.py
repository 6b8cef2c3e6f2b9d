"""How sequences are split to learn and to judge."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.data.events import UserSequence
from models.errors import DataError


@dataclass(frozen=True, slots=True)
class Judged:
    """Sequences to continue, and the item that each went on with.

    Attributes:
        contexts: What was known before.
        targets: The item of the event that came next.
    """

    contexts: tuple[UserSequence, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Leave-one-out, after Kang and McAuley (2018): of each user the last event tests, the one before validates.

    Attributes:
        train: Everything before those two. A user with fewer than three events is here whole and judges nothing.
        validation: The event before the last, given all before it.
        test: The last event, given all before it.
    """

    train: tuple[UserSequence, ...]
    validation: Judged
    test: Judged


def leave_one_out(sequences: Sequence[UserSequence]) -> Split:
    """Split every user's sequence into what is learned from, one event to validate and one to test.

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
