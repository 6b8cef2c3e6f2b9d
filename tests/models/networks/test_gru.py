from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from models.errors import BundleError
from models.networks import build_network
from models.networks.gru import Gru
from tests.models.networks.circle import (
    CHANCE_NDCG,
    ITEMS,
    MAX_LENGTH,
    Trained,
    check_export,
    check_round_trip,
    check_windows,
    train_a_moment,
    windows,
)

Doubles = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_a_moment("gru", epochs=20, dim=16, width=24)


def randomised(**settings: object) -> Gru:
    """Weights of every size, so that nothing hides behind small initial ones."""
    torch.manual_seed(0)
    network = build_network(
        "gru", {"items": ITEMS, "types": 2, "max_length": MAX_LENGTH, "dim": 6, "width": 5, **settings}
    )
    assert isinstance(network, Gru)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.4)
        network.events.items.weight[0] = 0.0
        network.events.types.weight[0] = 0.0
        network.norm.weight.fill_(1.0)
        network.norm.bias.fill_(0.0)
    return network.eval()


def norm(x: Doubles) -> Doubles:
    """Layer normalisation as PyTorch's begins: no scale, no shift, epsilon 1e-5."""
    centred = x - x.mean(-1, keepdims=True)
    normed: Doubles = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)
    return normed


def test_it_learns_what_follows_what(trained: Trained) -> None:
    assert trained.ndcg() > CHANCE_NDCG + 0.5


def test_windows_are_encoded_alone_and_nothing_gives_nothing(trained: Trained) -> None:
    check_windows(trained.network)


def test_onnx_runtime_follows_it_with_one_gru_operator(trained: Trained) -> None:
    # Unrolled into single steps, the graph would hold for one length only.
    graph = onnx.load_model_from_string(check_export(trained)).graph
    assert [node.op_type for node in graph.node].count("GRU") == 1


def test_a_checkpoint_keeps_it(trained: Trained, tmp_path: Path) -> None:
    check_round_trip(trained, tmp_path)


def test_the_served_vector_is_the_one_trained_at_the_last_event() -> None:
    network = randomised()
    items, types, ages, lengths = windows(1, 5, 6)
    every = network.at_every_event(items, types, ages)
    served = network(items, types, ages, lengths)
    torch.testing.assert_close(served, every[torch.arange(3), lengths - 1], atol=1e-6, rtol=0)


def test_a_vector_remembers_every_event_and_foresees_none() -> None:
    network = randomised()
    items, types, ages, _ = windows(6, 6, 6)
    before = network.at_every_event(items, types, ages)
    changed = items.clone()
    changed[:, 2] = ITEMS + 1 - changed[:, 2]
    after = network.at_every_event(changed, types, ages)
    torch.testing.assert_close(after[:, :2], before[:, :2], atol=1e-6, rtol=0)
    assert ((after - before)[:, 2:].abs().amax((0, 2)) > 1e-3).all()


def test_the_state_follows_the_equations_of_the_paper() -> None:
    network = randomised(layers=2)
    items, types, ages, lengths = windows(4)
    with torch.inference_mode():
        vector = network(items, types, ages, lengths)[0].numpy()
        inputs = network.events(items, types, ages)[0].numpy().astype(np.float64)
    weights = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in network.named_parameters()}
    for layer in range(2):
        inputs = np.array(gru_states(inputs, {key: weights[f"recurrent.{layer}.{key}_l0"] for key in GRU_WEIGHTS}))
    expected = norm(inputs[-1] @ weights["output.weight"].T + weights["output.bias"])
    np.testing.assert_allclose(vector, expected, atol=1e-5)


GRU_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def gru_states(inputs: Doubles, weights: dict[str, Doubles]) -> list[Doubles]:
    """Hidasi et al. (2016), equations 1 to 4, with the reset gate on the state's product as in cuDNN."""

    def sigmoid(x: Doubles) -> Doubles:
        return 1 / (1 + np.exp(-x))

    state = np.zeros(weights["weight_hh"].shape[1])
    states = []
    for x in inputs:
        from_input = np.split(weights["weight_ih"] @ x + weights["bias_ih"], 3)
        from_state = np.split(weights["weight_hh"] @ state + weights["bias_hh"], 3)
        reset = sigmoid(from_input[0] + from_state[0])
        keep = sigmoid(from_input[1] + from_state[1])
        candidate = np.tanh(from_input[2] + reset * from_state[2])
        state = (1 - keep) * candidate + keep * state
        states.append(state)
    return states


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dim": 0}, "dim, width and layers must be at least 1"),
        ({"width": 0}, "dim, width and layers must be at least 1"),
        ({"layers": 0}, "dim, width and layers must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_network("gru", {"items": 5, "types": 1, "max_length": 4, **setting})
