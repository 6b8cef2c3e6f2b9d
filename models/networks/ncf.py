"""NCF: neural matrix factorization over the pooled window (He et al., 2017, "Neural Collaborative Filtering").

A user is no embedding of their own but what their window pools to (Kabbur et al., 2013, "FISM"), so nobody is unknown.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.losses import unseen_cross_entropy
from models.networks.dropout import PooledDropout
from models.networks.events import INITIAL_STD, EventEmbedding
from models.networks.network import (
    Batch,
    Family,
    Loss,
    NetworkConfig,
    ScoringNetwork,
    TrainingDefaults,
    check_share,
    seen_so_far,
)

# Finite, so that no arithmetic on a masked score can make NaN; exp of it is exactly 0 in float32.
_MASKED = -1e9
# Of each batch, the events that the scorer learns from, and the negatives of each.
_SCORED_EVENTS = 512
_HARD_NEGATIVES = 32
_OTHER_NEGATIVES = 32


class NcfConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of an NCF.

    Attributes:
        dim: Factors of the dot product, and as many of the scorer's perceptron: a vector has twice `dim` numbers.
        heads: How many ways to pool a window.
        dropout: Share of activations dropped in training.
        candidates: Items that are retrieved and scored when serving.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int = 64
    heads: int = 4
    dropout: float = 0.2
    candidates: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.heads, self.candidates) < 1 or self.dim < 2:
            raise ValueError("heads and candidates must be at least 1, dim at least 2")
        check_share("dropout", self.dropout)


class Ncf(ScoringNetwork):
    """The network. Shapes are those of `Network`.

    A window is pooled by learned weights of the distance to its end, which begin as exponential decays of several
    speeds. A vector is [g, m]: g for the generalised matrix factorization, m for the multi-layer perceptron. An item's
    vector is [q, 0], so that the dot product retrieves by g·q. The score is w·(g * q) + MLP(m + e): the perceptron's
    first layer is linear in user and item, so m and the item's second embedding e are its two halves already. w begins
    as ones: training starts from what He et al. (2017, section 3.4.1) pretrain.

    The retrieval learns by cross-entropy over all items, at every event. The paper's binary cross-entropy over a few
    sampled negatives is weaker (Petrov and Macdonald, 2023, "gSASRec"). The scorer learns at a sample of the events, by
    the same cross-entropy with its normaliser estimated from some of the best items that the retrieval offers and some
    of the others, each weighing as many as it stands for (Bengio and Senécal, 2008).
    """

    def __init__(self, config: NcfConfig) -> None:
        super().__init__()
        self.config = config
        self.candidates = config.candidates
        dim = config.dim
        self.events = EventEmbedding(config.items, config.types, dim)
        self.scored_items = nn.Embedding(config.items + 1, dim, padding_idx=0)
        self.dropout = PooledDropout(config.dropout)
        decays = 0.5 ** (2.0 * torch.arange(config.heads) - 1.0)
        self.pooling = nn.Parameter(-decays[:, None] * torch.arange(config.max_length))
        self.pooled_norm = nn.LayerNorm(config.heads * dim)
        self.widen = nn.Linear(config.heads * dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)
        self.shortcut = nn.Linear(config.heads * dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.scored_user = nn.Linear(dim, dim)
        self.perceptron = nn.Sequential(
            nn.ReLU(), nn.Linear(dim, dim // 2), nn.ReLU(), nn.Linear(dim // 2, 1, bias=False)
        )
        self.factor_weights = nn.Parameter(torch.ones(dim))
        places = torch.arange(config.max_length)
        distances = places[:, None] - places[None, :]
        self.register_buffer("distances", distances.clamp_min(0), persistent=False)
        self.register_buffer("future", torch.where(distances < 0, _MASKED, 0.0), persistent=False)
        self.distances: Tensor
        self.future: Tensor
        nn.init.normal_(self.scored_items.weight, std=INITIAL_STD)
        with torch.no_grad():
            # The initialisation above has overwritten the zeros of padding.
            self.scored_items.weight[0] = 0.0

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each window, shape (batch, 2 dim); zeros for a window of length 0."""
        # What comes after the last event is padding, and has no weight there.
        weights = self._pooling(items.shape[1]).transpose(0, 1)[(lengths - 1).clamp_min(0)]
        pooled = (weights @ self.dropout(self.events(items, types, ages))).flatten(1)
        return self._vectors(pooled) * (lengths > 0)[:, None].to(pooled.dtype)

    def at_every_event(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The vector after each event of each window, shape (batch, length, 2 dim), from that event and earlier ones."""
        weights = self._pooling(items.shape[1])
        pooled = (weights @ self.dropout(self.events(items, types, ages))[:, None]).transpose(1, 2).flatten(2)
        return self._vectors(pooled)

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, 2 dim): the factors, and zeros for what only the scorer reads."""
        return functional.pad(self.events.items.weight, (0, self.config.dim))

    def score(self, vectors: Tensor, candidates: Tensor) -> Tensor:
        """Scores of items for users, shape (batch, n); see `ScoringNetwork`."""
        factors, user = vectors[:, : self.config.dim], vectors[:, self.config.dim :]
        products = (self.events.items(candidates) @ (factors * self.factor_weights)[:, :, None]).squeeze(2)
        scores: Tensor = products + self.perceptron(user[:, None] + self.scored_items(candidates)).squeeze(2)
        return scores

    def loss(self, batch: Batch) -> Loss:
        """The loss of the retrieval and that of the scorer, added."""
        items, targets = batch.items[:, :-1], batch.items[:, 1:]
        real = targets > 0
        vectors = self.at_every_event(items, batch.types[:, :-1], batch.ages[:, :-1])[real]
        wanted, seen = targets[real], seen_so_far(items)[real]
        retrieval = unseen_cross_entropy(vectors[:, : self.config.dim], self.events.items.weight, wanted, seen)
        sample = torch.randperm(len(wanted), device=wanted.device)[:_SCORED_EVENTS]
        scorer = self._scorer_loss(vectors[sample], wanted[sample], seen[sample])
        return Loss(retrieval + scorer, len(wanted), vectors)

    def _scorer_loss(self, vectors: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
        """Cross-entropy of the target among sampled negatives, of which the target or a seen item is none."""
        with torch.no_grad():
            offered = (vectors[:, : self.config.dim] @ self.events.items.weight.T).float()
            for excluded in (seen, targets[:, None], torch.zeros_like(targets)[:, None]):
                offered.scatter_(1, excluded, _MASKED)
            best, retrieved = offered.topk(min(self.config.candidates, self.config.items))
            hard = torch.randint(best.shape[1], (_HARD_NEGATIVES,), device=best.device)
            others = torch.randint(1, self.config.items + 1, (len(best), _OTHER_NEGATIVES), device=best.device)
            size = (best > _MASKED).sum(1, keepdim=True)
            rest = (offered > _MASKED).sum(1, keepdim=True) - size
            theirs = offered.gather(1, others)
            hard_weights = _log_weights(best[:, hard] > _MASKED, size)
            other_weights = _log_weights((theirs > _MASKED) & (theirs < best[:, -1:]), rest)
        scores = self.score(vectors, torch.cat((targets[:, None], retrieved[:, hard], others), dim=1)).float()
        weighted = scores + functional.pad(torch.cat((hard_weights, other_weights), dim=1), (1, 0))
        return functional.cross_entropy(weighted, torch.zeros_like(targets))

    def _pooling(self, length: int) -> Tensor:
        """The weights of a window's events at each of its events, shape (heads, length, length), rows summing to 1."""
        weights = (self.pooling[:, self.distances] + self.future).softmax(-1)
        return weights[:, :length, :length]

    def _vectors(self, pooled: Tensor) -> Tensor:
        """From pooled windows, shape (..., heads x dim), to vectors, shape (..., 2 dim)."""
        normed = self.pooled_norm(pooled)
        user = self.shortcut(normed) + self.dropout(self.narrow(functional.relu(self.widen(normed))))
        factors = self.norm(user)
        return torch.cat((factors, self.scored_user(factors)), dim=-1)


def _log_weights(allowed: Tensor, size: Tensor) -> Tensor:
    """The logarithm of how many items each sampled one stands for, shape (n, samples).

    Args:
        allowed: Which of the samples count, shape (n, samples).
        size: How many items they were drawn from, shape (n, 1).
    """
    each = size.clamp_min(1).float().log() - allowed.sum(1, keepdim=True).clamp_min(1).float().log()
    return torch.where(allowed, each, _MASKED)


FAMILIES = (
    Family(
        "ncf",
        "neural matrix factorization as scorer of retrieved items (He et al., 2017)",
        NcfConfig,
        Ncf,
        TrainingDefaults(epochs=20, batch_tokens=1_600),
    ),
)
