"""One input that breaks the model must not take the others of its batch with it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from streams.errors import DriftlineError

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def one_by_one_if_need_be(
    inputs: Sequence[_In],
    work: Callable[[Sequence[_In]], Sequence[_Out]],
    alone: Callable[[_In, Exception], _Out],
    verify: Callable[[], None],
) -> list[_Out]:
    """The results of work on many inputs at once; where it fails, its halves are tried, down to what breaks it.

    Args:
        work: One result an input, in order.
        alone: The result for an input that fails by itself, and what it failed with.
        verify: Raises if the model does not work any more: one that fails on everything is no fault of the inputs.

    Raises:
        DriftlineError: Whatever work, alone or verify raises of ours.
    """
    if not inputs:
        return []
    try:
        return list(work(inputs))
    except DriftlineError:
        raise
    # A poisonous event may break any library below.
    except Exception as error:  # noqa: BLE001
        verify()
        if len(inputs) == 1:
            return [alone(inputs[0], error)]
    middle = len(inputs) // 2
    return [
        *one_by_one_if_need_be(inputs[:middle], work, alone, verify),
        *one_by_one_if_need_be(inputs[middle:], work, alone, verify),
    ]
