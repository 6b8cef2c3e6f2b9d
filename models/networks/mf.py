"""Matrix factorization of implicit feedback by alternating least squares.

Hu, Koren and Volinsky, 2008, "Collaborative Filtering for Implicit Feedback Datasets"; fitted as Rendle et al. found best
(2022, "Revisiting the Performance of iALS on Item Recommendation Benchmarks"). A user's factors are those that minimise
the same objective for what their window holds, given the items' factors: the half of a sweep that fits users, so someone
unknown to the training is as well off as everyone else.
"""

import math

import numpy as np
import torch
from torch import Tensor

from models.networks.network import Family, FittedNetwork, NetworkConfig, TrainingData, lasting
from models.spec import IntArray

# Of a batch of normal equations: the factors gathered for it, padding counted.
_GATHERED = 1 << 17
_TINY = 1e-30


class MatrixFactorizationConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """The objective, and how it is minimised.

    Attributes:
        dim: Factors.
        regularisation: Weight of the squared factors of a user or item, for each of its events and each of the pairs
            without an event (lambda in Rendle et al., 2022, with their frequency scaling at its full, nu = 1).
        unobserved: Weight of a pair of user and item without an event, which should score 0, where one event that
            should score 1 weighs 1 (alpha_0 in Rendle et al., 2022).
        sweeps: How often the users' and the items' factors are fitted in turn.
        recency: Weight of an event of a window relative to the one after it, 1 for none. Training has no recency.
        steps: Conjugate-gradient steps that fold a window in. On MovieLens-1M 8 are within 1e-5 of the exact vectors
            without recency, and closer with it; weaker regularisation needs more.

    Raises:
        ValueError: A value out of its range.
    """

    dim: int = 64
    regularisation: float = 0.005
    unobserved: float = 0.3
    sweeps: int = 10
    recency: float = 0.8
    steps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.sweeps, self.steps) < 1:
            raise ValueError("dim, sweeps and steps must be at least 1")
        if not (self.regularisation > 0.0 and self.unobserved > 0.0):
            raise ValueError(
                f"regularisation and unobserved must be above 0, not {self.regularisation} and {self.unobserved}"
            )
        if not 0.0 < self.recency <= 1.0:
            raise ValueError(f"recency must be above 0 and at most 1, not {self.recency}")


