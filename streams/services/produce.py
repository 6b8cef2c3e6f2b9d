"""Sending lines of a file to a topic, as fast as Kafka takes them or at a given rate."""

import gzip
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from streams.errors import DataError, UsageError

# What the producer takes; a line beyond it could never be sent, and must not fill the memory first.
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"
# Between two acknowledged states of the count: a failure is seen this soon, and a flush costs a round trip.
_FLUSH_EVENTS: Final = 20_000
_FLUSH_S: Final = 0.5
# Sleeping is not more precise than this, so at high rates several events go out after each sleep.
_SHORTEST_SLEEP_S: Final = 0.002
# A longer interruption is not made up for: that would be a burst, not a rate.
_CATCH_UP_S: Final = 0.1


class LineSink(Protocol):
    """Where lines go; `streams.log.producer.Producer` is one."""

    def send(self, topic: str, value: bytes | None, key: bytes | str | None = None) -> None:
        """Hand over a message."""

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged; raises `DeliveryFailed`."""


class Produced(Struct, frozen=True):
    """What `driftline produce` did: ``without_key`` of the events had no string in the field to key by."""

    topic: str
    events: int
    without_key: int
    empty_lines: int
    seconds: float
    events_per_second: float


class Pace:
    """Lets events through at a rate: the n-th is due at the start + n / rate.

    Args:
        rate: Events a second; None: as fast as they come.

    Raises:
        UsageError: The rate is no positive number.
    """

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise UsageError(f"--rate {rate:g} should be a number of events a second above 0, such as 500 or 0.5")
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._start: float | None = None
        self._sent = 0
        self._due = 0  # events that may have been sent by the time of the last look at the clock

    def wait(self) -> None:
        """Return when the next event may go."""
        if self._rate is None:
            return
        self._sent += 1
        while self._sent > self._due:
            now = self._clock()
            if self._start is None:
                self._start = now
            self._start = max(self._start, now - (self._sent - 1) / self._rate - _CATCH_UP_S)
            self._due = math.floor((now - self._start) * self._rate + 1e-9) + 1
            if self._sent > self._due:
                missing_s = self._start + (self._sent - 1) / self._rate - now
                self._sleep(max(missing_s, _SHORTEST_SLEEP_S))


def read_lines(source: BufferedReader, name: str) -> Iterator[bytes]:
    """Lines without their line ends, empty ones too; of a gzip file those inside.

    Args:
        name: Of the file, for errors.

    Raises:
        DataError: A line is longer than a message may be, or the gzip file is damaged.
    """
    stream: Any = gzip.GzipFile(fileobj=source) if source.peek(2)[:2] == _GZIP_MAGIC else source
    number = 0
    while True:
        number += 1
        try:
            line: bytes = stream.readline(MAX_LINE_BYTES + 2)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name}, line {number}: cannot be read: {error}") from error
        if not line:
            return
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{name}, line {number}: longer than {MAX_LINE_BYTES:,} bytes, which no message may be; "
                "there should be one JSON event a line"
            )
        yield line


def key_by(field: str) -> Callable[[bytes], str | None]:
    """A function that finds the string in one field of a JSON line; None where there is none."""
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
        msgspec.defstruct("Keyed", [("key", str, msgspec.field(name=field))])
    )

    def key_of(line: bytes) -> str | None:
        try:
            key: str = decoder.decode(line).key
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return key

    return key_of


def produce_lines(
    sink: LineSink,
    topic: str,
    lines: Iterable[bytes],
    key_of: Callable[[bytes], str | None],
    pace: Pace,
    report: Callable[[int], None],
    clock: Callable[[], float] = time.monotonic,
) -> Produced:
    """Send every line that is not empty, its bytes untouched, and wait until Kafka has them all.

    Args:
        report: Called with the number of events that are acknowledged, a few times a second.

    Raises:
        DeliveryFailed: Kafka did not take an event; what ``report`` was told last is safe.
    """
    started = flushed_at = clock()
    sent = acknowledged = without_key = empty = 0
    for line in lines:
        if not line.strip():
            empty += 1
            continue
        pace.wait()
        key = key_of(line)
        without_key += key is None
        sink.send(topic, line, key)
        sent += 1
        if sent - acknowledged >= _FLUSH_EVENTS or clock() - flushed_at >= _FLUSH_S:
            sink.flush()
            acknowledged, flushed_at = sent, clock()
            report(acknowledged)
    sink.flush()
    report(sent)
    seconds = clock() - started
    return Produced(topic, sent, without_key, empty, seconds, sent / seconds if seconds > 0 else 0.0)
