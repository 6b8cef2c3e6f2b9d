"""Running the bundle's encoder and scorer: ONNX Runtime on a CPU or on CUDA."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnxruntime

from models.bundle import Bundle
from models.spec import IntArray, Vectors
from models.windows import WindowInputs
from streams.errors import EncoderFailed

# ONNX Runtime's wheels may report usage to their makers; ours has no reason to.
onnxruntime.disable_telemetry_events()

Provider = Literal["auto", "cuda", "cpu"]

# On CUDA every new shape costs a plan and memory: batches are padded up to one of these, windows to their maximum.
CUDA_BUCKETS: Final = (1, 8, 32, 128, 512)
# On a CPU a large batch falls out of the cache; a smaller one pays the call too often.
CPU_BATCH: Final = 128
# Users a call of the scorer: each brings all its candidates.
SCORER_BATCH: Final = 32
# Export promises 1e-4 against torch; another machine's kernels may round differently.
GOLDEN_TOLERANCE: Final = 1e-3

_Feed = Mapping[str, IntArray | Vectors]


class Encoder:
    """A loaded encoder on one device.

    Attributes:
        provider: The execution provider that the session really got, as ONNX Runtime names it.

    Raises:
        EncoderFailed: The model cannot be loaded, CUDA was asked for and not got, or the golden sample fails.
    """

    def __init__(self, bundle: Bundle, provider: Provider = "auto", threads: int = 1) -> None:
        self._bundle = bundle
        self._session = _open_session(bundle.encoder_path, provider, threads)
        self.provider: str = self._session.get_providers()[0]
        self._on_cuda = self.provider == "CUDAExecutionProvider"
        outputs = {output.name for output in self._session.get_outputs()}
        if ("deviation" in outputs) != (bundle.golden.deviations is not None):
            raise EncoderFailed(
                f"the encoder of {bundle.path} has the outputs {', '.join(sorted(outputs))}, and its golden sample "
                f"{'no' if bundle.golden.deviations is None else 'also'} deviations; export the bundle again"
            )
        self.verify()

    def encode(self, inputs: WindowInputs) -> Vectors:
        """Vectors of windows, shape (batch, dim), float32."""
        return self._run(inputs, ["vector"])[0]

    def encode_posterior(self, inputs: WindowInputs) -> tuple[Vectors, Vectors]:
        """Vectors of windows and their deviations, each of shape (batch, dim), float32, by a variational model."""
        vectors, deviations = self._run(inputs, ["vector", "deviation"])
        return vectors, deviations

    def verify(self) -> None:
        """Replay the bundle's golden sample.

        Raises:
            EncoderFailed: The vectors or deviations differ from those that export recorded.
        """
        golden = self._bundle.golden
        expected = {"vector": golden.vectors}
        if golden.deviations is not None:
            expected["deviation"] = golden.deviations
        try:
            found = self._run(golden.inputs, list(expected))
        # ONNX Runtime's exceptions (InvalidArgument, Fail, …) share no base but Exception (1.31).
        except Exception as error:
            raise EncoderFailed(f"the encoder of {self._bundle.path} fails on its golden sample: {error}") from error
        for name, got in zip(expected, found, strict=True):
            _check_golden(f"the encoder of {self._bundle.path}", f"{name}s", got, expected[name], self.provider)

    def _run(self, inputs: WindowInputs, outputs: Sequence[str]) -> list[Vectors]:
        if not len(inputs):
            return [np.zeros((0, self._bundle.config.dim), np.float32) for _ in outputs]
        step = CUDA_BUCKETS[-1] if self._on_cuda else CPU_BATCH
        parts = []
        for start in range(0, len(inputs), step):
            part = _rows(inputs, slice(start, start + step))
            if self._on_cuda:
                padded = pad_to_bucket(part, self._bundle.config.window.max)
                found = run_bound(self._session, padded.as_feed(), outputs, "cuda")
                parts.append([array[: len(part)] for array in found])
            else:
                parts.append(self._session.run(outputs, part.as_feed()))
        return _joined(parts)


class Scorer:
    """A loaded scorer on one device; `open_scorer` makes one.

    Raises:
        EncoderFailed: As for `Encoder`.
    """

    def __init__(self, bundle: Bundle, path: Path, provider: Provider = "auto", threads: int = 1) -> None:
        self._bundle = bundle
        self._session = _open_session(path, provider, threads)
        self._provider: str = self._session.get_providers()[0]
        self.verify()

    def score(self, vectors: Vectors, candidates: IntArray) -> Vectors:
        """Scores of candidates.

        Args:
            vectors: User vectors, shape (users, dim), float32.
            candidates: Item rows, shape (users, n), int64; 0 is padding, and its score means nothing.

        Returns:
            Shape (users, n), float32.
        """
        if not candidates.size:
            return np.zeros(candidates.shape, np.float32)
        parts = []
        for start in range(0, len(vectors), SCORER_BATCH):
            some = slice(start, start + SCORER_BATCH)
            users, rows = vectors[some], candidates[some]
            if self._provider == "CUDAExecutionProvider":
                margin = ((0, _bucket(len(users)) - len(users)), (0, 0))
                padded: _Feed = {"vector": np.pad(users, margin), "candidates": np.pad(rows, margin)}
                parts.append([run_bound(self._session, padded, ["scores"], "cuda")[0][: len(users)]])
            else:
                parts.append(self._session.run(["scores"], {"vector": users, "candidates": rows}))
        return _joined(parts)[0]

    def verify(self) -> None:
        """Replay the bundle's golden sample.

        Raises:
            EncoderFailed: The scores differ from those that export recorded.
        """
        name, golden = f"the scorer of {self._bundle.path}", self._bundle.golden
        if golden.scores is None:
            raise EncoderFailed(f"{name} has no golden sample; export the bundle again")
        try:
            scores = self.score(golden.vectors, golden.scores.candidates)
        # As in the encoder.
        except Exception as error:
            raise EncoderFailed(f"{name} fails on its golden sample: {error}") from error
        _check_golden(name, "scores", scores, golden.scores.scores, self._provider)


def open_scorer(bundle: Bundle, provider: Provider = "auto", threads: int = 1) -> Scorer | None:
    """Load the bundle's scorer; None where items are scored by dot product.

    Raises:
        EncoderFailed: The model cannot be loaded, CUDA was asked for and not got, or the golden sample fails.
    """
    return None if bundle.scorer_path is None else Scorer(bundle, bundle.scorer_path, provider, threads)


def pad_to_bucket(inputs: WindowInputs, max_length: int) -> WindowInputs:
    """Pad a batch to the next of `CUDA_BUCKETS` users and to ``max_length`` events, so that shapes are few."""
    users, length = inputs.items.shape
    margin = ((0, _bucket(users) - users), (0, max_length - length))
    return WindowInputs(
        np.pad(inputs.items, margin),
        np.pad(inputs.types, margin),
        np.pad(inputs.ages, margin),
        np.pad(inputs.lengths, margin[0]),
    )


def run_bound(session: onnxruntime.InferenceSession, feed: _Feed, outputs: Sequence[str], device: str) -> list[Vectors]:
    """Run with inputs and outputs bound to ``device``, so that each crosses the bus once."""
    binding = session.io_binding()
    for name, values in feed.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(values))
    for name in outputs:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    found: list[Vectors] = binding.copy_outputs_to_cpu()
    return found


def _bucket(users: int) -> int:
    return next(size for size in CUDA_BUCKETS if size >= users)


def _rows(inputs: WindowInputs, rows: slice) -> WindowInputs:
    lengths = inputs.lengths[rows]
    width = max(1, int(lengths.max(initial=0)))
    return WindowInputs(inputs.items[rows, :width], inputs.types[rows, :width], inputs.ages[rows, :width], lengths)


def _joined(parts: list[list[Vectors]]) -> list[Vectors]:
    """The outputs of several batches as those of one."""
    return parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _check_golden(what: str, of: str, found: Vectors, expected: Vectors, provider: str) -> None:
    if found.shape != expected.shape:
        raise EncoderFailed(
            f"{what} gives {of} of shape {found.shape}, its golden sample has {expected.shape}; export the bundle again"
        )
    difference = float(np.abs(found - expected).max(initial=0.0))
    # Rounding grows with the numbers, and scores may be of any size.
    allowed = GOLDEN_TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0)))
    if not difference <= allowed:  # also when it is NaN
        raise EncoderFailed(
            f"{what} does not repeat its golden sample on {provider}: {of} differ by {difference:.2g}, {allowed:.2g} "
            "is allowed; export the bundle again, or set model.provider to cpu"
        )


def _has_cuda_driver() -> bool:
    # Asking ONNX Runtime for CUDA on a machine without it prints pages of warnings before it falls back.
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _open_session(path: Path, provider: Provider, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # a missing CUDA is reported by us, once, with the remedy
    # Without TF32, vectors on a GPU agree with those on a CPU to the golden sample's tolerance.
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
    compiled_in = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    wanted = [cuda] if compiled_in and (provider == "cuda" or (provider == "auto" and _has_cuda_driver())) else []
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[*wanted, "CPUExecutionProvider"])
    # ONNX Runtime's exceptions (RuntimeException, Fail, InvalidGraph, …) share no base but Exception (1.31).
    except Exception as error:
        raise EncoderFailed(f"ONNX Runtime cannot load {path}: {error}") from error
    # get_available_providers() names CUDA even where there is none, and a session falls back silently
    # (onnxruntime-gpu 1.31): only the session knows.
    found = session.get_providers()[0]
    if provider == "cuda" and found != "CUDAExecutionProvider":
        raise EncoderFailed(
            f"model.provider is cuda, but ONNX Runtime gave {found}: no usable CUDA device or libraries. "
            "Install the driver and `pip install 'driftline[cuda]'`, or set model.provider to auto or cpu"
        )
    return session
