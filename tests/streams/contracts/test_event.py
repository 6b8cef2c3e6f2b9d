import json
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contracts.event import Event, InvalidEvent, decode_event, derived_event_id, event_time_ms
from streams.contracts.frame import FrameBuilder, Source

LIMIT = 65_536
DAY_MS = 86_400_000
# When Kafka got the message: 2026-01-01T00:00:00Z.
KAFKA_MS = 1_767_225_600_000
# The clock of whoever reads it is a month behind.
NOW_MS = KAFKA_MS - 30 * DAY_MS


OPTIONAL = (
    "type", "event_id", "event_time", "session_id", "value", "recommendation_id", "position", "context",
)  # fmt: skip


def event_with(field: str, value: str) -> bytes:
    """A valid event plus one field whose value is written as it stands."""
    return f'{{"user_id":"u1","item_id":"i1","{field}":{value}}}'.encode()


def decoded(raw: bytes | None) -> Event:
    return decode_event(raw, LIMIT)


def refused(raw: bytes | None, limit: int = LIMIT) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        decode_event(raw, limit)
    return caught.value


class Bad(NamedTuple):
    name: str
    raw: bytes | None
    reason: str
    message: str


class BadField(NamedTuple):
    name: str
    value: bytes
    reason: str
    message: str


NOT_EVENTS = [
    Bad("a tombstone", None, "null_value", "the message has no value (a tombstone); an event is a JSON object"),
    Bad("no bytes", b"", "not_json", "not valid JSON: Input data was truncated"),
    Bad("text", b"hello", "not_json", "not valid JSON: JSON is malformed: invalid character (byte 0)"),
    Bad("half an object", b'{"user_id":"u1","item_', "not_json", "not valid JSON: Input data was truncated"),
    Bad("a list", b"[]", "not_an_object", "Expected `object`, got `array`"),
    Bad("a string", b'"u1"', "not_an_object", "Expected `object`, got `str`"),
    Bad("a number", b"17", "not_an_object", "Expected `object`, got `int`"),
    Bad("null", b"null", "not_an_object", "Expected `object`, got `null`"),
    Bad("a list of events", b'[{"user_id":"u1","item_id":"i1"}]', "not_an_object", "Expected `object`, got `array`"),
    Bad(
        "a byte order mark",
        b'\xef\xbb\xbf{"user_id":"u1","item_id":"i1"}',
        "not_json",
        "not valid JSON: JSON is malformed: invalid character (byte 0)",
    ),
    Bad(
        "something after the object",
        b'{"user_id":"u1","item_id":"i1"} x',
        "not_json",
        "not valid JSON: JSON is malformed: trailing characters",
    ),
    Bad(
        "two objects",
        b'{"user_id":"u1","item_id":"i1"}{"user_id":"u2","item_id":"i2"}',
        "not_json",
        "not valid JSON: JSON is malformed: trailing characters",
    ),
    Bad(
        "a NUL after the object",
        b'{"user_id":"u1","item_id":"i1"}\0',
        "not_json",
        "not valid JSON: JSON is malformed: trailing characters",
    ),
    Bad("no item_id", b'{"user_id":"u1"}', "missing_field", "Object missing required field `item_id`"),
    Bad("no user_id", b'{"item_id":"i1"}', "missing_field", "Object missing required field `user_id`"),
    Bad("an empty object", b"{}", "missing_field", "Object missing required field `user_id`"),
    Bad(
        "a number as user_id",
        b'{"user_id":5,"item_id":"i1"}',
        "invalid_field",
        "Expected `str`, got `int` - at `$.user_id`",
    ),
    Bad(
        "null as item_id",
        b'{"user_id":"u1","item_id":null}',
        "invalid_field",
        "Expected `str`, got `null` - at `$.item_id`",
    ),
    Bad(
        "an object as user_id",
        b'{"user_id":{"id":"u1"},"item_id":"i1"}',
        "invalid_field",
        "Expected `str`, got `object` - at `$.user_id`",
    ),
    Bad(
        "an empty user_id",
        b'{"user_id":"","item_id":"i1"}',
        "bad_length",
        "Expected `str` of length >= 1 - at `$.user_id`",
    ),
    Bad(
        "a user_id of 129 characters",
        json.dumps({"user_id": "ü" * 129, "item_id": "i1"}).encode(),
        "bad_length",
        "Expected `str` of length <= 128 - at `$.user_id`",
    ),
    Bad(
        "a raw NUL in an id",
        b'{"user_id":"u\0","item_id":"i1"}',
        "not_json",
        "not valid JSON: JSON is malformed: invalid character (byte 13)",
    ),
    Bad(
        "an escaped NUL in an id",
        rb'{"user_id":"u\u0000","item_id":"i1"}',
        "nul",
        "a NUL character is not allowed - at `$.user_id`",
    ),
    Bad(
        "invalid UTF-8 in an id",
        b'{"user_id":"u\xff","item_id":"i1"}',
        "invalid_utf8",
        "not valid UTF-8: invalid start byte at byte 13",
    ),
    Bad(
        "half a character of UTF-8 at the end",
        b'{"user_id":"u\xc3',
        "invalid_utf8",
        "not valid UTF-8: unexpected end of data at byte 13",
    ),
    Bad(
        "a surrogate as UTF-8",
        b'{"user_id":"\xed\xa0\x80","item_id":"i1"}',
        "invalid_utf8",
        "not valid UTF-8: invalid continuation byte at byte 12",
    ),
    Bad(
        "a lone low surrogate",
        rb'{"user_id":"\udc00","item_id":"i1"}',
        "not_json",
        "not valid JSON: JSON is malformed: invalid utf-16 surrogate pair (byte 18)",
    ),
]

