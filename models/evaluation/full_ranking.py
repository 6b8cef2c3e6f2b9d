"""Ranking all items for many windows: where each target came, and the lists that people would have been shown.

Everything is ranked as it is served. Items are scored by dot product. A scorer then orders the best of them, and the
rest follow in the order of the dot product. A window without a known item gets the popular items.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from models.data.events import UserSequence
from models.data.splits import Judged
from models.errors import DataError
from models.evaluation.metrics import MISSED, Gains, target_ranks
from models.evaluation.recommender import Recommender
from models.ranking import Ranking, Score, rank_candidates, rank_items
from models.spec import IntArray, Vectors
from models.vocabulary import Vocabulary
from models.windows import WindowInputs, window_inputs

Progress = Callable[[int], None]
"""Called with how many queries were answered since the last call."""

_BATCH = 128  # a larger one falls out of the cache of a CPU
_SCORES = 16_000_000  # scores held at a time, 4 bytes each: with very many items batches get smaller


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Windows to continue, each a part of a user's events, and the item that came next.

    Attributes:
        sequences: Events of users.
        sequence: Which of them each query is about, shape (n,), int64.
        start: Where the window begins, shape (n,), int64.
        stop: Where the window ends, shape (n,), int64.
        seen_start: Where the events begin whose items are left out, shape (n,), int64.
        seen_stop: Where those end, shape (n,), int64.
        targets: The item that came next, n of them.
    """

    sequences: tuple[UserSequence, ...]
    sequence: IntArray
    start: IntArray
    stop: IntArray
    seen_start: IntArray
    seen_stop: IntArray
    targets: tuple[str, ...]

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.targets)

    def users(self) -> IntArray:
        """The number of the user of each query, from 0 without gaps, shape (n,), int64."""
        names = np.array([sequence.user_id for sequence in self.sequences])[self.sequence]
        numbers: IntArray = np.unique(names, return_inverse=True)[1].astype(np.int64)
        return numbers