class MatrixFactorization(FittedNetwork):
    """The network. Shapes are those of `Network`.

    With item factors Y and the weights c of a window's events, its vector u solves

        (a YᵀY + l (sum(c) + a items) I + sum(c y yᵀ)) u = sum(c y),    a = unobserved, l = regularisation.

    An item that a window or a training sequence holds twice counts twice, as confidence does in Hu et al. (2008). The
    factors are kept in the eigenbasis of YᵀY, where all but the last term on the left is a diagonal D. With D taken to
    both sides the matrix is I + ZᵀZ, few of whose eigenvalues are far from 1: conjugate gradients (Hestenes and Stiefel,
    1952) solve it in a few steps, which are a fixed number of operations for ONNX.
    """

    def __init__(self, config: MatrixFactorizationConfig) -> None:
        super().__init__()
        self.config = config
        self.factors = lasting(self, "factors", (config.items + 1, config.dim))
        self.spectrum = lasting(self, "spectrum", (config.dim,))
        # Rendle et al., 2022: so small that a score starts near 0.
        self.factors[1:].normal_(std=0.1 / math.sqrt(config.dim))
        self.register_buffer("recency", config.recency ** torch.arange(config.max_length), persistent=False)
        self.recency: Tensor

    def prepare(self, data: TrainingData) -> None:
        """Fit the factors by alternating least squares, from where they are."""
        pairs = _count_pairs(data)
        items = self.factors[1:]
        by_user = _groups(pairs, len(data.sequences), items.device)
        by_item = _groups(pairs[[1, 0, 2]], len(items), items.device)
        for _ in range(self.config.sweeps):
            users = self._fit(items, by_user, len(data.sequences))
            items = self._fit(users, by_item, len(items))
        spectrum, basis = torch.linalg.eigh((items.T @ items).double())
        self.factors[1:] = items @ basis.float()
        self.spectrum.copy_(spectrum.clamp_min(0.0))

    def _fit(self, fixed: Tensor, groups: "list[_Group]", count: int) -> Tensor:
        """The factors of one side, shape (count, dim), given those of the other; zeros for what has no event."""
        unobserved = self.config.unobserved * (fixed.T @ fixed)
        fitted = fixed.new_zeros((count, self.config.dim))
        for rows, columns, weights in groups:
            gathered = fixed[columns]
            weighted = gathered * weights[:, :, None]
            matrix = weighted.transpose(1, 2) @ gathered + unobserved
            matrix.diagonal(dim1=1, dim2=2).add_(self._shrinkage(weights.sum(1), len(fixed))[:, None])
            right = weighted.sum(1)[:, :, None]
            fitted[rows] = torch.cholesky_solve(right, torch.linalg.cholesky(matrix)).squeeze(2)
        return fitted

    def _shrinkage(self, observed: Tensor, pairs: int) -> Tensor:
        """What regularisation adds to the diagonal, for the weight of events and the number of pairs."""
        return self.config.regularisation * (observed + self.config.unobserved * pairs)

    def forward(self, items: Tensor, types: Tensor, ages: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002  the encoder's inputs
        """The factors of each window's user, shape (batch, dim); zeros for a window of length 0."""
        before_last = lengths[:, None] - 1 - torch.arange(items.shape[1], device=items.device)
        weights = self.recency[before_last.clamp_min(0)] * (before_last >= 0).to(self.recency.dtype)
        diagonal = self.config.unobserved * self.spectrum + self._shrinkage(weights.sum(1), self.config.items)[:, None]
        scale = diagonal.rsqrt()
        gathered = self.factors[items] * scale[:, None, :]
        # sum(c z zᵀ) once: a step then costs dim² instead of length x dim, twice.
        matrix = (gathered * weights[:, :, None]).transpose(1, 2) @ gathered
        residual = (weights[:, None, :] @ gathered).transpose(1, 2)
        solution, direction = torch.zeros_like(residual), residual
        square = residual.square().sum(1, keepdim=True)
        for _ in range(self.config.steps):
            image = direction + matrix @ direction
            # A residual of zero stays one: of a window without events, and of one that is solved already.
            size = square / (direction * image).sum(1, keepdim=True).clamp_min(_TINY)
            solution = solution + size * direction
            residual = residual - size * image
            shrunk = residual.square().sum(1, keepdim=True)
            direction = residual + shrunk / square.clamp_min(_TINY) * direction
            square = shrunk
        return solution.squeeze(2) * scale

    def item_table(self) -> Tensor:
        """Item vectors, shape (items + 1, dim): the items' factors; row 0 is all zeros."""
        return self.factors


_Group = tuple[Tensor, Tensor, Tensor]
"""Rows (n,), the columns of each (n, width) and their weights (n, width), float32 and 0 for padding."""


def _count_pairs(data: TrainingData) -> IntArray:
    """User, item and how many events they have, for every pair with one, shape (3, pairs); both count from 0."""
    lengths = [len(sequence) for sequence in data.sequences]
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = np.fromiter(
        (data.vocabulary.rows.get(item_id, 0) for sequence in data.sequences for item_id in sequence.items),
        np.int64,
        sum(lengths),
    )
    known = items > 0
    keys, counts = np.unique(users[known] * len(data.vocabulary) + items[known] - 1, return_counts=True)
    return np.stack((keys // len(data.vocabulary), keys % len(data.vocabulary), counts))


def _groups(pairs: IntArray, count: int, device: torch.device) -> list[_Group]:
    """Rows of like numbers of pairs together: little padding, and batches that the processor is busy with."""
    rows, columns, weights = pairs[:, np.argsort(pairs[0], kind="stable")]
    widths = np.bincount(rows, minlength=count)
    starts = np.cumsum(widths) - widths
    order = np.argsort(widths, kind="stable")
    groups: list[_Group] = []
    stop = count
    # From the widest down, so that the first row of a group says how wide it is.
    while stop and (width := int(widths[order[stop - 1]])):
        start = max(0, stop - max(1, _GATHERED // width))
        chosen = order[start:stop]
        places = np.arange(width)
        filled = places < widths[chosen, None]
        index = np.where(filled, starts[chosen, None] + places, 0)
        groups.append(
            (
                torch.from_numpy(chosen).to(device),
                torch.from_numpy(columns[index]).to(device),
                torch.from_numpy(np.where(filled, weights[index], 0).astype(np.float32)).to(device),
            )
        )
        stop = start
    return groups


FAMILIES = (
    Family(
        "mf",
        "matrix factorization by alternating least squares (Hu et al., 2008), windows folded in",
        MatrixFactorizationConfig,
        MatrixFactorization,
    ),
)
