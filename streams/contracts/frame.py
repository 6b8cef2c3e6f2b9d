"""Frame v1: the events of one `interactions` partition, packed column by column into one Kafka message.

Faust spends about 225 µs of Python on each message whatever the agent does; a frame makes that a cost per
some hundreds of events. A frame is MessagePack, written as arrays: the columns, not their names, go on the wire.
"""

import zlib
from typing import Final

import msgspec
from msgspec import Struct

from streams.contracts.event import IDENTIFY, Event, derived_id_start

FRAME_VERSION: Final = 1
# No script call on the store may carry more users than this, so no frame does (design: a call < 5 ms).
MAX_FRAME_USERS: Final = 256


# What a frame adds to the bytes of a raw event at most: three 9-byte numbers, a source index, a missing event id;
# and for each source its topic id, partition and lengths.
_EVENT_OVERHEAD: Final = 36
_SOURCE_OVERHEAD: Final = 64


class Source(Struct, frozen=True, array_like=True):
    """A partition of a raw topic. The topic's id tells a topic from a recreated one of the same name."""

    topic: str
    topic_id: str
    partition: int

    def __hash__(self) -> int:
        return hash((self.topic, self.topic_id, self.partition))


class Extra(Struct, frozen=True, array_like=True):
    """The optional fields of one event; events without any have no Extra."""

    session_id: str | None
    value: float | None
    recommendation_id: str | None
    position: int | None
    context: str | None  # JSON


class Frame(Struct, frozen=True, array_like=True):
    """Columns of equal length, one element an event, in the order of the log.

    Attributes:
        sources: The raw partitions that occur; ``source`` indexes them.
        offset: Offset in the raw partition; rises within one source.
        appended_ms: Timestamp of the raw message: when the app produced it.
        user: Whose window it is for; of ``$identify`` the anonymous user.
        item: Of ``$identify`` the user that the anonymous one is; "" of ``$erase``.
        time_ms: When the event happened.
        event_id: None where the app gave none: it is then derived from the source.
        extra: Optional fields by position of the event.
    """

    version: int
    sources: list[Source]
    source: list[int]
    offset: list[int]
    appended_ms: list[int]
    user: list[str]
    item: list[str]
    type: list[str]
    time_ms: list[int]
    event_id: list[str | None]
    extra: dict[int, Extra]

    def __len__(self) -> int:
        return len(self.offset)


class InvalidFrame(ValueError):
    """Bytes that are not a Frame v1."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def partition_of(user_id: str, partitions: int) -> int:
    """The `interactions` partition of a user, and the tag of the user's keys in Redis."""
    return zlib.crc32(user_id.encode()) % partitions


def encode_frame(frame: Frame) -> bytes:
    """The frame's bytes on the wire (before Kafka's compression)."""
    return _encoder.encode(frame)


def decode_frame(raw: bytes) -> Frame:
    """The frame in ``raw``.

    Raises:
        InvalidFrame: Not MessagePack, another version, or columns that disagree.
    """
    try:
        frame = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidFrame(f"not a frame: {error}") from error
    if frame.version != FRAME_VERSION:
        raise InvalidFrame(f"frame version {frame.version}, this worker reads version {FRAME_VERSION}")
    count = len(frame.offset)
    columns = (frame.source, frame.appended_ms, frame.user, frame.item, frame.type, frame.time_ms, frame.event_id)
    if any(len(column) != count for column in columns):
        raise InvalidFrame(f"columns of different lengths: {[len(column) for column in columns]}, offsets {count}")
    if frame.source and not 0 <= min(frame.source) <= max(frame.source) < len(frame.sources):
        raise InvalidFrame(f"a source index outside 0 to {len(frame.sources) - 1}")
    return frame


def event_ids(frame: Frame) -> list[str]:
    """The id of every event, derived ones filled in."""
    starts = [derived_id_start(source.topic, source.partition) for source in frame.sources]
    return [
        f"{starts[source]}{offset}" if given is None else given
        for given, source, offset in zip(frame.event_id, frame.source, frame.offset, strict=True)
    ]


class FrameBuilder:
    """Collects events of one `interactions` partition and cuts them into frames bounded in events, bytes and users."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._done: list[Frame] = []
        self._start()

    def _start(self) -> None:
        self._sources: dict[Source, int] = {}
        self._users: set[str] = set()
        self._bytes = 0
        self._source: list[int] = []
        self._offset: list[int] = []
        self._appended_ms: list[int] = []
        self._user: list[str] = []
        self._item: list[str] = []
        self._type: list[str] = []
        self._time_ms: list[int] = []
        self._event_id: list[str | None] = []
        self._extra: dict[int, Extra] = {}

    def add(
        self, event: Event, source: Source, offset: int, appended_ms: int, event_type: str, time_ms: int, size: int
    ) -> None:
        """Append one event.

        Args:
            size: Bytes of the raw event.
        """
        user = event.window_of
        size += _EVENT_OVERHEAD + 4 * len(event_type)
        if source not in self._sources:
            size += _SOURCE_OVERHEAD + len(source.topic)
        if self._event_id and (
            len(self._event_id) >= self._max_events
            or self._bytes + size > self._max_bytes
            or (len(self._users) >= MAX_FRAME_USERS and user not in self._users)
        ):
            self._cut()
        index = self._sources.setdefault(source, len(self._sources))
        self._users.add(user)
        self._bytes += size
        self._source.append(index)
        self._offset.append(offset)
        self._appended_ms.append(appended_ms)
        self._user.append(user)
        self._item.append(event.subject)
        self._type.append(event_type)
        self._time_ms.append(time_ms)
        extra = _extra_of(event)
        if extra is not None:
            self._extra[len(self._event_id)] = extra
        self._event_id.append(event.event_id)

    def _cut(self) -> None:
        self._done.append(
            Frame(
                FRAME_VERSION,
                list(self._sources),
                self._source,
                self._offset,
                self._appended_ms,
                self._user,
                self._item,
                self._type,
                self._time_ms,
                self._event_id,
                self._extra,
            )
        )
        self._start()

    def take(self) -> list[Frame]:
        """Every frame collected so far, in order; the builder is empty afterwards."""
        if self._event_id:
            self._cut()
        done, self._done = self._done, []
        return done


def events_of(frame: Frame) -> list[dict[str, object]]:
    """The events as plain Event v1 objects with their source, for people, training and dead letters."""
    ids = event_ids(frame)
    events = []
    for i in range(len(frame)):
        event: dict[str, object] = {
            **_about(frame, i),
            "type": frame.type[i],
            "event_id": ids[i],
            "event_time": frame.time_ms[i],
        }
        extra = frame.extra.get(i)
        if extra is not None:
            named = ("session_id", "value", "recommendation_id", "position")
            event |= {name: value for name in named if (value := getattr(extra, name)) is not None}
            if extra.context is not None:
                event["context"] = msgspec.Raw(extra.context.encode())
        events.append(event)
    return events


def _about(frame: Frame, i: int) -> dict[str, object]:
    """Whom and what an event is about."""
    user, item = frame.user[i], frame.item[i]
    if frame.type[i] == IDENTIFY:
        return {"user_id": item, "anonymous_id": user}
    return {"user_id": user, "item_id": item} if item else {"user_id": user}


def _extra_of(event: Event) -> Extra | None:
    context = None if event.context is msgspec.UNSET else bytes(event.context).decode()
    if context == "null":
        context = None
    if (
        event.session_id is None
        and event.value is None
        and event.recommendation_id is None
        and event.position is None
        and context is None
    ):
        return None
    return Extra(event.session_id, event.value, event.recommendation_id, event.position, context)
