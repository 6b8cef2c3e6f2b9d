"""A network as functions on arrays: what evaluation and export call."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.networks.network import FittedNetwork, Network, ScoringNetwork, VariationalNetwork
from models.ranking import Score
from models.spec import IntArray, Vectors
from models.windows import WindowInputs


def encoder_of(network: Network) -> Callable[[WindowInputs], Vectors]:
    """The network as a function from encoder inputs to vectors, shape (batch, dim), float32."""
    device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))

    def encode(inputs: WindowInputs) -> Vectors:
        with torch.inference_mode():
            vectors: Vectors = network(*tensors_of(inputs, device)).float().cpu().numpy()
        return vectors

    return encode


def item_vectors_of(network: Network) -> Vectors:
    """The network's item table as an array of its own, shape (items + 1, dim), float32."""
    with torch.inference_mode():
        vectors: Vectors = network.item_table().float().cpu().numpy().copy()
    return vectors


def parameter_count(network: Network) -> int:
    """How many numbers came from the data: by gradient descent, or, of a fitted network, computed and kept."""
    numbers = network.state_dict().values() if isinstance(network, FittedNetwork) else network.parameters()
    return sum(tensor.numel() for tensor in numbers)


def deviation_of(network: VariationalNetwork) -> Callable[[WindowInputs], Vectors]:
    """The network as a function from encoder inputs to the deviations of its vectors, shape (batch, dim), float32."""
    device = next(network.parameters()).device

    def deviate(inputs: WindowInputs) -> Vectors:
        tensors = [torch.from_numpy(array).to(device) for array in inputs.as_feed().values()]
        with torch.inference_mode():
            deviations: Vectors = network.distribution(*tensors)[1].float().cpu().numpy()
        return deviations

    return deviate


def score_of(network: ScoringNetwork) -> Score:
    """The network as a function from vectors and candidate rows to scores, shape (batch, n), float32."""
    device = next(network.parameters()).device

    def score(vectors: Vectors, candidates: IntArray) -> Vectors:
        with torch.inference_mode():
            scores: Tensor = network.score(
                torch.from_numpy(vectors).to(device), torch.from_numpy(candidates).to(device)
            )
        found: Vectors = scores.float().cpu().numpy()
        return found

    return score


def tensors_of(inputs: WindowInputs, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Items, types, ages and lengths on a device."""
    return (
        torch.from_numpy(inputs.items).to(device),
        torch.from_numpy(inputs.types).to(device),
        torch.from_numpy(inputs.ages).to(device),
        torch.from_numpy(inputs.lengths).to(device),
    )
