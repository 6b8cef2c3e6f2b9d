"""What an event is to a network: its item, its type, and the time since the event before it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

INITIAL_STD = 0.02
"""Of the normal distribution that weights start from (Devlin et al., 2019; Radford et al., 2019)."""

# 10 s, 1 min, 10 min, 1 h, 6 h, 1 day, 1 week, 30 days.
_GAP_SECONDS = (10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0)


class EventEmbedding(nn.Module):
    """The sum of an item's embedding, scaled by sqrt(dim) (Vaswani et al., 2017), its type's, and its gap's.

    Args:
        items: Items of the vocabulary.
        types: Event types named in the bundle's configuration; one more is for all others.
        dim: Length of the embedding.

    Attributes:
        item_std: Standard deviation of the numbers that an item starts with, after scaling: right for other tokens too.
    """

    def __init__(self, items: int, types: int, dim: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, dim, padding_idx=0)
        self.types = nn.Embedding(types + 2, dim, padding_idx=0)
        self.gaps = nn.Linear(len(_GAP_SECONDS), dim, bias=False)
        self.register_buffer("gap_seconds", torch.tensor(_GAP_SECONDS), persistent=False)
        self.gap_seconds: Tensor
        self._scale = math.sqrt(dim)
        self.item_std = INITIAL_STD * self._scale
        for module in (self.items, self.types, self.gaps):
            nn.init.normal_(module.weight, std=INITIAL_STD)
        with torch.no_grad():
            # The initialisation above has overwritten the zeros of padding.
            self.items.weight[0] = 0.0
            self.types.weight[0] = 0.0

    def forward(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The events' embeddings, shape (batch, length, dim), from the inputs of `Network`."""
        # An age changes with every later event, the gap to the event before does not: so an embedding never depends on
        # the future, and what is computed for an event stays valid when others follow. Compared with thresholds rather
        # than through a logarithm, which two runtimes may round to different sides of a border. The first event's gap
        # comes out as minus its age, which reaches nothing.
        gaps = functional.pad(ages, (1, 0))[:, :-1] - ages
        reached = (gaps[:, :, None] >= self.gap_seconds).to(ages.dtype)
        embedded: Tensor = self.items(items) * self._scale + self.types(types) + self.gaps(reached)
        return embedded
