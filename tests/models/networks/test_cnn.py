from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.errors import BundleError
from models.networks import build_network
from models.networks.cnn import Cnn
from tests.models.networks.circle import (
    CHANCE_NDCG,
    ITEMS,
    MAX_LENGTH,
    Trained,
    check_round_trip,
    check_windows,
    train_a_moment,
    windows,
)

Doubles = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_a_moment("cnn", dim=16, blocks=2)


def randomised(max_length: int = MAX_LENGTH, **settings: object) -> Cnn:
    """Weights of every size, so that nothing hides behind small initial ones."""
    torch.manual_seed(0)
    network = build_network("cnn", {"items": ITEMS, "types": 2, "max_length": max_length, "dim": 6, **settings})
    assert isinstance(network, Cnn)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.4)
        network.events.items.weight[0] = 0.0
        network.events.types.weight[0] = 0.0
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


def test_a_checkpoint_keeps_it(trained: Trained, tmp_path: Path) -> None:
    check_round_trip(trained, tmp_path)


def test_the_served_vector_is_the_one_trained_at_the_last_event() -> None:
    network = randomised()
    items, types, ages, lengths = windows(1, 5, 6)
    every = network.at_every_event(items, types, ages)
    served = network(items, types, ages, lengths)
    torch.testing.assert_close(served, every[torch.arange(3), lengths - 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("blocks", "kernel", "reach"), [(1, 3, 7), (2, 3, 31), (1, 2, 4), (2, 2, 16)])
def test_a_vector_depends_on_exactly_the_events_within_reach(blocks: int, kernel: int, reach: int) -> None:
    network = randomised(max_length=40, blocks=blocks, kernel=kernel)
    items = torch.arange(40)[None, :] % ITEMS + 1
    types, ages = torch.ones_like(items), torch.zeros(1, 40)
    before = network.at_every_event(items, types, ages)
    changed = items.clone()
    changed[0, 5] = ITEMS
    moved = (network.at_every_event(changed, types, ages) - before).abs().amax(2)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(5, min(40, 5 + reach)))


def test_a_block_adds_two_dilated_convolutions_normalised_and_rectified() -> None:
    network = randomised(blocks=2)
    items, types, ages, lengths = windows(6)
    with torch.inference_mode():
        vector = network(items, types, ages, lengths)[0].numpy()
        x = network.events(items, types, ages)[0].numpy().astype(np.float64)
    weights = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in network.named_parameters()}

    def convolve(x: Doubles, name: str, dilation: int) -> Doubles:
        kernel, bias = weights[f"{name}.convolution.weight"], weights[f"{name}.convolution.bias"]
        out = np.tile(bias, (len(x), 1))
        for place in range(len(x)):
            # The last tap is the event itself, the one before it `dilation` events earlier.
            for tap, back in enumerate((2 * dilation, dilation, 0)):
                if place >= back:
                    out[place] += kernel[:, :, tap] @ x[place - back]
        return out

    for block, dilation in ((0, 1), (1, 4)):
        inner = np.maximum(norm(convolve(x, f"blocks.{block}.near", dilation)), 0)
        x = x + np.maximum(norm(convolve(inner, f"blocks.{block}.far", 2 * dilation)), 0)
    np.testing.assert_allclose(vector, norm(x[-1]), atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dim": 0}, "dim and blocks must be at least 1, kernel at least 2"),
        ({"blocks": 0}, "dim and blocks must be at least 1, kernel at least 2"),
        ({"kernel": 1}, "dim and blocks must be at least 1, kernel at least 2"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, not -0.1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_network("cnn", {"items": 5, "types": 1, "max_length": 4, **setting})