BAD_FIELDS = [
    # A field that no one reads must be valid UTF-8 too: the bytes go on to others.
    BadField("x", b'"\xff"', "invalid_utf8", "not valid UTF-8: invalid start byte at byte 36"),
    BadField("x", b'"\0"', "not_json", "invalid character (byte 36)"),
    BadField("x", rb'"\ud800"', "not_json", "not valid JSON"),
    BadField("x", b"NaN", "not_json", "invalid character"),
    BadField("x", b"01", "not_json", "invalid number"),
    BadField("value", b"NaN", "not_json", "invalid character"),
    BadField("value", b"Infinity", "not_json", "invalid character"),
    BadField("value", b"-Infinity", "not_json", "invalid character"),
    BadField("value", b'"NaN"', "invalid_field", "Expected `float | null`, got `str` - at `$.value`"),
    BadField("value", b'"4.5"', "invalid_field", "Expected `float | null`, got `str` - at `$.value`"),
    BadField("value", b"true", "invalid_field", "Expected `float | null`, got `bool` - at `$.value`"),
    BadField("value", b"1e999", "invalid_field", "Number out of range - at `$.value`"),
    BadField("value", b"-1e999", "invalid_field", "Number out of range - at `$.value`"),
    BadField("value", b"9" * 400, "invalid_field", "Number out of range - at `$.value`"),
    BadField("position", b"-1", "invalid_field", "Expected `int` >= 0 - at `$.position`"),
    BadField("position", b"1000001", "invalid_field", "Expected `int` <= 1000000 - at `$.position`"),
    BadField("position", b"1.5", "invalid_field", "Expected `int | null`, got `float` - at `$.position`"),
    BadField("position", b"9" * 5000, "invalid_field", "Integer value out of range - at `$.position`"),
    BadField("event_time", b'"2026-01-01T00:00:00"', "invalid_field", "with a timezone component - at `$.event_time`"),
    BadField("event_time", b'"yesterday"', "invalid_field", "Invalid RFC3339 encoded datetime - at `$.event_time`"),
    BadField("event_time", b'"2026-01-01"', "invalid_field", "Invalid RFC3339 encoded datetime - at `$.event_time`"),
    BadField("event_time", b'"1767225600000"', "invalid_field", "Invalid RFC3339 encoded datetime - at `$.event_time`"),
    BadField("event_time", b'"2026-13-01T00:00:00Z"', "invalid_field", "Invalid RFC3339 encoded datetime"),
    BadField("event_time", b"1767225600000.5", "invalid_field", "got `float` - at `$.event_time`"),
    BadField("event_time", b"true", "invalid_field", "got `bool` - at `$.event_time`"),
    BadField("event_time", b"NaN", "not_json", "invalid character"),
    BadField("event_time", b"9" * 5000, "invalid_field", "Integer value out of range - at `$.event_time`"),
    BadField("event_time", b"-" + b"9" * 5000, "invalid_field", "Integer value out of range - at `$.event_time`"),
    BadField("context", b"[1]", "invalid_field", "Expected `object` - at `$.context`"),
    BadField("context", b'"{}"', "invalid_field", "Expected `object` - at `$.context`"),
    BadField("context", b'{"a":NaN}', "not_json", "invalid character"),
    BadField("context", b'{"a":"\xc3"}', "invalid_utf8", "not valid UTF-8"),
    BadField("type", b'""', "bad_length", "Expected `str` of length >= 1 - at `$.type`"),
    BadField("type", b'"' + b"t" * 65 + b'"', "bad_length", "Expected `str` of length <= 64 - at `$.type`"),
]


