"""A driftline command in a process whose clock is wrong, and jumps.

    python wrong_clock.py SECONDS EVERY ingest

For EVERY seconds the time is SECONDS ahead, then as far behind, and so on. It is the time that Python's `time` gives that is
wrong, so the clock of our own code and of the libraries in Python; the monotonic clock never jumps, here as anywhere.
"""

import sys
import time


def main() -> None:
    """Run the command."""
    seconds, every = float(sys.argv[1]), float(sys.argv[2])
    true_time = time.time

    def wrong_time() -> float:
        now = true_time()
        return now + (seconds if now // every % 2 else -seconds)

    time.time = wrong_time
    time.time_ns = lambda: round(wrong_time() * 1e9)
    # Only now: `from time import time` in what this imports must get the wrong one.
    from streams.cli import main as driftline  # noqa: PLC0415

    sys.argv[:] = ["driftline", *sys.argv[3:]]
    driftline()


if __name__ == "__main__":
    main()
