"""Re-ranking: from a pool of good candidates to a list that is also diverse, or as mixed as the user's window.

Three methods, one trade-off. `diversity` goes from 0, relevance alone (the k best of the pool, as they came), to 1, the
method's own aim alone. Each list is built greedily; the next item is the one with the greatest

    (1 - diversity) · relevance + diversity · gain

where relevance is the model's score scaled to 0 (worst of the user's pool) .. 1 (best), since scores have no unit, and
the gain is what the item adds to the list so far:

    mmr         minus the cosine to the closest item of the list
    dpp         the logarithm of the volume that the item adds to the volume of the list
    calibrated  by how much closer the list's topics come to the window's, in nats of KL divergence

Equal sums are in the order of the pool.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from models.ranking import Ranking
from models.spec import IntArray, ItemMetadata, Vectors
from models.vocabulary import Vocabulary

_Doubles = npt.NDArray[np.float64]

# The vectors of a block's candidates stay in the cache: 64 users, 100 candidates and 64 dimensions are 1.6 MB.
_BLOCK: Final = 64

_LEAST_VOLUME: Final = 1e-6
"""Squared length below which a candidate counts as lying in the space of the list already: cosines of float32 vectors
are good to about 1e-7. Chen, Zhang and Zhou (2018) stop at such a bound; here the rest of the list goes by relevance."""

SMOOTHING: Final = 0.01
"""Share α of the window's topics mixed into the list's, so that the divergence is finite: Steck (2018) takes 0.01."""


@dataclass(frozen=True, slots=True, eq=False)
class ItemTopics:
    """The topics of every item.

    Attributes:
        names: Topic t is `names[t - 1]`.
        rows: Topics of each item, shape (items + 1, most), int64; padded with 0.
    """

    names: tuple[str, ...]
    rows: IntArray


def item_topics(metadata: Mapping[str, ItemMetadata], vocabulary: Vocabulary) -> ItemTopics:
    """Number the topics that the metadata names, and give each item its own. An item may have none."""
    of_item = [
        list(dict.fromkeys(metadata[item_id].topics)) if item_id in metadata else [] for item_id in vocabulary.ids
    ]
    names = tuple(sorted({topic for topics in of_item for topic in topics}))
    numbers = {name: number for number, name in enumerate(names, start=1)}
    rows = np.zeros((len(of_item), max(1, *map(len, of_item))), np.int64)
    for row, topics in enumerate(of_item):
        rows[row, : len(topics)] = [numbers[topic] for topic in topics]
    return ItemTopics(names, rows)


def topic_distribution(items: IntArray, topics: ItemTopics) -> _Doubles:
    """How the topics are distributed over the items of each window or list: Steck's p(g|u), all events of equal weight.

    Every item that has topics counts once and is divided evenly among them.

    Args:
        items: Item rows, shape (users, length), int64; 0 and -1 are nobody.
        topics: The topics of the items.

    Returns:
        Shape (users, topics + 1), float64. Column 0 is 0; a row sums to 1, or to 0 where no item has a topic.
    """
    users, columns = len(items), len(topics.names) + 1
    numbers = topics.rows[np.maximum(items, 0)]
    cells = np.arange(users)[:, None, None] * columns + numbers
    found = np.bincount(cells.ravel(), _topic_shares(numbers).ravel(), minlength=users * columns)
    found = found.reshape(users, columns)
    total = found.sum(axis=1, keepdims=True)
    # Not zeros_like: counting nothing gives integers.
    distribution: _Doubles = np.divide(found, total, out=np.zeros(found.shape), where=total > 0)
    return distribution


def rerank_mmr(pool: Ranking, unit_items: Vectors, k: int, diversity: float) -> Ranking:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998): no item that is close to one of the list already.

    Args:
        pool: Candidates of each user, best first, no row twice.
        unit_items: Item vectors of length 1 (`models.ranking.unit_vectors`), shape (items + 1, dim), float32.
        k: Items to keep a user.
        diversity: 0 to 1; the paper's 1 - λ.

    Returns:
        The list of each user, shape (users, k), in the order chosen, with the pool's scores. A user with fewer than k
        candidates gets row -1 and score -inf at the end.

    Raises:
        ValueError: A diversity outside 0 to 1.
    """
    return _rerank(pool, k, diversity, lambda users: _Redundancy(unit_items[np.maximum(pool.rows[users], 0)]))


