"""A backfill worker that dies at one of its writes: the real one, on a store that kills the process.

    python crash_filler.py WRITES

does what `driftline backfill-worker` does with the same environment, until its WRITES-th write to Redis: then it kills
itself, before the write, or half-way through the windows or rows of it. It keeps little in memory, so that there are many.
"""

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import TypeVar
from uuid import uuid4

from streams.contracts.generation import Progress
from streams.interest.engine import UserRow
from streams.observe.logs import configure_logging
from streams.services.backfill.worker import FillingWorker, Limits
from streams.services.parts import open_engine
from streams.settings import RedisSettings, load_settings
from streams.store.protocol import Watermark
from streams.store.redis import RedisFilling
from streams.store.redis.filling import FilledWindow

# Of a dead worker the others take over soon.
LEASE_MS = 1_000
LIMITS = Limits(cache_bytes=5_000, step_bytes=0, step_events=100, read_frames=5)
_Value = TypeVar("_Value")


class FusedFilling(RedisFilling):
    """Dies at the ``writes``-th write."""

    def __init__(self, settings: RedisSettings, generation: str, writes: int) -> None:
        super().__init__(settings, generation, uuid4().hex, LEASE_MS)
        self._writes = writes

    def write_windows(self, partition: int, expected: int | None, windows: Mapping[str, FilledWindow]) -> None:
        if self._is_last():
            super().write_windows(partition, expected, _half(windows))
            _die()
        super().write_windows(partition, expected, windows)

    def write_rows(self, partition: int, expected: int | None, rows: Mapping[str, UserRow]) -> None:
        if self._is_last():
            super().write_rows(partition, expected, _half(rows))
            _die()
        super().write_rows(partition, expected, rows)

    def checkpoint(
        self, partition: int, expected: int | None, progress: Progress, watermark: Watermark | None = None
    ) -> None:
        if self._is_last():
            _die()
        super().checkpoint(partition, expected, progress, watermark)

    def _is_last(self) -> bool:
        self._writes -= 1
        return self._writes == 0


def _half(values: Mapping[str, _Value]) -> dict[str, _Value]:
    return dict(list(values.items())[: len(values) // 2])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Read the number of writes from the command line and the settings from the environment."""
    settings = load_settings({})
    configure_logging(settings.log.format, "warning", "backfill")
    engine, _ = open_engine(settings, mode="replay")
    with closing(FusedFilling(settings.redis, settings.redis.generation, int(sys.argv[1]))) as filling:
        FillingWorker(settings, engine, filling, lambda: False, LIMITS).run()


if __name__ == "__main__":
    main()
