from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.golden import golden_sample, random_inputs, top_rows
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from models.windows import WindowInputs


def test_the_vector_is_the_mean_of_the_windows_items(tmp_path: Path) -> None:
    bundle = write_pooling_bundle(tmp_path / "bundle", ["a", "b", "c"], dim=4)
    session = onnxruntime.InferenceSession(bundle.encoder_path, providers=["CPUExecutionProvider"])
    zeros = np.zeros((3, 2), np.int64)
    inputs = WindowInputs(
        np.array([[1, 3], [2, 0], [0, 0]]), zeros, zeros.astype(np.float32), np.array([2, 1, 0], np.int64)
    )
    (vectors,) = session.run(None, inputs.as_feed())
    table = bundle.item_vectors
    np.testing.assert_allclose(vectors, [(table[1] + table[3]) / 2, table[2], np.zeros(4)], atol=1e-6)


def test_its_golden_sample_holds_in_onnx_runtime(tmp_path: Path) -> None:
    bundle = write_pooling_bundle(tmp_path / "bundle", [f"i{n}" for n in range(100)], window=WindowRule(20, 10))
    assert bundle.config.window == WindowRule(max=20, keep=10)
    session = onnxruntime.InferenceSession(bundle.encoder_path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["items", "types", "ages", "lengths"]
    (vectors,) = session.run(["vector"], bundle.golden.inputs.as_feed())
    np.testing.assert_allclose(vectors, bundle.golden.vectors, atol=1e-6)
    assert bundle.golden.top.shape == (8, 10)


def test_the_same_items_and_seed_give_the_same_version(tmp_path: Path) -> None:
    versions = [
        write_pooling_bundle(tmp_path / str(n), ["a", "b"], seed=seed).config.version
        for n, seed in enumerate((0, 0, 1))
    ]
    assert versions[0] == versions[1] != versions[2]


def test_the_best_items_are_ranked_by_score_and_equal_ones_by_row() -> None:
    items = np.array([[9.0], [1.0], [3.0], [1.0], [2.0]], np.float32)
    vectors = np.array([[1.0], [-1.0]], np.float32)
    assert top_rows(vectors, items, k=3).tolist() == [[2, 4, 1], [1, 3, 4]]
    assert top_rows(vectors, items, k=6).tolist() == [[2, 4, 1, 3, -1, -1], [1, 3, 4, 2, -1, -1]]


def test_random_windows_are_valid_encoder_inputs() -> None:
    inputs = random_inputs(np.array([0, 3, 5]), 7, 2, np.random.default_rng(0))
    for row, length in enumerate([0, 3, 5]):
        assert (inputs.items[row, :length] > 0).all()
        assert (inputs.items[row, length:] == 0).all()
        assert (inputs.types[row, :length] > 0).all()
        assert (inputs.types[row, length:] == 0).all()
        ages = inputs.ages[row, :length]
        assert (np.diff(ages) <= 0).all()
        assert length == 0 or ages[-1] == 0
        assert (inputs.ages[row, length:] == 0).all()
    assert inputs.items.max() <= 7
    assert inputs.types.max() <= 3


@pytest.mark.parametrize("items", [1, 3, 40])
def test_a_golden_sample_keeps_the_windows_whose_best_items_stand_furthest_apart(items: int) -> None:
    table = np.random.default_rng(1).standard_normal((items + 1, 4)).astype(np.float32)
    table[0] = 0.0
    golden = golden_sample(
        lambda inputs: table[inputs.items].sum(axis=1), table, types=2, max_length=9, rng=np.random.default_rng(2)
    )
    assert len(golden.inputs) == 8
    assert golden.inputs.items.shape[1] == golden.inputs.lengths.max()
    scores = np.sort(golden.vectors @ table[1:].T, axis=1)[:, ::-1][:, :11]
    assert items == 1 or (scores[:, :-1] - scores[:, 1:]).min() > 1e-3
