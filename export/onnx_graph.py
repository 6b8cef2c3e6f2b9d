"""From a trained network to an ONNX encoder, and the proof that both compute the same."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from export.golden import random_inputs, top_rows
from models.bundle import TOP, Parity
from models.errors import BundleError
from models.networks.network import Network
from models.spec import Vectors
from models.windows import WindowInputs

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of any number of a vector between PyTorch and ONNX Runtime that an export accepts."""

INPUTS = ("items", "types", "ages", "lengths")
OUTPUT = "vector"
_WINDOWS_A_LENGTH = 4


def export_encoder(network: Network, max_length: int) -> bytes:
    """Export a network in evaluation mode as an ONNX file with dynamic batch and length, and no external data.

    Args:
        network: The network.
        max_length: Longest window it takes.

    Raises:
        BundleError: The graph lacks one of the encoder's inputs.
    """
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1, max=max_length)
    # A sample with both dimensions above 1: the exporter would take a 1 for a constant.
    sample = random_inputs(np.array([2, min(3, max_length)]), 1, 0, np.random.default_rng(0))
    arguments = tuple(torch.from_numpy(array) for array in sample.as_feed().values())
    matrix = {0: batch, 1: length}
    # Notes of the exporter to its own developers, torchvision and deprecations; what matters is checked below.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            arguments,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(matrix, matrix, matrix, {0: batch}),
            verbose=False,
        )
    if program is None:
        raise BundleError("PyTorch's ONNX exporter returned nothing; use the PyTorch version of the `train` extra")
    model = program.model_proto
    present = [value.name for value in model.graph.input]
    if present != list(INPUTS):
        raise BundleError(
            f"the exported graph has the inputs {present}, not {list(INPUTS)}; this is a bug in the export"
        )
    # The exporter notes stack traces with the paths of this machine at every node: half of a small file.
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def onnx_encoder(encoder: bytes | Path) -> Callable[[WindowInputs], Vectors]:
    """An ONNX encoder on one CPU thread as a function from encoder inputs to vectors.

    Args:
        encoder: The file's content, or its path.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(encoder, options, providers=["CPUExecutionProvider"])

    def encode(inputs: WindowInputs) -> Vectors:
        vectors: Vectors = session.run([OUTPUT], inputs.as_feed())[0]
        return vectors

    return encode


def check_parity(
    expected: Callable[[WindowInputs], Vectors],
    exported: Callable[[WindowInputs], Vectors],
    item_vectors: Vectors,
    types: int,
    max_length: int,
) -> Parity:
    """Compare two encoders on random windows of every length from 0 to the longest, alone and mixed in one batch.

    Args:
        expected: The network.
        exported: The ONNX encoder.
        item_vectors: Shape (items + 1, dim), float32.
        types: Event types named in the configuration.
        max_length: Longest window.

    Returns:
        What was measured.

    Raises:
        BundleError: A difference above `TOLERANCE`, another top ten, or vectors for nothing that are not zeros. The
            top ten may differ only between items whose scores are so close that the difference of the vectors
            explains it.
    """
    rng = np.random.default_rng(0)
    batches = [np.full(_WINDOWS_A_LENGTH, length, np.int64) for length in range(max_length + 1)]
    batches += [np.array([length], np.int64) for length in (0, 1, max_length)]
    batches.append(rng.permutation(np.repeat(np.arange(max_length + 1), 2)))
    largest_norm = float(np.linalg.norm(item_vectors, axis=1).max())
    compared, difference, swapped = 0, 0.0, 0
    for lengths in batches:
        inputs = random_inputs(lengths, len(item_vectors) - 1, types, rng)
        wanted, got = expected(inputs), exported(inputs)
        where = f"windows of {lengths.min()} to {lengths.max()} events"
        if got.shape != wanted.shape or not np.isfinite(got).all():
            raise BundleError(f"the exported encoder gives no finite vectors of shape {wanted.shape} for {where}")
        if got[lengths == 0].any():
            raise BundleError("the exported encoder gives a window without events a vector that is not zero")
        off = float(np.abs(wanted - got).max())
        if off > TOLERANCE:
            raise BundleError(
                f"ONNX Runtime's vectors differ from PyTorch's by {off:.2g} for {where}, allowed is {TOLERANCE:g}. "
                "No bundle was written; train again with a lower learning rate, or report this with the checkpoint"
            )
        swapped += _swapped(wanted, got, item_vectors, largest_norm, where)
        compared += len(lengths)
        difference = max(difference, off)
    return Parity(windows=compared, max_abs_difference=difference, swapped_ties=swapped)


def _swapped(wanted: Vectors, got: Vectors, item_vectors: Vectors, largest_norm: float, where: str) -> int:
    """How many places of the top lists differ; all must be ties to within what the vectors' difference explains."""
    first, second = top_rows(wanted, item_vectors), top_rows(got, item_vectors)
    different = first != second
    if not different.any():
        return 0
    scores = wanted @ item_vectors.T
    apart = np.abs(np.take_along_axis(scores, first, 1) - np.take_along_axis(scores, second, 1))
    # Cauchy and Schwarz: no score moved by more than |difference| * |item|; two of them, and rounding on top.
    explained = 2 * largest_norm * np.linalg.norm(wanted - got, axis=1) + 1e-6
    if (apart[different] > np.broadcast_to(explained[:, None], apart.shape)[different]).any():
        raise BundleError(
            f"ONNX Runtime ranks another top {TOP} than PyTorch for {where}. "
            "No bundle was written; report this with the checkpoint"
        )
    return int(different.sum())
