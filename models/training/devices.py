"""Where a training runs, and how precisely."""

from pathlib import Path
from typing import Literal

import torch

from models.errors import DataError
from models.training.distributed import local_rank
from models.training.plan import Precision

# With either, a CPU multiplies bfloat16 in hardware; without, PyTorch emulates it, three times slower than float32
# (measured on a Xeon with AVX-512 but neither).
_FAST_BF16 = frozenset({"amx_bf16", "avx512_bf16"})


def choose_device(asked: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to train on; under torchrun on CUDA each process's own.

    Raises:
        DataError: CUDA was asked for and is not there.
    """
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DataError("--device cuda: PyTorch finds no usable CUDA device here. Use --device auto or cpu")
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def choose_precision(asked: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """What to compute matrix products in: bf16 where it is fast, unless said otherwise."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_flags() & _FAST_BF16 else "fp32"


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():  # no Linux: nothing is known
        return set()
    line = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
    return set(line.split())
