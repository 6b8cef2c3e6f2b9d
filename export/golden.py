"""The golden sample of a bundle: windows whose vectors and best items every machine must agree on."""

from collections.abc import Callable

import numpy as np

from models.bundle import TOP, Golden, GoldenScores
from models.ranking import Score
from models.spec import IntArray, Vectors
from models.windows import WindowInputs

Encode = Callable[[WindowInputs], Vectors]
"""Encoder inputs to vectors, shape (batch, dim)."""

_HOUR_SECONDS = 3_600.0


def random_inputs(lengths: IntArray, items: int, types: int, rng: np.random.Generator) -> WindowInputs:
    """Encoder inputs of random windows of the given lengths.

    Args:
        lengths: Events a window, shape (batch,), int64; 0 is allowed.
        items: Items of the vocabulary; rows 1 to `items` are drawn.
        types: Event types named in the configuration; 1 to `types + 1` are drawn.
        rng: Where the randomness comes from.

    Returns:
        Inputs as long as the longest window and never shorter than 1; gaps between events average an hour.
    """
    batch, width = len(lengths), max(1, int(lengths.max(initial=0)))
    filled = np.arange(width) < lengths[:, None]
    before_next = rng.exponential(_HOUR_SECONDS, (batch, width)) * filled
    # The newest event has age 0: sum, from the right, the gaps of all events but the newest.
    before_next[np.arange(batch), np.maximum(lengths - 1, 0)] = 0.0
    ages = before_next[:, ::-1].cumsum(axis=1)[:, ::-1] * filled
    return WindowInputs(
        items=rng.integers(1, items + 1, (batch, width)) * filled,
        types=rng.integers(1, types + 2, (batch, width)) * filled,
        ages=ages.astype(np.float32),
        lengths=lengths.astype(np.int64),
    )


def top_rows(vectors: Vectors, item_vectors: Vectors, k: int = TOP) -> IntArray:
    """The rows of the best items by dot product, best first, equal scores by row, nothing filtered out.

    Args:
        vectors: Shape (batch, dim), float32.
        item_vectors: Shape (items + 1, dim), float32; row 0 is padding and never returned.
        k: Items to keep.

    Returns:
        Shape (batch, k), int64; -1 where there are fewer items.
    """
    scores = vectors @ item_vectors[1:].T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k] + 1
    rows = np.full((len(vectors), k), -1, np.int64)
    rows[:, : best.shape[1]] = best
    return rows


def golden_sample(
    encode: Encode,
    item_vectors: Vectors,
    types: int,
    max_length: int,
    rng: np.random.Generator,
    windows: int = 8,
    deviate: Encode | None = None,
    score: Score | None = None,
) -> Golden:
    """Choose windows whose best items stand apart, so that rounding on another machine cannot reorder them.

    Args:
        encode: The encoder that will be served.
        item_vectors: Shape (items + 1, dim), float32.
        types: Event types named in the configuration.
        max_length: Longest window.
        rng: Where the windows come from.
        windows: Windows to choose, out of 16 times as many.
        deviate: The second output of a variational encoder.
        score: The scorer of a model that has one; it scores each window's best items by dot product.

    Returns:
        The sample, lengths mixed.
    """
    lengths = rng.integers(1, max_length + 1, windows * 16)
    drawn = random_inputs(lengths, len(item_vectors) - 1, types, rng)
    vectors = encode(drawn)
    scores = np.sort(vectors @ item_vectors[1:].T, axis=1)[:, ::-1][:, : TOP + 1]
    margins = (scores[:, :-1] - scores[:, 1:]).min(axis=1, initial=np.inf)
    chosen = np.sort(np.argsort(-margins, kind="stable")[:windows])
    width = int(drawn.lengths[chosen].max())
    inputs = WindowInputs(
        items=drawn.items[chosen, :width],
        types=drawn.types[chosen, :width],
        ages=drawn.ages[chosen, :width],
        lengths=drawn.lengths[chosen],
    )
    expected = encode(inputs)
    top = top_rows(expected, item_vectors)
    scored = None
    if score is not None:
        candidates = np.maximum(top, 0)
        scored = GoldenScores(candidates, score(expected, candidates))
    return Golden(inputs, expected, top, None if deviate is None else deviate(inputs), scored)
