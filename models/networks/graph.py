"""Graph convolutions over who touched what: LightGCN (He et al., 2020) and NGCF (Wang et al., 2019).

The graph joins the users of the training data with their items; an edge weighs 1 / sqrt(degree · degree). The papers give
every user a vector to learn, and so know no user that was not there. Here users have none: a user is folded in from
items, in training as in serving, for which propagation over a user's edges is all that is needed. When serving, the
edges are the window's events: a user's vector is a sum over the window of the items' vectors of each layer, which are
computed once, by `refresh`.

Beyond the papers, an edge of a window weighs less the longer ago its event was, by a learned factor, for it is the next
event that is to be predicted; and the loss is the softmax over all unseen items instead of BPR (Rendle et al., 2009),
whose pairs of one positive and one negative item train graph models less well (Wu et al., 2024, "On the Effectiveness of
Sampled Softmax Loss for Item Recommendation").
"""

import math
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.losses import unseen_cross_entropy
from models.networks.dropout import PooledDropout
from models.networks.network import (
    Batch,
    Family,
    LearnedNetwork,
    Loss,
    NetworkConfig,
    TrainingData,
    TrainingDefaults,
    check_share,
    lasting,
    seen_so_far,
)

# A user is a sum of short vectors, and scores that differ too little are slow to learn from.
_INITIAL_LOG_SCALE = 3.0
_LEAK = 0.2  # slope of LeakyReLU below 0, that of the authors' code of NGCF


class GraphConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of a graph network.

    Attributes:
        dim: Length of an item's learned vector.
        layers: How far it is propagated: each layer goes from items to users and back.
        recency: Whether an event of a window weighs by how many came after it, which is learned, or all weigh alike.
        dropout: Share of the activations of an item's learned vector dropped in training.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int = 64
    layers: int = 2
    recency: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.layers) < 1:
            raise ValueError("dim and layers must be at least 1")
        check_share("dropout", self.dropout)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Who touched what, twice: sparse rows multiply fast, and the gradient needs the other direction.

    Attributes:
        to_users: Normalised weights, shape (users, items + 1), sparse rows.
        to_items: Its transpose.
    """

    to_users: Tensor
    to_items: Tensor

    @classmethod
    def of(cls, rows: list[list[int]], items: int, device: torch.device) -> "Graph":
        """The graph of each user's distinct item rows."""
        users = torch.tensor([user for user, touched in enumerate(rows) for _ in touched], dtype=torch.int64)
        touched = torch.tensor([row for touched in rows for row in touched], dtype=torch.int64)
        user_degrees = torch.bincount(users, minlength=len(rows)).float()
        item_degrees = torch.bincount(touched, minlength=items + 1).float()
        weights = (user_degrees[users] * item_degrees[touched]).rsqrt()
        return cls(
            _sparse_rows(users, touched, weights, (len(rows), items + 1)).to(device),
            _sparse_rows(touched, users, weights, (items + 1, len(rows))).to(device),
        )

    def users(self, items: Tensor) -> Tensor:
        """Each user's weighted sum of its items' vectors, shape (users, dim)."""
        summed: Tensor = _SparseProduct.apply(self.to_users, self.to_items, items)
        return summed

    def items(self, users: Tensor) -> Tensor:
        """Each item's weighted sum of its users' vectors, shape (items + 1, dim)."""
        summed: Tensor = _SparseProduct.apply(self.to_items, self.to_users, users)
        return summed


