"""The durable state of a user: a bounded window of events, and the one function that advances it."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Generic, Protocol, TypeVar

import msgspec
from msgspec import Struct

from models.spec import WindowRule
from streams.contracts.frame import Frame, Source

STATE_VERSION: Final = 1
_DIGEST_BYTES: Final = 8


class Arrival(Struct, frozen=True, gc=False):
    """One event of one user, as it comes out of a frame.

    Attributes:
        named: The app gave the event id, so a repeat of it can come; a derived id is unique by construction.
        appended_ms: When the app produced it (Kafka's timestamp).
        frame, index: Where it came from, to find its optional fields again.
    """

    time_ms: int
    event_id: str
    item_id: str
    type: str
    named: bool
    source: Source
    offset: int
    appended_ms: int
    frame: Frame
    index: int


class WindowEvent(Protocol):
    """What a window needs of an event; `Arrival` is one, and so is what a backfill reads from files."""

    @property
    def time_ms(self) -> int:
        """When it happened, milliseconds since 1970."""

    @property
    def event_id(self) -> str:
        """The app's id of it, or the one that its place gives."""

    @property
    def item_id(self) -> str:
        """What it was about."""

    @property
    def type(self) -> str:
        """What happened."""

    @property
    def named(self) -> bool:
        """Whether the id is the app's."""


_Event = TypeVar("_Event", bound=WindowEvent)


class UserState(Struct, frozen=True, array_like=True):
    """The window as four parallel lists ordered by (time, event id), and what is needed to advance it exactly.

    Attributes:
        truncated: Older events than the first have been cut away.
        recent: Digests of the newest event ids that the app gave, 8 bytes each, oldest first.
    """

    version: int
    items: list[str]
    types: list[str]
    times: list[int]
    ids: list[str]
    truncated: bool
    recent: bytes

    def __len__(self) -> int:
        return len(self.items)


EMPTY_STATE: Final = UserState(STATE_VERSION, [], [], [], [], False, b"")


class InvalidState(ValueError):
    """Bytes that are not a state of this version."""


class Advance(Struct, Generic[_Event], frozen=True):
    """What `advance_window` did.

    Attributes:
        applied: The events that entered the window, in the order of the log.
        repeats: Events whose id was seen before.
        late: Events older than a full window.
    """

    state: UserState
    applied: list[_Event]
    repeats: int
    late: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UserState)


def encode_state(state: UserState) -> bytes:
    """MessagePack, as the row's ``state`` field holds it."""
    return _encoder.encode(state)


def decode_state(raw: bytes) -> UserState:
    """The state in ``raw``.

    Raises:
        InvalidState: Not a state, or of another version.
    """
    try:
        state = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidState(f"not a user's state: {error}") from error
    if state.version != STATE_VERSION:
        raise InvalidState(f"state version {state.version}, this worker reads version {STATE_VERSION}")
    if not len(state.items) == len(state.types) == len(state.times) == len(state.ids):
        raise InvalidState("a state whose lists differ in length")
    if len(state.recent) % _DIGEST_BYTES:
        raise InvalidState(f"a memory of {len(state.recent)} bytes, which is no multiple of {_DIGEST_BYTES}")
    return state


def advance_window(state: UserState, arrivals: Sequence[_Event], rule: WindowRule, memory: int) -> Advance[_Event]:
    """Add events to a window, in the order of the log.

    The window is ordered by (event time, event id). An event goes where it belongs; one that sorts before the
    first event of a window that is full (``rule.max`` events) or was cut before is too late and dropped. A window
    that exceeds ``rule.max`` is cut to its newest ``rule.keep``. So the newest ``keep`` events are always in it,
    whatever order they arrived in.

    An event whose app gave it an id is dropped as a repeat if that id is in the window or among the last
    ``memory`` given ids.
    """
    items, types, times, ids = list(state.items), list(state.types), list(state.times), list(state.ids)
    truncated, recent = state.truncated, state.recent
    applied: list[_Event] = []
    repeats = late = 0
    for arrival in arrivals:
        digest = b""
        if arrival.named:
            digest = blake2b(arrival.event_id.encode(), digest_size=_DIGEST_BYTES).digest()
            if _remembers(recent, digest) or arrival.event_id in ids:
                repeats += 1
                continue
        position = len(items)
        key = (arrival.time_ms, arrival.event_id)
        while position and key < (times[position - 1], ids[position - 1]):
            position -= 1
        if position == 0 and items and (truncated or len(items) >= rule.max):
            late += 1
            continue
        items.insert(position, arrival.item_id)
        types.insert(position, arrival.type)
        times.insert(position, arrival.time_ms)
        ids.insert(position, arrival.event_id)
        if digest:
            recent = (recent + digest)[-memory * _DIGEST_BYTES :] if memory else b""
        applied.append(arrival)
        if len(items) > rule.max:
            cut = len(items) - rule.keep
            del items[:cut], types[:cut], times[:cut], ids[:cut]
            truncated = True
    if not applied:
        return Advance(state, applied, repeats, late)
    return Advance(UserState(STATE_VERSION, items, types, times, ids, truncated, recent), applied, repeats, late)


def _remembers(recent: bytes, digest: bytes) -> bool:
    position = recent.find(digest)
    while position >= 0 and position % _DIGEST_BYTES:
        position = recent.find(digest, position + 1)
    return position >= 0
