"""Hostile messages, the same for the same seed, each with what has to become of it."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

TOPICS: Final = ("clicks", "views")
MAX_EVENT_BYTES: Final = 65_536
"""The limit of ingest: its default."""

_MAX_MESSAGE_BYTES: Final = 900_000
_NAMES: Final = (
    "trace",
    "",
    "ü",
    "\U0001f600",
    "__streams.errors.offset",
    "__streams.errors.exception",
    "driftline-replayed",
)
_FIELDS: Final = (
    "user_id", "item_id", "type", "event_id", "event_time", "session_id", "value", "recommendation_id", "position",
    "context",
)  # fmt: skip


class Fate(Enum):
    """What has to become of a message."""

    FRAME = "in a frame"
    DEAD_LETTER = "a dead letter"
    EITHER = "in a frame or a dead letter"


class Hostile(NamedTuple):
    """A message for a raw topic; ``timestamp_ms`` 0 is now."""

    value: bytes | None
    key: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    timestamp_ms: int
    fate: Fate


def hostile_messages(seed: int, count: int) -> Iterator[Hostile]:
    """That many messages."""
    rng = random.Random(seed)
    kinds, weights = zip(*_KINDS, strict=True)
    for _ in range(count):
        (kind,) = rng.choices(kinds, weights)
        value, fate = kind(rng)
        timestamp_ms = 0
        if rng.random() < 0.01:
            # A producer's clock in 1970: a good event may have a time of its own, so that nothing is sure.
            timestamp_ms = rng.randrange(1, 1_000_000)
            fate = fate if fate is Fate.DEAD_LETTER else Fate.EITHER
        yield Hostile(value, _key(rng), _headers(rng), timestamp_ms, fate)


def valid_event(rng: random.Random) -> dict[str, Any]:
    """An event of an app that means well."""
    event: dict[str, Any] = {"user_id": f"user-{rng.randrange(5000)}", "item_id": f"item-{rng.randrange(500)}"}
    if rng.random() < 0.5:
        event |= {"event_id": f"{rng.getrandbits(64):x}", "type": rng.choice(["click", "view", "buy", "ü"])}
    if rng.random() < 0.3:
        event["event_time"] = rng.choice([1_700_000_000_000, "2025-12-31T23:59:59.5+01:00", None])
    if rng.random() < 0.2:
        event |= {"value": rng.random() * 10 ** rng.randrange(-9, 300), "position": rng.randrange(1_000_000)}
    if rng.random() < 0.2:
        event["context"] = {"page": "x" * rng.randrange(200), "deep": _any_json(rng, 3)}
    if rng.random() < 0.2:
        event["unknown"] = _any_json(rng, 3)
    return event


# The kinds, each a value and its fate


def _valid(rng: random.Random) -> tuple[bytes, Fate]:
    return json.dumps(valid_event(rng), ensure_ascii=rng.random() < 0.5).encode(), Fate.FRAME


def _large(rng: random.Random) -> tuple[bytes, Fate]:
    return json.dumps({**valid_event(rng), "x": "y" * rng.randrange(30_000, 60_000)}).encode(), Fate.FRAME


def _noise(rng: random.Random) -> tuple[bytes, Fate]:
    return rng.randbytes(rng.choice([0, 1, 2, 10, 100, 1000])), Fate.EITHER


def _control(rng: random.Random) -> tuple[bytes, Fate]:
    event: dict[str, Any] = {"user_id": f"user-{rng.randrange(5000)}", "type": rng.choice(["$erase", "$identify"])}
    if event["type"] == "$identify":
        event["anonymous_id"] = f"user-{rng.randrange(5000)}"
    if rng.random() < 0.5:
        return json.dumps(event).encode(), Fate.FRAME
    wrong: list[dict[str, Any]] = [
        {"item_id": "i"}, {"type": "$"}, {"type": "$purge"}, {"user_id": None},
        {"type": "$identify", "anonymous_id": rng.choice([None, "", 5, [], "x" * 129, "\0"])},
    ]  # fmt: skip
    return json.dumps(event | rng.choice(wrong)).encode(), Fate.DEAD_LETTER


def _damaged(rng: random.Random) -> tuple[bytes, Fate]:
    raw = bytearray(_valid(rng)[0])
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(raw) + 1)
        raw[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
    return bytes(raw), Fate.EITHER


def _cut(rng: random.Random) -> tuple[bytes, Fate]:
    raw = _valid(rng)[0]
    return raw[: rng.randrange(len(raw))], Fate.DEAD_LETTER


def _other_value(rng: random.Random) -> tuple[bytes, Fate]:
    event = valid_event(rng)
    for _ in range(rng.randrange(1, 4)):
        # JSON can write half a surrogate pair, UTF-8 cannot.
        event[rng.choice(_FIELDS)] = "\ud800" if rng.random() < 0.05 else _any_json(rng, 3)
    return json.dumps(event).encode(), Fate.EITHER


def _no_id(rng: random.Random) -> tuple[bytes, Fate]:
    wrong: Any = rng.choice([None, "", "x" * 129, 5, 1.5, True, [], ["u"], {}, "\0", "u\0", "\ud800"])
    return json.dumps({**valid_event(rng), rng.choice(["user_id", "item_id"]): wrong}).encode(), Fate.DEAD_LETTER


def _no_object(rng: random.Random) -> tuple[bytes, Fate]:
    whole = rng.choice([[], [valid_event(rng)], "user", 5, None, True, 1e300])
    return json.dumps(whole).encode(), Fate.DEAD_LETTER


def _absurd_time(rng: random.Random) -> tuple[bytes, Fate]:
    time = rng.choice(
        [0, -1, 1_700_000_000, 10**15, 10**400, "2500-01-01T00:00:00Z", "2026-01-01", "now", 1.5, True, []]
    )
    return json.dumps({**valid_event(rng), "event_time": time}).encode(), Fate.DEAD_LETTER


def _no_number(rng: random.Random) -> tuple[bytes, Fate]:
    written = rng.choice(["NaN", "Infinity", "-Infinity", "1e", "0x1", "01", "+1", "1_000", "--1"])
    return f'{{"user_id":"u","item_id":"i","value":{written}}}'.encode(), Fate.DEAD_LETTER


def _extreme_number(rng: random.Random) -> tuple[bytes, Fate]:
    written = rng.choice(["1e999", "-1e999", "1e-999", "9" * 400, "-0.0", "0." + "1" * 500, "1e308", "9" * 19])
    return f'{{"user_id":"u","item_id":"i","{rng.choice(_FIELDS)}":{written}}}'.encode(), Fate.EITHER


def _deep(rng: random.Random) -> tuple[bytes, Fate]:
    depth = rng.choice([100, 900, 1100, 5000, 30_000])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
    depth = min(depth, 60_000 // (len(opened) + 1))
    field = rng.choice(["context", "x"])
    return f'{{"user_id":"u","item_id":"i","{field}":{opened * depth}1{closed * depth}}}'.encode(), Fate.EITHER


def _no_utf8(rng: random.Random) -> tuple[bytes, Fate]:
    raw = rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\x80"])
    where = rng.choice([b'{"user_id":"%b","item_id":"i"}', b'{"user_id":"u","item_id":"i","x":"%b"}', b'{"%b":1}'])
    return where % raw, Fate.DEAD_LETTER


def _raw_nul(rng: random.Random) -> tuple[bytes, Fate]:
    return rng.choice([b"\0", b'{"user_id":"u\0","item_id":"i"}', b'\0{"user_id":"u","item_id":"i"}']), Fate.DEAD_LETTER


def _many(rng: random.Random) -> tuple[bytes, Fate]:
    raw = _valid(rng)[0]
    return raw + rng.choice([raw, b",", b"}", b"\n" + raw, b"\0"]), Fate.DEAD_LETTER


def _marked(rng: random.Random) -> tuple[bytes, Fate]:
    return b"\xef\xbb\xbf" + _valid(rng)[0], Fate.EITHER


def _twice(rng: random.Random) -> tuple[bytes, Fate]:
    return b'{"user_id":"u1","user_id":"u2","item_id":"i","item_id":["i"]}', Fate.DEAD_LETTER


def _nothing(rng: random.Random) -> tuple[bytes | None, Fate]:
    return rng.choice([None, b"", b" ", b"\n"]), Fate.DEAD_LETTER


def _huge(rng: random.Random) -> tuple[bytes, Fate]:
    size = rng.choice([MAX_EVENT_BYTES + 1, 100_000, _MAX_MESSAGE_BYTES])
    if rng.random() < 0.5:
        return rng.randbytes(size), Fate.DEAD_LETTER
    return json.dumps({**valid_event(rng), "x": "y" * size}).encode()[:_MAX_MESSAGE_BYTES], Fate.DEAD_LETTER


_KINDS: Final[Sequence[tuple[Callable[[random.Random], tuple[bytes | None, Fate]], float]]] = (
    (_valid, 300),
    (_damaged, 200),
    (_other_value, 100),
    (_noise, 60),
    (_control, 50),
    (_cut, 50),
    (_no_id, 50),
    (_absurd_time, 30),
    (_no_utf8, 30),
    (_nothing, 30),
    (_no_object, 20),
    (_no_number, 20),
    (_extreme_number, 20),
    (_raw_nul, 20),
    (_many, 20),
    (_twice, 10),
    (_marked, 10),
    (_deep, 3),
    (_large, 1),
    (_huge, 0.3),
)


def _key(rng: random.Random) -> bytes | None:
    return rng.choice([None, b"", b"user-1", rng.randbytes(rng.randrange(40))])


def _headers(rng: random.Random) -> list[tuple[str, bytes | None]]:
    if rng.random() < 0.7:
        return []
    return [
        (rng.choice(_NAMES), rng.choice([None, b"", b"5", rng.randbytes(rng.randrange(100))]))
        for _ in range(rng.choice([1, 2, 20]))
    ]


def _any_json(rng: random.Random, depth: int) -> Any:
    plain = [None, True, False, 0, -1, 2**63, 2**64, 1e300, 0.1, "", "x", "\0", "ü", "x" * 300]
    if depth and rng.random() < 0.3:
        inside = [_any_json(rng, depth - 1) for _ in range(rng.randrange(4))]
        return inside if rng.random() < 0.5 else {f"k{number}": value for number, value in enumerate(inside)}
    return rng.choice(plain)
