from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.onnx_graph import check_deviation_parity
from models.errors import BundleError
from models.evaluation.onnx_runtime import onnx_deviation
from models.evaluation.recommender import Encode
from models.networks import build_network
from models.networks.functions import deviation_of
from models.networks.network import Batch
from models.networks.vae import Vae, divergence
from models.spec import Vectors
from models.windows import WindowInputs
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


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_a_moment("vae", dim=16, blocks=1)


@pytest.fixture(scope="module")
def network(trained: Trained) -> Vae:
    assert isinstance(trained.network, Vae)
    return trained.network


def untrained(**settings: object) -> Vae:
    torch.manual_seed(0)
    network = build_network("vae", {"items": ITEMS, "types": 2, "max_length": MAX_LENGTH, "dim": 8, **settings})
    assert isinstance(network, Vae)
    return network


def batch_of(progress: float) -> Batch:
    items, types, ages, lengths = windows(6, 4)
    return Batch(items, types, ages, lengths, progress)


def test_it_learns_what_follows_what(trained: Trained) -> None:
    assert trained.ndcg() > CHANCE_NDCG + 0.5


def test_windows_are_encoded_alone_and_nothing_gives_nothing(network: Vae) -> None:
    check_windows(network)
    with torch.inference_mode():
        mean, deviation = network.distribution(*windows(4, 0, 6))
        torch.testing.assert_close(mean, network(*windows(4, 0, 6)), atol=0, rtol=0)
    assert (deviation[[0, 2]] > 0).all()
    assert not deviation[1].any()


def test_the_exported_graph_gives_mean_and_deviation(trained: Trained, network: Vae) -> None:
    encoder = check_export(trained)
    assert [output.name for output in onnx.load_from_string(encoder).graph.output] == ["vector", "deviation"]
    off = check_deviation_parity(deviation_of(network), onnx_deviation(encoder), ITEMS, 2, MAX_LENGTH)
    assert off < 1e-5


def test_a_checkpoint_keeps_it(trained: Trained, tmp_path: Path) -> None:
    check_round_trip(trained, tmp_path)


def test_the_divergence_from_the_prior_is_the_closed_form() -> None:
    # N(1, 1) and N(0, 4) in the first row: 1/2 (1 + 1 - 1 - 0) + 1/2 (0 + 4 - 1 - ln 4); the prior itself in the second.
    mean = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    log_variance = torch.tensor([[0.0, np.log(4.0)], [0.0, 0.0]], dtype=torch.float32)
    expected = [0.5 + 1.5 - np.log(2.0), 0.0]
    np.testing.assert_allclose(divergence(mean, log_variance).numpy(), expected, atol=1e-6)


def test_the_divergence_counts_more_and_more_until_annealing_is_over() -> None:
    network = untrained(dropout=0.0, beta=0.3, annealing=0.5).train()
    values = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        torch.manual_seed(3)
        values.append(network.loss(batch_of(progress)).value.item())
    # The divergence of each event's posterior, from windows that end with it.
    network.eval()
    items, types, ages, lengths = windows(6, 4)
    divergences = []
    for row in range(2):
        for stop in range(1, int(lengths[row])):
            part = (slice(row, row + 1), slice(0, stop))
            with torch.inference_mode():
                mean, deviation = network.distribution(items[part], types[part], ages[part], torch.tensor([stop]))
            m, s = mean.numpy().astype(np.float64), deviation.numpy().astype(np.float64)
            divergences.append(float(np.sum((m**2 + s**2 - 1) / 2 - np.log(s))))
    full = 0.3 * float(np.mean(divergences))
    np.testing.assert_allclose(np.array(values) - values[0], [0.0, full / 2, full, full], rtol=1e-4, atol=1e-5)


def test_training_sees_samples_and_serving_the_mean() -> None:
    network = untrained(dropout=0.0).train()
    first, second = (network.loss(batch_of(0.0)).value.item() for _ in range(2))
    assert first != second
    network.eval()
    with torch.inference_mode():
        torch.testing.assert_close(network(*windows(5)), network(*windows(5)), atol=0, rtol=0)


def halves(inputs: WindowInputs) -> Vectors:
    return np.where(inputs.lengths > 0, np.float32(0.5), np.float32(0.0))[:, None].repeat(3, axis=1)


def wrong_at_length_4(inputs: WindowInputs) -> Vectors:
    return halves(inputs) + np.where(inputs.lengths == 4, np.float32(0.01), np.float32(0.0))[:, None]


def negative(inputs: WindowInputs) -> Vectors:
    return -halves(inputs)


def something_for_nothing(inputs: WindowInputs) -> Vectors:
    return np.full((len(inputs), 3), 0.5, np.float32)


@pytest.mark.parametrize(
    ("expected", "exported", "message"),
    [
        (halves, wrong_at_length_4, "deviations differ from PyTorch's by 0.01 for windows of 4 to 4 events"),
        (negative, negative, "a negative deviation for windows of 1 to 1 events"),
        (something_for_nothing, something_for_nothing, "a window without events a deviation that is not zero"),
    ],
)
def test_deviations_that_serving_could_not_use_are_refused(expected: Encode, exported: Encode, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check_deviation_parity(expected, exported, ITEMS, 2, MAX_LENGTH)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": -0.1}, "beta must be at least 0"),
        ({"annealing": 0.0}, "annealing must be above 0"),
        ({"annealing": 1.1}, "annealing must be above 0 and at most 1"),
        ({"dim": 7, "heads": 2}, "dim must be a multiple of heads"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_network("vae", {"items": 5, "types": 1, "max_length": 4, **setting})
