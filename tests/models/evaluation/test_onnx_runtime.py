import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.bundle import Bundle, Golden, GoldenScores, read_bundle, write_bundle
from models.data.splits import Judged
from models.errors import BundleError
from models.evaluation.full_ranking import judge, queries_of
from models.evaluation.onnx_runtime import onnx_scorer, read_recommender
from models.spec import ItemMetadata
from tests.models.evaluation.toys import sequence

DEMO = Path(__file__).parents[3] / "streams" / "demo" / "bundle"


def copied(bundle: Bundle, out: Path, *, golden: Golden | None = None, encoder: bytes | None = None) -> Path:
    write_bundle(
        out,
        config=bundle.config,
        encoder=bundle.encoder_path.read_bytes() if encoder is None else encoder,
        vocabulary=bundle.vocabulary,
        item_vectors=bundle.item_vectors,
        metadata=bundle.metadata,
        golden=golden or bundle.golden,
        provenance=bundle.manifest,
    )
    return out


def test_a_bundle_becomes_something_to_evaluate() -> None:
    bundle, model = read_bundle(DEMO), read_recommender(DEMO)
    np.testing.assert_allclose(model.encode(bundle.golden.inputs), bundle.golden.vectors, atol=1e-5)
    assert (model.name, model.window, model.types) == ("sasrec-demo", bundle.config.window, ("click", "view"))
    assert model.metadata["espresso-02"] == ItemMetadata("Burr grinder", ("Espresso",))
    assert model.size_bytes == (DEMO / "encoder.onnx").stat().st_size + (DEMO / "items.npy").stat().st_size
    assert (model.score, model.candidates) == (None, 0)


def test_a_bundle_that_does_not_repeat_its_golden_sample_is_refused(tmp_path: Path) -> None:
    bundle = read_bundle(DEMO)
    golden = dataclasses.replace(bundle.golden, vectors=bundle.golden.vectors + np.float32(0.01))
    with pytest.raises(
        BundleError, match=r"the encoder of .* does not repeat its golden sample here: it is off by 0.01"
    ):
        read_recommender(copied(bundle, tmp_path / "bundle", golden=golden))


def test_a_file_that_is_no_graph_is_an_error_of_ours(tmp_path: Path) -> None:
    bundle = read_bundle(DEMO)
    with pytest.raises(BundleError, match="ONNX Runtime cannot run the bundle"):
        read_recommender(copied(bundle, tmp_path / "bundle", encoder=b"nothing"))


def test_no_bundle_is_told_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="driftline export"):
        read_recommender(tmp_path / "nowhere")


def row_scorer() -> bytes:
    """Scores every candidate by its row, whoever asks."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["candidates"], ["scores"], to=TensorProto.FLOAT)],
        "scorer",
        [
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", 32]),
            helper.make_tensor_value_info("candidates", TensorProto.INT64, ["batch", "n"]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def scored(bundle: Bundle, out: Path, off: float = 0.0) -> Path:
    """The bundle with a scorer for all its items; its golden scores are off by so much."""
    candidates = np.arange(1, 4) * np.ones((len(bundle.golden.inputs), 1), np.int64)
    scores = GoldenScores(candidates, candidates.astype(np.float32) + np.float32(off))
    write_bundle(
        out,
        config=msgspec.structs.replace(bundle.config, candidates=240),
        encoder=bundle.encoder_path.read_bytes(),
        scorer=row_scorer(),
        vocabulary=bundle.vocabulary,
        item_vectors=bundle.item_vectors,
        metadata=bundle.metadata,
        golden=dataclasses.replace(bundle.golden, scores=scores),
        provenance=bundle.manifest,
    )
    return out


def test_a_bundle_with_a_scorer_is_ranked_by_it(tmp_path: Path) -> None:
    bundle = read_bundle(DEMO)
    model = read_recommender(scored(bundle, tmp_path / "bundle"))
    assert onnx_scorer(row_scorer())(np.zeros((1, 32), np.float32), np.array([[7, 3]])).tolist() == [[7.0, 3.0]]
    context = dataclasses.replace(sequence("ana", "a"), items=(bundle.vocabulary.ids[240],))
    judged = Judged((context, context), (bundle.vocabulary.ids[239], bundle.vocabulary.ids[230]))
    # Every item is a candidate, so the last unseen row comes first.
    assert judge(model, queries_of(judged)).ranks.tolist() == [1, 10]


def test_a_scorer_that_does_not_repeat_its_golden_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the scorer of .* does not repeat"):
        read_recommender(scored(read_bundle(DEMO), tmp_path / "bundle", off=0.5))