def queries_of(judged: Judged, hidden: int = 0) -> Queries:
    """The queries of a split: all that is known before each target, and all of it seen.

    Args:
        judged: Contexts and targets.
        hidden: The newest events of each context that the model does not get to know; their items count as seen.
    """
    lengths = np.array([len(context) for context in judged.contexts], np.int64)
    nothing = np.zeros(len(lengths), np.int64)
    return Queries(
        sequences=judged.contexts,
        sequence=np.arange(len(lengths)),
        start=nothing,
        stop=np.maximum(lengths - hidden, 0),
        seen_start=nothing,
        seen_stop=lengths,
        targets=judged.targets,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """Where the targets came.

    Attributes:
        ranks: Shape (n,), int64, from 1; `MISSED` where the model does not know the target.
        losses: Cross-entropy of the target over all items but the seen ones, by dot product, in nats, shape (n,),
            float64; NaN where the model does not know the target.
    """

    ranks: IntArray
    losses: Gains


def judge(recommender: Recommender, queries: Queries, progress: Progress = lambda _: None) -> Judgement:
    """Rank every target among all items that its user had not seen. Ties count against the model.

    Args:
        recommender: The model.
        queries: What to rank.
        progress: Called after every batch.

    Raises:
        DataError: There are no queries, or the model knows none of their items.
    """
    _check(recommender, queries)
    targets = np.array([recommender.vocabulary.rows.get(item_id, 0) for item_id in queries.targets], np.int64)
    ranks = np.full(len(queries), MISSED, np.int64)
    losses = np.full(len(queries), np.nan)
    popular = _popular_scores(recommender)
    for index, inputs, vectors in _encoded(recommender, queries):
        scores = _scores(recommender, inputs, vectors, popular)
        wanted, seen = targets[index], _seen_rows(recommender.vocabulary, queries, index)
        found = target_ranks(scores, wanted, seen)
        if recommender.score is not None:
            found = _rescored_ranks(recommender, recommender.score, inputs, vectors, seen, wanted, found)
        known = wanted > 0
        ranks[index[known]] = found[known]
        losses[index] = np.where(known, _losses(scores, wanted, seen), np.nan)
        progress(len(index))
    return Judgement(ranks, losses)


@dataclass(frozen=True, slots=True, eq=False)
class Pools:
    """The best items of each query, before anything re-ranks them.

    Attributes:
        ranking: Rows and scores, shape (n, k).
        windows: The window's item rows, shape (n, longest), int64; padded with 0.
    """

    ranking: Ranking
    windows: IntArray


def best_items(recommender: Recommender, queries: Queries, k: int, progress: Progress = lambda _: None) -> Pools:
    """The lists that the users would be recommended.

    Args:
        recommender: The model.
        queries: For whom; their targets are not looked at, and left out if they were seen.
        k: Items a list.
        progress: Called after every batch.

    Raises:
        DataError: There are no queries, or the model knows none of their items.
    """
    _check(recommender, queries)
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    windows = np.zeros((len(queries), recommender.window.max), np.int64)
    popular = _popular_scores(recommender)
    for index, inputs, vectors in _encoded(recommender, queries):
        seen = _padded(_seen_rows(recommender.vocabulary, queries, index))
        if recommender.score is None:
            ranking = rank_items(vectors, recommender.item_vectors, seen, k)
        else:
            candidates = max(k, recommender.candidates)
            ranking = rank_candidates(vectors, recommender.item_vectors, seen, recommender.score, candidates, k)
        unknown = inputs.lengths == 0
        if recommender.popular and unknown.any():
            # In one dimension: every user's vector is 1, every item's its popularity.
            alike = np.ones((int(unknown.sum()), 1), np.float32)
            most_popular = rank_items(alike, popular[:, None], seen[unknown], k)
            ranking.rows[unknown], ranking.scores[unknown] = most_popular.rows, most_popular.scores
        rows[index], scores[index] = ranking.rows, ranking.scores
        windows[index, : inputs.items.shape[1]] = inputs.items
        progress(len(index))
    return Pools(Ranking(rows, scores), windows)


def _check(recommender: Recommender, queries: Queries) -> None:
    if not len(queries):
        raise DataError("there is no user to judge: no event is held out that another comes before. Use more data")
    rows = recommender.vocabulary.rows
    if not any(item_id in rows for item_id in queries.targets) and not any(
        item_id in rows for sequence in queries.sequences for item_id in sequence.items
    ):
        raise DataError(
            f"the model {recommender.name!r} knows none of the items of the data: the data has items such as "
            f"{queries.targets[0]!r}, the model such as {recommender.vocabulary.ids[1]!r}. "
            "Evaluate a model on the log that it was trained for"
        )


def _encoded(recommender: Recommender, queries: Queries) -> Iterator[tuple[IntArray, WindowInputs, Vectors]]:
    """Batches of windows of similar length: which queries they are, their inputs and vectors."""
    order = np.argsort(queries.stop - queries.start, kind="stable")
    batch = max(1, min(_BATCH, _SCORES // len(recommender.item_vectors)))
    for first in range(0, len(order), batch):
        index = order[first : first + batch]
        windows = [
            queries.sequences[number].part(start, stop)
            for number, start, stop in zip(
                queries.sequence[index].tolist(),
                queries.start[index].tolist(),
                queries.stop[index].tolist(),
                strict=True,
            )
        ]
        inputs = window_inputs(windows, recommender.vocabulary, recommender.types, recommender.window.max)
        yield index, inputs, recommender.encode(inputs)


def _popular_scores(recommender: Recommender) -> Vectors:
    """What every item scores for someone of whom nothing is known, shape (items + 1,); 0 where it is not popular."""
    scores = np.zeros(len(recommender.vocabulary) + 1, np.float32)
    for place, item_id in enumerate(recommender.popular):
        scores[recommender.vocabulary.rows[item_id]] = len(recommender.popular) - place
    return scores


def _scores(recommender: Recommender, inputs: WindowInputs, vectors: Vectors, popular: Vectors) -> Vectors:
    scores: Vectors = vectors @ recommender.item_vectors.T
    if recommender.popular:
        scores[inputs.lengths == 0] = popular
    return scores


def _seen_rows(vocabulary: Vocabulary, queries: Queries, index: IntArray) -> list[IntArray]:
    """For each query the rows to leave out; 0 for items that the model does not know."""
    seen = []
    for query in index.tolist():
        items = queries.sequences[queries.sequence[query]].items[queries.seen_start[query] : queries.seen_stop[query]]
        seen.append(np.fromiter(map(vocabulary.rows.get, items, repeat(0)), np.int64, len(items)))
    return seen


def _padded(rows: Sequence[IntArray]) -> IntArray:
    lengths = np.array(list(map(len, rows)), np.int64)
    padded = np.zeros((len(rows), max(1, int(lengths.max()))), np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return padded


def _losses(scores: Vectors, targets: IntArray, seen: Sequence[IntArray]) -> Vectors:
    """Cross-entropy of each target over all items but the seen ones, shape (users,). Changes the scores."""
    users = np.arange(len(targets))
    of_target = scores[users, targets]
    scores[np.repeat(users, list(map(len, seen))), np.concatenate(seen)] = -np.inf
    scores[:, 0] = -np.inf
    scores[users, targets] = of_target
    highest = scores.max(axis=1, keepdims=True)
    losses: Vectors = np.log(np.exp(scores - highest).sum(axis=1)) + highest[:, 0] - of_target
    return losses


def _rescored_ranks(
    recommender: Recommender,
    score: Score,
    inputs: WindowInputs,
    vectors: Vectors,
    seen: Sequence[IntArray],
    targets: IntArray,
    ranks: IntArray,
) -> IntArray:
    """The ranks by dot product with the scorer's candidates before all others, in the scorer's order."""
    left_out = _padded(seen)
    left_out[left_out == targets[:, None]] = 0
    candidates = rank_items(vectors, recommender.item_vectors, left_out, recommender.candidates).rows
    is_target = candidates == targets[:, None]
    scores = score(vectors, np.maximum(candidates, 0))
    of_target = np.take_along_axis(scores, is_target.argmax(axis=1)[:, None], axis=1)
    before = ~(scores < of_target) & (candidates > 0) & ~is_target
    rescored = np.where(is_target.any(axis=1), 1 + before.sum(axis=1), ranks)
    found: IntArray = np.where(inputs.lengths > 0, rescored, ranks)
    return found
