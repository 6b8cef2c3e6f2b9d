"""Normal numbers from a name in plain Python. It shares nothing with `normals_of`."""

import math
from hashlib import shake_128


def box_muller(name: str, dim: int) -> list[float]:
    """The definition, a number at a time: the first half are cosines, the second sines."""
    pairs = math.ceil(dim / 2)
    content = shake_128(name.encode()).digest(8 * pairs)
    uniform = [(int.from_bytes(content[4 * i : 4 * i + 4], "little") + 0.5) / 2**32 for i in range(2 * pairs)]
    radii = [math.sqrt(-2 * math.log(u)) for u in uniform[:pairs]]
    angles = [2 * math.pi * u for u in uniform[pairs:]]
    cosines = [radius * math.cos(angle) for radius, angle in zip(radii, angles, strict=True)]
    return [*cosines, *(radius * math.sin(angle) for radius, angle in zip(radii, angles, strict=True))][:dim]