def rerank_dpp(pool: Ranking, unit_items: Vectors, k: int, diversity: float) -> Ranking:
    """Greedy MAP of a determinantal point process by incremental Cholesky: Chen, Zhang and Zhou (2018), algorithm 1.

    The list so far and each candidate span a volume, the determinant of their similarities; items that are alike span
    little. The objective is the paper's trade-off, θ Σ relevance + (1 - θ) log det(similarities), with 1 - θ as the
    diversity and similarities of 0 to 1: (1 + cosine) / 2.

    Args:
        pool: Candidates of each user, best first, no row twice.
        unit_items: Item vectors of length 1 (`models.ranking.unit_vectors`), shape (items + 1, dim), float32.
        k: Items to keep a user.
        diversity: 0 to 1.

    Returns:
        As `rerank_mmr`. Once no candidate adds volume, as when the list has more items than there are dimensions, the
        rest goes by relevance.

    Raises:
        ValueError: A diversity outside 0 to 1.
    """
    return _rerank(pool, k, diversity, lambda users: _Volume(unit_items[np.maximum(pool.rows[users], 0)], k))


def rerank_calibrated(pool: Ranking, windows: IntArray, topics: ItemTopics, k: int, diversity: float) -> Ranking:
    """Calibrated recommendations (Steck, 2018): the list's topics in the proportions of the window's.

    Args:
        pool: Candidates of each user, best first, no row twice.
        windows: Item rows of each user's window, shape (users, length), int64; padded with 0.
        topics: The topics of the items.
        k: Items to keep a user.
        diversity: 0 to 1; the paper's λ.

    Returns:
        As `rerank_mmr`. Where no item of the window has a topic there is nothing to match, and relevance alone counts.

    Raises:
        ValueError: A diversity outside 0 to 1.
    """
    wanted = topic_distribution(windows, topics)
    return _rerank(
        pool, k, diversity, lambda users: _Calibration(wanted[users], topics.rows[np.maximum(pool.rows[users], 0)])
    )


class _Gains(Protocol):
    """What each candidate would add to the lists of a block of users.

    Attributes:
        gains: Shape (users, pool), float64, finite.
    """

    gains: _Doubles

    def take(self, chosen: IntArray) -> None:
        """Put one candidate a user on the list, by its place in the pool, shape (users,), and update the gains."""


class _Redundancy:
    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._closest: _Doubles | None = None
        self.gains: _Doubles = np.zeros(vectors.shape[:2])

    def take(self, chosen: IntArray) -> None:
        cosines = _cosines(self._vectors, chosen)
        self._closest = cosines if self._closest is None else np.maximum(self._closest, cosines)
        self.gains = -self._closest


class _Volume:
    """The paper's names: `_rows` are c (one a step), `_volumes` are d²."""

    def __init__(self, vectors: Vectors, k: int) -> None:
        users, pool, _ = vectors.shape
        self._vectors = vectors
        self._rows = np.zeros((users, min(k, pool), pool))
        self._taken = 0
        self._volumes: _Doubles = np.ones((users, pool))
        self.gains: _Doubles = np.zeros((users, pool))

    def take(self, chosen: IntArray) -> None:
        similarities = (1.0 + _cosines(self._vectors, chosen)) / 2.0
        before = self._rows[:, : self._taken]
        of_chosen = np.take_along_axis(before, chosen[:, None, None], axis=2)
        explained = np.matmul(of_chosen.transpose(0, 2, 1), before)[:, 0]
        volume = np.take_along_axis(self._volumes, chosen[:, None], axis=1)
        row = (similarities - explained) / np.sqrt(np.maximum(volume, _LEAST_VOLUME))
        self._rows[:, self._taken] = row
        self._taken += 1
        self._volumes -= row**2
        self.gains = np.log(np.maximum(self._volumes, _LEAST_VOLUME))


