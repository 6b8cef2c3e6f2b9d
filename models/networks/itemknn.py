"""ItemKNN: items that the same users have, by cosine.

Sarwar et al., 2001, "Item-Based Collaborative Filtering Recommendation Algorithms"; Deshpande and Karypis, 2004,
"Item-Based Top-N Recommendation Algorithms".
"""

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
from torch import Tensor

from models.data.events import UserSequence
from models.networks.network import Family, FittedNetwork, NetworkConfig, TrainingData, lasting
from models.spec import Vectors
from models.vocabulary import Vocabulary

# A user's row in Redis is then 16 KiB of vector, and encoder and item vectors 64 MiB each.
_EXACT_ITEMS = 4_096
_FACTORS = 512
_BLOCK = 512


class ItemKnnConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """What counts as similar, and how it is served.

    Attributes:
        dim: Length of a vector. As many as there are items, or more, serves the similarities as they are; fewer, their
            best approximation of that rank. None is exact up to 4,096 items, and 512 beyond. A vector in Redis costs
            4 bytes a dimension, and so does every item, in the encoder as well as in the item vectors.
        neighbours: Most similar items kept of each item.
        shrinkage: Added to the denominator of the cosine, so that few common users count less, in users.
        recency: Weight of an event of a window relative to the one after it, 1 for none.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int | None = None
    neighbours: int = 1_000
    shrinkage: float = 0.0
    recency: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1 or (self.dim is not None and self.dim < 1):
            raise ValueError("neighbours and dim must be at least 1")
        if not self.shrinkage >= 0.0:
            raise ValueError(f"shrinkage must be at least 0, not {self.shrinkage}")
        if not 0.0 < self.recency <= 1.0:
            raise ValueError(f"recency must be above 0 and at most 1, not {self.recency}")

    @property
    def width(self) -> int:
        """The length of a vector that `dim` comes to."""
        wanted = (self.items if self.items <= _EXACT_ITEMS else _FACTORS) if self.dim is None else self.dim
        return min(wanted, self.items)


class ItemKnn(FittedNetwork):
    """The network. Shapes are those of `Network`.

    The similarity of two items is the users of both over (the root of the product of their users + shrinkage); the
    nearest neighbours of an item are scaled to sum to 1, so that popular items do not drown the others (Deshpande and
    Karypis, 2004, section 4.2). A window's scores are the sum over its events, repeated ones too, of
    recency ** (events after it) x the similarities of its item.

    Exactly, a vector holds a score for every item, and the item vectors are the unit vectors. Factorised, similarities
    are the product of two thin matrices, from the largest singular values (Eckart and Young, 1936).
    """

    def __init__(self, config: ItemKnnConfig) -> None:
        super().__init__()
        self.config = config
        self.exact = config.width == config.items
        self.similarities = lasting(self, "similarities", (config.items + 1, config.width))
        if not self.exact:
            self.targets = lasting(self, "targets", (config.items + 1, config.width))
        self.energy = lasting(self, "energy", ())
        self.register_buffer("recency", config.recency ** torch.arange(config.max_length), persistent=False)
        self.recency: Tensor

    @property
    def kept_energy(self) -> float:
        """The share of the similarities' squared Frobenius norm that is served: 1 where they are served exactly."""
        return float(self.energy)

    def prepare(self, data: TrainingData) -> None:
        """Count who has what, and keep the neighbours."""
        similarities = _similarities(data, self.config)
        norm = float(np.square(similarities.data).sum())
        self.energy.fill_(1.0)
        if self.exact:
            self.similarities[1:] = torch.from_numpy(similarities.toarray())
        elif norm > 0.0:
            # From a vector of ours: ARPACK would start from one at random.
            left, values, right = svds(similarities, k=self.config.width, v0=np.ones(self.config.items, np.float32))
            roots = np.sqrt(values)
            self.similarities[1:] = torch.from_numpy(left * roots)
            self.targets[1:] = torch.from_numpy(right.T * roots)
            self.energy.fill_(float(np.square(values).sum()) / norm)

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002  the encoder's inputs
        """The similarities of each window's items, shape (batch, dim); zeros for a window of length 0."""
        before_last = lengths[:, None] - 1 - torch.arange(items.shape[1], device=items.device)
        weights = self.recency[before_last.clamp_min(0)] * (before_last >= 0).to(self.recency.dtype)
        if self.exact:
            # A product with all items, not a sum of gathered rows: those are length times as large as the vectors.
            profile = weights.new_zeros((items.shape[0], self.config.items + 1)).scatter_add(1, items, weights)
            return profile @ self.similarities
        return (weights[:, None, :] @ self.similarities[items]).squeeze(1)

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): unit vectors, or the factors of the neighbours; row 0 is all zeros."""
        if not self.exact:
            return self.targets
        return torch.eye(self.config.items + 1, device=self.similarities.device)[:, 1:].contiguous()


def _similarities(data: TrainingData, config: ItemKnnConfig) -> sparse.csr_array[np.float32]:
    """The similarity of each item to its neighbours, shape (items, items), rows summing to 1 or empty."""
    incidence = _incidence(data.sequences, data.vocabulary)
    users = np.asarray(incidence.sum(axis=0), np.float32)
    blocks = []
    for start in range(0, config.items, _BLOCK):
        stop = min(start + _BLOCK, config.items)
        block = (incidence[:, start:stop].T @ incidence).toarray()
        block /= np.maximum(np.sqrt(users[start:stop, None] * users) + config.shrinkage, 1e-9)
        block[np.arange(stop - start), np.arange(start, stop)] = 0.0
        _keep_largest(block, config.neighbours)
        block /= np.maximum(block.sum(axis=1, keepdims=True), 1e-9)
        blocks.append(sparse.csr_array(block))
    return sparse.vstack(blocks, format="csr")


def _incidence(sequences: tuple[UserSequence, ...], vocabulary: Vocabulary) -> sparse.csc_array[np.float32]:
    """1 where a user has an event of an item, shape (users, items); items count from 0."""
    lengths = [len(sequence) for sequence in sequences]
    users = np.repeat(np.arange(len(sequences)), lengths)
    items = np.fromiter(
        (vocabulary.rows.get(item_id, 0) for sequence in sequences for item_id in sequence.items),
        np.int64,
        sum(lengths),
    )
    known = items > 0
    ones = np.ones(int(known.sum()), np.float32)
    incidence = sparse.csc_array((ones, (users[known], items[known] - 1)), shape=(len(sequences), len(vocabulary)))
    # The constructor adds up what is given twice.
    incidence.data[:] = 1.0
    return incidence


def _keep_largest(block: Vectors, count: int) -> None:
    """Set all but the `count` largest numbers of each row to 0."""
    surplus = block.shape[1] - count
    if surplus > 0:
        smallest = np.argpartition(block, surplus, axis=1)[:, :surplus]
        np.put_along_axis(block, smallest, 0.0, axis=1)


FAMILIES = (Family("itemknn", "items of the same users, by cosine (Sarwar et al., 2001)", ItemKnnConfig, ItemKnn),)
