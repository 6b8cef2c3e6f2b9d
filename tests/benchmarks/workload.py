"""Who does what in the benchmarks: 20,000 users, the items of a bundle, and the events between them."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.bundle import Bundle
from streams.contracts.frame import FRAME_VERSION, Frame, Source, partition_of
from streams.interest.engine import Engine, UserEvents, UserRow
from streams.interest.window import STATE_VERSION, Arrival, UserState, encode_state
from streams.store.protocol import StateStore, Swap, Watermark

USERS: Final = 20_000
ITEMS: Final = 2_000
PARTITIONS: Final = 8
EVENT_TYPE: Final = "click"

# Activity falls as 1 / (rank + 50): the most active user makes 0.33 % of the events, the first hundredth of the users
# 27 %. A plain Zipf law would give one user several per cent, and batches would merge what no person does.
_ACTIVITY_OFFSET: Final = 50
_POPULARITY_OFFSET: Final = 10
# Events drawn once and sent round and round: encoding them is the apps' work and not what is measured.
_POOL: Final = 100_000
_DAY_MS: Final = 86_400_000


class RawEvent(msgspec.Struct, frozen=True, gc=False):
    """One raw message, ready to be sent: keyed by its user and put where that user's other events are."""

    partition: int
    key: bytes
    value: bytes


def user_ids() -> list[str]:
    """Every user, most active first."""
    return [f"user-{number:06}" for number in range(USERS)]


def item_ids() -> list[str]:
    """The items of the pooling bundle, most popular first."""
    return [f"item-{number:04}" for number in range(ITEMS)]


def activity(users: int = USERS) -> npt.NDArray[np.float64]:
    """The share of the events that each user makes, shape (users,)."""
    return _falling(users, _ACTIVITY_OFFSET)


def events(items: tuple[str, ...], seed: int = 1) -> Iterator[RawEvent]:
    """Events without end, about 150 bytes of JSON each, without event_id and event_time as most apps send them."""
    rng = np.random.default_rng(seed)
    ids = user_ids()
    pool = [
        RawEvent(
            partition_of(ids[user], PARTITIONS),
            ids[user].encode(),
            msgspec.json.encode(
                {
                    "user_id": ids[user],
                    "item_id": items[item],
                    "session_id": f"session-{session:08x}",
                    "value": 1.0,
                    "context": {"page": "home", "device": "phone", "slot": 3},
                }
            ),
        )
        for user, item, session in zip(
            rng.choice(USERS, _POOL, p=activity()).tolist(),
            rng.choice(len(items), _POOL, p=_falling(len(items), _POPULARITY_OFFSET)).tolist(),
            rng.integers(0, 2**32, _POOL).tolist(),
            strict=True,
        )
    ]
    while True:
        yield from pool


def watched_users(share: float, seed: int = 2) -> list[str]:
    """Users drawn at random who together make about this share of the events."""
    shares = activity()
    order = np.random.default_rng(seed).permutation(USERS)
    count = int(np.searchsorted(np.cumsum(shares[order]), share)) + 1
    ids = user_ids()
    return [ids[user] for user in order[:count].tolist()]


def fill_store(store: StateStore, engine: Engine, bundle: Bundle, now_ms: int) -> None:
    """Give every user a row as after months of use: a window between its least and its greatest length.

    Otherwise a slow agent, which gets through fewer events, would work on shorter windows than a fast one.
    """
    rng = np.random.default_rng(3)
    items = bundle.vocabulary.ids[1:]
    popularity = _falling(len(items), _POPULARITY_OFFSET)
    window = bundle.config.window
    source = Source("history", "", 0)
    frame = Frame(FRAME_VERSION, [source], [], [], [], [], [], [], [], [], {})
    expected: dict[int, int | None] = dict.fromkeys(range(PARTITIONS))
    users = iter(user_ids())
    while some := list(islice(users, 1000)):
        wanted = []
        for user in some:
            length = int(rng.integers(window.keep, window.max + 1))
            chosen = [items[i] for i in rng.choice(len(items), length, p=popularity).tolist()]
            times = (now_ms - 30 * _DAY_MS + np.sort(rng.integers(0, 29 * _DAY_MS, length))).tolist()
            ids = [f"clicks-{partition_of(user, PARTITIONS)}-{number}" for number in range(length)]
            before = UserState(
                STATE_VERSION, chosen[:-1], [EVENT_TYPE] * (length - 1), times[:-1], ids[:-1], True, b""
            )  # fmt: skip
            newest = Arrival(times[-1], ids[-1], chosen[-1], EVENT_TYPE, False, source, 0, times[-1], frame, 0)
            wanted.append(UserEvents(user, encode_state(before), None, [newest]))
        rows: dict[int, dict[str, UserRow]] = {}
        for update in engine.evolve(wanted, now_ms):
            if update.row is not None:
                rows.setdefault(partition_of(update.user_id, PARTITIONS), {})[update.user_id] = update.row
        for partition, of_partition in rows.items():
            offset = (expected[partition] or 0) + 1
            store.swap([Swap(partition, expected[partition], Watermark(offset, "", PARTITIONS), of_partition)])
            expected[partition] = offset


def _falling(count: int, offset: int) -> npt.NDArray[np.float64]:
    weights = 1.0 / (np.arange(count) + 1.0 + offset)
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares
