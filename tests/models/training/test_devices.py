import pytest
import torch

from models.errors import DataError
from models.training import devices


def test_auto_takes_the_processor_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device("auto") == torch.device("cpu")
    with pytest.raises(DataError, match=r"--device cuda.*no usable CUDA"):
        devices.choose_device("cuda")


@pytest.mark.parametrize(
    ("flags", "precision"), [({"avx512f"}, "fp32"), ({"avx512f", "avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")]
)
def test_auto_takes_bf16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str
) -> None:
    monkeypatch.setattr(devices, "_cpu_flags", lambda: flags)
    assert devices.choose_precision("auto", torch.device("cpu")) == precision
    assert devices.choose_precision("fp32", torch.device("cpu")) == "fp32"
