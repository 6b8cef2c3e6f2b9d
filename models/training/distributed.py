"""Several processes training one network: what torchrun starts."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes that train together, and which of them this is.

    Attributes:
        rank: This process, from 0.
        count: All of them.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> "Workers":
        """Meet the others that torchrun started; alone where it was not used."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            # A process that ends with the group's threads running is aborted by them now and then ("terminate called
            # without an active exception": PyTorch 2.15, gloo; on a busy machine three runs of four).
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the one that validates, reports and writes."""
        return self.rank == 0

    def share(self, batches: Sequence[_T]) -> Sequence[_T]:
        """This process's batches: as many as every other's, so that all take as many steps."""
        even = len(batches) - len(batches) % self.count
        return batches[self.rank : even : self.count] if even else batches

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its mean over the processes; a missing one counts as zeros."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        flat /= self.count
        start = 0
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()

    def agree(self, value: _T) -> _T:
        """What the first process has, in every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


def local_rank() -> int:
    """This process's number on its machine, as torchrun sets it; 0 without."""
    return int(os.environ.get("LOCAL_RANK", "0"))
