"""What every trainable network offers: to training, to evaluation and to export."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """Windows in, vectors out, and a table of item vectors to score them against by dot product.

    Inputs are those of `models.windows.WindowInputs`: `items` and `types` (batch, length) int64 padded on the right
    with 0, `ages` (batch, length) float32 in seconds before the newest event, `lengths` (batch,) int64.
    """

    @abstractmethod
    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each window, shape (batch, dim); zeros for a window of length 0. This is what is exported."""

    @abstractmethod
    def at_every_event(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The vector after each event of each window, shape (batch, length, dim), from that event and earlier ones."""

    @abstractmethod
    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim); row 0 is padding and all zeros."""
