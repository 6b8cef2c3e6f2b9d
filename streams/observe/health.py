"""Whether the service may have traffic (ready) and whether it still moves (live)."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """An answer to a probe.

    Attributes:
        ok: Whether the answer is yes.
        reasons: Why not; empty if it is yes.
    """

    ok: bool
    reasons: tuple[str, ...]


class Health:
    """What the loop reports and the probes ask; every method may be called from any thread.

    The service is *ready* when nothing blocks it. It is *live* unless there was work waiting for `stall_s` seconds
    without any progress. Two kinds of silence are no stall: there is nothing to do, or something known blocks the
    service (Redis does not answer, say): a restart would not help then, and would take down every worker at once.

    Args:
        stall_s: Seconds without progress, with work waiting, after which the service is not live.
        clock: Seconds that only go forwards.
    """

    def __init__(self, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_s = stall_s
        self._clock = clock
        self._lock = threading.Lock()
        self._blocks: dict[str, str] = {"start": "starting"}
        self._lag = 0
        # When work was first seen waiting, or the last progress since; None while there is nothing to wait for.
        self._waiting_since: float | None = None

    def started(self) -> None:
        """End the state that a service begins in: not ready because it is starting."""
        self.unblock("start")

    def block(self, what: str, reason: str) -> None:
        """Say that something keeps the service from working; a second call for the same thing replaces the reason.

        Args:
            what: A short name, such as "store", for `unblock`.
            reason: For a person, such as "Redis at redis://db:6379/0 does not answer, since 3 tries". No secrets.
        """
        with self._lock:
            self._blocks[what] = reason

    def unblock(self, what: str) -> None:
        """Say that it no longer does; no error if it never did."""
        with self._lock:
            if self._blocks.pop(what, None) is not None and self._waiting_since is not None:
                self._waiting_since = self._clock()

    def progress(self) -> None:
        """Say that a batch was applied."""
        with self._lock:
            if self._waiting_since is not None:
                self._waiting_since = self._clock()

    def lag(self, waiting: int) -> None:
        """Say how much work waits: frames for evolve, raw events for ingest."""
        with self._lock:
            self._lag = waiting
            if waiting <= 0:
                self._waiting_since = None
            elif self._waiting_since is None:
                # From now, not from the last progress: after an idle night the first event is no stall.
                self._waiting_since = self._clock()

    def ready(self) -> Verdict:
        """Return whether the service may have traffic, or else everything that blocks it."""
        with self._lock:
            return Verdict(not self._blocks, tuple(self._blocks.values()))

    def live(self) -> Verdict:
        """Return whether the service still moves, or else for how long it has not."""
        with self._lock:
            if self._waiting_since is None or self._blocks:
                return Verdict(ok=True, reasons=())
            silence_s = self._clock() - self._waiting_since
            if silence_s <= self._stall_s:
                return Verdict(ok=True, reasons=())
            return Verdict(
                ok=False,
                reasons=(
                    f"no progress for {silence_s:.0f} s with {self._lag:,} waiting (allowed: {self._stall_s:.0f} s)",
                ),
            )
