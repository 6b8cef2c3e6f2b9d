"""The apps: a process that sends raw events, flat out or at a fixed rate.

    python -m tests.benchmarks.generator BOOTSTRAP_SERVERS BUNDLE

Takes ``{"topic": …, "events": n}`` or ``{"topic": …, "rate": r, "seconds": s}`` a line on standard input and answers each
with ``{"sent": …, "seconds": …}``.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from models.bundle import read_bundle
from streams.log.producer import Producer
from streams.settings import KafkaSettings
from tests.benchmarks.workload import RawEvent, events

_TICK_S: Final = 0.002
_FLAT_OUT_CHUNK: Final = 5000


def main() -> None:
    """Serve requests until the input ends."""
    servers, bundle = sys.argv[1:]
    producer = Producer(KafkaSettings(bootstrap_servers=servers))
    source = events(tuple(read_bundle(Path(bundle)).vocabulary.ids[1:]))
    next(source)  # draws the pool
    _say(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "events" in request:
            _send_flat_out(producer, source, request["topic"], request["events"])
        else:
            _send_at_rate(producer, source, request["topic"], request["rate"], request["seconds"])


def _send_flat_out(producer: Producer, source: Iterator[RawEvent], topic: str, count: int) -> None:
    started = time.perf_counter()
    left = count
    while left:
        some = min(left, _FLAT_OUT_CHUNK)
        _send(producer, source, topic, some)
        producer.flush()
        left -= some
    _say(sent=count, seconds=time.perf_counter() - started)


def _send_at_rate(producer: Producer, source: Iterator[RawEvent], topic: str, rate: float, seconds: float) -> None:
    started = time.perf_counter()
    sent = 0
    while (elapsed := time.perf_counter() - started) < seconds:
        due = int(elapsed * rate)
        if due > sent:
            _send(producer, source, topic, due - sent)
            sent = due
        producer.poll()
        time.sleep(max(0.0, min(_TICK_S, (sent + 1) / rate - (time.perf_counter() - started))))
    elapsed = time.perf_counter() - started
    producer.flush()
    _say(sent=sent, seconds=elapsed)


def _send(producer: Producer, source: Iterator[RawEvent], topic: str, count: int) -> None:
    for event in islice(source, count):
        producer.send(topic, event.value, event.key, event.partition)


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