@pytest.mark.parametrize("bad", NOT_EVENTS, ids=lambda bad: bad.name)
def test_what_is_no_event_is_refused_with_its_reason(bad: Bad) -> None:
    error = refused(bad.raw)
    assert error.reason == bad.reason
    assert bad.message in str(error)


@pytest.mark.parametrize("bad", BAD_FIELDS, ids=lambda bad: f"{bad.name}={str(bad.value)[:30]}")
def test_a_bad_field_is_refused_with_its_reason(bad: BadField) -> None:
    error = refused(b'{"user_id":"u1","item_id":"i1","%b":%b}' % (bad.name.encode(), bad.value))
    assert error.reason == bad.reason
    assert bad.message in str(error)


@pytest.mark.parametrize("field", ["user_id", "item_id", "event_id", "session_id", "recommendation_id"])
def test_every_id_has_1_to_128_characters_and_no_nul(field: str) -> None:
    def with_id(value: str) -> bytes:
        return json.dumps({"user_id": "u1", "item_id": "i1", field: value}).encode()

    assert getattr(decoded(with_id("é" * 128)), field) == "é" * 128
    assert refused(with_id("")).reason == "bad_length"
    assert refused(with_id("é" * 129)).reason == "bad_length"
    assert refused(with_id("a\0b")).reason == "nul"


def test_a_type_may_hold_no_nul_either() -> None:
    assert refused(event_with("type", r'"cl\u0000ick"')).reason == "nul"


def test_a_nul_where_no_id_is_harms_no_one_and_is_kept() -> None:
    event = decoded(event_with("context", r'{"note":"a\u0000b"}'))
    assert event.context == msgspec.Raw(rb'{"note":"a\u0000b"}')


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["lists", "objects"])
@pytest.mark.parametrize("field", [b"x", b"context"])
def test_deep_nesting_is_refused_and_does_not_end_the_process(field: bytes, opening: bytes) -> None:
    depth = 100_000
    deep = opening * depth + b"1" + {b"[": b"]", b'{"a":': b"}"}[opening] * depth
    error = refused(b'{"user_id":"u1","item_id":"i1","%b":{"a":%b}}' % (field, deep), limit=2_000_000)
    assert (error.reason, str(error)) == ("too_deep", "nested too deeply")


def test_the_size_limit_is_the_largest_accepted_size() -> None:
    raw = b'{"user_id":"u1","item_id":"i1"}'
    assert len(raw) == 31
    assert decode_event(raw, 31).user_id == "u1"
    error = refused(raw, limit=30)
    assert (error.reason, str(error)) == ("too_large", "the event has 31 bytes, the limit is 30")


def test_the_size_is_checked_before_anything_else() -> None:
    assert refused(b"\xff" * 31, limit=30).reason == "too_large"


def test_of_a_field_given_twice_the_last_wins() -> None:
    assert decoded(b'{"user_id":"first","item_id":"i1","user_id":"last"}').user_id == "last"


def test_unknown_fields_are_ignored_and_known_ones_have_defaults() -> None:
    assert decoded(b'{"user_id":"u1","item_id":"i1","color":"red","nested":{"a":[1]}}') == Event("u1", "i1")


def test_a_full_event_is_decoded_field_by_field() -> None:
    event = decoded(
        b' {"user_id":"u1","item_id":"i1","type":"buy","event_id":"e1","event_time":1767225600000,"session_id":"s1",'
        b'"value":4,"recommendation_id":"r1","position":0,"context": {"page": 1e999} }\n'
    )
    context = event.context
    assert isinstance(context, msgspec.Raw)
    assert bytes(context).strip() == b'{"page": 1e999}'
    expected = Event("u1", "i1", "buy", "e1", 1_767_225_600_000, "s1", 4.0, "r1", 0, context)
    assert event == expected


def test_null_stands_for_a_field_that_is_not_given() -> None:
    nothing = ",".join(f'"{name}":null' for name in OPTIONAL)
    event = decoded(b'{"user_id":"u1","item_id":"i1",%b}' % nothing.encode())
    assert msgspec.structs.replace(event, context=msgspec.UNSET) == Event("u1", "i1")
    builder = FrameBuilder(10, 10_000)
    builder.add(event, Source("clicks", "", 0), 0, NOW_MS, "click", NOW_MS, 100)
    assert builder.take()[0].extra == {}


