"""A bundle without training: the vector of a window is the mean of its items' vectors.

The smallest model that the engine can serve. Benchmarks and integration tests measure the engine with it, and as a
baseline it shows what a trained model has to beat. Needs the `onnx` package but no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.golden import golden_sample
from models.bundle import Bundle, Parity, Provenance, write_bundle
from models.spec import CONFIG_FORMAT, MAX_POPULAR, ItemMetadata, ModelConfig, Vectors, WindowRule
from models.vocabulary import Vocabulary
from models.windows import WindowInputs

OPSET = 17
TYPES = ("click", "view")


def write_pooling_bundle(
    path: str | Path,
    item_ids: Sequence[str],
    dim: int = 32,
    seed: int = 0,
    window: WindowRule | None = None,
    metadata: Mapping[str, ItemMetadata] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle whose item vectors are random and whose encoder is their mean over the window.

    Args:
        path: The directory to make.
        item_ids: The items; the first ones count as the most popular.
        dim: Length of a vector.
        seed: Fixes the item vectors, which are standard normal over sqrt(dim).
        window: The window rule; 50 and 25 unless given.
        metadata: Titles and topics; an item's title is its id unless given.
        overwrite: Replace a bundle that is already there.

    Returns:
        The bundle, read back.

    Raises:
        BundleError: The place is taken or cannot be written.
        DataError: The ids make no vocabulary.
    """
    window = window or WindowRule(max=50, keep=25)
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(item_ids)
    item_vectors = (rng.standard_normal((len(vocabulary) + 1, dim)) / np.sqrt(dim)).astype(np.float32)
    item_vectors[0] = 0.0

    def encode(inputs: WindowInputs) -> Vectors:
        counts = np.maximum(inputs.lengths, 1).astype(np.float32)
        mean: Vectors = item_vectors[inputs.items].sum(axis=1) / counts[:, None]
        return mean

    return write_bundle(
        path,
        config=ModelConfig(
            format=CONFIG_FORMAT,
            name="pooling",
            version="",
            dim=dim,
            window=window,
            types=TYPES,
            popular=tuple(item_ids[:MAX_POPULAR]),
        ),
        encoder=pooling_encoder(item_vectors),
        vocabulary=vocabulary,
        item_vectors=item_vectors,
        metadata=metadata or {item_id: ItemMetadata(title=item_id) for item_id in item_ids},
        golden=golden_sample(encode, item_vectors, len(TYPES), window.max, rng),
        provenance=Provenance(
            command=f"export.pooling.write_pooling_bundle(path, item_ids, dim={dim}, seed={seed})",
            opset=OPSET,
            metrics={},
            parity=Parity(windows=0, max_abs_difference=0.0),
        ),
        overwrite=overwrite,
    )


def pooling_encoder(item_vectors: Vectors) -> bytes:
    """The ONNX file of the mean. Types and ages are inputs that it declares and ignores.

    Args:
        item_vectors: Shape (items + 1, dim), float32; row 0 must be zeros, so that padding adds nothing.
    """
    inputs = [
        helper.make_tensor_value_info("items", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("types", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("ages", TensorProto.FLOAT, ["batch", "length"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "items"], ["events"]),
        helper.make_node("ReduceSum", ["events", "axis"], ["sums"], keepdims=0),
        helper.make_node("Max", ["lengths", "one"], ["at_least_one"]),
        helper.make_node("Cast", ["at_least_one"], ["counts"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counts", "axis"], ["divisors"]),
        helper.make_node("Div", ["sums", "divisors"], ["vector"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pooling",
        inputs,
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", item_vectors.shape[1]])],
        initializer=[
            numpy_helper.from_array(item_vectors, "table"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    # IR version 8 goes with opset 17; the onnx package would write its newest, which an older runtime refuses.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content
