"""BERT4Rec: a bidirectional transformer over the window, trained to fill in masked items (Sun et al., 2019).

The cloze of the paper: a share of a segment's events is masked and predicted from all others; in some segments only the
last event is, since that is what serving asks. To serve, a mask is appended to the window and its vector is read. The
softmax is over all items, as in the paper, but for those that are visible in the segment. It needs more epochs than a
causal transformer, which learns from every event at once (Petrov and Macdonald, 2022). The blocks are those of
`sasrec`, with a learned bias by distance to either side instead of absolute positions (Raffel et al., 2020), which
starts in favour of what is near. Beyond the paper, an event that is not masked adds the embedding of its type and of
the time since the event before it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.losses import unseen_cross_entropy
from models.networks.dropout import PooledDropout
from models.networks.events import EventEmbedding
from models.networks.network import (
    Batch,
    Family,
    LearnedNetwork,
    Loss,
    NetworkConfig,
    TrainingDefaults,
    check_heads,
    check_share,
)
from models.networks.transformer import MASKED, TransformerBlock, nearness


class Bert4RecConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of a BERT4Rec, and what it masks.

    Attributes:
        dim: Length of a vector, a multiple of `heads`.
        blocks: Transformer blocks.
        heads: Attention heads in each.
        dropout: Share of activations dropped in training.
        masked: Share of a segment's events masked in training.
        last_only: Share of segments of which only the last event is masked.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int = 128
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.2
    masked: float = 0.3
    last_only: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.blocks, self.heads) < 1:
            raise ValueError("dim, blocks and heads must be at least 1")
        check_heads(self.dim, self.heads)
        check_share("dropout", self.dropout)
        if not 0.0 < self.masked < 1.0:
            raise ValueError(f"masked must be above 0 and below 1, not {self.masked}")
        if not 0.0 <= self.last_only <= 1.0:
            raise ValueError(f"last_only must be at least 0 and at most 1, not {self.last_only}")


class Bert4Rec(LearnedNetwork):
    """The network. Shapes are those of `Network`."""

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.config = config
        self.events = EventEmbedding(config.items, config.types, config.dim)
        self.mask = nn.Parameter(torch.randn(config.dim) * self.events.item_std)
        self.dropout = PooledDropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.dim, config.heads, config.dropout) for _ in range(config.blocks)
        )
        # The window and the mask after it.
        longest = config.max_length + 1
        near = nearness(config.heads, torch.arange(1 - longest, longest))
        self.bias_by_distance = nn.Parameter(near.repeat(config.blocks, 1, 1))
        self.norm = nn.LayerNorm(config.dim)
        self.register_buffer("places", torch.arange(longest), persistent=False)
        self.places: Tensor

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The vector of a mask after each window, shape (batch, dim); zeros for a window of length 0."""
        events = functional.pad(self.events(items, types, ages), (0, 0, 0, 1))
        places = self.places[: items.shape[1] + 1]
        x = self._masked(events, places == lengths[:, None])
        biases = self._biases(items.shape[1] + 1)
        padding = _forbidden(places > lengths[:, None])
        for index in range(len(self.blocks) - 1):
            x = self.blocks[index](x, biases[index] + padding)
        # Nothing but the mask is read from the last block, so only it is computed there.
        bias = biases[-1].transpose(0, 1)[lengths][:, :, None, :] + padding
        vector: Tensor = self.norm(self.blocks[-1](x, bias, lengths)).squeeze(1)
        return vector * (lengths > 0)[:, None].to(vector.dtype)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the masked items over all items that are not visible in their segment."""
        masked = self._draw_masks(batch.items > 0, batch.lengths)
        vectors = self.at_every_place(batch.items, batch.types, batch.ages, masked)[masked]
        visible = batch.items.masked_fill(masked, 0)[masked.nonzero()[:, 0]]
        value = unseen_cross_entropy(vectors, self.item_table(), batch.items[masked], visible)
        return Loss(value, len(vectors), vectors)

    def at_every_place(self, items: Tensor, types: Tensor, ages: Tensor, masked: Tensor) -> Tensor:
        """The vector at each event, shape (batch, length, dim), from all events of its window but the masked ones.

        Args:
            items: Item rows, shape (batch, length), int64, at most `max_length + 1` long; as `types` and `ages`.
            types: Event types.
            ages: Seconds before the newest event, float32.
            masked: Which events are hidden, shape (batch, length), bool.
        """
        x = self._masked(self.events(items, types, ages), masked)
        biases = self._biases(items.shape[1])
        padding = _forbidden(items == 0)
        for index, block in enumerate(self.blocks):
            x = block(x, biases[index] + padding)
        vectors: Tensor = self.norm(x)
        return vectors

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): the input embeddings, unscaled; row 0 is all zeros."""
        table: Tensor = self.events.items.weight
        return table

    def _draw_masks(self, real: Tensor, lengths: Tensor) -> Tensor:
        """Which events to mask: at least one of every segment, shape (batch, length), bool."""
        last = self.places[: real.shape[1]] == lengths[:, None] - 1
        drawn = (torch.rand(real.shape, device=real.device) < self.config.masked) & real
        last_only = torch.rand(len(real), 1, device=real.device) < self.config.last_only
        return torch.where(last_only | ~drawn.any(1, keepdim=True), last, drawn)

    def _masked(self, events: Tensor, masked: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(torch.where(masked[:, :, None], self.mask, events))
        return embedded

    def _biases(self, length: int) -> Tensor:
        """What is added to attention scores for the distance, shape (blocks, heads, length, length)."""
        places = self.places[:length]
        distances = places[:, None] - places[None, :] + self.config.max_length
        return self.bias_by_distance[:, :, distances]


def _forbidden(padding: Tensor) -> Tensor:
    """What is added to the scores of keys that are padding: (batch, length) to (batch, 1, 1, length)."""
    return (padding.to(torch.float32) * MASKED)[:, None, None, :]


FAMILIES = (
    Family(
        "bert4rec",
        "bidirectional transformer with masked-item training (Sun et al., 2019)",
        Bert4RecConfig,
        Bert4Rec,
        TrainingDefaults(epochs=40),
    ),
)
