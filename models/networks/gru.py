"""GRU4Rec: a gated recurrent unit over the window (Hidasi et al., 2016; Hidasi and Karatzoglou, 2018).

The state after the last event is the user's interest, as in recurrent recommender networks (Wu et al., 2017). Trained
on the next item at every event with the softmax over all items not yet seen, rather than the papers' losses on sampled
negatives: where all items fit, it is the stronger (Klenitskiy and Vasilev, 2023, for SASRec, whose objective is the
same). Input and output share the items' embeddings, the 2018 paper's constrained embedding. Beyond the papers, an event
adds the embedding of its type and of the time since the event before it.
"""

from torch import Tensor, nn

from models.networks.dropout import PooledDropout
from models.networks.events import EventEmbedding
from models.networks.network import Family, NetworkConfig, NextItemNetwork, check_share


class GruConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of a GRU4Rec.

    Attributes:
        dim: Length of a vector.
        width: Units of each layer.
        layers: Recurrent layers.
        dropout: Share of activations dropped in training: of the embeddings, between layers, and of the last layer.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int = 128
    width: int = 256
    layers: int = 1
    dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.width, self.layers) < 1:
            raise ValueError("dim, width and layers must be at least 1")
        check_share("dropout", self.dropout)


class Gru(NextItemNetwork):
    """The network. Shapes are those of `Network`."""

    def __init__(self, config: GruConfig) -> None:
        super().__init__()
        self.config = config
        self.events = EventEmbedding(config.items, config.types, config.dim)
        self.dropout = PooledDropout(config.dropout)
        self.recurrent = nn.ModuleList(
            nn.GRU(config.dim if layer == 0 else config.width, config.width, batch_first=True)
            for layer in range(config.layers)
        )
        self.output = nn.Linear(config.width, config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each window, shape (batch, dim); zeros for a window of length 0."""
        states = self._states(items, types, ages)
        last = (lengths - 1).clamp_min(0)
        state = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
        vector: Tensor = self.norm(self.output(state))
        return vector * (lengths > 0)[:, None].to(vector.dtype)

    def at_every_event(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The vector after each event of each window, shape (batch, length, dim), from that event and earlier ones."""
        vectors: Tensor = self.norm(self.output(self._states(items, types, ages)))
        return vectors

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): the input embeddings, unscaled; row 0 is all zeros."""
        table: Tensor = self.events.items.weight
        return table

    def _states(self, items: Tensor, types: Tensor, ages: Tensor) -> Tensor:
        """The last layer's state after each event, shape (batch, length, width)."""
        states: Tensor = self.dropout(self.events(items, types, ages))
        for layer in self.recurrent:
            states = self.dropout(layer(states)[0])
        return states


FAMILIES = (Family("gru", "recurrent interest: GRU4Rec (Hidasi et al., 2016)", GruConfig, Gru),)
