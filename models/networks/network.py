"""What every model family offers: to training, to evaluation and to export."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from models.data.events import UserSequence
from models.losses import unseen_cross_entropy
from models.spec import ItemMetadata
from models.vocabulary import Vocabulary


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shape of a network: what every family needs, and after it what only one does.

    Attributes:
        items: Items of the vocabulary.
        types: Event types named in the bundle's configuration.
        max_length: Longest window.

    Raises:
        ValueError: A value out of its range.
    """

    items: int
    types: int
    max_length: int

    def __post_init__(self) -> None:
        if self.items < 1 or self.max_length < 1 or self.types < 0:
            raise ValueError("items and max_length must be at least 1, types at least 0")


def check_heads(dim: int, heads: int) -> None:
    """Check that attention heads share a vector evenly.

    Raises:
        ValueError: They do not.
    """
    if dim % heads:
        raise ValueError(f"dim must be a multiple of heads, not {dim} of {heads}")


def check_share(name: str, share: float) -> None:
    """Check a share that is dropped: none is allowed, all is not.

    Raises:
        ValueError: It is below 0, or 1 or more.
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1, not {share}")


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """What a network may look at before it is trained: nothing that is held out is in here.

    Attributes:
        sequences: The users' training events.
        vocabulary: All items, those without a training event too.
        types: Event type names in the encoder's order.
        metadata: Item id to what people see of it; not every item needs an entry.
    """

    sequences: tuple[UserSequence, ...]
    vocabulary: Vocabulary
    types: tuple[str, ...]
    metadata: Mapping[str, ItemMetadata]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Segments of training sequences: windows of up to `max_length` events and the event that came next.

    Every row has at least two events. All is padded on the right with 0.

    Attributes:
        items: Item rows, shape (batch, length + 1), int64.
        types: Event types, shape (batch, length + 1), int64.
        ages: Seconds before the newest event of the row, shape (batch, length + 1), float32.
        lengths: Events in each row, shape (batch,), int64.
        progress: How much of the training is done, 0 to 1, for what is annealed.
    """

    items: Tensor
    types: Tensor
    ages: Tensor
    lengths: Tensor
    progress: float


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """What a network makes of a batch.

    Attributes:
        value: What to minimise, a scalar: a mean over `targets`.
        targets: How many predictions it is the mean of.
        vectors: The user vectors that it was computed from, shape (n, dim), for regularisers; None where there are none.
    """

    value: Tensor
    targets: int
    vectors: Tensor | None = None


class Network(nn.Module, ABC):
    """Windows in, vectors out, and a table of item vectors to score them against by dot product.

    Inputs are those of `models.windows.WindowInputs`: `items` and `types` (batch, length) int64 padded on the right
    with 0, `ages` (batch, length) float32 in seconds before the newest event, `lengths` (batch,) int64.
    """

    @abstractmethod
    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each window, shape (batch, dim); zeros for a window of length 0. This is what is exported."""

    @abstractmethod
    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim); row 0 is padding and all zeros."""

    def prepare(self, data: TrainingData) -> None:
        """Look at the training data once, before the first step: graphs, counts, texts. What is found is a buffer."""

    def refresh(self) -> None:
        """Compute again what `forward` and `item_table` read and training has changed; before evaluation and export."""


class LearnedNetwork(Network):
    """A network that gradient descent trains."""

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """The loss of a batch in training mode, differentiable."""

    def rate_share(self, name: str) -> float:  # noqa: ARG002  for networks that hold something pretrained
        """The share of the learning rate at which the parameter of this name learns."""
        return 1.0


class FittedNetwork(Network):
    """A network whose parameters are computed from the data at once: `prepare` does all the work."""

    @abstractmethod
    def prepare(self, data: TrainingData) -> None:
        """Compute the parameters, as buffers."""


class NextItemNetwork(LearnedNetwork):
    """A network that learns to predict the next item at every event of a window at once."""

    @abstractmethod
    def at_every_event(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The vector after each event of each window, shape (batch, length, dim), from that event and earlier ones."""

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the next item over all items that the segment did not hold so far."""
        items, targets = batch.items[:, :-1], batch.items[:, 1:]
        real = targets > 0
        vectors = self.at_every_event(items, batch.types[:, :-1], batch.ages[:, :-1])[real]
        value = unseen_cross_entropy(vectors, self.item_table(), targets[real], seen_so_far(items)[real])
        return Loss(value, int(real.sum()), vectors)


class VariationalNetwork(LearnedNetwork):
    """A network whose vector is the mean of a distribution. Its bundle's encoder has `deviation` as a second output."""

    @abstractmethod
    def distribution(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each window's vector, both shape (batch, dim); zeros for length 0."""

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The mean."""
        return self.distribution(items, types, ages, lengths)[0]


class ScoringNetwork(LearnedNetwork):
    """A network whose score is no dot product: the dot product retrieves candidates, `score` orders them.

    Attributes:
        candidates: How many items are retrieved and scored when serving.
    """

    candidates: int

    @abstractmethod
    def score(self, vectors: Tensor, candidates: Tensor) -> Tensor:
        """Scores of items for users; exported as the bundle's scorer.

        Args:
            vectors: What `forward` gave, shape (batch, dim).
            candidates: Item rows, shape (batch, n), int64.

        Returns:
            Shape (batch, n), float32.
        """


def seen_so_far(items: Tensor) -> Tensor:
    """For each event the items of its window up to and including it: shape (batch, length, length), 0 beyond.

    Args:
        items: Item rows, shape (batch, length), int64.
    """
    length = items.shape[1]
    return items[:, None, :].expand(-1, length, -1).tril()


@dataclass(frozen=True, slots=True)
class TrainingDefaults:
    """How a family is trained unless the command says otherwise.

    Attributes:
        epochs: Passes over the data at most.
        learning_rate: The peak.
        batch_tokens: Events a batch, padding counted.
        weight_decay: Of AdamW, decoupled.
    """

    epochs: int = 30
    learning_rate: float = 4e-3
    batch_tokens: int = 3_200
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Family:
    """A model family, as `--model` names it.

    Attributes:
        name: The name.
        summary: What it is, one line, with its source.
        config: The type of its configuration; every field beyond `NetworkConfig`'s has a default.
        network: Makes the untrained network of a configuration.
        training: How it is trained unless told otherwise.
    """

    name: str
    summary: str
    config: type[NetworkConfig]
    # Each network takes its own configuration type, so no common callable type holds them all.
    network: Callable[[Any], Network]
    training: TrainingDefaults = TrainingDefaults()


def lasting(module: nn.Module, name: str, shape: tuple[int, ...]) -> Tensor:
    """Register a buffer of zeros that a checkpoint keeps, and return it."""
    buffer = torch.zeros(shape)
    module.register_buffer(name, buffer)
    return buffer
