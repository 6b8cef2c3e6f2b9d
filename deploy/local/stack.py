"""`make stack`: a real Kafka and a real Redis on this machine until Ctrl-C.

Prints their addresses as `export` lines on standard output, everything else on standard error. Data stays in
`.local/stack`, so the next `make stack` goes on where this one ended. Creates no topics: `driftline topics create` does.
"""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from deploy.local.process import port_is_free
from deploy.local.servers import KafkaServer, RedisServer, ServerError

_DIRECTORY = Path(__file__).resolve().parents[2] / ".local" / "stack"
_KAFKA_PORT = 9092
_REDIS_PORT = 6379
_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def main(directory: Path = _DIRECTORY) -> int:
    """Run the stack with its data in `directory` until SIGINT or SIGTERM; returns the exit status."""
    # Blocked rather than handled: nothing can interrupt a start or a stop half-way, and `sigwait` below takes them. The
    # servers do not inherit the mask: their tether clears it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        with ExitStack() as running:
            kafka = running.enter_context(KafkaServer(directory / "kafka", port=_usual_port("Kafka", _KAFKA_PORT)))
            redis = running.enter_context(
                # A save at most a minute after a change: a crash of the machine loses no more than the log can replay.
                RedisServer(
                    directory / "redis", port=_usual_port("Redis", _REDIS_PORT), arguments=("--save", "60", "1")
                )
            )
            print(f"export DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS={kafka.bootstrap_servers}")
            print(f"export DRIFTLINE_REDIS__URL={redis.url}", flush=True)
            _say(f"Kafka and Redis are running, their data in {directory}. Ctrl-C stops both.")
            signal.sigwait(_STOP_SIGNALS)
            _say("Stopping…")
    except ServerError as error:
        _say(str(error))
        return 1
    return 0


def _usual_port(name: str, port: int) -> int | None:
    """The usual port, or None (a free one) when something else listens there."""
    if port_is_free(port):
        return port
    _say(f"{name}'s usual port {port} is taken; using a free one. Mind the address below.")
    return None


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