@pytest.mark.parametrize(
    ("written", "expected_ms"),
    [
        ("1767225600000", 1_767_225_600_000),
        ('"2026-01-01T00:00:00Z"', 1_767_225_600_000),
        ('"2026-01-01T02:30:00+02:30"', 1_767_225_600_000),
        ('"2025-12-31T23:59:59.9994Z"', 1_767_225_599_999),
        ('"1990-01-01T00:00:00Z"', 631_152_000_000),
        # A day after Kafka's timestamp to the millisecond; one more is refused below.
        ("1767312000000", 1_767_312_000_000),
    ],
)
def test_times_are_milliseconds_or_iso_8601_with_an_offset(written: str, expected_ms: int) -> None:
    assert event_time_ms(decoded(event_with("event_time", written)), KAFKA_MS, NOW_MS) == expected_ms


def test_without_a_time_kafkas_timestamp_counts() -> None:
    assert event_time_ms(decoded(b'{"user_id":"u1","item_id":"i1"}'), KAFKA_MS, NOW_MS) == KAFKA_MS


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("1767225600", "event_time 1767225600 is before 1990; are these seconds? milliseconds are expected"),
        ("631151999999", "event_time 631151999999 is before 1990; are these seconds? milliseconds are expected"),
        ("0", "event_time 0 is before 1990"),
        ("-1767225600000", "event_time -1767225600000 is before 1990"),
        ('"1800-01-01T00:00:00Z"', "event_time 1800-01-01T00:00:00+00:00 is before 1990"),
        ('"0001-01-01T00:00:00+23:59"', "event_time 0001-01-01T00:00:00+23:59 is before 1990"),
        ("1767312000001", "event_time 1767312000001 is more than a day in the future"),
        ("1767225600000000", "event_time 1767225600000000 is more than a day in the future"),
        ('"2500-01-01T00:00:00Z"', "event_time 2500-01-01T00:00:00+00:00 is more than a day in the future"),
        ('"9999-12-31T23:59:59-23:59"', "event_time 9999-12-31T23:59:59-23:59 is more than a day in the future"),
        ("9" * 300, f"event_time {'9' * 300} is more than a day in the future"),
    ],
)
def test_an_absurd_time_is_refused(written: str, message: str) -> None:
    event = decoded(event_with("event_time", written))
    with pytest.raises(InvalidEvent) as caught:
        event_time_ms(event, KAFKA_MS, NOW_MS)
    assert (caught.value.reason, str(caught.value)) == ("absurd_time", message)


@pytest.mark.parametrize(
    ("kafka_timestamp_ms", "message"),
    [
        (5, "Kafka's timestamp 5 is before 1990"),
        (1_767_225_600, "Kafka's timestamp 1767225600 is before 1990; are these seconds? milliseconds are expected"),
    ],
)
def test_the_clock_of_a_producer_may_be_absurd_too(kafka_timestamp_ms: int, message: str) -> None:
    event = decoded(b'{"user_id":"u1","item_id":"i1"}')
    with pytest.raises(InvalidEvent) as caught:
        event_time_ms(event, kafka_timestamp_ms, NOW_MS)
    assert (caught.value.reason, str(caught.value)) == ("absurd_time", message)


def test_an_event_with_a_time_of_its_own_does_not_need_kafkas() -> None:
    event = decoded(event_with("event_time", "1767225600000"))
    assert event_time_ms(event, 5, 1_767_225_600_000 - DAY_MS) == 1_767_225_600_000
    # With Kafka's clock absurd, only the reader's is left to tell the future by.
    with pytest.raises(InvalidEvent, match="more than a day in the future"):
        event_time_ms(event, 5, 1_767_225_600_000 - DAY_MS - 1)


@pytest.mark.parametrize("now_ms", [0, NOW_MS, KAFKA_MS + 1000 * DAY_MS])
def test_the_clock_of_the_reader_decides_nothing(now_ms: int) -> None:
    assert event_time_ms(decoded(b'{"user_id":"u1","item_id":"i1"}'), KAFKA_MS, now_ms) == KAFKA_MS
    assert (
        event_time_ms(decoded(event_with("event_time", str(KAFKA_MS + DAY_MS))), KAFKA_MS, now_ms) == KAFKA_MS + DAY_MS
    )
    with pytest.raises(InvalidEvent, match="more than a day in the future"):
        event_time_ms(decoded(event_with("event_time", str(KAFKA_MS + DAY_MS + 1))), KAFKA_MS, now_ms)


