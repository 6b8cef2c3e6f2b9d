"""Controlled exploration: chance that a replay repeats."""

from collections.abc import Sequence
from hashlib import shake_128

import numpy as np

from models.spec import Vectors


def normals_of(names: Sequence[str], dim: int) -> Vectors:
    """Standard normal numbers that follow from a name alone: the same on every machine and in every version.

    Uniform numbers are 32 bits each of the name's SHAKE128; Box and Muller (1958) make two normal ones of two. NumPy's
    own generator may give other numbers after an upgrade, and a replay would then make other lists under the old ids.

    Args:
        names: One a row, such as recommendation ids.
        dim: Numbers to draw for each.

    Returns:
        Shape (names, dim), float32.
    """
    pairs = (dim + 1) // 2
    bits = b"".join(shake_128(name.encode()).digest(8 * pairs) for name in names)
    # The middle of each of 2^32 intervals: never 0, whose logarithm is infinite.
    uniform = (np.frombuffer(bits, "<u4").reshape(len(names), 2, pairs) + 0.5) / 2.0**32
    radius = np.sqrt(-2.0 * np.log(uniform[:, 0]))
    angle = 2.0 * np.pi * uniform[:, 1]
    normals: Vectors = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :dim]
    return normals.astype(np.float32)
