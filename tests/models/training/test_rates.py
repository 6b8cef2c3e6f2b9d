import pytest
import torch
from torch import Tensor, nn

from models.data.events import UserSequence
from models.data.splits import leave_one_out
from models.networks.network import Batch, LearnedNetwork, Loss, TrainingData
from models.training.plan import TrainingPlan
from models.training.train import train_network
from models.vocabulary import Vocabulary


class Slope(LearnedNetwork):
    """Two numbers that every step wants smaller; one of them came trained."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained = nn.Parameter(torch.zeros(1))
        self.new = nn.Parameter(torch.zeros(1))

    def rate_share(self, name: str) -> float:
        return 0.1 if name == "pretrained" else 1.0

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:
        return (lengths > 0).float()[:, None]

    def item_table(self) -> Tensor:
        return torch.zeros(4, 1)

    def loss(self, batch: Batch) -> Loss:
        return Loss((self.pretrained + self.new).sum() + 10.0, 1)


def test_what_came_trained_learns_at_its_share_of_the_rate() -> None:
    sequences = [UserSequence(f"u{user}", ("a", "b", "c") * 2, ("click",) * 6, tuple(range(6))) for user in range(4)]
    split = leave_one_out(sequences)
    data = TrainingData(split.train, Vocabulary(["a", "b", "c"]), ("click",), {})
    network = Slope()
    # No validation is better than the first, so the parameters are those after the first epoch.
    train_network(network, data, split, 4, TrainingPlan(seed=1, epochs=2, learning_rate=0.01, batch_tokens=8))
    # Adam's steps do not depend on the size of a gradient, and both gradients are 1.
    assert network.new.item() < -0.01
    assert network.pretrained.item() == pytest.approx(0.1 * network.new.item(), rel=1e-4)