def test_a_derived_id_is_the_place_in_the_raw_log() -> None:
    assert derived_event_id("clicks", 3, 1_000_000) == "clicks-3-1000000"


def survives(raw: bytes) -> None:
    """Decode and check the time: an event comes out that the rest can work with, or an InvalidEvent."""
    try:
        event = decode_event(raw, LIMIT)
        time_ms = event_time_ms(event, KAFKA_MS, NOW_MS)
    except InvalidEvent:
        return
    assert 1 <= len(event.user_id) <= 128
    event.user_id.encode()  # decides the partition, so it must have bytes
    assert 631_152_000_000 <= time_ms <= KAFKA_MS + DAY_MS


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_else(raw: bytes) -> None:
    survives(raw)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["user_id", "item_id", "type", "event_id", "event_time", "session_id", "value", "position", "context", "x"]
)


@given(st.dictionaries(FIELDS, JSON_VALUES | st.datetimes().map(lambda time: time.isoformat() + "Z"), max_size=10))
def test_arbitrary_values_of_fields_never_raise_anything_else(fields: dict[str, object]) -> None:
    survives(json.dumps({"user_id": "u1", "item_id": "i1", **fields}).encode())


VALID = json.dumps(
    {
        "user_id": "u1",
        "item_id": "ü",
        "type": "click",
        "event_id": "\u0000",
        "event_time": "2025-12-31T23:59:59.5+01:00",
        "value": 1.5e3,
        "position": 3,
        "context": {"a": [1, {"b": None}]},
    },
    ensure_ascii=False,
).encode()


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(max_size=3), st.integers(0, 4)), max_size=4))
def test_mutated_events_never_raise_anything_else(mutations: list[tuple[int, bytes, int]]) -> None:
    raw = VALID
    for place, inserted, removed in mutations:
        raw = raw[:place] + inserted + raw[place + removed :]
    survives(raw)


# Control events


def test_an_erasure_names_a_user_and_an_identify_two() -> None:
    erase = decoded(b'{"user_id":"ana","type":"$erase"}')
    assert (erase.is_control, erase.window_of, erase.subject) == (True, "ana", "")
    identify = decoded(b'{"user_id":"ana","type":"$identify","anonymous_id":"device-17"}')
    assert (identify.is_control, identify.window_of, identify.subject) == (True, "device-17", "ana")
    click = decoded(event_with("anonymous_id", '"device-17"'))
    assert (click.is_control, click.window_of, click.subject) == (False, "u1", "i1")


@pytest.mark.parametrize("value", ["17", "null", '""', '"' + "x" * 200 + '"', '{"a":[1]}'])
def test_where_nothing_is_asked_of_an_anonymous_id_it_may_be_anything(value: str) -> None:
    assert decoded(event_with("anonymous_id", value)).item_id == "i1"


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ('"type":"$delete","item_id":"i1"', "reserved_type", "type '$delete': types that begin with $ are reserved"),
        ('"type":"$"', "reserved_type", "there are only $erase and $identify - at `$.type`"),
        ('"type":"$erase","item_id":"i1"', "invalid_field", "$erase is about the whole window and takes no item"),
        ('"type":"$erase","item_id":""', "bad_length", "Expected `str` of length >= 1 - at `$.item_id`"),
        ('"type":"erase"', "missing_field", "Object missing required field `item_id`"),
        ('"type":"$identify"', "missing_field", "required field `anonymous_id`, which $identify needs"),
        ('"type":"$identify","anonymous_id":null', "missing_field", "required field `anonymous_id`"),
        ('"type":"$identify","anonymous_id":17', "invalid_field", "Expected `str`, got `int` - at `$.anonymous_id`"),
        ('"type":"$identify","anonymous_id":[]', "invalid_field", "Expected `str`, got `array` - at `$.anonymous_id`"),
        ('"type":"$identify","anonymous_id":""', "bad_length", "of length >= 1 - at `$.anonymous_id`"),
        (f'"type":"$identify","anonymous_id":"{"x" * 129}"', "bad_length", "of length <= 128 - at `$.anonymous_id`"),
        (r'"type":"$identify","anonymous_id":"\u0000"', "nul", "a NUL character is not allowed - at `$.anonymous_id`"),
    ],
)
def test_a_control_event_that_asks_for_nothing_sensible_is_refused(fields: str, reason: str, message: str) -> None:
    error = refused(f'{{"user_id":"ana",{fields}}}'.encode())
    assert error.reason == reason
    assert message in str(error)
