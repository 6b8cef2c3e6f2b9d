"""What training may ask for beside accuracy: recommendations that are spread wider and follow popularity less."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data.events import item_counts
from models.networks.network import Loss, Network, TrainingData

_SAMPLE = 256  # user vectors a step whose recommendations are looked at
_WIDTH = 32


class _ReverseGradient(torch.autograd.Function):
    """The identity, whose gradient is turned round (Ganin and Lempitsky, 2015)."""

    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: object, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Regulariser(nn.Module):
    """The sum of the regularisers that are asked for; with weights of 0 it is 0 and has no parameters.

    Diversity: minus the entropy of what is recommended on average, nats: the mean over a sample of users of the softmax
    over all items. The more items share the exposure, the smaller it is.

    Adversarial: a small network learns to tell an item's popularity (its standardised log count) from its vector, and
    the vector learns to hide it, through a reversed gradient (Ganin and Lempitsky, 2015; on popularity Krishnan et al.,
    2018, take the same idea).

    Args:
        network: The network that is trained.
        data: Where the items' counts come from.
        diversity: Weight of the first.
        adversarial: Weight of the second.
    """

    def __init__(self, network: Network, data: TrainingData, diversity: float, adversarial: float) -> None:
        super().__init__()
        self._network = [network]  # in a list, so that its parameters do not become ours too
        self._diversity = diversity
        self._adversarial = adversarial
        self.adversary = nn.Sequential()
        if adversarial:
            table = network.item_table()
            counts = item_counts(data.sequences)
            logs = torch.tensor([counts.get(item_id, 0) + 1.0 for item_id in data.vocabulary.ids[1:]]).log()
            spread = logs.std().clamp_min(1e-6) if len(logs) > 1 else torch.ones(())
            self.register_buffer("popularity", ((logs - logs.mean()) / spread).to(table.device), persistent=False)
            self.popularity: Tensor
            self.adversary = nn.Sequential(nn.Linear(table.shape[1], _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 1))
            self.adversary.to(table.device)

    def forward(self, loss: Loss) -> Tensor:
        """What to add to a batch's loss, a scalar."""
        value = torch.zeros((), device=loss.value.device)
        if self._diversity and loss.vectors is not None and len(loss.vectors):
            users = loss.vectors[torch.randint(len(loss.vectors), (_SAMPLE,), device=loss.vectors.device)]
            exposure = (users @ self._network[0].item_table()[1:].T).float().softmax(1).mean(0)
            value = value + self._diversity * (exposure * exposure.clamp_min(1e-12).log()).sum()
        if self._adversarial:
            hidden = _ReverseGradient.apply(self._network[0].item_table()[1:])
            guessed = self.adversary(hidden).squeeze(1)
            value = value + self._adversarial * functional.mse_loss(guessed, self.popularity)
        return value
