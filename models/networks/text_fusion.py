"""Texts fused with what is learned about each item by its id: by factorization, and in the id transformer.

An item is the sum of its projected text and a vector of its own. In training the latter is dropped for some items in
every step (Volkovs et al., 2017, "DropoutNet"), in the window as well as among the candidates, so that a text alone
gets a score that can be compared with the others'. An item without a training event is its text alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.dropout import PooledDropout
from models.networks.events import INITIAL_STD
from models.networks.network import Family, TrainingData, TrainingDefaults, check_heads, check_share, lasting
from models.networks.text import TextNetwork, TextTransformer
from models.networks.text_encoder import TextConfig


class FusionConfig(TextConfig, frozen=True, forbid_unknown_fields=True):
    """What both fused networks can be told.

    Attributes:
        id_dropout: Share of items that are their text alone in a training step.

    Raises:
        ValueError: A value out of its range, or no language model at `text_model`.
        MissingExtra: "minilm" without the extra.
    """

    id_dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("id_dropout", self.id_dropout)


class TextIdConfig(FusionConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of the fused transformer.

    Attributes:
        blocks: Transformer blocks.
        heads: Attention heads in each; `dim` is a multiple of them.

    Raises:
        ValueError: A value out of its range, or no language model at `text_model`.
        MissingExtra: "minilm" without the extra.
    """

    blocks: int = 3
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.blocks, self.heads) < 1:
            raise ValueError("blocks and heads must be at least 1")
        check_heads(self.dim, self.heads)


class TextMfConfig(FusionConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of the fused factorization.

    Attributes:
        normalisation: A user is the sum over n events, divided by n to this power: 0 is a sum, 1 a mean.

    Raises:
        ValueError: A value out of its range, or no language model at `text_model`.
        MissingExtra: "minilm" without the extra.
    """

    normalisation: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.normalisation <= 1.0:
            raise ValueError(f"normalisation must be at least 0 and at most 1, not {self.normalisation}")


class ItemIds(nn.Module):
    """A vector of its own for every item that has a training event.

    Args:
        items: Items of the vocabulary.
        width: Length of a vector.
        dropout: Share of items whose vector is zeros in a training step.
    """

    def __init__(self, items: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.vectors = nn.Embedding(items + 1, width, padding_idx=0)
        nn.init.normal_(self.vectors.weight, std=INITIAL_STD)
        self.register_buffer("known", torch.zeros(items + 1), persistent=False)
        self.known: Tensor

    def prepare(self, warm: Tensor) -> None:
        """Say which rows have training events, shape (n,), int64; the others' vectors are zeros."""
        self.known = torch.zeros_like(self.known).index_fill(0, warm, 1.0)

    def forward(self) -> Tensor:
        """The vectors, shape (items + 1, width); row 0 is all zeros."""
        kept = self.known
        if self.training:
            kept = kept * (torch.rand_like(kept) >= self.dropout)
        return self.vectors.weight * kept[:, None]


class TextId(TextTransformer):
    """The id transformer whose item vectors are projected texts plus vectors of their own."""

    def __init__(self, config: TextIdConfig) -> None:
        super().__init__(config, config.blocks, config.heads)
        self.config = config
        self.ids = ItemIds(config.items, config.dim, config.id_dropout)

    def prepare(self, data: TrainingData) -> None:
        """Encode the texts, and see which items have training events; errors as in `TextNetwork.prepare`."""
        super().prepare(data)
        self.ids.prepare(self.warm)

    def tables(self, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """What items are in a window, and what they are scored by: the same, shape (items + 1, dim)."""
        fused = self.project(sentences) + self.ids()
        return fused, fused


class TextMf(TextNetwork):
    """Factorization over texts and ids, whose users are sums over their windows.

    A user is the sum of the input vectors of the window's items, over a power of their number (asymmetric SVD: Koren,
    2008; FISM: Kabbur et al., 2013, equation 4), each weighted by how many events ago it was (as the short-term term of
    Fossil: He and McAuley, 2016), plus a vector for everyone, by which items have their popularity. Items have a second
    vector that they are scored by. Trained with the cross-entropy over all items rather than the papers' pairs and
    squared errors: it is the metric's closest bound (Rendle, 2022, "Item Recommendation from Implicit Feedback").
    """

    def __init__(self, config: TextMfConfig) -> None:
        super().__init__(config, 2 * config.dim)
        self.config = config
        self.ids = ItemIds(config.items, 2 * config.dim, config.id_dropout)
        self.dropout = PooledDropout(config.dropout)
        self.everyone = nn.Parameter(torch.randn(config.dim) * INITIAL_STD)
        self.log_weights = nn.Parameter(torch.zeros(config.max_length))
        self.inputs = lasting(self, "inputs", (config.items + 1, config.dim))
        self.outputs = lasting(self, "outputs", (config.items + 1, config.dim))
        places = torch.arange(config.max_length)
        distances = places[:, None] - places[None, :]
        scale = (1.0 + places) ** -config.normalisation
        self.register_buffer("distances", distances.clamp_min(0), persistent=False)
        self.register_buffer("scale", (distances >= 0) * scale[:, None], persistent=False)
        self.distances: Tensor
        self.scale: Tensor

    def prepare(self, data: TrainingData) -> None:
        """Encode the texts, and see which items have training events; errors as in `TextNetwork.prepare`."""
        super().prepare(data)
        self.ids.prepare(self.warm)

    def tables(self, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """What items are in a window, and what they are scored by, both shape (items + 1, dim)."""
        fused = self.project(sentences) + self.ids()
        return fused[:, : self.config.dim], fused[:, self.config.dim :]

    def keep(self, inputs: Tensor, outputs: Tensor) -> None:
        """Put the tables where `forward` and `item_table` read them."""
        self.inputs.copy_(inputs)
        self.outputs.copy_(outputs)

    def kept_item_table(self) -> Tensor:
        """The second of the tables that `keep` was given last."""
        return self.outputs

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002
        """The vector of each window, shape (batch, dim); zeros for a window of length 0. Reads items alone."""
        length = items.shape[1]
        last = (lengths - 1).clamp_min(0)
        weights = self._weights()[last, :length]
        vectors = (weights[:, None, :] @ functional.embedding(items, self.inputs)).squeeze(1) + self.everyone
        return vectors * (lengths > 0)[:, None].to(vectors.dtype)

    def at_every_event(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The vector after each event of each window, shape (batch, length, dim), from that event and earlier ones."""
        return self.after_every_event(self.inputs, items, types, ages)

    def after_every_event(self, inputs: Tensor, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:  # noqa: ARG002
        """`at_every_event` with a table in place of the kept one."""
        length = items.shape[1]
        events: Tensor = self.dropout(functional.embedding(items, inputs))
        return self._weights()[:length, :length] @ events + self.everyone

    def _weights(self) -> Tensor:
        """How much each event, column, counts in the vector after each, row: shape (max_length, max_length)."""
        return self.log_weights.exp()[self.distances] * self.scale


FAMILIES = (
    Family(
        "text+mf",
        "texts and ids, factorized; users are sums over windows (Koren, 2008; Kabbur et al., 2013)",
        TextMfConfig,
        TextMf,
        TrainingDefaults(epochs=20),
    ),
    Family(
        "text+id",
        "the id transformer with texts, so that new items score (Volkovs et al., 2017; Kang and McAuley, 2018)",
        TextIdConfig,
        TextId,
        TrainingDefaults(epochs=20),
    ),
)
