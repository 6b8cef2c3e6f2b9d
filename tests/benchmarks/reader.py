"""The outside truth about freshness: a process that reads vectors from Redis as an app would.

    python -m tests.benchmarks.reader REDIS_HOST:PORT KEY_PREFIX

Takes ``{"users": […]}`` (watch these from now on) or ``{"stop": true}`` a line on standard input; answers the first with
``{"watching": n}`` and the second with ``{"freshness_ms": […]}``, one value an event.

It watches users through Redis's own tracking of what a client has read (CLIENT TRACKING, RESP3): as soon as a row changes
Redis says so, and the reader fetches vector and state. Freshness is then the time on the clock minus the Kafka timestamp of
each event that is new in the state: from the moment that the app handed the event to its producer, to the moment that another
process holds the vector that knows it. Kafka's timestamps are whole milliseconds, rounded down, so a figure is up to 1 ms
too long, never too short. Polling would cost a tenth of a core; this costs a reading an event of a watched user.
"""

import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import hiredis

from streams.contracts.frame import partition_of
from streams.interest.window import decode_state
from tests.benchmarks.workload import PARTITIONS

_RECEIVE_BYTES: Final = 1 << 18


class TrackedRows:
    """Rows of users, read again whenever Redis says that they changed."""

    def __init__(self, host: str, port: int, prefix: str) -> None:
        self._prefix = prefix
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = hiredis.Reader()
        self._asked: deque[bytes] = deque()
        self._known: dict[bytes, frozenset[str]] = {}
        self.freshness_ms: list[float] = []
        self._command("HELLO", "3")
        self._command("CLIENT", "TRACKING", "ON")

    def watch(self, users: Sequence[str]) -> None:
        """Watch these users and no others, from what their rows hold now."""
        self.freshness_ms = []
        self._known = {}
        keys = [f"{self._prefix}:{{{partition_of(user, PARTITIONS)}}}:user:{user}".encode() for user in users]
        for start in range(0, len(keys), 100):
            self._read(keys[start : start + 100])
            while self._asked:
                self.receive()
        self.freshness_ms = []

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def receive(self) -> None:
        """Take what Redis has sent: changes are read, and readings measured."""
        self._parser.feed(self._socket.recv(_RECEIVE_BYTES))
        changed: list[bytes] = []
        for message in self._messages():
            if isinstance(message, hiredis.PushNotification):
                changed += [key for key in message[1] or () if key in self._known]
            elif self._asked:
                self._measure(self._asked.popleft(), message)
        if changed:
            self._read(changed)

    def _measure(self, key: bytes, row: Any) -> None:
        now_ms = time.time() * 1000
        vector, raw = row
        if vector is None or raw is None:
            self._known[key] = frozenset()
            return
        state = decode_state(raw)
        known = self._known.get(key)
        if known is not None:
            self.freshness_ms += [
                now_ms - time_ms
                for time_ms, event_id in zip(state.times, state.ids, strict=True)
                if event_id not in known
            ]
        self._known[key] = frozenset(state.ids)

    def _read(self, keys: Sequence[bytes]) -> None:
        self._asked += keys
        self._socket.sendall(b"".join(_packed("HMGET", key, "vector", "state") for key in keys))

    def _command(self, *words: str) -> None:
        self._socket.sendall(_packed(*words))
        while not (answers := list(self._messages())):
            self._parser.feed(self._socket.recv(_RECEIVE_BYTES))
        if isinstance(answers[0], hiredis.ReplyError):
            raise answers[0]

    def _messages(self) -> Iterator[Any]:
        while (message := self._parser.gets()) is not False:
            yield message


def _packed(*words: str | bytes) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # hiredis 3.5 declares a tuple of one
    return packed


def main() -> None:
    """Serve requests until the input ends."""
    address, prefix = sys.argv[1:]
    host, _, port = address.rpartition(":")
    _say(ready=True)
    rows: TrackedRows | None = None
    while True:
        # Lines are asked for one by one and answered at once, so none waits in Python's buffer.
        readable, _, _ = select.select([sys.stdin, *([rows] if rows else [])], [], [])
        if rows in readable and rows is not None:
            rows.receive()
        if sys.stdin in readable:
            line = sys.stdin.readline()
            if not line:
                return
            request = json.loads(line)
            if "users" in request:
                rows = TrackedRows(host, int(port), prefix)
                rows.watch(request["users"])
                _say(watching=len(request["users"]))
            elif rows is not None:
                _say(freshness_ms=rows.freshness_ms)
                rows = None


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
