"""A variational autoencoder over the window: a user's interest as a distribution instead of a point.

The decoder is that of Mult-VAE (Liang et al., 2018, "Variational Autoencoders for Collaborative Filtering"): a
multinomial over all items, whose scores are the dot products of the sampled interest with the item vectors, so that a
mean or a sample is served alike. Mult-VAE's encoder sees a bag of items, and the order of a window is most of what
tells the next one; so, as in the sequential variational autoencoder (Sachdeva et al., 2019) and the variational
self-attention network (Zhao et al., 2021), every event has a posterior of its own, given the events up to it, and the
encoder is a causal transformer: ours is `SasRec`.
"""

import torch
from torch import Tensor, nn

from models.losses import unseen_cross_entropy
from models.networks.network import Batch, Family, Loss, TrainingDefaults, VariationalNetwork, seen_so_far
from models.networks.sasrec import SasRec, SasRecConfig

_INITIAL_LOG_VARIANCE = -4.0
# Of the log variance on both sides: exp stays finite in float32, whatever a long training does.
_LARGEST_LOG_VARIANCE = 10.0


class VaeConfig(SasRecConfig, frozen=True, forbid_unknown_fields=True):
    """The shape of a variational autoencoder: that of its SASRec encoder, and how strongly it is held to the prior.

    Attributes:
        beta: Weight of the Kullback–Leibler divergence once annealing is over. Liang et al. (2018) count one divergence for
            all of a user's items and weigh it 0.2 at most; here every event has its own, so it is that over hundreds.
        annealing: Share of the training in which that weight rises linearly from 0.

    Raises:
        ValueError: A value out of its range.
    """

    beta: float = 0.0005
    annealing: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0.0:
            raise ValueError(f"beta must be at least 0, not {self.beta}")
        if not 0.0 < self.annealing <= 1.0:
            raise ValueError(f"annealing must be above 0 and at most 1, not {self.annealing}")


class Vae(VariationalNetwork):
    """The network. Shapes are those of `Network`."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SasRec(config)
        self.mean = nn.Linear(config.dim, config.dim, bias=False)
        self.log_variance = nn.Linear(config.dim, config.dim)
        # The mean starts as what the encoder gives, and the noise small beside it: the network first learns what comes
        # next, as SASRec does, and then how sure it may be.
        nn.init.eye_(self.mean.weight)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, _INITIAL_LOG_VARIANCE)

    def distribution(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each window's vector, both shape (batch, dim); zeros for length 0."""
        encoded = self.encoder(items, types, ages, lengths)
        some = (lengths > 0)[:, None].to(encoded.dtype)
        return self.mean(encoded), (self._log_variance(encoded) / 2).exp() * some

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): the encoder's input embeddings; row 0 is all zeros."""
        return self.encoder.item_table()

    def loss(self, batch: Batch) -> Loss:
        """The negative evidence lower bound of every next item, its divergence annealed (Liang et al., 2018, §2.2.2).

        One sample of each posterior (Kingma and Welling, 2014) is scored against all items that the segment did not
        hold so far.
        """
        items, targets = batch.items[:, :-1], batch.items[:, 1:]
        real = targets > 0
        encoded = self.encoder.at_every_event(items, batch.types[:, :-1], batch.ages[:, :-1])[real]
        mean, log_variance = self.mean(encoded), self._log_variance(encoded)
        sampled = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        likelihood = unseen_cross_entropy(sampled, self.item_table(), targets[real], seen_so_far(items)[real])
        weight = self.config.beta * min(1.0, batch.progress / self.config.annealing)
        value = likelihood + weight * divergence(mean, log_variance).mean()
        return Loss(value, len(mean), mean)

    def _log_variance(self, encoded: Tensor) -> Tensor:
        log_variance: Tensor = self.log_variance(encoded)
        return log_variance.clamp(-_LARGEST_LOG_VARIANCE, _LARGEST_LOG_VARIANCE)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback–Leibler divergence of diagonal Gaussians from the standard one (Kingma and Welling, 2014, appendix B).

    Args:
        mean: Shape (n, dim).
        log_variance: Shape (n, dim).

    Returns:
        Shape (n,), nats.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)


FAMILIES = (
    Family(
        "vae",
        "variational autoencoder with a causal transformer as encoder (Liang et al., 2018; Sachdeva et al., 2019)",
        VaeConfig,
        Vae,
        TrainingDefaults(epochs=24, weight_decay=0.02),
    ),
)
