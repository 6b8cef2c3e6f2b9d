"""A denoising autoencoder over the window.

From the line of AutoRec (Sedhain et al., 2015), CDAE (Wu et al., 2016) and Mult-DAE (Liang et al., 2018): a corrupted
bag of the user's items is encoded by one hidden tanh layer, and decoded into scores of all items. As in CF-NADE (Zheng
et al., 2016) a bag is reconstructed event by event, each from the events before it: what is trained is then what is
served. Where those sum a bag, this weighs its events: by a learned weight of the item, and of how many events ago it
was, in several profiles side by side, so that short and long interests both come through.
"""

import torch
from torch import Tensor, nn

from models.networks.dropout import PooledDropout
from models.networks.events import INITIAL_STD, EventEmbedding
from models.networks.network import Family, NetworkConfig, NextItemNetwork, check_heads, check_share
from models.networks.transformer import MASKED

# exp of it is 0 too, but beside the future it is large: a bag that is hidden whole is seen whole, never what follows.
_HIDDEN = -1e4


class AutoencoderConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of a denoising autoencoder.

    Attributes:
        dim: Length of a vector, a multiple of `heads`.
        heads: Profiles of weights by recency, each over its part of the vector.
        corruption: Share of a window's events hidden in training.
        dropout: Share of activations dropped in training.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int = 128
    heads: int = 4
    corruption: float = 0.2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.heads) < 1:
            raise ValueError("dim and heads must be at least 1")
        check_heads(self.dim, self.heads)
        for name, share in (("corruption", self.corruption), ("dropout", self.dropout)):
            check_share(name, share)


class Autoencoder(NextItemNetwork):
    """The network. Shapes are those of `Network`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.events = EventEmbedding(config.items, config.types, config.dim)
        self.weight = nn.Linear(config.dim, config.heads, bias=False)
        self.value = nn.Linear(config.dim, config.dim, bias=False)
        # Weights fall to 1 / e in 1, 4, 16, … events: profiles that started alike would stay alike.
        spans = 4.0 ** torch.arange(config.heads)
        self.bias_by_distance = nn.Parameter(-torch.arange(config.max_length) / spans[:, None])
        self.dropout = PooledDropout(config.dropout)
        self.bag_norm = nn.LayerNorm(config.dim)
        self.hidden = nn.Linear(config.dim, 4 * config.dim)
        self.vector = nn.Linear(4 * config.dim, config.dim, bias=False)
        self.norm = nn.LayerNorm(config.dim)
        places = torch.arange(config.max_length)
        distances = places[:, None] - places[None, :]
        self.register_buffer("distances", distances.clamp_min(0), persistent=False)
        self.register_buffer("future", torch.where(distances < 0, MASKED, 0.0), persistent=False)
        self.distances: Tensor
        self.future: Tensor
        for module in (self.weight, self.value, self.hidden, self.vector):
            nn.init.normal_(module.weight, std=INITIAL_STD)
        nn.init.zeros_(self.hidden.bias)

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each window, shape (batch, dim); zeros for a window of length 0."""
        values, weights = self._embed(items, types, ages)
        last = (lengths - 1).clamp_min(0)
        # The row of each window's last event, shape (batch, heads, 1, length).
        bias = self._biases(items.shape[1]).transpose(0, 1)[last][:, :, None, :]
        vector = self._encode(values, weights, bias).squeeze(1)
        return vector * (lengths > 0)[:, None].to(vector.dtype)

    def at_every_event(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The vector after each event of each window, shape (batch, length, dim), from that event and earlier ones."""
        values, weights = self._embed(items, types, ages)
        if self.training and self.config.corruption:
            hidden = torch.rand(items.shape, device=items.device) < self.config.corruption
            weights = weights + hidden[:, None, :] * _HIDDEN
        return self._encode(values, weights, self._biases(items.shape[1]))

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): the input embeddings; row 0 is all zeros."""
        table: Tensor = self.events.items.weight
        return table

    def _embed(self, items: Tensor, types: Tensor, ages: Tensor) -> tuple[Tensor, Tensor]:
        """What each event adds, shape (batch, heads, length, dim / heads), and its log weight, (batch, heads, length)."""
        batch, length = items.shape
        x = self.dropout(self.events(items, types, ages))
        values = self.value(x).view(batch, length, self.config.heads, -1).transpose(1, 2)
        return values, self.weight(x).transpose(1, 2)

    def _encode(self, values: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        """The vectors of bags, shape (batch, bags, dim), their weights given by bias, (…, heads, bags, length)."""
        shares = (weights[:, :, None, :] + bias).softmax(-1)
        pooled = (shares @ values).transpose(1, 2)
        bag = pooled.reshape(pooled.shape[0], pooled.shape[1], self.config.dim)
        hidden = self.dropout(self.hidden(self.bag_norm(bag)).tanh())
        vector: Tensor = self.norm(bag + self.vector(hidden))
        return vector

    def _biases(self, length: int) -> Tensor:
        """What is added to log weights, shape (heads, length, length): the learned bias by distance, or the mask."""
        biases = self.bias_by_distance[:, self.distances] + self.future
        return biases[:, :length, :length]


FAMILIES = (
    Family(
        "autoencoder",
        "denoising autoencoder over a weighted bag of the window (Wu et al., 2016; Liang et al., 2018)",
        AutoencoderConfig,
        Autoencoder,
    ),
)
