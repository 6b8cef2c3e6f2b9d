"""Bundles with the optional parts, small enough to be worked out in NumPy, built on the pooling bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.pooling import OPSET, pooling_encoder, write_pooling_bundle
from models.bundle import Bundle, Golden, GoldenScores, write_bundle
from models.spec import IntArray, ItemMetadata, ModelConfig, Vectors, WindowRule

WINDOW = WindowRule(max=6, keep=3)


def distance_scores(vectors: Vectors, items: Vectors, candidates: IntArray) -> NDArray[np.float64]:
    """What the scorer computes: minus the squared distance of each candidate to the vector."""
    gaps = vectors[:, None, :].astype(np.float64) - items[candidates]
    scores: NDArray[np.float64] = -(gaps**2).sum(axis=2)
    return scores


def distance_scorer(items: Vectors) -> bytes:
    """The ONNX file of `distance_scores`. Row 0, being all zeros, may well score best."""
    nodes = [
        helper.make_node("Gather", ["table", "candidates"], ["rows"]),
        helper.make_node("Unsqueeze", ["vector", "middle"], ["users"]),
        helper.make_node("Sub", ["users", "rows"], ["gaps"]),
        helper.make_node("Mul", ["gaps", "gaps"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "last"], ["distances"], keepdims=0),
        helper.make_node("Neg", ["distances"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "distance",
        [
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", items.shape[1]]),
            helper.make_tensor_value_info("candidates", TensorProto.INT64, ["batch", "n"]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "n"])],
        initializer=[
            numpy_helper.from_array(items, "table"),
            numpy_helper.from_array(np.array([1], np.int64), "middle"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
        ],
    )
    return onnx_file(graph)


def variational_encoder(items: Vectors) -> bytes:
    """The pooling encoder with the second output: deviations are the absolute values of the vector."""
    model = onnx.load_from_string(pooling_encoder(items))
    model.graph.node.append(helper.make_node("Abs", ["vector"], ["deviation"]))
    model.graph.output.append(helper.make_tensor_value_info("deviation", TensorProto.FLOAT, ["batch", items.shape[1]]))
    content: bytes = model.SerializeToString()
    return content


def onnx_file(graph: onnx.GraphProto) -> bytes:
    """A graph as a file that every runtime since 1.17 reads."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def write_scored_bundle(
    path: Path,
    item_ids: Sequence[str],
    candidates: int,
    *,
    dim: int = 8,
    metadata: Mapping[str, ItemMetadata] | None = None,
) -> Bundle:
    """The pooling bundle, its candidates scored by distance."""
    plain = write_pooling_bundle(path, item_ids, dim=dim, window=WINDOW, metadata=metadata)
    rows = np.tile(np.arange(len(item_ids) + 1), (len(plain.golden.vectors), 1))
    scores = distance_scores(plain.golden.vectors, plain.item_vectors, rows).astype(np.float32)
    return rewritten(
        plain,
        path,
        config=msgspec.structs.replace(plain.config, candidates=candidates),
        golden=replace(plain.golden, scores=GoldenScores(rows, scores)),
        scorer=distance_scorer(plain.item_vectors),
    )


def write_variational_bundle(path: Path, item_ids: Sequence[str], *, dim: int = 8) -> Bundle:
    """The pooling bundle, as unsure of each number of a vector as the number is large."""
    plain = write_pooling_bundle(path, item_ids, dim=dim, window=WINDOW)
    return rewritten(
        plain,
        path,
        encoder=variational_encoder(plain.item_vectors),
        golden=replace(plain.golden, deviations=np.abs(plain.golden.vectors)),
    )


def write_doubled_bundle(path: Path, item_ids: Sequence[str], *, dim: int = 8, window: WindowRule = WINDOW) -> Bundle:
    """Another version of the pooling bundle, with the same items: its vectors are twice as long."""
    plain = write_pooling_bundle(path, item_ids, dim=dim, window=window)
    return rewritten(
        plain,
        path,
        encoder=pooling_encoder(2 * plain.item_vectors),
        golden=replace(plain.golden, vectors=2 * plain.golden.vectors),
    )


def rewritten(
    bundle: Bundle,
    path: Path,
    *,
    config: ModelConfig | None = None,
    encoder: bytes | None = None,
    item_vectors: Vectors | None = None,
    golden: Golden | None = None,
    scorer: bytes | None = None,
) -> Bundle:
    """A bundle written with something else in it, and without the scorer unless it is given."""
    return write_bundle(
        path,
        config=config or bundle.config,
        encoder=bundle.encoder_path.read_bytes() if encoder is None else encoder,
        vocabulary=bundle.vocabulary,
        item_vectors=bundle.item_vectors if item_vectors is None else item_vectors,
        metadata=bundle.metadata,
        golden=golden or bundle.golden,
        provenance=bundle.manifest,
        scorer=scorer,
        overwrite=True,
    )
