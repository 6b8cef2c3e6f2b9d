"""Why a list is what it is: how much each event of a window raised or lowered the score of each item."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle
from models.spec import IntArray, Vectors
from models.windows import Window, WindowInputs, window_inputs
from streams.errors import EncoderFailed, UsageError

Encode = Callable[[WindowInputs], Vectors]
"""Encoder inputs to vectors, shape (batch, dim), float32; `streams.interest.encode.Encoder.encode` is one."""

Score = Callable[[Vectors, IntArray], Vectors]
"""User vectors, shape (batch, dim), and item rows, shape (batch, n), to scores, shape (batch, n), float32; such as
`streams.interest.encode.Scorer.score`."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What each event of a window did to the score of each item.

    Attributes:
        scores: The items' scores, shape (items,), float32.
        contributions: By how much an item's score exceeds the one that it would have without the event, shape
            (items, events), float32, events in the order of the window. They do not add up to the score: events
            that say the same can each be left out without loss, and a mean shifts towards those that remain.
        read: Which events the encoder read, shape (events,). The others are of items that the model does not know, or
            older than it looks back, and contribute exactly 0.
    """

    scores: Vectors
    contributions: Vectors
    read: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Events:
    """A window, as `models.windows.Window` has it."""

    items: Sequence[str]
    types: Sequence[str]
    times: Sequence[int]


def explain_list(
    bundle: Bundle, encode: Encode, window: Window, item_ids: Sequence[str], score: Score | None = None
) -> Explanation:
    """Leave each event of a window out once, and see how the scores of some items change.

    Exact for any encoder, for it is asked: the window is encoded whole and once without each event that the encoder
    reads, in one batch. A shortened window is what the encoder would have been given had the event never happened: later
    events take its position, and without the newest one all ages are counted from the newest that remains. An event that
    had been pushed out of the window before does not come back, for it is gone from a user's state too. With one event
    read, what is left is the empty window.

    With two events of items a and b and the mean of their vectors as the encoder, the score of item c is (a·c + b·c) / 2;
    without the first it is b·c: so the first contributes (a·c - b·c) / 2, and the second its opposite.

    Known as occlusion or leave-one-out attribution (Zeiler and Fergus, 2014; Li, Monroe and Jurafsky, 2016).

    Args:
        bundle: The model.
        encode: Its encoder.
        window: A user's events, oldest first; a `UserState` is one.
        item_ids: The items to explain, in the list or not.
        score: The model's scorer; without one an item's score is the dot product of the vectors.

    Returns:
        Scores and contributions, items in the order given.

    Raises:
        UsageError: The model does not know one of the items.
        EncoderFailed: A score is NaN or infinite.
    """
    config = bundle.config
    unknown = next((item_id for item_id in item_ids if item_id not in bundle.vocabulary.rows), None)
    if unknown is not None:
        raise UsageError(
            f"item {unknown!r} is not among the {len(bundle.vocabulary):,} items of the model {config.name} "
            f"{config.version}, so it has no score to explain; check the id, or train on a log that has it"
        )
    rows = np.array([bundle.vocabulary.rows[item_id] for item_id in item_ids], np.int64)
    known = [place for place, item_id in enumerate(window.items) if item_id in bundle.vocabulary.rows]
    places = known[-config.window.max :]
    windows = [_picked(window, places), *(_picked(window, [p for p in places if p != left_out]) for left_out in places)]
    vectors = encode(window_inputs(windows, bundle.vocabulary, config.types, config.window.max))
    scores = (
        vectors @ bundle.item_vectors[rows].T if score is None else score(vectors, np.tile(rows, (len(vectors), 1)))
    )
    if not np.isfinite(scores).all():
        raise EncoderFailed(
            f"the model {config.name} {config.version} gives a score with NaN or infinity for this window or for a part "
            "of it; train and export it again"
        )
    read = np.zeros(len(window.items), bool)
    read[places] = True
    contributions = np.zeros((len(rows), len(read)), np.float32)
    contributions[:, places] = (scores[0] - scores[1:]).T
    return Explanation(scores[0], contributions, read)


def _picked(window: Window, places: Sequence[int]) -> _Events:
    return _Events(
        [window.items[place] for place in places],
        [window.types[place] for place in places],
        [window.times[place] for place in places],
    )
