"""Scoring items for users, and saying which events of the window a recommendation is close to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.spec import IntArray, Vectors

# Scores of a block of users stay in the second-level cache. Measured on 3,416 items: 64 users at a time take
# about two thirds of the time of 512 at once.
_BLOCK: Final = 64


Score = Callable[[Vectors, IntArray], Vectors]
"""User vectors (users, dim) and item rows (users, n), 0 being padding, to scores (users, n): what scorer.onnx does."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best items of each user, best first.

    Attributes:
        rows: Item rows, shape (users, k), int64; -1 where a user has fewer than k items left.
        scores: Their scores, shape (users, k), float32; -inf where the row is -1.
    """

    rows: IntArray
    scores: Vectors


def rank_items(vectors: Vectors, items: Vectors, seen: IntArray, k: int) -> Ranking:
    """Score every item for every user and keep the best unseen ones. Exact: every item is scored.

    Args:
        vectors: User vectors, shape (users, dim), float32.
        items: Item vectors, shape (items + 1, dim), float32; row 0 is padding and never returned.
        seen: Item rows never to return to a user, shape (users, any), int64; padded with 0.
        k: Items to keep a user.

    Returns:
        Rows and scores, shape (users, k). Equal scores are in the order of their rows.

    Raises:
        ValueError: The two matrices disagree on dim.
    """
    if vectors.shape[1] != items.shape[1]:
        raise ValueError(f"user vectors have {vectors.shape[1]} dimensions, item vectors {items.shape[1]}")
    users = len(vectors)
    rows = np.full((users, k), -1, np.int64)
    best = np.full((users, k), -np.inf, np.float32)
    kept = min(k, len(items))
    for start in range(0, users, _BLOCK):
        block = slice(start, min(start + _BLOCK, users))
        scores = vectors[block] @ items.T
        scores[:, 0] = -np.inf
        np.put_along_axis(scores, seen[block], -np.inf, axis=1)
        candidates = np.argpartition(scores, len(items) - kept, axis=1)[:, len(items) - kept :]
        candidate_scores = np.take_along_axis(scores, candidates, axis=1)
        border = candidate_scores.min(axis=1, keepdims=True)
        # A partition keeps any of the items that tie for the last place: settle those lists by a whole sort.
        for row in np.flatnonzero(((scores >= border).sum(axis=1) > kept) & ~np.isneginf(border[:, 0])):
            candidates[row] = np.argsort(-scores[row], kind="stable")[:kept]
            candidate_scores[row] = scores[row, candidates[row]]
        order = np.lexsort((candidates, -candidate_scores), axis=1)
        rows[block, :kept] = np.take_along_axis(candidates, order, axis=1)
        best[block, :kept] = np.take_along_axis(candidate_scores, order, axis=1)
    rows[np.isneginf(best)] = -1
    return Ranking(rows, best)


def rank_candidates(vectors: Vectors, items: Vectors, seen: IntArray, score: Score, candidates: int, k: int) -> Ranking:
    """Retrieve candidates by dot product, and keep those that a scorer puts first.

    Args:
        vectors: User vectors, shape (users, dim), float32.
        items: Item vectors, shape (items + 1, dim), float32; row 0 is padding and never returned.
        seen: Item rows never to return to a user, shape (users, any), int64; padded with 0.
        score: The scorer.
        candidates: Items to retrieve a user, `ModelConfig.candidates`.
        k: Items to keep a user.

    Returns:
        Rows and the scorer's scores, shape (users, k). Equal scores are in the order of their rows.

    Raises:
        ValueError: The two matrices disagree on dim, or `k` is more than `candidates`.
    """
    if k > candidates:
        raise ValueError(f"{k} items cannot be kept of {candidates} candidates")
    rows = rank_items(vectors, items, seen, candidates).rows
    scores = np.where(rows < 0, np.float32(-np.inf), score(vectors, np.maximum(rows, 0)))
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return Ranking(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))


def unit_vectors(items: Vectors) -> Vectors:
    """Item vectors scaled to length 1, so that dot products are cosines; a vector of zeros stays one.

    Args:
        items: Shape (items + 1, dim), float32.
    """
    norms = np.linalg.norm(items, axis=1, keepdims=True)
    unit: Vectors = np.divide(items, norms, out=np.zeros_like(items), where=norms > 0)
    return unit


def closest_in_window(ranked: IntArray, window: IntArray, unit_items: Vectors, count: int) -> IntArray:
    """For each recommended item the items of the user's window most similar to it, by cosine.

    Args:
        ranked: Recommended rows, shape (users, k), int64; -1 where there is none.
        window: Rows of the user's window, shape (users, length), int64; padded with 0.
        unit_items: Item vectors of length 1, shape (items + 1, dim), float32.
        count: Items to name.

    Returns:
        Rows, shape (users, k, count), int64, closest first, each item once; 0 where the window has no more.
    """
    similarity = np.matmul(unit_items[ranked], unit_items[window].transpose(0, 2, 1))
    similarity[np.broadcast_to((window == 0)[:, None, :], similarity.shape)] = -np.inf
    found = np.zeros((*ranked.shape, count), np.int64)
    spread = np.broadcast_to(window[:, None, :], similarity.shape)
    for place in range(count):
        best = similarity.argmax(axis=2)[..., None]
        rows = np.take_along_axis(spread, best, axis=2)
        rows[np.isneginf(np.take_along_axis(similarity, best, axis=2))] = 0
        found[..., place] = rows[..., 0]
        if place + 1 < count:
            similarity[spread == rows] = -np.inf
    found[ranked < 0] = 0
    return found
