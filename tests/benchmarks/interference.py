"""What other processes took of the machine while something was measured: a benchmark that hides it cannot be trusted."""

import os
import time

import psutil


class Interference:
    """Starts to watch when made; `share` says what others had since then, or since it was asked last."""

    def __init__(self) -> None:
        self._mark = self._now()

    def share(self) -> float:
        """The part of all cores' time, 0 to 1, that went to processes that are not ours, or to other guests."""
        before, self._mark = self._mark, self._now()
        wall, busy, ours = (now - then for now, then in zip(self._mark, before, strict=True))
        return min(1.0, max(0.0, (busy - ours) / (wall * (os.cpu_count() or 1))))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - getattr(machine, "guest", 0.0)
        return time.monotonic(), busy, processor_seconds()


def processor_seconds() -> float:
    """Processor time, user and system, that this process and all its children, living and ended, have used."""
    mine = os.times()
    # Children that have ended and were waited for are in our own figures, those that run are not.
    total = mine.user + mine.system + mine.children_user + mine.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system + used.children_user + used.children_system
    return total
