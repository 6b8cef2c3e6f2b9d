"""Running the bundle's encoder: ONNX Runtime on a CPU or on CUDA."""

import ctypes
from typing import Final, Literal

import numpy as np
import onnxruntime

from models.bundle import Bundle
from models.spec import Vectors
from models.windows import WindowInputs
from streams.errors import EncoderFailed

# ONNX Runtime's wheels may report usage to their makers; ours has no reason to.
onnxruntime.disable_telemetry_events()

Provider = Literal["auto", "cuda", "cpu"]

# On CUDA every new shape costs a plan and memory: batches are padded up to one of these, windows to their maximum.
CUDA_BUCKETS: Final = (1, 8, 32, 128, 512)
# On a CPU a large batch falls out of the cache; a smaller one pays the call too often.
CPU_BATCH: Final = 128
# Export promises 1e-4 against torch; another machine's kernels may round differently.
GOLDEN_TOLERANCE: Final = 1e-3


class Encoder:
    """A loaded encoder on one device.

    Attributes:
        provider: The execution provider that the session really got, as ONNX Runtime names it.

    Raises:
        EncoderFailed: The model cannot be loaded, CUDA was asked for and not got, or the golden sample fails.
    """

    def __init__(self, bundle: Bundle, provider: Provider = "auto", threads: int = 1) -> None:
        self._bundle = bundle
        self._session = _open_session(bundle, provider, threads)
        # get_available_providers() names CUDA even where there is none, and a session falls back silently
        # (onnxruntime-gpu 1.31): only the session knows.
        self.provider: str = self._session.get_providers()[0]
        if provider == "cuda" and self.provider != "CUDAExecutionProvider":
            raise EncoderFailed(
                f"model.provider is cuda, but ONNX Runtime gave {self.provider}: no usable CUDA device or libraries. "
                "Install the driver and `pip install 'driftline[cuda]'`, or set model.provider to auto or cpu"
            )
        self._on_cuda = self.provider == "CUDAExecutionProvider"
        self.verify()

    def encode(self, inputs: WindowInputs) -> Vectors:
        """Vectors of windows, shape (batch, dim), float32."""
        if not len(inputs):
            return np.zeros((0, self._bundle.config.dim), np.float32)
        step = CUDA_BUCKETS[-1] if self._on_cuda else CPU_BATCH
        parts = []
        for start in range(0, len(inputs), step):
            part = _rows(inputs, slice(start, start + step))
            parts.append(self._encode_on_cuda(part) if self._on_cuda else self._encode_on_cpu(part))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def verify(self) -> None:
        """Replay the bundle's golden sample.

        Raises:
            EncoderFailed: The vectors differ from those that export recorded.
        """
        golden = self._bundle.golden
        try:
            vectors = self.encode(golden.inputs)
        # ONNX Runtime's exceptions (InvalidArgument, Fail, …) share no base but Exception (1.31).
        except Exception as error:
            raise EncoderFailed(f"the encoder of {self._bundle.path} fails on its golden sample: {error}") from error
        if vectors.shape != golden.vectors.shape:
            raise EncoderFailed(
                f"the encoder of {self._bundle.path} gives vectors of shape {vectors.shape}, its golden sample has "
                f"{golden.vectors.shape}; export the bundle again"
            )
        difference = float(np.abs(vectors - golden.vectors).max(initial=0.0))
        if not difference <= GOLDEN_TOLERANCE:  # also when it is NaN
            raise EncoderFailed(
                f"the encoder of {self._bundle.path} does not repeat its golden sample on {self.provider}: vectors "
                f"differ by {difference:.2g}, {GOLDEN_TOLERANCE:g} is allowed; export the bundle again, or set "
                "model.provider to cpu"
            )

    def _encode_on_cpu(self, inputs: WindowInputs) -> Vectors:
        vectors: Vectors = self._session.run(["vector"], inputs.as_feed())[0]
        return vectors

    def _encode_on_cuda(self, inputs: WindowInputs) -> Vectors:
        return run_bound(self._session, pad_to_bucket(inputs, self._bundle.config.window.max), "cuda")[: len(inputs)]


def pad_to_bucket(inputs: WindowInputs, max_length: int) -> WindowInputs:
    """Pad a batch to the next of `CUDA_BUCKETS` users and to ``max_length`` events, so that shapes are few."""
    users, length = inputs.items.shape
    bucket = next(size for size in CUDA_BUCKETS if size >= users)
    margin = ((0, bucket - users), (0, max_length - length))
    return WindowInputs(
        np.pad(inputs.items, margin),
        np.pad(inputs.types, margin),
        np.pad(inputs.ages, margin),
        np.pad(inputs.lengths, margin[0]),
    )


def run_bound(session: onnxruntime.InferenceSession, inputs: WindowInputs, device: str) -> Vectors:
    """Run with inputs and output bound to ``device``, so that each crosses the bus once."""
    binding = session.io_binding()
    for name, values in inputs.as_feed().items():
        binding.bind_cpu_input(name, np.ascontiguousarray(values))
    binding.bind_output("vector", device)
    session.run_with_iobinding(binding)
    vectors: Vectors = binding.copy_outputs_to_cpu()[0]
    return vectors


def _rows(inputs: WindowInputs, rows: slice) -> WindowInputs:
    lengths = inputs.lengths[rows]
    width = max(1, int(lengths.max(initial=0)))
    return WindowInputs(inputs.items[rows, :width], inputs.types[rows, :width], inputs.ages[rows, :width], lengths)


def _has_cuda_driver() -> bool:
    # Asking ONNX Runtime for CUDA on a machine without it prints pages of warnings before it falls back.
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _open_session(bundle: Bundle, provider: Provider, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # a missing CUDA is reported by us, once, with the remedy
    # Without TF32, vectors on a GPU agree with those on a CPU to the golden sample's tolerance.
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
    compiled_in = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    wanted = [cuda] if compiled_in and (provider == "cuda" or (provider == "auto" and _has_cuda_driver())) else []
    try:
        return onnxruntime.InferenceSession(
            str(bundle.encoder_path), options, providers=[*wanted, "CPUExecutionProvider"]
        )
    # ONNX Runtime's exceptions (RuntimeException, Fail, InvalidGraph, …) share no base but Exception (1.31).
    except Exception as error:
        raise EncoderFailed(f"ONNX Runtime cannot load {bundle.encoder_path}: {error}") from error
