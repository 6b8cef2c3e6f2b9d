"""The figures that training looks at after every epoch: an encoder, or plain popularity, on held-out events."""

from collections.abc import Sequence

import numpy as np

from models.data.splits import Judged
from models.evaluation.full_ranking import Judgement, judge, queries_of
from models.evaluation.metrics import hit_rate, mrr, ndcg
from models.evaluation.recommender import Encode, Recommender
from models.ranking import Score
from models.spec import Vectors, WindowRule
from models.vocabulary import Vocabulary
from models.windows import WindowInputs

K = 10


def evaluate_encoder(
    encode: Encode,
    item_vectors: Vectors,
    judged: Judged,
    vocabulary: Vocabulary,
    types: Sequence[str],
    max_length: int,
    *,
    score: Score | None = None,
    candidates: int = 0,
) -> dict[str, float]:
    """How well an encoder predicts, ranking all items, all that the user ever touched before left out.

    Args:
        encode: The encoder.
        item_vectors: Shape (items + 1, dim), float32.
        judged: Sequences and what came next. A target that the vocabulary lacks counts as missed.
        vocabulary: The model's items.
        types: The model's event type names.
        max_length: Longest window.
        score: The scorer, where a score is no dot product.
        candidates: How many items are retrieved for it.

    Returns:
        "hr@10" (which is Recall@10 too, for one item is relevant), "ndcg@10", "mrr@10"; and "loss", the mean
        cross-entropy over all items but the seen ones in nats, of the targets that the vocabulary has.

    Raises:
        DataError: Nobody is to be judged, or the vocabulary has none of the items.
    """
    recommender = Recommender(
        vocabulary,
        tuple(types),
        WindowRule(max_length, max_length),
        encode,
        item_vectors,
        score=score,
        candidates=candidates,
    )
    judgement = judge(recommender, queries_of(judged))
    known = np.array([item_id in vocabulary.rows for item_id in judged.targets])
    return {**_figures(judgement), "loss": float(judgement.losses[known].mean()) if known.any() else 0.0}


def evaluate_popularity(counts: dict[str, int], judged: Judged, vocabulary: Vocabulary) -> dict[str, float]:
    """The same figures for recommending to everyone the unseen items with the highest counts.

    Args:
        counts: How often each item occurs in the training data.
        judged: Sequences and what came next.
        vocabulary: The items to rank.

    Returns:
        "popularity_hr@10", "popularity_ndcg@10", "popularity_mrr@10".
    """
    row = np.array([0, *(counts.get(item_id, 0) for item_id in vocabulary.ids[1:])], np.float32)

    def encode(inputs: WindowInputs) -> Vectors:
        return np.ones((len(inputs), 1), np.float32)

    popularity = Recommender(vocabulary, (), WindowRule(1, 1), encode, row[:, None])
    return {f"popularity_{name}": value for name, value in _figures(judge(popularity, queries_of(judged))).items()}


def _figures(judgement: Judgement) -> dict[str, float]:
    return {
        f"{name}@{K}": measure(judgement.ranks, K) for name, measure in (("hr", hit_rate), ("ndcg", ndcg), ("mrr", mrr))
    }
