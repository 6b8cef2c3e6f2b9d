"""NextItNet: dilated causal convolutions over the window (Yuan et al., 2019).

Of the convolutional line this is the stronger and, learning from every event of a window at once, the cheaper to train;
Caser (Tang and Wang, 2018), where it begins, convolves the last few events and learns one target a window. Residual
blocks of two causal convolutions, the second with twice the dilation of the first, each normalised and rectified; every
block starts at four times the dilation of the one before, so that a few reach over the whole window. The softmax is
over all items as in the paper, but for those seen before. Beyond it, an event adds the embedding of its type and of the
time since the event before it.
"""

from torch import Tensor, nn
from torch.nn import functional

from models.networks.dropout import PooledDropout
from models.networks.events import EventEmbedding
from models.networks.network import Family, NetworkConfig, NextItemNetwork, check_share


class CnnConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of a NextItNet.

    Attributes:
        dim: Length of a vector.
        blocks: Residual blocks. With a kernel of 3 they reach over 7, 31, 127 and 511 events.
        kernel: Events that a convolution takes in, itself included.
        dropout: Share of activations dropped in training.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int = 128
    blocks: int = 4
    kernel: int = 3
    dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.blocks) < 1 or self.kernel < 2:
            raise ValueError("dim and blocks must be at least 1, kernel at least 2")
        check_share("dropout", self.dropout)


class Cnn(NextItemNetwork):
    """The network. Shapes are those of `Network`."""

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.config = config
        self.events = EventEmbedding(config.items, config.types, config.dim)
        self.dropout = PooledDropout(config.dropout)
        self.blocks = nn.ModuleList(
            _Block(config.dim, config.kernel, 4**place, self.dropout) for place in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each window, shape (batch, dim); zeros for a window of length 0."""
        every = self.at_every_event(items, types, ages)
        last = (lengths - 1).clamp_min(0)
        vector = every.gather(1, last[:, None, None].expand(-1, 1, every.shape[2])).squeeze(1)
        return vector * (lengths > 0)[:, None].to(vector.dtype)

    def at_every_event(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The vector after each event of each window, shape (batch, length, dim), from that event and earlier ones."""
        x = self.dropout(self.events(items, types, ages))
        for block in self.blocks:
            x = block(x)
        vectors: Tensor = self.norm(x)
        return vectors

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): the input embeddings, unscaled; row 0 is all zeros."""
        table: Tensor = self.events.items.weight
        return table


class _CausalConvolution(nn.Module):
    """A convolution over an event and earlier ones, `dilation` events apart; before the first there are zeros."""

    def __init__(self, dim: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation
        self.convolution = nn.Conv1d(dim, dim, kernel, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, (batch, length, dim)."""
        convolved: Tensor = self.convolution(functional.pad(x.transpose(1, 2), (self.reach, 0)))
        return convolved.transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, dim: int, kernel: int, dilation: int, dropout: PooledDropout) -> None:
        super().__init__()
        self.near = _CausalConvolution(dim, kernel, dilation)
        self.near_norm = nn.LayerNorm(dim)
        self.far = _CausalConvolution(dim, kernel, 2 * dilation)
        self.far_norm = nn.LayerNorm(dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, (batch, length, dim)."""
        inner = functional.relu(self.near_norm(self.near(x)))
        updated: Tensor = x + self.dropout(functional.relu(self.far_norm(self.far(inner))))
        return updated


FAMILIES = (Family("cnn", "dilated causal convolutions: NextItNet (Yuan et al., 2019)", CnnConfig, Cnn),)
