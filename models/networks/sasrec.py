"""SASRec: a causal transformer over the window (Kang and McAuley, 2018, "Self-Attentive Sequential Recommendation").

With what has since been found to learn faster: pre-norm blocks (Radford et al., 2019), a learned bias by distance
instead of absolute positions (Raffel et al., 2020), item embeddings scaled by sqrt(dim) (Vaswani et al., 2017), a short
convolution and a gate in each block (`models.networks.transformer`), no dropout on the attention weights. Beyond the paper, an event adds the embedding of its type and of the time since the
event before it.
"""

import torch
from torch import Tensor, nn

from models.networks.dropout import PooledDropout
from models.networks.events import EventEmbedding
from models.networks.network import (
    Family,
    NetworkConfig,
    NextItemNetwork,
    TrainingDefaults,
    check_heads,
    check_share,
)
from models.networks.transformer import MASKED, TransformerBlock


class SasRecConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of a SASRec.

    Attributes:
        dim: Length of a vector, a multiple of `heads`.
        blocks: Transformer blocks.
        heads: Attention heads in each.
        dropout: Share of activations dropped in training.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int = 128
    blocks: int = 3
    heads: int = 4
    dropout: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.blocks, self.heads) < 1:
            raise ValueError("dim, blocks and heads must be at least 1")
        check_heads(self.dim, self.heads)
        check_share("dropout", self.dropout)


class SasRec(NextItemNetwork):
    """The network. Shapes are those of `Network`."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        self.config = config
        self.events = EventEmbedding(config.items, config.types, config.dim)
        self.dropout = PooledDropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.dim, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.bias_by_distance = nn.Parameter(torch.zeros(config.blocks, config.heads, config.max_length))
        self.norm = nn.LayerNorm(config.dim)
        places = torch.arange(config.max_length)
        distances = places[:, None] - places[None, :]
        self.register_buffer("distances", distances.clamp_min(0), persistent=False)
        self.register_buffer("future", torch.where(distances < 0, MASKED, 0.0), persistent=False)
        self.distances: Tensor
        self.future: Tensor

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each window, shape (batch, dim); zeros for a window of length 0."""
        x = self.dropout(self.events(items, types, ages))
        biases = self._biases(items.shape[1])
        for index in range(len(self.blocks) - 1):
            x = self.blocks[index](x, biases[index])
        # Nothing but the last event is read from the last block, so only it is computed there.
        last = (lengths - 1).clamp_min(0)
        bias = biases[-1].transpose(0, 1)[last][:, :, None, :]
        vector: Tensor = self.norm(self.blocks[-1](x, bias, last)).squeeze(1)
        return vector * (lengths > 0)[:, None].to(vector.dtype)

    def at_every_event(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The vector after each event of each window, shape (batch, length, dim), from that event and earlier ones."""
        return self.after_every_event(self.events(items, types, ages))

    def after_every_event(self, events: Tensor) -> Tensor:
        """The same from the events' embeddings, shape (batch, length, dim), wherever they come from."""
        x = self.dropout(events)
        biases = self._biases(events.shape[1])
        for index, block in enumerate(self.blocks):
            x = block(x, biases[index])
        vectors: Tensor = self.norm(x)
        return vectors

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): the input embeddings, unscaled; row 0 is all zeros."""
        table: Tensor = self.events.items.weight
        return table

    def _biases(self, length: int) -> Tensor:
        """What is added to attention scores, shape (blocks, heads, length, length): the learned bias, or the mask."""
        biases = self.bias_by_distance[:, :, self.distances] + self.future
        return biases[:, :, :length, :length]


FAMILIES = (
    Family(
        "sasrec",
        "causal transformer (Kang and McAuley, 2018), the default",
        SasRecConfig,
        SasRec,
        TrainingDefaults(epochs=20, weight_decay=0.02),
    ),
)
