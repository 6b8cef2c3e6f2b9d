"""The transformer block of the networks that are written here."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.dropout import PooledDropout
from models.networks.events import INITIAL_STD

MASKED = -1e9
"""Added to the scores of keys that a query may not see.

Finite, so that no arithmetic on a masked score can make NaN; exp of it is exactly 0 in float32.
"""


def nearness(heads: int, distances: Tensor) -> Tensor:
    """A bias by distance to start from: scores fall with distance, from 1/2 a place in the first head to 1/32.

    After the linear biases of Press et al. (2022); here they are where learning begins. Attention that sees both sides
    and starts without them is blind to order, and long in finding it: on MovieLens-100K ten epochs of `bert4rec` gave a
    validation NDCG@10 of .063 without and .098 with them.

    Args:
        heads: Attention heads.
        distances: Places between query and key, shape (n,), of either sign.

    Returns:
        Shape (heads, n).
    """
    slopes = 2.0 ** -torch.linspace(1.0, 5.0, heads)
    return -slopes[:, None] * distances.abs()


class TransformerBlock(nn.Module):
    """A pre-norm transformer block (Radford et al., 2019) whose queries may be fewer than its keys.

    Args:
        dim: Length of a vector, a multiple of `heads`.
        heads: Attention heads.
        dropout: Share of activations dropped in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        # No biases (Chowdhery et al., 2022), and ReLU as in SASRec: on a CPU the passes over memory that this saves
        # halve the time of an encode (measured at batch 512, 38 events: 110 to 60 µs a window).
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, 4 * dim, bias=False)
        self.narrow = nn.Linear(4 * dim, dim, bias=False)
        self.dropout = PooledDropout(dropout)
        for module in (self.query, self.key, self.value, self.output, self.widen, self.narrow):
            nn.init.normal_(module.weight, std=INITIAL_STD)

    def forward(self, x: Tensor, events: Tensor, bias: Tensor) -> Tensor:
        """One block.

        Args:
            x: What to update, shape (batch, queries, dim).
            events: What it attends to, shape (batch, length, dim).
            bias: Added to the scores, broadcastable to (batch, heads, queries, length).

        Returns:
            Shape (batch, queries, dim).
        """
        batch, queries, dim = x.shape
        normed = self.attention_norm(events)
        queried = normed if x is events else self.attention_norm(x)
        query = self.query(queried).view(batch, queries, self.heads, -1).transpose(1, 2)
        key = self.key(normed).view(batch, events.shape[1], self.heads, -1).permute(0, 2, 3, 1)
        value = self.value(normed).view(batch, events.shape[1], self.heads, -1).transpose(1, 2)
        # Written out: on a CPU the backward of scaled_dot_product_attention is slower (recipe, measured).
        scores = query @ key / math.sqrt(dim // self.heads) + bias
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, queries, dim)
        x = x + self.dropout(self.output(attended))
        updated: Tensor = x + self.dropout(self.narrow(functional.relu(self.widen(self.feed_forward_norm(x)))))
        return updated
