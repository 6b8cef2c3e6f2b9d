"""From a trained network to an ONNX encoder, and the proof that both compute the same."""

import logging
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.golden import random_inputs, top_rows
from models.bundle import TOP, Parity
from models.errors import BundleError
from models.networks.network import Network, ScoringNetwork, VariationalNetwork
from models.ranking import Score
from models.spec import IntArray, Vectors
from models.windows import WindowInputs

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of any number of a vector between PyTorch and ONNX Runtime that an export accepts."""

INPUTS = ("items", "types", "ages", "lengths")
OUTPUT = "vector"
DEVIATION = "deviation"
SCORER_INPUTS = ("vector", "candidates")
SCORES = "scores"
_WINDOWS_A_LENGTH = 4
_CANDIDATES = 20


def export_encoder(network: Network, max_length: int) -> bytes:
    """Export a network in evaluation mode as an ONNX file with dynamic batch and length, and no external data.

    Its output is `vector`; a variational network's graph has `deviation` beside it.

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
    module: nn.Module = network
    outputs = [OUTPUT]
    if isinstance(network, VariationalNetwork):
        module, outputs = _Distribution(network).eval(), [OUTPUT, DEVIATION]
    return _to_onnx(module, arguments, INPUTS, outputs, (matrix, matrix, matrix, {0: batch}))


def export_scorer(network: ScoringNetwork) -> bytes:
    """Export the `score` of a network in evaluation mode as an ONNX file with dynamic batch and number of candidates.

    Args:
        network: The network.

    Raises:
        BundleError: The graph lacks one of the scorer's inputs.
    """
    batch, count = torch.export.Dim("batch", min=1), torch.export.Dim("n", min=1)
    # A sample with both dimensions above 1: the exporter would take a 1 for a constant.
    sample = torch.zeros(2, network.item_table().shape[1]), torch.zeros(2, 3, dtype=torch.int64)
    shapes = ({0: batch}, {0: batch, 1: count})
    return _to_onnx(_Scorer(network).eval(), sample, SCORER_INPUTS, [SCORES], shapes)


def _to_onnx(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    outputs: list[str],
    shapes: tuple[dict[int, torch.export.Dim], ...],
) -> bytes:
    # Notes of the exporter to its own developers, torchvision and deprecations; what matters is checked below.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            arguments,
            input_names=list(inputs),
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,
        )
    if program is None:
        raise BundleError("PyTorch's ONNX exporter returned nothing; use the PyTorch version of the `train` extra")
    model = program.model_proto
    present = [value.name for value in model.graph.input]
    if present != list(inputs):
        raise BundleError(
            f"the exported graph has the inputs {present}, not {list(inputs)}; this is a bug in the export"
        )
    # The exporter notes stack traces with the paths of this machine at every node: half of a small file.
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


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
    largest_norm = float(np.linalg.norm(item_vectors, axis=1).max())
    compared, difference, swapped = 0, 0.0, 0
    for inputs in _windows_of_every_length(len(item_vectors) - 1, types, max_length):
        wanted, got = expected(inputs), exported(inputs)
        difference = max(difference, _difference(wanted, got, inputs.lengths, "vector"))
        swapped += _swapped(wanted, got, item_vectors, largest_norm, _described(inputs.lengths))
        compared += len(inputs)
    return Parity(windows=compared, max_abs_difference=difference, swapped_ties=swapped)


def check_deviation_parity(
    expected: Callable[[WindowInputs], Vectors],
    exported: Callable[[WindowInputs], Vectors],
    items: int,
    types: int,
    max_length: int,
) -> float:
    """Compare the deviations of a variational network on the same windows as `check_parity`.

    Args:
        expected: The network's deviations, `deviation_of`.
        exported: Those of the ONNX encoder.
        items: Items of the vocabulary.
        types: Event types named in the configuration.
        max_length: Longest window.

    Returns:
        The largest difference.

    Raises:
        BundleError: A difference above `TOLERANCE`, a negative deviation, or one for nothing that is not zero.
    """
    difference = 0.0
    for inputs in _windows_of_every_length(items, types, max_length):
        got = exported(inputs)
        difference = max(difference, _difference(expected(inputs), got, inputs.lengths, "deviation"))
        if got.min() < 0:
            raise BundleError(f"the exported encoder gives a negative deviation for {_described(inputs.lengths)}")
    return difference