class GraphNetwork(LearnedNetwork):
    """What both networks share. Shapes are those of `Network`.

    Args:
        config: The shape.
        width: Length of a vector.
    """

    def __init__(self, config: GraphConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(config.items + 1, config.dim, padding_idx=0)
        # Starts as 1 / (1 + events since), and as 1 where it is not learned.
        recency = -torch.arange(config.max_length).log1p() if config.recency else torch.zeros(config.max_length)
        self.recency = nn.Parameter(recency, requires_grad=config.recency)
        self.log_scale = nn.Parameter(torch.tensor(_INITIAL_LOG_SCALE))
        self.dropout = PooledDropout(config.dropout)
        lasting(self, "layers", (config.items + 1, width))
        lasting(self, "norms", (config.items + 1, 1))
        self.layers: Tensor
        self.norms: Tensor
        places = torch.arange(config.max_length)
        distances = places[:, None] - places[None, :]
        self.register_buffer("distances", distances.clamp_min(0), persistent=False)
        self.register_buffer("past", (distances >= 0).float(), persistent=False)
        self.distances: Tensor
        self.past: Tensor
        self.graph: Graph | None = None
        nn.init.normal_(self.items.weight, std=1.0 / math.sqrt(config.dim))
        with torch.no_grad():
            self.items.weight[0] = 0.0

    @abstractmethod
    def propagate(self, graph: Graph) -> Tensor:
        """The items' vectors, made of all layers, shape (items + 1, width), differentiable."""

    @abstractmethod
    def fold_in(self, messages: Tensor) -> Tensor:
        """Users' vectors from the weighted sums of their items' vectors, both of shape (…, width)."""

    def prepare(self, data: TrainingData) -> None:
        """Make the graph of the training data."""
        rows = data.vocabulary.rows
        touched = [sorted({rows[item_id] for item_id in sequence.items}) for sequence in data.sequences]
        degrees = torch.bincount(
            torch.tensor([row for each in touched for row in each], dtype=torch.int64), minlength=len(self.norms)
        )
        # An item without a training event may still be in a window.
        self.norms = degrees.clamp_min(1).float().rsqrt()[:, None].to(self.norms.device)
        self.graph = Graph.of(touched, self.config.items, self.norms.device)
        self.refresh()

    def refresh(self) -> None:
        """Propagate the items' vectors again. Without the training data, in a network read from disk, nothing changes."""
        if self.graph is not None:
            with torch.no_grad():
                was_training = self.training
                self.eval()
                self.layers = self.propagate(self.graph)
                self.train(was_training)

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002  the encoder's inputs
        """The vector of each window, shape (batch, width); zeros for a window of length 0."""
        # Row by row what `_weights` gives: the last event of each window, then as far back as it goes.
        weights = self._weights(items.shape[1])[(lengths - 1).clamp_min(0)]
        messages = (weights[:, None, :] @ self._edges(self.layers, items)).squeeze(1)
        return self.fold_in(messages) * (lengths > 0)[:, None].to(messages.dtype)

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, width); row 0 is all zeros."""
        if self.training and self.graph is not None:
            return self.propagate(self.graph)
        return self.layers

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of every next item over all items that the segment did not hold so far.

        Raises:
            ValueError: `prepare` was not called.
        """
        if self.graph is None:
            raise ValueError("a graph network must be prepared with the training data before it is trained")
        items, targets = batch.items[:, :-1], batch.items[:, 1:]
        real = targets > 0
        layers = self.propagate(self.graph)
        messages = self._weights(items.shape[1]) @ self._edges(layers, items)
        vectors = self.fold_in(messages[real])
        value = unseen_cross_entropy(vectors, layers, targets[real], seen_so_far(items)[real])
        return Loss(value, len(vectors), vectors)

    def _edges(self, layers: Tensor, items: Tensor) -> Tensor:
        """What each event sends to its user, shape (batch, length, width), but for the user's own normalisation."""
        return functional.embedding(items, layers) * functional.embedding(items, self.norms)

    def _weights(self, length: int) -> Tensor:
        """What the first n events of a window weigh in row n - 1, shape (length, length).

        With all recencies 0 that is 1 / sqrt(n), the user's part of the graph's normalisation.
        """
        weights: Tensor = (self.recency.exp()[self.distances] * self.past)[:length, :length]
        return weights * weights.sum(1, keepdim=True).rsqrt()


