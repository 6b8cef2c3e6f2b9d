from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.errors import BundleError
from models.networks import build_network
from models.networks.autoencoder import Autoencoder
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


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_a_moment("autoencoder", dim=16, heads=4)


def norm(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Layer normalisation as PyTorch's begins: no scale, no shift, epsilon 1e-5."""
    centred = x - x.mean()
    normed: npt.NDArray[np.float64] = centred / np.sqrt(centred.var() + 1e-5)
    return normed


def untrained(**settings: object) -> Autoencoder:
    torch.manual_seed(0)
    config = {"items": ITEMS, "types": 2, "max_length": MAX_LENGTH, "dim": 8, "heads": 2, **settings}
    network = build_network("autoencoder", config)
    assert isinstance(network, Autoencoder)
    return network


def test_it_learns_what_follows_what(trained: Trained) -> None:
    assert trained.ndcg() > CHANCE_NDCG + 0.5


def test_windows_are_encoded_alone_and_nothing_gives_nothing(trained: Trained) -> None:
    check_windows(trained.network)


def test_a_checkpoint_keeps_it(trained: Trained, tmp_path: Path) -> None:
    check_round_trip(trained, tmp_path)


def test_the_served_vector_is_the_one_trained_at_the_last_event(trained: Trained) -> None:
    network = trained.network
    assert isinstance(network, Autoencoder)
    items, types, ages, lengths = windows(1, 5, 6)
    with torch.inference_mode():
        every = network.at_every_event(items, types, ages)
        torch.testing.assert_close(
            network(items, types, ages, lengths), every[torch.arange(3), lengths - 1], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("corruption", [0.0, 0.5, 0.99])
def test_no_event_sees_a_later_one_however_much_is_hidden(corruption: float) -> None:
    network = untrained(corruption=corruption, dropout=0.0).train()
    items, types, ages, _ = windows(6, 6, 6, 6)
    torch.manual_seed(2)
    before = network.at_every_event(items, types, ages)
    changed = torch.cat((items[:, :3], ITEMS + 1 - items[:, 3:]), 1)
    torch.manual_seed(2)
    after = network.at_every_event(changed, types, ages)
    torch.testing.assert_close(after[:, :3], before[:, :3], atol=1e-6, rtol=0)
    assert (after[:, 5] - before[:, 5]).abs().max() > 1e-2


def test_hidden_events_are_missing_from_the_bag() -> None:
    network = untrained(corruption=0.5, dropout=0.0).train()
    items, types, ages, _ = windows(*[6] * 40)
    torch.manual_seed(2)
    corrupted = network.at_every_event(items, types, ages)[:, -1]
    network.eval()
    whole = network.at_every_event(items, types, ages)[:, -1]
    # 2 ** -6 of the windows lose nothing, and as many everything, which is the same: about one of 40.
    same = ((corrupted - whole).abs().amax(1) < 1e-6).sum()
    assert same < 6


def test_a_vector_is_the_weighted_bag_and_its_hidden_layer() -> None:
    network = untrained()
    network.eval()
    rng = np.random.default_rng(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, 0.3, tuple(parameter.shape))))
        for layer_norm in (network.bag_norm, network.norm):
            layer_norm.weight.fill_(1.0)
            layer_norm.bias.fill_(0.0)
    items, types, ages, lengths = windows(3)
    with torch.inference_mode():
        vector = network(items, types, ages, lengths)[0].numpy()
        x = network.events(items, types, ages)[0].numpy().astype(np.float64)
    parts = {name: parameter.detach().numpy().astype(np.float64) for name, parameter in network.named_parameters()}
    values = x @ parts["value.weight"].T
    heads = []
    for head in range(2):
        # The newest of three events is 0 events ago, the oldest 2.
        logs = x @ parts["weight.weight"][head] + parts["bias_by_distance"][head][[2, 1, 0]]
        shares = np.exp(logs) / np.exp(logs).sum()
        heads.append(shares @ values[:, 4 * head : 4 * head + 4])
    bag = np.concatenate(heads)
    hidden = np.tanh(norm(bag) @ parts["hidden.weight"].T + parts["hidden.bias"])
    np.testing.assert_allclose(vector, norm(bag + hidden @ parts["vector.weight"].T), atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dim": 10, "heads": 4}, "dim must be a multiple of heads, not 10 of 4"),
        ({"dim": 0}, "dim and heads must be at least 1"),
        ({"corruption": 1.0}, "corruption must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_network("autoencoder", {"items": 5, "types": 1, "max_length": 4, **setting})
