"""Event v1: what an app says a user did, or asks for a user. JSON on any raw topic.

Types that begin with ``$`` ask for something, and name no item:

    $erase      the user's window ends here
    $identify   the window of ``anonymous_id`` becomes part of the user's, and ends
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

MAX_ID_LENGTH: Final = 128
MAX_TYPE_LENGTH: Final = 64
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Epoch seconds read as milliseconds fall in January 1970, so a floor of 1990 catches the commonest mistake.
EARLIEST_MS: Final = 631_152_000_000
# A time in the future would sit at the end of the user's window until it is past; an app's clock may be a day off.
FUTURE_TOLERANCE_MS: Final = 24 * 3600 * 1000

RESERVED: Final = "$"
"""What the types begin with that are not an app's to choose."""
ERASE: Final = "$erase"
IDENTIFY: Final = "$identify"
CONTROL_TYPES: Final = frozenset({ERASE, IDENTIFY})

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)]
TypeName = Annotated[str, Meta(min_length=1, max_length=MAX_TYPE_LENGTH)]


class Event(Struct, frozen=True, omit_defaults=True):
    """One interaction of one user with one item, as an app sends it, or a control event. Unknown fields are ignored.

    Defaults are filled in at ingest: ``type`` from the source topic, ``event_id`` from topic, partition and
    offset, ``event_time`` from Kafka's timestamp.
    """

    user_id: Annotated[Id, Meta(description="Who. Decides the partition: crc32 of its UTF-8 bytes, modulo P.")]
    item_id: Annotated[
        Id, Meta(description="What: the item's id as the catalogue knows it. $erase and $identify have none.")
    ] = ""
    type: Annotated[
        TypeName | None,
        Meta(
            description=(
                "What happened; default: the source topic's type. $erase ends the user's window, $identify merges that of "
                "anonymous_id into it; no other type may begin with $."
            )
        ),
    ] = None
    event_id: Annotated[Id | None, Meta(description="Unique id: a repeat of it is dropped.")] = None
    event_time: Annotated[
        Annotated[datetime, Meta(tz=True)] | int | None,
        Meta(description="When: ISO 8601 with an offset, or milliseconds since 1970; default: Kafka's timestamp."),
    ] = None
    session_id: Annotated[Id | None, Meta(description="The visit that this belongs to.")] = None
    value: Annotated[float | None, Meta(description="A rating, a price, seconds listened.")] = None
    recommendation_id: Annotated[Id | None, Meta(description="The recommendation that led here.")] = None
    position: Annotated[
        Annotated[int, Meta(ge=0, le=1_000_000)] | None, Meta(description="The item's rank in that list, from 0.")
    ] = None
    context: Annotated[
        msgspec.Raw | msgspec.UnsetType,
        Meta(description="Any JSON object, kept as it is.", extra_json_schema={"type": ["object", "null"]}),
    ] = msgspec.UNSET
    anonymous_id: Annotated[
        # Apps send one with every event, and where nothing is asked of it nothing is asked of its form.
        Any, Meta(description="Of $identify: the id that the user had until now. Ignored elsewhere.")
    ] = None

    @property
    def is_control(self) -> bool:
        """It asks for something, and is about no item."""
        return self.type in CONTROL_TYPES

    @property
    def window_of(self) -> str:
        """The user whose window it is for, and whose partition it goes to: of $identify the anonymous one."""
        return str(self.anonymous_id) if self.type == IDENTIFY else self.user_id

    @property
    def subject(self) -> str:
        """What frames hold in the place of the item: the item; of $identify the user that the anonymous one is."""
        return self.user_id if self.type == IDENTIFY else self.item_id


InvalidEventReason = Literal[
    "null_value",
    "too_large",
    "invalid_utf8",
    "too_deep",
    "not_json",
    "not_an_object",
    "missing_field",
    "bad_length",
    "invalid_field",
    "nul",
    "absurd_time",
    "reserved_type",
]


class InvalidEvent(ValueError):
    """A raw message that is not an Event v1.

    Attributes:
        reason: A short code (it labels metrics).
    """

    def __init__(self, reason: InvalidEventReason, message: str) -> None:
        super().__init__(message)
        self.reason: InvalidEventReason = reason


_decoder = msgspec.json.Decoder(Event)


