"""Popularity, alike for everyone: the baseline that every table carries, and how it stands of late."""

from collections import defaultdict

import torch
from torch import Tensor

from models.networks.network import Family, FittedNetwork, NetworkConfig, TrainingData, lasting

_DAY_MS = 86_400_000.0


class PopularityConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """Nothing to choose."""


class RecentPopularityConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """How fast popularity is forgotten.

    Attributes:
        half_life_days: An event so many days before the newest one of the training data counts half.

    Raises:
        ValueError: A value out of its range.
    """

    half_life_days: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.half_life_days > 0.0:
            raise ValueError(f"half_life_days must be above 0, not {self.half_life_days}")


class Popularity(FittedNetwork):
    """Every window with an event has the vector [1], an item log(1 + its count in the training data).

    So the softmax of the scores is the distribution of the events, with one event more for each item (Laplace). Recent
    popularity weighs an event by 0.5 ** (days before the newest training event / half-life). In data without times that
    is a count too: they lie milliseconds apart. Shapes are those of `Network`, with dim 1.
    """

    def __init__(self, config: PopularityConfig | RecentPopularityConfig) -> None:
        super().__init__()
        self.config = config
        self.log_counts = lasting(self, "log_counts", (config.items + 1, 1))

    def prepare(self, data: TrainingData) -> None:
        """Count."""
        newest = max((time for sequence in data.sequences for time in sequence.times), default=0)
        weights: dict[str, float] = defaultdict(float)
        for sequence in data.sequences:
            for item_id, time in zip(sequence.items, sequence.times, strict=True):
                weights[item_id] += self._weight(newest - time)
        counts = [0.0, *(weights[item_id] for item_id in data.vocabulary.ids[1:])]
        self.log_counts.copy_(torch.tensor(counts, dtype=torch.float64).log1p()[:, None])

    def _weight(self, age_ms: int) -> float:
        if isinstance(self.config, PopularityConfig):
            return 1.0
        return float(0.5 ** (age_ms / _DAY_MS / self.config.half_life_days))

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002  the encoder's inputs
        """1 for each window, shape (batch, 1); 0 for a window of length 0."""
        return (lengths > 0)[:, None].to(self.log_counts.dtype)

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, 1); row 0 is 0."""
        return self.log_counts


FAMILIES = (
    Family("popularity", "what most events are of, the same for everyone", PopularityConfig, Popularity),
    Family(
        "recent-popularity",
        "popularity with a half-life, for data with times",
        RecentPopularityConfig,
        Popularity,
    ),
)
