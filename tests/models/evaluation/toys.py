"""Small models whose vectors can be followed, and the same ranking written as one plain loop."""

import math
from collections.abc import Sequence

import numpy as np

from models.data.events import UserSequence
from models.evaluation.metrics import MISSED
from models.evaluation.recommender import Encode, Recommender
from models.ranking import Score
from models.spec import ItemMetadata, Vectors, WindowRule
from models.vocabulary import Vocabulary
from models.windows import WindowInputs


def sequence(user_id: str, items: str, times: Sequence[int] | None = None) -> UserSequence:
    """A user who touched the items of the letters, one a second unless times are given."""
    at = tuple(1_000 * place for place in range(len(items))) if times is None else tuple(times)
    return UserSequence(user_id, tuple(items), ("click",) * len(items), at)


def weighted(item_vectors: Vectors) -> Encode:
    """The mean of the window's item vectors, newer events weighing more: order and length matter."""

    def encode(inputs: WindowInputs) -> Vectors:
        place = np.arange(1, inputs.items.shape[1] + 1, dtype=np.float32) * (inputs.items > 0)
        summed = (item_vectors[inputs.items] * place[:, :, None]).sum(axis=1)
        vectors: Vectors = summed / np.maximum(place.sum(axis=1), 1.0)[:, None]
        return vectors

    return encode


def recommender(
    letters: str,
    dim: int = 4,
    seed: int = 0,
    *,
    rule: WindowRule | None = None,
    popular: str = "",
    metadata: dict[str, ItemMetadata] | None = None,
    score: Score | None = None,
    candidates: int = 0,
) -> Recommender:
    """A model of the items of the letters with random vectors."""
    vectors = np.random.default_rng(seed).standard_normal((len(letters) + 1, dim)).astype(np.float32)
    vectors[0] = 0.0
    return Recommender(
        vocabulary=Vocabulary(letters),
        types=("click",),
        window=rule or WindowRule(50, 50),
        encode=weighted(vectors),
        item_vectors=vectors,
        name="toy",
        version="1",
        popular=tuple(popular),
        metadata=metadata or {},
        size_bytes=1_000,
        score=score,
        candidates=candidates,
    )


def vector_by_loop(model: Recommender, window: Sequence[str]) -> list[float]:
    """The vector of a window of `recommender`, without NumPy's batches."""
    known = [model.vocabulary.rows[item_id] for item_id in window if item_id in model.vocabulary.rows]
    known = known[-model.window.max :]
    total = sum(range(1, len(known) + 1))
    return [
        sum(place * float(model.item_vectors[row][axis]) for place, row in enumerate(known, start=1)) / max(total, 1)
        for axis in range(model.item_vectors.shape[1])
    ]


def scores_by_loop(model: Recommender, window: Sequence[str], seen: Sequence[str], target: str) -> dict[str, float]:
    """The score of every candidate: all items but the seen ones, the target in any case."""
    vector = vector_by_loop(model, window)
    known = [item_id for item_id in window if item_id in model.vocabulary.rows]
    scores = {}
    for item_id in model.vocabulary.ids[1:]:
        if item_id in seen and item_id != target:
            continue
        if not known and model.popular:
            popular = item_id in model.popular
            scores[item_id] = float(len(model.popular) - model.popular.index(item_id)) if popular else 0.0
        else:
            row = model.item_vectors[model.vocabulary.rows[item_id]]
            scores[item_id] = sum(a * float(b) for a, b in zip(vector, row, strict=True))
    return scores


def rank_by_loop(model: Recommender, window: Sequence[str], seen: Sequence[str], target: str) -> int:
    """The rank of the target by dot product; items that tie come first. What the model does not know has no rank."""
    if target not in model.vocabulary.rows:
        return MISSED
    scores = scores_by_loop(model, window, seen, target)
    # Sums in another order differ in the last digit: what is that close is a tie.
    return 1 + sum(score > scores[target] - 1e-6 for item_id, score in scores.items() if item_id != target)


def loss_by_loop(model: Recommender, window: Sequence[str], seen: Sequence[str], target: str) -> float:
    """The cross-entropy of the target over the candidates, in nats."""
    scores = scores_by_loop(model, window, seen, target)
    return math.log(sum(math.exp(score) for score in scores.values())) - scores[target]
