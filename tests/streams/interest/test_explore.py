import math

import numpy as np
import pytest

from streams.interest.explore import normals_of
from tests.streams.interest.normal_oracle import box_muller


@pytest.mark.parametrize("dim", [1, 2, 7, 64])
def test_numbers_follow_from_the_name_alone(dim: int) -> None:
    found = normals_of(["a", "b", "a"], dim)
    assert (found.shape, found.dtype.name) == ((3, dim), "float32")
    assert found[0].tolist() == pytest.approx(box_muller("a", dim), abs=1e-6)
    assert found[1].tolist() == pytest.approx(box_muller("b", dim), abs=1e-6)
    assert found[0].tolist() == found[2].tolist() != found[1].tolist()
    assert normals_of(["b"], dim)[0].tolist() == found[1].tolist()


def test_the_numbers_of_this_name_will_never_change() -> None:
    # Computed once with `box_muller`: another list under an id that has gone out would break the promise of replays.
    assert normals_of(["0123456789abcdef"], 4)[0].tolist() == pytest.approx(
        [-1.315977, 0.738989, 1.258884, 0.516873], abs=2e-6
    )


def test_the_numbers_are_standard_normal() -> None:
    found = np.sort(normals_of([f"user {number}" for number in range(2000)], 5).ravel())
    # The largest gap between 10,000 sorted numbers and the normal distribution (Kolmogorov, Smirnov): 1.95 / 100 is
    # passed once in a thousand times, and here the names are fixed.
    normal = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in found.tolist()])
    assert np.abs(normal - (np.arange(len(found)) + 0.5) / len(found)).max() < 0.0195


def test_nobody_gets_no_numbers() -> None:
    assert normals_of([], 8).shape == (0, 8)
