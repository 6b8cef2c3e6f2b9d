"""An encoder-decoder transformer that reads a window and predicts the next several items (Raffel et al., 2020: T5).

The modules are T5's, of `transformers`, over item ids as tokens: pre-norm with RMS norm, a learned bias by distance
(which starts in favour of what is near), an end token after what the encoder reads. A segment is cut at a random event;
the encoder reads what is before, and the decoder predicts the items after it one by one, each from the true ones before
it (Sutskever et al., 2014). The decoder begins with the last event that was read in place of T5's start token: so every
step of training asks what serving asks. To serve, the encoder reads the window, and the decoder's first state is the
user's vector. T5's attention from the decoder to the encoder knows no distances, and would have to find what is recent
by its content alone: here it too has a learned bias by distance, that starts in favour of what is near. Input and
output share the items' embeddings as in T5, with the output's factor of 1/sqrt(dim) moved to the input's. The softmax
is over all items but those that came before. Beyond T5, an event adds the embedding of its type and of the time since
the event before it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack

from models.losses import unseen_cross_entropy
from models.networks.dropout import PooledDropout
from models.networks.events import INITIAL_STD, EventEmbedding
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
from models.networks.transformer import MASKED, nearness


class Seq2SeqConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of an encoder-decoder, and how far it predicts.

    Attributes:
        dim: Length of a vector, a multiple of `heads`.
        blocks: Transformer blocks in the encoder, and as many in the decoder.
        heads: Attention heads in each.
        dropout: Share of activations dropped in training.
        horizon: Items after the cut that the decoder learns to predict.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int = 128
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.2
    horizon: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.blocks, self.heads, self.horizon) < 1:
            raise ValueError("dim, blocks, heads and horizon must be at least 1")
        check_heads(self.dim, self.heads)
        check_share("dropout", self.dropout)


class Seq2Seq(LearnedNetwork):
    """The network. Shapes are those of `Network`."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.events = EventEmbedding(config.items, config.types, config.dim)
        self.end = nn.Parameter(torch.randn(config.dim) * self.events.item_std)
        reach = config.max_length + config.horizon + 1
        self.bias_across = nn.Parameter(nearness(config.heads, torch.arange(reach)))
        dropout = PooledDropout(config.dropout)
        self.encoder = _stack(config, dropout, is_decoder=False)
        self.decoder = _stack(config, dropout, is_decoder=True)
        self.register_buffer("places", torch.arange(reach), persistent=False)
        self.places: Tensor

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        """The decoder's first state after each window, shape (batch, dim); zeros for a window of length 0."""
        events = functional.pad(self.events(items, types, ages), (0, 0, 0, 1))
        last = (lengths - 1).clamp_min(0)
        vector = self._decode(events, lengths, _pick(events, last[:, None]))[:, 0]
        return vector * (lengths > 0)[:, None].to(vector.dtype)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the items after a random cut over all items that were not before each."""
        longest = int(batch.lengths.max())
        # One share for the whole batch, whose segments are about equally long: so early cuts are cheap.
        cuts = 1 + (torch.rand((), device=batch.items.device) * (batch.lengths - 1)).long()
        cuts = torch.minimum(cuts, batch.lengths - 1)
        events = self.events(batch.items, batch.types, batch.ages)
        targets = cuts[:, None] + torch.arange(min(self.config.horizon, longest - 1), device=cuts.device)
        real = targets < batch.lengths[:, None]
        targets = targets.clamp_max(longest - 1)
        before = _pick(events, targets - 1)
        vectors = self._decode(events[:, : int(cuts.max()) + 1], cuts, before)[real]
        seen = batch.items[:, None, :] * (self.places[:longest] < targets[:, :, None])
        value = unseen_cross_entropy(vectors, self.item_table(), batch.items.gather(1, targets)[real], seen[real])
        return Loss(value, len(vectors), vectors)

    def rate_share(self, name: str) -> float:
        """T5 does not divide scores by the root of the heads' width: its queries learn as if they were divided."""
        return _query_scale(self.config) if _is_query(name) else 1.0

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): the input embeddings, unscaled; row 0 is all zeros."""
        table: Tensor = self.events.items.weight
        return table

    def _decode(self, events: Tensor, lengths: Tensor, before: Tensor) -> Tensor:
        """The decoder's states, shape (batch, steps, dim).

        Args:
            events: The events' embeddings, shape (batch, length, dim), with room for the end token after the longest.
            lengths: How many of them to read, shape (batch,).
            before: The embeddings of the event before each that the decoder predicts, shape (batch, steps, dim).
        """
        places = self.places[: events.shape[1]]
        read = torch.where((places == lengths[:, None])[:, :, None], self.end, events)
        known = places <= lengths[:, None]
        encoded = self.encoder(inputs_embeds=read, attention_mask=known).last_hidden_state
        predicted = lengths[:, None] + self.places[: before.shape[1]]
        distances = (predicted[:, :, None] - places).clamp_min(0)
        # Taken as it is by T5Stack, because it has four dimensions: shape (batch, heads, steps, length).
        across = self.bias_across[:, distances].transpose(0, 1) + ~known[:, None, None, :] * MASKED
        states: Tensor = self.decoder(
            inputs_embeds=before, encoder_hidden_states=encoded, encoder_attention_mask=across
        ).last_hidden_state
        return states


def _query_scale(config: Seq2SeqConfig) -> float:
    return math.sqrt(config.heads / config.dim)


def _is_query(name: str) -> bool:
    return name.endswith("Attention.q.weight")


def _pick(events: Tensor, places: Tensor) -> Tensor:
    """Some events of each window: (batch, length, dim) at (batch, n) to (batch, n, dim)."""
    return events.gather(1, places[:, :, None].expand(-1, -1, events.shape[2]))


def _stack(config: Seq2SeqConfig, dropout: PooledDropout, *, is_decoder: bool) -> T5Stack:
    """T5's encoder or decoder without an embedding of its own."""
    # A bucket for every distance. T5's wider buckets for what is far are found through a logarithm, which two runtimes
    # may round to different sides of a border; and there is no window here that needs them.
    exact = config.max_length + 1
    # The types of transformers 5.17 are partial: they lack an argument of this one.
    stack = T5Stack(
        T5Config(  # type: ignore[call-arg]
            vocab_size=1,
            d_model=config.dim,
            d_kv=config.dim // config.heads,
            d_ff=4 * config.dim,
            num_layers=config.blocks,
            num_heads=config.heads,
            relative_attention_num_buckets=4 * exact,
            relative_attention_max_distance=2 * exact,
            dropout_rate=0.0,
            is_decoder=is_decoder,
            eos_token_id=None,
            use_cache=False,
            attn_implementation="eager",
        )
    )
    with torch.no_grad():
        # The first half of the buckets is for what is before, the second for what is after.
        near = nearness(config.heads, torch.arange(4 * exact) % (2 * exact))
        stack.get_parameter("block.0.layer.0.SelfAttention.relative_attention_bias.weight").copy_(near.T)
        # T5's weights are made for embeddings of standard deviation 1, beside which ours, of 0.23, would be lost.
        for name, parameter in stack.named_parameters():
            if parameter.dim() == 2 and "relative_attention_bias" not in name:
                parameter.normal_(std=INITIAL_STD * (_query_scale(config) if _is_query(name) else 1.0))
    stack.set_input_embeddings(nn.Identity())
    # Ours is faster on a CPU, and leaves the attention weights alone, as in `sasrec`. One for all: its pool is large.
    for module in list(stack.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, dropout)
    return stack


FAMILIES = (
    Family(
        "seq2seq",
        "encoder-decoder transformer that predicts the next several items (T5: Raffel et al., 2020)",
        Seq2SeqConfig,
        Seq2Seq,
        TrainingDefaults(epochs=40),
    ),
)