def check_scorer_parity(
    expected: Score, exported: Score, encode: Callable[[WindowInputs], Vectors], items: int, types: int, max_length: int
) -> float:
    """Compare two scorers on the vectors of the same windows as `check_parity`, with random candidates and padding.

    Args:
        expected: The network's scorer, `score_of`.
        exported: The ONNX scorer.
        encode: What gives the vectors.
        items: Items of the vocabulary.
        types: Event types named in the configuration.
        max_length: Longest window.

    Returns:
        The largest difference.

    Raises:
        BundleError: A difference above `TOLERANCE`, or scores that are no numbers.
    """
    rng = np.random.default_rng(1)
    difference = 0.0
    for inputs in _windows_of_every_length(items, types, max_length):
        vectors = encode(inputs)
        candidates = rng.integers(0, items + 1, (len(inputs), int(rng.integers(1, _CANDIDATES + 1))))
        wanted, got = expected(vectors, candidates), exported(vectors, candidates)
        if got.shape != wanted.shape or not np.isfinite(got).all():
            raise BundleError(f"the exported scorer gives no finite scores of shape {wanted.shape}")
        difference = max(difference, float(np.abs(wanted - got).max()))
    if difference > TOLERANCE:
        raise BundleError(
            f"ONNX Runtime's scores differ from PyTorch's by {difference:.2g}, allowed is {TOLERANCE:g}. "
            "No bundle was written; train again with a lower learning rate, or report this with the checkpoint"
        )
    return difference


class _Scorer(nn.Module):
    """A network whose forward is its scorer."""

    def __init__(self, network: ScoringNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, vector: Tensor, candidates: Tensor) -> Tensor:
        return self.network.score(vector, candidates)


class _Distribution(nn.Module):
    """A variational network whose forward gives both outputs."""

    def __init__(self, network: VariationalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.distribution(items, types, ages, lengths)


def _windows_of_every_length(items: int, types: int, max_length: int) -> Iterator[WindowInputs]:
    """Random windows of every length from 0 to the longest, alone and mixed in one batch."""
    rng = np.random.default_rng(0)
    batches = [np.full(_WINDOWS_A_LENGTH, length, np.int64) for length in range(max_length + 1)]
    batches += [np.array([length], np.int64) for length in (0, 1, max_length)]
    batches.append(rng.permutation(np.repeat(np.arange(max_length + 1), 2)))
    for lengths in batches:
        yield random_inputs(lengths, items, types, rng)


def _difference(wanted: Vectors, got: Vectors, lengths: IntArray, what: str) -> float:
    """The largest difference, which must be allowed; for windows without events both must be zeros."""
    where = _described(lengths)
    if got.shape != wanted.shape or not np.isfinite(got).all():
        raise BundleError(f"the exported encoder gives no finite {what}s of shape {wanted.shape} for {where}")
    if got[lengths == 0].any():
        raise BundleError(f"the exported encoder gives a window without events a {what} that is not zero")
    off = float(np.abs(wanted - got).max())
    if off > TOLERANCE:
        raise BundleError(
            f"ONNX Runtime's {what}s differ from PyTorch's by {off:.2g} for {where}, allowed is {TOLERANCE:g}. "
            "No bundle was written; train again with a lower learning rate, or report this with the checkpoint"
        )
    return off


def _described(lengths: IntArray) -> str:
    return f"windows of {lengths.min()} to {lengths.max()} events"


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
