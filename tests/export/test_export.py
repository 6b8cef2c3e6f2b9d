from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.commands import export
from export.onnx_graph import check_parity
from models.bundle import Bundle, read_bundle
from models.checkpoint import read_checkpoint
from models.commands.train import train
from models.errors import BundleError
from models.evaluation.onnx_runtime import onnx_encoder
from models.spec import Vectors
from models.windows import WindowInputs

MAX_LENGTH = 9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "tiny"
    train(out=out, users=30, epochs=1, settings=["dim=8"], window_max=MAX_LENGTH, window_keep=4)
    return out


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    export(checkpoint, out=out)
    return read_bundle(out)


def test_a_trained_network_becomes_a_bundle_that_says_where_it_came_from(checkpoint: Path, bundle: Bundle) -> None:
    assert bundle.config.window.max == MAX_LENGTH
    assert bundle.config.window.keep == 4
    trained, exported = bundle.manifest.command.splitlines()
    assert trained.startswith("driftline train --model sasrec")
    assert exported == f"driftline export {checkpoint} --out {bundle.path}"
    assert bundle.manifest.metrics == read_checkpoint(checkpoint).checkpoint.metrics
    assert bundle.manifest.parity.windows > 4 * (MAX_LENGTH + 1)
    assert 0 < bundle.manifest.parity.max_abs_difference < 1e-5


def test_the_graph_keeps_the_contract(bundle: Bundle) -> None:
    model = onnx.load(bundle.encoder_path, load_external_data=False)
    described = {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in [*model.graph.input, *model.graph.output]
    }
    assert described == {
        "items": ("INT64", ["batch", "length"]),
        "types": ("INT64", ["batch", "length"]),
        "ages": ("FLOAT", ["batch", "length"]),
        "lengths": ("INT64", ["batch"]),
        "vector": ("FLOAT", ["batch", 8]),
    }
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [opset.version for opset in model.opset_import if not opset.domain] == [bundle.manifest.opset]


def test_the_graph_does_not_tell_where_it_was_made(bundle: Bundle) -> None:
    content = bundle.encoder_path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content


def test_onnx_runtime_follows_the_network_for_any_batch_and_length(checkpoint: Path, bundle: Bundle) -> None:
    network = read_checkpoint(checkpoint).network
    encode = onnx_encoder(bundle.encoder_path)
    rng = np.random.default_rng(9)
    for batch, length in ((1, 1), (1, MAX_LENGTH), (2, 5), (300, 7)):
        items = rng.integers(1, 30, (batch, length))
        types = rng.integers(1, 4, (batch, length))
        ages = np.sort(rng.uniform(0, 1e6, (batch, length)).astype(np.float32), axis=1)[:, ::-1].copy()
        lengths = rng.integers(0, length + 1, batch)
        with torch.inference_mode():
            expected = network(*map(torch.from_numpy, (items, types, ages, lengths))).numpy()
        np.testing.assert_allclose(encode(WindowInputs(items, types, ages, lengths)), expected, atol=1e-5)


def test_the_golden_sample_is_what_onnx_runtime_gives(bundle: Bundle) -> None:
    vectors = onnx_encoder(bundle.encoder_path)(bundle.golden.inputs)
    np.testing.assert_allclose(vectors, bundle.golden.vectors, atol=1e-6)
    best = 1 + np.argsort(-(vectors @ bundle.item_vectors[1:].T), axis=1)[:, :10]
    assert best.tolist() == bundle.golden.top.tolist()


def test_an_exported_checkpoint_does_not_replace_a_bundle_unasked(checkpoint: Path, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="already holds a model bundle"):
        export(checkpoint, out=bundle.path)


TABLE = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
TABLE[0] = 0.0


def mean(inputs: WindowInputs) -> Vectors:
    vectors: Vectors = TABLE[inputs.items].sum(axis=1) / np.maximum(inputs.lengths, 1).astype(np.float32)[:, None]
    return vectors


def wrong_at_length_7(inputs: WindowInputs) -> Vectors:
    return mean(inputs) + np.where(inputs.lengths == 7, np.float32(0.01), np.float32(0.0))[:, None]


def nothing_is_something(inputs: WindowInputs) -> Vectors:
    return mean(inputs) + np.where(inputs.lengths == 0, np.float32(1e-6), np.float32(0.0))[:, None]


def no_numbers(inputs: WindowInputs) -> Vectors:
    return mean(inputs) * np.float32(np.nan)


def one_short(inputs: WindowInputs) -> Vectors:
    return mean(inputs)[:, :-1]


@pytest.mark.parametrize(
    ("exported", "message"),
    [
        (wrong_at_length_7, "differ from PyTorch's by 0.01 for windows of 7 to 7 events, allowed is 0.0001"),
        (nothing_is_something, "a window without events a vector that is not zero"),
        (no_numbers, "no finite vectors"),
        (one_short, r"no finite vectors of shape \(4, 6\)"),
    ],
)
def test_an_encoder_that_differs_is_refused(exported: Callable[[WindowInputs], Vectors], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check_parity(mean, exported, TABLE, types=2, max_length=MAX_LENGTH)


def test_an_encoder_that_is_the_same_but_for_rounding_is_accepted_and_measured() -> None:
    def rounded(inputs: WindowInputs) -> Vectors:
        vectors: Vectors = mean(inputs) * np.float32(1 + 1e-6)
        return vectors

    parity = check_parity(mean, rounded, TABLE, types=2, max_length=MAX_LENGTH)
    assert parity.windows == 4 * 10 + 3 + 20
    assert 0 < parity.max_abs_difference < 1e-4
