"""Waiting for something to become true, which tests of running processes do instead of sleeping."""

import time
from collections.abc import Callable
from typing import TypeVar

_Answer = TypeVar("_Answer")
_POLL_S = 0.01


def wait_until(condition: Callable[[], _Answer], timeout_s: float, message: str) -> _Answer:
    """Ask again and again until the answer is truthy, and return it.

    Args:
        condition: Asked at least once; an exception that it raises ends the wait.
        timeout_s: How long to go on asking.
        message: What is waited for, as in "the vector of user 7 is in Redis".

    Raises:
        TimeoutError: It was not so in time; the message says what, for how long, and the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain until {message}; the last answer was {answer!r}")
        time.sleep(_POLL_S)
    return answer
