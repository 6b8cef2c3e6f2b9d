"""What can be evaluated: a model as a value, wherever it comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from models.ranking import Score
from models.spec import ItemMetadata, Vectors, WindowRule
from models.vocabulary import Vocabulary
from models.windows import WindowInputs

Encode = Callable[[WindowInputs], Vectors]
"""Encoder inputs to vectors, shape (batch, dim)."""


@dataclass(frozen=True, slots=True, eq=False)
class Recommender:
    """A model that recommends as the engine serves it.

    Attributes:
        vocabulary: Its items.
        types: Its event type names.
        window: The window rule that it was trained for.
        encode: The encoder.
        item_vectors: Shape (items + 1, dim), float32; row 0 is padding.
        name: What people call it.
        version: Tells models of one name apart.
        popular: Item ids, most popular first: what someone without a known item is recommended.
        metadata: Item id to what people see of it; not every item needs an entry.
        size_bytes: Encoder, item vectors and scorer on disk.
        score: The scorer, where a score is no dot product.
        candidates: How many items are retrieved by dot product for the scorer; 0 without one.
    """

    vocabulary: Vocabulary
    types: tuple[str, ...]
    window: WindowRule
    encode: Encode
    item_vectors: Vectors
    name: str = ""
    version: str = ""
    popular: tuple[str, ...] = ()
    metadata: Mapping[str, ItemMetadata] = field(default_factory=dict)
    size_bytes: int = 0
    score: Score | None = None
    candidates: int = 0