def decode_event(raw: bytes | None, max_bytes: int) -> Event:
    """Decode and validate the bytes of one raw message; times are checked by `event_time_ms`.

    Args:
        raw: The Kafka message's value.
        max_bytes: Largest accepted size of ``raw``, bytes.

    Raises:
        InvalidEvent: With a reason that a person understands.
    """
    if raw is None:
        raise InvalidEvent("null_value", "the message has no value (a tombstone); an event is a JSON object")
    if len(raw) > max_bytes:
        raise InvalidEvent("too_large", f"the event has {len(raw):,} bytes, the limit is {max_bytes:,}")
    try:
        if not raw.isascii():
            raw.decode()  # msgspec skips unknown fields without checking their encoding
        event = _decoder.decode(raw)
    except UnicodeDecodeError as error:
        raise InvalidEvent("invalid_utf8", f"not valid UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise InvalidEvent("too_deep", "nested too deeply") from error
    except msgspec.ValidationError as error:
        raise InvalidEvent(_reason(str(error)), str(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidEvent("not_json", f"not valid JSON: {error}") from error
    check_subject(event)
    if b"\\u0000" in raw:
        _refuse_nul(event)
    if event.context is not msgspec.UNSET and not bytes(event.context).startswith((b"{", b"null")):
        raise InvalidEvent("invalid_field", "Expected `object` - at `$.context`")
    return event


def may_be_control(raw: bytes) -> bool:
    """Whether the bytes of a raw message are worth decoding to find `$erase` and `$identify`: nearly always not."""
    return b'"$' in raw or b"\\u0024" in raw


def check_subject(event: Event) -> None:
    """Check that an event is about an item, or asks for something that there is, with what that needs.

    Raises:
        InvalidEvent: It is not so.
    """
    if event.type is not None and event.type.startswith(RESERVED):
        _check_control(event)
    elif not event.item_id:
        raise InvalidEvent("missing_field", "Object missing required field `item_id`")


def milliseconds_of(time: datetime) -> int:
    """Milliseconds since 1970, what is smaller cut off, of a time with an offset."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


def event_time_ms(event: Event, kafka_timestamp_ms: int, now_ms: int) -> int:
    """When the event happened, milliseconds since 1970.

    The future is measured from Kafka's timestamp, not from the clock of whoever asks: that clock may be behind, and an event
    that is read again later must fare as it did. So a default is never in the future; Kafka itself refuses a timestamp more
    than an hour ahead of the broker's clock (`message.timestamp.after.max.ms`, since 4.0).

    Args:
        kafka_timestamp_ms: The raw message's timestamp: the default.
        now_ms: What the future is measured from where that timestamp is absurd itself.

    Raises:
        InvalidEvent: Before 1990, or more than a day after Kafka's timestamp.
    """
    time = kafka_timestamp_ms if event.event_time is None else event.event_time
    name = "Kafka's timestamp" if event.event_time is None else "event_time"
    milliseconds = time if isinstance(time, int) else milliseconds_of(time)
    if milliseconds < EARLIEST_MS:
        hint = "; are these seconds? milliseconds are expected" if 0 < milliseconds * 1000 >= EARLIEST_MS else ""
        raise InvalidEvent("absurd_time", f"{name} {_shown(time)} is before 1990{hint}")
    sent_ms = kafka_timestamp_ms if kafka_timestamp_ms >= EARLIEST_MS else now_ms
    if milliseconds > sent_ms + FUTURE_TOLERANCE_MS:
        raise InvalidEvent("absurd_time", f"{name} {_shown(time)} is more than a day in the future")
    return milliseconds


def derived_event_id(topic: str, partition: int, offset: int) -> str:
    """The id of an event whose app gave none: its place in the raw log."""
    return f"{derived_id_start(topic, partition)}{offset}"


def derived_id_start(topic: str, partition: int) -> str:
    """What the derived ids of a partition begin with; the offset follows."""
    return f"{topic}-{partition}-"


def _reason(message: str) -> InvalidEventReason:
    if message.startswith("Object missing required field"):
        return "missing_field"
    if message.startswith("Expected `object`") and "$" not in message:
        return "not_an_object"
    if "of length" in message:
        return "bad_length"
    return "invalid_field"


def _check_control(event: Event) -> None:
    if not event.is_control:
        raise InvalidEvent(
            "reserved_type",
            f"type {event.type!r}: types that begin with {RESERVED} are reserved, and there are only "
            f"{' and '.join(sorted(CONTROL_TYPES))} - at `$.type`",
        )
    if event.item_id:
        # Whoever names an item may believe that only that is erased.
        raise InvalidEvent(
            "invalid_field", f"{event.type} is about the whole window and takes no item - at `$.item_id`"
        )
    if event.type != IDENTIFY:
        return
    anonymous = event.anonymous_id
    if anonymous is None:
        raise InvalidEvent("missing_field", f"Object missing required field `anonymous_id`, which {IDENTIFY} needs")
    if not isinstance(anonymous, str):
        raise InvalidEvent("invalid_field", f"Expected `str`, got `{_json_type(anonymous)}` - at `$.anonymous_id`")
    if not 1 <= len(anonymous) <= MAX_ID_LENGTH:
        bound = ">= 1" if not anonymous else f"<= {MAX_ID_LENGTH}"
        raise InvalidEvent("bad_length", f"Expected `str` of length {bound} - at `$.anonymous_id`")


def _json_type(value: object) -> str:
    """As msgspec names it."""
    names = {bool: "bool", int: "int", float: "float", list: "array", dict: "object"}
    return names.get(type(value), type(value).__name__)


def _refuse_nul(event: Event) -> None:
    names = ["user_id", "item_id", "type", "event_id", "session_id", "recommendation_id"]
    for name in [*names, "anonymous_id"] if event.is_control else names:
        if "\0" in (getattr(event, name) or ""):
            raise InvalidEvent("nul", f"a NUL character is not allowed - at `$.{name}`")


def _shown(time: int | datetime) -> str:
    return str(time) if isinstance(time, int) else time.isoformat()
