"""Networks whose items are known by their texts, and the two-tower model: texts on one side, windows on the other.

The item's tower is a language model and a projection of its vectors (`models.networks.text_encoder`). The user's is
attention over the vectors of the window's items: SASRec's causal transformer, without an embedding of its own for the
items.
"""

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from models.losses import unseen_cross_entropy
from models.networks.events import INITIAL_STD
from models.networks.network import (
    Batch,
    Family,
    Loss,
    NextItemNetwork,
    TrainingData,
    TrainingDefaults,
    check_heads,
    seen_so_far,
)
from models.networks.sasrec import SasRec, SasRecConfig
from models.networks.text_encoder import TextConfig, TextItems, warm_rows


class TextNetwork(NextItemNetwork):
    """A network that reads items' texts. Shapes are those of `Network`.

    What serving looks up is computed by `refresh` from the texts of all items, those without a training event too, and
    kept in the checkpoint; the graph that is exported holds no language model. In training the same tables are computed
    with a gradient.

    Items without a training event are no candidates in training: taught as negatives at every event and never as a
    target, they would learn to come last.

    Args:
        config: The shape.
        width: What a text's vector is projected to.
    """

    def __init__(self, config: TextConfig, width: int) -> None:
        super().__init__()
        self.texts = TextItems(config)
        self.project = nn.Linear(self.texts.width, width, bias=False)
        nn.init.normal_(self.project.weight, std=INITIAL_STD)
        # Until `prepare` has seen the training data all items count as having events.
        self.register_buffer("warm", torch.arange(1, config.items + 1), persistent=False)
        self.register_buffer("warm_place", torch.arange(config.items + 1), persistent=False)
        self.warm: Tensor
        self.warm_place: Tensor

    @abstractmethod
    def tables(self, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """What items are in a window, and what they are scored by, both shape (items + 1, any); row 0 all zeros.

        Args:
            sentences: The vectors of their texts, shape (items + 1, width).
        """

    @abstractmethod
    def keep(self, inputs: Tensor, outputs: Tensor) -> None:
        """Put the tables where `forward` and `item_table` read them."""

    @abstractmethod
    def after_every_event(self, inputs: Tensor, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """`at_every_event` with a table in place of the kept one.

        Args:
            inputs: The first of `tables`.
            items: As in `at_every_event`.
            types: As in `at_every_event`.
            ages: As in `at_every_event`.
        """

    @abstractmethod
    def kept_item_table(self) -> Tensor:
        """The second of the tables that `keep` was given last."""

    def prepare(self, data: TrainingData) -> None:
        """Encode the texts, and see which items have training events.

        Raises:
            DataError: The language model cannot be loaded.
            MissingExtra: The language model is "minilm", and the extra is not installed.
        """
        self.texts.prepare(data)
        self.warm = warm_rows(data).to(self.warm.device)
        self.warm_place = torch.zeros_like(self.warm_place)
        self.warm_place[self.warm] = torch.arange(1, len(self.warm) + 1, device=self.warm.device)

    def refresh(self) -> None:
        """Compute the tables again, from the texts that `prepare` was given."""
        if self.texts.ready:
            self.texts.refresh()
            with torch.no_grad():
                self.keep(*self.tables(self.texts.kept))

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): in training with a gradient, otherwise as of the last `refresh`."""
        return self.tables(self.texts.kept)[1] if self.training else self.kept_item_table()

    def rate_share(self, name: str) -> float:
        """The language model learns slowly, everything else at the full rate."""
        return self.texts.rate_share if name.startswith("texts.encoder.") else 1.0

    def loss(self, batch: Batch) -> Loss:
        """The loss of the next item at every event, over the items with training events."""
        items, targets = batch.items[:, :-1], batch.items[:, 1:]
        real = targets > 0
        inputs, outputs = self.tables(self.texts(self.texts.choose(batch.items)))
        vectors = self.after_every_event(inputs, items, batch.types[:, :-1], batch.ages[:, :-1])[real]
        candidates = functional.pad(outputs[self.warm], (0, 0, 1, 0))
        seen = self.warm_place[seen_so_far(items)[real]]
        value = self.loss_of(vectors, candidates, self.warm_place[targets[real]], seen)
        return Loss(value, int(real.sum()), vectors)

    def loss_of(self, vectors: Tensor, candidates: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
        """What to minimise, a scalar: cross-entropy over the candidates that were not seen.

        Args:
            vectors: Shape (n, dim).
            candidates: Item vectors, shape (candidates + 1, dim); row 0 is all zeros and no candidate.
            targets: The rows of what came next, shape (n,).
            seen: The rows seen before, shape (n, any), padded with 0.
        """
        return unseen_cross_entropy(vectors, candidates, targets, seen)


class TextTransformer(TextNetwork):
    """A network whose user tower is SASRec's."""

    def __init__(self, config: TextConfig, blocks: int, heads: int) -> None:
        super().__init__(config, config.dim)
        self.tower = SasRec(
            SasRecConfig(
                config.items,
                config.types,
                config.max_length,
                dim=config.dim,
                blocks=blocks,
                heads=heads,
                dropout=config.dropout,
            )
        )
        # A table that `refresh` writes: gradients go to what it is computed from.
        self.tower.events.items.weight.requires_grad = False

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each window, shape (batch, dim); zeros for a window of length 0."""
        vectors: Tensor = self.tower(items, types, ages, lengths)
        return vectors

    def at_every_event(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The vector after each event of each window, shape (batch, length, dim), from that event and earlier ones."""
        return self.tower.at_every_event(items, types, ages)

    def after_every_event(self, inputs: Tensor, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """`at_every_event` with a table in place of the kept one."""
        events: Tensor = functional_call(self.tower.events, {"items.weight": inputs}, (items, types, ages))
        return self.tower.after_every_event(events)

    def keep(self, inputs: Tensor, outputs: Tensor) -> None:  # noqa: ARG002  one table for both
        """Put the table where `forward` and `item_table` read it."""
        self.tower.events.items.weight.copy_(inputs)

    def kept_item_table(self) -> Tensor:
        """The table that `keep` was given last."""
        return self.tower.item_table()


class TwoTowerConfig(TextConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of a two-tower model.

    Attributes:
        blocks: Transformer blocks of the user tower.
        heads: Attention heads in each; `dim` is a multiple of them.
        objective: "ce" is cross-entropy over all items, "bce" binary cross-entropy of the next item against random
            ones, with L2 on the vectors.
        negatives: With "bce", random items for every event.
        l2: With "bce", weight of the vectors' squared lengths.

    Raises:
        ValueError: A value out of its range, or no language model at `text_model`.
        MissingExtra: "minilm" without the extra.
    """

    blocks: int = 3
    heads: int = 4
    objective: Literal["ce", "bce"] = "ce"
    negatives: int = 8
    l2: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.blocks, self.heads, self.negatives) < 1:
            raise ValueError("blocks, heads and negatives must be at least 1")
        check_heads(self.dim, self.heads)
        if self.l2 < 0.0:
            raise ValueError(f"l2 must be at least 0, not {self.l2}")


class TwoTower(TextTransformer):
    """The two-tower model: an item is its projected text, and nothing else.

    Trained by default with cross-entropy over all items: a few sampled negatives make a transformer overconfident
    (Petrov and Macdonald, 2023, "gSASRec"), and over a catalogue that fits into memory all can be had.
    """

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config, config.blocks, config.heads)
        self.config = config

    def tables(self, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """What items are in a window, and what they are scored by: the same, shape (items + 1, dim)."""
        projected = self.project(sentences)
        return projected, projected

    def loss_of(self, vectors: Tensor, candidates: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
        """What to minimise, a scalar, by `objective`; see `TextNetwork.loss_of`."""
        if self.config.objective == "ce":
            return super().loss_of(vectors, candidates, targets, seen)
        drawn = torch.randint(1, len(candidates), (len(targets), self.config.negatives), device=targets.device)
        positives, negatives = candidates[targets], candidates[drawn]
        liked = (vectors * positives).sum(1)
        others = (negatives @ vectors[:, :, None]).squeeze(2)
        # An item drawn against itself teaches nothing.
        against = functional.softplus(others) * (drawn != targets[:, None])
        lengths = vectors.square().sum(1) + positives.square().sum(1) + negatives.square().sum((1, 2))
        return (functional.softplus(-liked) + against.mean(1) + self.config.l2 * lengths).mean()


FAMILIES = (
    Family(
        "text",
        "two towers: a language model reads titles and topics, attention the window (Reimers and Gurevych, 2019)",
        TwoTowerConfig,
        TwoTower,
        TrainingDefaults(epochs=20),
    ),
)
