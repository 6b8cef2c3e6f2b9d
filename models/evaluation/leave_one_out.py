"""Leave-one-out evaluation: the same figures for a network, an exported encoder and plain popularity."""

from collections.abc import Callable, Sequence

import numpy as np

from models.data.splits import Judged
from models.evaluation.metrics import hit_rate, ndcg, target_ranks
from models.spec import IntArray, Vectors
from models.vocabulary import Vocabulary
from models.windows import WindowInputs, window_inputs

Encode = Callable[[WindowInputs], Vectors]
"""Encoder inputs to vectors, shape (batch, dim)."""

K = 10
_BATCH = 512


def evaluate_encoder(
    encode: Encode,
    item_vectors: Vectors,
    judged: Judged,
    vocabulary: Vocabulary,
    types: Sequence[str],
    max_length: int,
) -> dict[str, float]:
    """HR@10 and NDCG@10 of an encoder, ranking all items, all that the user ever touched before left out.

    Args:
        encode: The encoder.
        item_vectors: Shape (items + 1, dim), float32.
        judged: Sequences and what came next. A target that the vocabulary lacks counts as missed.
        vocabulary: The model's items.
        types: The model's event type names.
        max_length: Longest window.

    Returns:
        "hr@10" and "ndcg@10".
    """

    def scores(start: int, stop: int) -> Vectors:
        inputs = window_inputs(judged.contexts[start:stop], vocabulary, types, max_length)
        scored: Vectors = encode(inputs) @ item_vectors.T
        return scored

    return _figures(scores, judged, vocabulary)


def evaluate_popularity(counts: dict[str, int], judged: Judged, vocabulary: Vocabulary) -> dict[str, float]:
    """HR@10 and NDCG@10 of recommending to everyone the unseen items with the highest counts.

    Args:
        counts: How often each item occurs in the training data.
        judged: Sequences and what came next.
        vocabulary: The items to rank.

    Returns:
        "popularity_hr@10" and "popularity_ndcg@10".
    """
    row = np.array([0, *(counts.get(item_id, 0) for item_id in vocabulary.ids[1:])], np.float32)

    def scores(start: int, stop: int) -> Vectors:
        return np.tile(row, (stop - start, 1))

    return {f"popularity_{name}": value for name, value in _figures(scores, judged, vocabulary).items()}


def _figures(scores: Callable[[int, int], Vectors], judged: Judged, vocabulary: Vocabulary) -> dict[str, float]:
    ranks: list[IntArray] = []
    for start in range(0, len(judged.targets), _BATCH):
        stop = min(start + _BATCH, len(judged.targets))
        targets = np.array([vocabulary.rows.get(item_id, 0) for item_id in judged.targets[start:stop]], np.int64)
        seen = [
            np.array([vocabulary.rows[item_id] for item_id in context.items if item_id in vocabulary.rows], np.int64)
            for context in judged.contexts[start:stop]
        ]
        found = target_ranks(scores(start, stop), targets, seen)
        ranks.append(np.where(targets == 0, len(vocabulary) + 1, found))
    every = np.concatenate(ranks)
    return {f"hr@{K}": hit_rate(every, K), f"ndcg@{K}": ndcg(every, K)}
