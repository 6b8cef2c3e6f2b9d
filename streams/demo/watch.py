"""One visitor as a person can follow it: clicks, the topics that the vector leans to, recommendations, drift."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.spec import ItemMetadata, Vectors
from models.vocabulary import Vocabulary
from streams.contracts.recommendation import RecommendedItem, decode_recommendation
from streams.interest.engine import UserRow
from streams.interest.window import decode_state

_DRIFTS_KEPT: Final = 60
# How long a recommendation that was not in the list before is marked as new.
_NEW_FOR_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Act:
    """An event of the visitor as it stands in the window."""

    title: str
    topic: str
    type: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A recommended item, with the titles of what it was recommended for."""

    title: str
    topic: str
    because: Sequence[str]
    is_new: bool


class TopicDirections:
    """The topics of a catalogue as directions: each the mean of its items' vectors.

    Args:
        item_vectors: Shape (items + 1, dim), float32; row 0 is padding.
        metadata: Item id to title and topics; an item of several topics counts in each.

    Attributes:
        topics: In the order of the catalogue.
    """

    def __init__(self, item_vectors: Vectors, vocabulary: Vocabulary, metadata: Mapping[str, ItemMetadata]) -> None:
        rows: dict[str, list[int]] = {}
        for item_id, row in vocabulary.rows.items():
            for topic in metadata[item_id].topics if item_id in metadata else ():
                rows.setdefault(topic, []).append(row)
        self.topics = tuple(rows)
        self._centroids = [item_vectors[of_topic].mean(axis=0) for of_topic in rows.values()]

    def leans(self, vector: Vectors) -> list[float]:
        """The cosine of a vector, shape (dim,), with each topic; 0 where either has no direction."""
        return [_cosine(vector, centroid) for centroid in self._centroids]


class Watch:
    """Follows one visitor through the rows that are read back from Redis.

    Args:
        metadata: Item id to title and topics; an item without shows its id.

    Attributes:
        leans: The vector's cosine with each topic, in the order of `topics`.
        drifts: How far each of the newest changes moved the vector: cosine distance, 0 to 2, oldest first.
        moved: How far the vector is from the first one seen, likewise.
    """

    def __init__(self, directions: TopicDirections, metadata: Mapping[str, ItemMetadata]) -> None:
        self._directions = directions
        self._metadata = metadata
        self._first: Vectors | None = None
        self._seen = ""
        self._items: list[RecommendedItem] = []
        self._new_until_s: dict[str, float] = {}
        self.leans = [0.0] * len(self.topics)
        self.drifts: deque[float] = deque(maxlen=_DRIFTS_KEPT)
        self.moved = 0.0
        self._acts: list[Act] = []

    @property
    def topics(self) -> Sequence[str]:
        """The topics of the catalogue."""
        return self._directions.topics

    @property
    def acts(self) -> Sequence[Act]:
        """The visitor's window, newest first."""
        return self._acts

    def observe(self, row: UserRow, now_s: float) -> bool:
        """Take in the row as it is now; False if it is the one that was taken in last."""
        recommendation = decode_recommendation(row.recommendations)
        if recommendation.recommendation_id == self._seen:
            return False
        is_first = not self._seen
        self._seen = recommendation.recommendation_id
        vector: Vectors = np.frombuffer(row.vector, "<f4")
        if self._first is None:
            self._first = vector
        state = decode_state(row.state)
        self._acts = [
            Act(self._title(item), self._topic(item), kind, time_ms)
            for item, kind, time_ms in zip(state.items, state.types, state.times, strict=True)
        ][::-1]
        self.leans = self._directions.leans(vector)
        if recommendation.vector.drift is not None:
            self.drifts.append(recommendation.vector.drift)
        self.moved = 1.0 - _cosine(vector, self._first)
        known = {item.item_id for item in self._items}
        self._items = recommendation.items
        listed = {item.item_id for item in self._items}
        self._new_until_s = {item: until for item, until in self._new_until_s.items() if item in listed}
        if not is_first:
            self._new_until_s.update(dict.fromkeys(listed - known, now_s + _NEW_FOR_S))
        return True

    def suggestions(self, now_s: float) -> list[Suggestion]:
        """The recommendations, best first."""
        return [
            Suggestion(
                self._title(item.item_id),
                self._topic(item.item_id),
                [self._title(reason) for reason in item.because],
                now_s < self._new_until_s.get(item.item_id, 0.0),
            )
            for item in self._items
        ]

    def _title(self, item_id: str) -> str:
        return self._metadata[item_id].title if item_id in self._metadata else item_id

    def _topic(self, item_id: str) -> str:
        topics = self._metadata[item_id].topics if item_id in self._metadata else ()
        return topics[0] if topics else ""


def _cosine(left: Vectors, right: Vectors) -> float:
    norm = float(np.linalg.norm(left)) * float(np.linalg.norm(right))
    return float(np.clip(np.dot(left, right) / norm, -1.0, 1.0)) if norm > 0 else 0.0
