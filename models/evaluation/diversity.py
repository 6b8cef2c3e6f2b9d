"""How diverse recommendation lists are, over all users and within each, and whom they favour."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.evaluation.metrics import Gains
from models.evaluation.recommender import Recommender
from models.ranking import unit_vectors
from models.rerank import SMOOTHING, ItemTopics, item_topics, topic_distribution
from models.spec import IntArray, Vectors

DECILES: Final = 10

_BLOCK: Final = 1_024  # users looked at together: the vectors of their items are some megabytes


@dataclass(frozen=True, slots=True)
class Decile:
    """A tenth of the items, by popularity.

    Attributes:
        decile: 1 for the most popular items, to 10.
        interactions: Their share of all interactions.
        recommendations: Their share of all recommendations.
        lift: The second over the first: above 1 where they are recommended more than people want them; None where
            nobody does.
    """

    decile: int
    interactions: float
    recommendations: float
    lift: float | None


@dataclass(frozen=True, slots=True)
class Diversity:
    """How diverse lists are.

    Attributes:
        entropy_bits: Shannon entropy of what is shown, in bits: 0 if everyone is shown one item, log2 of the number of
            items if all are shown equally often.
        gini: Inequality of exposure over all items: 0 if all are shown equally often, nearly 1 if one alone is.
        coverage: Share of all items that at least one user is shown.
        novelty_bits: Mean self-information of what is shown, -log2 of its share of interactions (Zhou et al., 2010):
            the rarer the item, the more.
        distance: Mean cosine distance between two items of one list, by item vectors (intra-list distance, Zhang and
            Hurley, 2008).
        topic_distance: The same by topics, Jaccard's distance; None where items have no topics.
        miscalibration_nats: How far the topics of a list are from those of the window: Kullback-Leibler divergence
            with smoothing 0.01 (Steck, 2018), mean over users with topics; None where there are none.
        deciles: Popularity lift, most popular items first.
    """

    entropy_bits: float
    gini: float
    coverage: float
    novelty_bits: float
    distance: float | None
    topic_distance: float | None
    miscalibration_nats: float | None
    deciles: tuple[Decile, ...]


def measure_diversity(
    recommender: Recommender, lists: IntArray, windows: IntArray, counts: Mapping[str, int]
) -> Diversity:
    """Measure lists in every way that `Diversity` names.

    Args:
        recommender: Whose lists they are.
        lists: Item rows, shape (users, k), int64; -1 where a list is shorter.
        windows: The rows of the users' windows, shape (users, longest), int64; padded with 0.
        counts: How often each item occurs in the training data.
    """
    popularity = np.array([counts.get(item_id, 0) for item_id in recommender.vocabulary.ids[1:]], np.int64)
    exposure = np.bincount(lists[lists > 0], minlength=len(popularity) + 1)[1:]
    topics = item_topics(recommender.metadata, recommender.vocabulary)
    return Diversity(
        entropy_bits=entropy(exposure),
        gini=gini(exposure),
        coverage=float((exposure > 0).mean()),
        novelty_bits=novelty(exposure, popularity),
        distance=list_distance(lists, recommender.item_vectors),
        topic_distance=list_topic_distance(lists, topics),
        miscalibration_nats=miscalibration(lists, windows, topics),
        deciles=popularity_lift(exposure, popularity),
    )


def entropy(exposure: IntArray) -> float:
    """Shannon entropy in bits of how often each item is shown, shape (items,), int64."""
    shares = exposure[exposure > 0] / max(1, int(exposure.sum()))
    # Not -0.0 where one item alone is shown.
    return abs(float(-(shares * np.log2(shares)).sum()))


def gini(exposure: IntArray) -> float:
    """The Gini coefficient of how often each item is shown, shape (items,), int64; 0 if nothing is."""
    items, total = len(exposure), int(exposure.sum())
    places = 2 * np.arange(1, items + 1) - items - 1
    return float((places * np.sort(exposure)).sum() / (items * max(1, total)))


def novelty(exposure: IntArray, popularity: IntArray) -> float:
    """Mean self-information in bits of what is shown.

    One is added to every item's interactions, so that an item without any has a finite one.

    Args:
        exposure: How often each item is shown, shape (items,), int64.
        popularity: How often each item was interacted with, shape (items,), int64.
    """
    information = -np.log2((popularity + 1) / (popularity.sum() + len(popularity)))
    return float((exposure * information).sum() / max(1, int(exposure.sum())))


def list_distance(lists: IntArray, item_vectors: Vectors) -> float | None:
    """Mean over users of the mean cosine distance between two items of the list; None without a list of two.

    Args:
        lists: Item rows, shape (users, k), int64; -1 where a list is shorter.
        item_vectors: Shape (items + 1, dim), float32.
    """
    units = unit_vectors(item_vectors).astype(np.float64)

    def distances(rows: IntArray) -> tuple[Gains, IntArray]:
        there = rows > 0
        lengths = there.sum(axis=1)
        of_lists = units[np.where(there, rows, 0)]
        # The sum over all pairs without every pair: |Σ u|² holds each twice, and each item with itself once.
        cosines = (of_lists.sum(axis=1) ** 2).sum(axis=1) - (of_lists**2).sum(axis=(1, 2))
        return lengths * (lengths - 1) - cosines, lengths

    return _mean_of_pairs(lists, distances)


def list_topic_distance(lists: IntArray, topics: ItemTopics) -> float | None:
    """Mean over users of the mean Jaccard distance between the topics of two items of the list.

    Args:
        lists: Item rows, shape (users, k), int64; -1 where a list is shorter.
        topics: The topics of the items. Items without any are left out.

    Returns:
        None without a list of two items with topics.
    """
    marks = np.zeros((len(topics.rows), len(topics.names) + 1), np.float32)
    np.put_along_axis(marks, topics.rows, 1.0, axis=1)
    marks[:, 0] = 0.0

    def distances(rows: IntArray) -> tuple[Gains, IntArray]:
        of_lists = marks[np.where(rows > 0, rows, 0)]
        sizes = of_lists.sum(axis=2)
        there = sizes > 0
        shared = np.matmul(of_lists, of_lists.transpose(0, 2, 1))
        either = sizes[:, :, None] + sizes[:, None, :] - shared
        # An item's distance to itself is 0, so it may stay among its pairs.
        pairs = there[:, :, None] & there[:, None, :]
        apart = np.where(pairs, 1.0 - shared / np.maximum(either, 1.0), 0.0)
        return apart.sum(axis=(1, 2), dtype=np.float64), there.sum(axis=1)

    return _mean_of_pairs(lists, distances)


def miscalibration(lists: IntArray, windows: IntArray, topics: ItemTopics) -> float | None:
    """KL(p ‖ (1 - α) q + α p) in nats, p the topics of the window, q those of the list: Steck (2018), equations 6 and 7.

    Args:
        lists: Item rows, shape (users, k), int64; -1 where a list is shorter.
        windows: The rows of the users' windows, shape (users, longest), int64; padded with 0.
        topics: The topics of the items.

    Returns:
        The mean over the users with a topic in the window and one in the list; None if there are none.
    """
    wanted, shown = topic_distribution(windows, topics), topic_distribution(lists, topics)
    both = wanted.any(axis=1) & shown.any(axis=1)
    if not both.any():
        return None
    wanted, shown = wanted[both], shown[both]
    mixed = (1 - SMOOTHING) * shown + SMOOTHING * wanted
    ratio = np.divide(wanted, mixed, out=np.ones_like(wanted), where=wanted > 0)
    return float((wanted * np.log(ratio)).sum(axis=1).mean())


def popularity_lift(exposure: IntArray, popularity: IntArray) -> tuple[Decile, ...]:
    """Share of recommendations over share of interactions, by tenths of the items.

    Args:
        exposure: How often each item is shown, shape (items,), int64.
        popularity: How often each item was interacted with, shape (items,), int64. Equally popular items are in the
            order of their rows.
    """
    deciles = []
    for number, rows in enumerate(np.array_split(np.argsort(-popularity, kind="stable"), DECILES), start=1):
        wanted = float(popularity[rows].sum() / max(1, int(popularity.sum())))
        shown = float(exposure[rows].sum() / max(1, int(exposure.sum())))
        deciles.append(Decile(number, wanted, shown, shown / wanted if wanted else None))
    return tuple(deciles)


def _mean_of_pairs(lists: IntArray, distances: Callable[[IntArray], tuple[Gains, IntArray]]) -> float | None:
    """The mean over users of the mean distance of two items.

    Args:
        lists: Item rows, shape (users, k), int64.
        distances: From some of the lists to the sum of the distances over all ordered pairs of each, and how many items
            it is over.
    """
    total, users = 0.0, 0
    for start in range(0, len(lists), _BLOCK):
        sums, lengths = distances(lists[start : start + _BLOCK])
        several = lengths > 1
        total += float((sums[several] / (lengths * (lengths - 1))[several]).sum())
        users += int(several.sum())
    return total / users if users else None