class _Calibration:
    """The divergence with a candidate added, less the same with an item of no topic: equal for all in their order.

    With n items on the list, Q the sum of their topics, p the window's and α the smoothing, adding t changes
    KL(p ‖ (1 - α) Q / n + α p) by a part that all candidates share, minus

        Σ p · log(1 + (1 - α) t / ((1 - α) Q + α p (n + 1)))

    over the candidate's own topics: so only those need be looked at. `_listed` is (1 - α) Q, `_shares` (1 - α) t.
    """

    def __init__(self, wanted: _Doubles, topics: IntArray) -> None:
        users, columns = wanted.shape
        self._users = np.arange(users)
        self._cells = self._users[:, None, None] * columns + topics
        self._wanted = np.take(wanted, self._cells)
        self._shares = (1 - SMOOTHING) * _topic_shares(topics)
        # What nobody wants must gain nothing, so the denominator only has to be anything but 0 there.
        self._smoothed = np.where(self._wanted > 0, SMOOTHING * self._wanted, 1.0)
        self._listed: _Doubles = np.zeros(users * columns)
        self._taken = 0
        self.gains: _Doubles = self._added()

    def take(self, chosen: IntArray) -> None:
        # An item has each of its topics once; only padding repeats, and its share is 0.
        self._listed[self._cells[self._users, chosen]] += self._shares[self._users, chosen]
        self._taken += 1
        self.gains = self._added()

    def _added(self) -> _Doubles:
        raised = self._shares / (self._listed[self._cells] + self._smoothed * (self._taken + 1))
        gains: _Doubles = np.einsum("upt,upt->up", self._wanted, np.log1p(raised))
        return gains


def _rerank(pool: Ranking, k: int, diversity: float, gains_of: Callable[[slice], _Gains]) -> Ranking:
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity is 0 to 1, not {diversity}")
    users = len(pool.rows)
    reranked = Ranking(np.full((users, k), -1, np.int64), np.full((users, k), -np.inf, np.float32))
    for start in range(0, users, _BLOCK):
        block = slice(start, min(start + _BLOCK, users))
        _rerank_block(pool, block, reranked, diversity, gains_of(block))
    return reranked


def _rerank_block(pool: Ranking, block: slice, reranked: Ranking, diversity: float, gains: _Gains) -> None:
    rows, scores = pool.rows[block], pool.scores[block]
    left = rows > 0
    relevance = (1 - diversity) * _relevance(scores, left)
    for place in range(min(reranked.rows.shape[1], rows.shape[1])):
        sums = np.where(left, relevance + diversity * gains.gains, -np.inf)
        chosen = sums.argmax(axis=1)
        column = chosen[:, None]
        found = np.take_along_axis(left, column, axis=1)[:, 0]
        reranked.rows[block, place] = np.where(found, np.take_along_axis(rows, column, axis=1)[:, 0], -1)
        reranked.scores[block, place] = np.where(found, np.take_along_axis(scores, column, axis=1)[:, 0], -np.inf)
        np.put_along_axis(left, column, values=False, axis=1)
        gains.take(chosen)


def _relevance(scores: Vectors, left: npt.NDArray[np.bool_]) -> _Doubles:
    """Scores scaled to 0 .. 1 over each user's candidates; 0 where all are equal or there are none."""
    known = np.where(left, scores, np.nan).astype(np.float64)
    # Not nanmin: it warns of a user without candidates.
    low = np.fmin.reduce(known, axis=1, keepdims=True)
    span = np.fmax.reduce(known, axis=1, keepdims=True) - low
    relevance: _Doubles = np.divide(known - low, span, out=np.zeros_like(known), where=left & (span > 0))
    return relevance


def _cosines(vectors: Vectors, chosen: IntArray) -> _Doubles:
    """The cosine of each candidate to the chosen one, shape (users, pool)."""
    directions = np.take_along_axis(vectors, chosen[:, None, None], axis=1)
    cosines: Vectors = np.matmul(vectors, directions.transpose(0, 2, 1))[:, :, 0]
    return cosines.astype(np.float64)


def _topic_shares(numbers: IntArray) -> _Doubles:
    """The part of an item that each of its topics has, in the shape of `numbers`; 0 for padding."""
    known = numbers > 0
    shares: _Doubles = known / np.maximum(known.sum(axis=-1, keepdims=True), 1)
    return shares