class LightGcn(GraphNetwork):
    """LightGCN: nothing but propagation; a vector is the mean over the layers (He et al., 2020, equations 7 and 8)."""

    def __init__(self, config: GraphConfig) -> None:
        super().__init__(config, config.dim)

    def propagate(self, graph: Graph) -> Tensor:
        """The mean of the items' layers: the sum over a window commutes with it, so no more is needed."""
        layer: Tensor = self.dropout(self.items.weight)
        total = layer
        for _ in range(self.config.layers):
            layer = graph.items(graph.users(layer))
            total = total + layer
        return total / (self.config.layers + 1)

    def fold_in(self, messages: Tensor) -> Tensor:
        """Users' vectors, shape (…, dim)."""
        return messages * self.log_scale.exp()


class Ngcf(GraphNetwork):
    """NGCF: each layer transforms what is propagated, and its product with what is there (Wang et al., 2019, eq. 7).

    A vector is all layers side by side. A user's layer 0, which the paper learns for every user, is the sum over the
    user's edges of the items' layer 0.
    """

    def __init__(self, config: GraphConfig) -> None:
        super().__init__(config, config.dim * (config.layers + 1))
        self.sums = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(config.layers))
        self.products = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(config.layers))
        for module in (*self.sums, *self.products):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def propagate(self, graph: Graph) -> Tensor:
        """The items' layers side by side, shape (items + 1, dim · (layers + 1))."""
        item = self.dropout(self.items.weight)
        message = graph.users(item)
        user = message
        layers = [item]
        for index in range(self.config.layers):
            next_user = self._layer(index, user, message)
            item = self._layer(index, item, graph.items(user))
            user, message = next_user, graph.users(item)
            layers.append(item)
        # The biases would give padding a vector.
        return functional.pad(torch.cat(layers, 1)[1:], (0, 0, 1, 0))

    def fold_in(self, messages: Tensor) -> Tensor:
        """Users' vectors, shape (…, dim · (layers + 1))."""
        user = messages[..., : self.config.dim]
        layers = [user]
        for index, (start, stop) in enumerate(pairwise(range(0, messages.shape[-1], self.config.dim))):
            user = self._layer(index, user, messages[..., start:stop])
            layers.append(user)
        return torch.cat(layers, -1) * self.log_scale.exp()

    def _layer(self, index: int, own: Tensor, message: Tensor) -> Tensor:
        summed, multiplied = self.sums[index](own + message), self.products[index](own * message)
        return functional.leaky_relu(summed + multiplied, _LEAK)


class _SparseProduct(torch.autograd.Function):
    """A sparse matrix times a dense one, with the transpose at hand for the gradient.

    PyTorch makes that transpose in every backward: 204 ms instead of 20 (2.15, CPU, 0.8 million entries, dim 64).
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transpose: Tensor, dense: Tensor) -> Tensor:
        ctx.transpose = transpose
        # PyTorch 2.15 has no product of sparse rows in bfloat16 on every device.
        with torch.autocast(dense.device.type, enabled=False):
            return matrix @ dense.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transpose @ gradients[0]


def _sparse_rows(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        # PyTorch 2.15 announces at the first use that sparse rows are in beta, and that it does not check indices.
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_coo_tensor(torch.stack((rows, columns)), values, shape).coalesce().to_sparse_csr()


FAMILIES = (
    Family(
        "lightgcn",
        "graph convolution without weights (He et al., 2020)",
        GraphConfig,
        LightGcn,
        TrainingDefaults(epochs=30, learning_rate=0.015, batch_tokens=6_400),
    ),
    Family(
        "ngcf",
        "graph convolution with feature interaction (Wang et al., 2019)",
        GraphConfig,
        Ngcf,
        TrainingDefaults(epochs=20, learning_rate=5e-3, batch_tokens=6_400),
    ),
)
