"""A bundle as something to evaluate: ONNX Runtime on the CPU."""

from pathlib import Path

import numpy as np
import onnxruntime

from models.bundle import ENCODER, ITEMS, SCORER, Bundle, read_bundle
from models.errors import BundleError
from models.evaluation.recommender import Encode, Recommender
from models.ranking import Score
from models.spec import IntArray, Vectors
from models.windows import WindowInputs

# ONNX Runtime's wheels may report usage to their makers; ours has no reason to.
onnxruntime.disable_telemetry_events()

_GOLDEN_TOLERANCE = 1e-3  # as serving has it: another machine's kernels may round differently


def onnx_encoder(encoder: bytes | Path) -> Encode:
    """An ONNX encoder on one CPU thread as a function from encoder inputs to vectors.

    Args:
        encoder: The file's content, or its path.
    """
    session = _session(encoder)

    def encode(inputs: WindowInputs) -> Vectors:
        vectors: Vectors = session.run(["vector"], inputs.as_feed())[0]
        return vectors

    return encode


def onnx_deviation(encoder: bytes | Path) -> Encode:
    """An ONNX encoder of a variational network as a function from encoder inputs to its vectors' deviations.

    Args:
        encoder: The file's content, or its path.
    """
    session = _session(encoder)

    def deviate(inputs: WindowInputs) -> Vectors:
        deviations: Vectors = session.run(["deviation"], inputs.as_feed())[0]
        return deviations

    return deviate


def onnx_scorer(scorer: bytes | Path) -> Score:
    """An ONNX scorer on one CPU thread as a function from vectors and candidate rows to scores.

    Args:
        scorer: The file's content, or its path.
    """
    session = _session(scorer)

    def score(vectors: Vectors, candidates: IntArray) -> Vectors:
        scores: Vectors = session.run(["scores"], {"vector": vectors, "candidates": candidates})[0]
        return scores

    return score


def read_recommender(path: str | Path) -> Recommender:
    """Read a bundle, load its encoder and scorer, and replay the golden sample.

    Raises:
        BundleError: No bundle there, it is damaged, ONNX Runtime cannot run it, or it does not repeat its golden
            sample here.
    """
    bundle = read_bundle(path)
    try:
        encode = onnx_encoder(bundle.encoder_path)
        score = onnx_scorer(bundle.scorer_path) if bundle.scorer_path else None
        golden = bundle.golden
        _check_golden(bundle, "encoder", encode(golden.inputs), golden.vectors)
        if score is not None and golden.scores is not None:
            _check_golden(bundle, "scorer", score(golden.vectors, golden.scores.candidates), golden.scores.scores)
    # ONNX Runtime's exceptions (RuntimeException, Fail, InvalidGraph, …) share no base but Exception (1.31).
    except Exception as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"ONNX Runtime cannot run the bundle {path}: {error}. Export the model again") from error
    config, files = bundle.config, bundle.manifest.files
    return Recommender(
        vocabulary=bundle.vocabulary,
        types=config.types,
        window=config.window,
        encode=encode,
        item_vectors=bundle.item_vectors,
        name=config.name,
        version=config.version,
        popular=config.popular,
        metadata=bundle.metadata,
        size_bytes=sum(files[name].bytes for name in (ENCODER, ITEMS, SCORER) if name in files),
        score=score,
        candidates=config.candidates or 0,
    )


def _session(content: bytes | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _check_golden(bundle: Bundle, part: str, got: Vectors, expected: Vectors) -> None:
    difference = float(np.abs(got - expected).max()) if got.shape == expected.shape else np.inf
    if not difference <= _GOLDEN_TOLERANCE:  # also when it is NaN
        raise BundleError(
            f"the {part} of {bundle.path} does not repeat its golden sample here: it is off by {difference:.2g}, "
            f"{_GOLDEN_TOLERANCE:g} is allowed. Export the model again"
        )
