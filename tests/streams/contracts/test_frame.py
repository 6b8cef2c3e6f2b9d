from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contracts.event import Event, decode_event
from streams.contracts.frame import (
    MAX_FRAME_USERS,
    Extra,
    Frame,
    FrameBuilder,
    InvalidFrame,
    Source,
    decode_frame,
    encode_frame,
    event_ids,
    events_of,
    partition_of,
)

CLICKS = Source("clicks", "id-of-clicks", 0)
VIEWS = Source("views", "id-of-views", 3)
NOW_MS = 1_767_225_600_000


@pytest.mark.parametrize(
    ("user", "crc32"),
    [
        # From Perl's Compress::Zlib; the first is the check value that every catalogue of CRCs gives for CRC-32.
        ("123456789", 0xCBF43926),
        ("alice", 0x278EBC47),
        ("", 0),
        ("ü", 0x63D969D5),
    ],
)
def test_the_partition_is_the_crc32_of_the_utf_8_bytes(user: str, crc32: int) -> None:
    for partitions in (1, 7, 8, 1024):
        assert partition_of(user, partitions) == crc32 % partitions


def bitwise_crc32(content: bytes) -> int:
    """CRC-32 as IEEE 802.3 defines it, one bit at a time."""
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@given(st.text(max_size=20), st.integers(1, 64))
def test_any_other_program_can_compute_the_partition(user: str, partitions: int) -> None:
    assert partition_of(user, partitions) == bitwise_crc32(user.encode()) % partitions


class Added(NamedTuple):
    """One call of `FrameBuilder.add`."""

    event: Event
    source: Source
    offset: int
    appended_ms: int
    event_type: str
    time_ms: int
    size: int


def build(added: list[Added], max_events: int, max_bytes: int) -> list[Frame]:
    builder = FrameBuilder(max_events, max_bytes)
    for each in added:
        builder.add(*each)
    return builder.take()


def click(user: str, offset: int, raw: bytes | None = None) -> Added:
    raw = raw or b'{"user_id":"%b","item_id":"b"}' % user.encode()
    return Added(decode_event(raw, 10**6), CLICKS, offset, NOW_MS, "click", NOW_MS, len(raw))


EVENTS = st.builds(
    Event,
    user_id=st.text(min_size=1, max_size=4),
    item_id=st.text(min_size=1, max_size=128),
    event_id=st.none() | st.text(min_size=1, max_size=8),
    session_id=st.none() | st.just("s1"),
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    recommendation_id=st.none() | st.just("r1"),
    position=st.none() | st.integers(0, 1_000_000),
    context=st.just(msgspec.UNSET)
    | st.sampled_from([msgspec.Raw(b"{}"), msgspec.Raw(b'{"page": "h\xc3\xbc"}'), msgspec.Raw(b"null")]),
)
SOURCES = st.builds(Source, st.sampled_from(["clicks", "views"]), st.sampled_from(["", "id"]), st.integers(0, 2))


@st.composite
def additions(draw: st.DrawFn) -> list[Added]:
    ends: dict[Source, int] = {}
    added = []
    for event, source in draw(st.lists(st.tuples(EVENTS, SOURCES), max_size=40)):
        ends[source] = ends.get(source, draw(st.integers(0, 2**62))) + 1
        time_ms = draw(st.integers(631_152_000_000, NOW_MS))
        kind = draw(st.sampled_from(["click", "v" * 64]))
        # What ingest passes: the length of the message, which is never below that of the event's own JSON.
        size = len(msgspec.json.encode(event))
        added.append(Added(event, source, ends[source], NOW_MS, kind, time_ms, size))
    return added


def columns_of(frames: list[Frame]) -> list[tuple[object, ...]]:
    """Every event of every frame as a row, its source in place of the index."""
    return [
        (
            frame.sources[frame.source[i]],
            frame.offset[i],
            frame.appended_ms[i],
            frame.user[i],
            frame.item[i],
            frame.type[i],
            frame.time_ms[i],
            frame.event_id[i],
            frame.extra.get(i),
        )
        for frame in frames
        for i in range(len(frame))
    ]


def expected_extra(event: Event) -> Extra | None:
    context = bytes(event.context).decode() if isinstance(event.context, msgspec.Raw) else None
    if context == "null":
        context = None
    fields = (event.session_id, event.value, event.recommendation_id, event.position, context)
    return None if fields == (None,) * 5 else Extra(*fields)


@given(additions(), st.integers(1, 10), st.integers(1000, 4000))
def test_frames_keep_every_event_in_order_and_come_back_from_the_wire(
    added: list[Added], max_events: int, max_bytes: int
) -> None:
    frames = [decode_frame(encode_frame(frame)) for frame in build(added, max_events, max_bytes)]
    assert columns_of(frames) == [
        (
            each.source,
            each.offset,
            each.appended_ms,
            each.event.user_id,
            each.event.item_id,
            each.event_type,
            each.time_ms,
            each.event.event_id,
            expected_extra(each.event),
        )
        for each in added
    ]


@given(additions(), st.integers(1, 10), st.integers(1000, 4000))
def test_a_frame_is_bounded_in_events_and_bytes(added: list[Added], max_events: int, max_bytes: int) -> None:
    for frame in build(added, max_events, max_bytes):
        assert 1 <= len(frame) <= max_events
        assert len(frame) == 1 or len(encode_frame(frame)) <= max_bytes


def test_a_frame_of_tiny_events_is_bounded_in_bytes_too() -> None:
    # An event of 29 bytes has an offset and three times that are not in its JSON.
    frames = build([click("a", 10**12 + offset) for offset in range(1000)], max_events=10_000, max_bytes=4096)
    assert max(len(encode_frame(frame)) for frame in frames) <= 4096
    # 41 bytes each on the wire, so ten frames would do: the estimate may not be far above that.
    assert len(frames) <= 25


def test_an_event_larger_than_the_bound_gets_a_frame_of_its_own() -> None:
    large = click("a", 1, b'{"user_id":"a","item_id":"b","context":{"x":"%b"}}' % (b"x" * 5000))
    frames = build([click("a", 0), large, click("a", 2)], max_events=10, max_bytes=4096)
    assert [frame.offset for frame in frames] == [[0], [1], [2]]


def test_a_frame_holds_at_most_256_users_but_any_number_of_their_events() -> None:
    assert MAX_FRAME_USERS == 256
    users = [f"u{number}" for number in range(256)]
    added = [click(user, offset) for offset, user in enumerate([*users, *users, "one more", "u0", "u1"])]
    frames = build(added, max_events=10_000, max_bytes=10**6)
    assert [len(frame) for frame in frames] == [512, 3]
    assert frames[1].user == ["one more", "u0", "u1"]


def test_the_builder_is_empty_after_take() -> None:
    builder = FrameBuilder(2, 10**6)
    assert builder.take() == []
    for offset in range(3):
        builder.add(*click("a", offset))
    assert [frame.offset for frame in builder.take()] == [[0, 1], [2]]
    assert builder.take() == []
    builder.add(*click("a", 3))
    assert [frame.offset for frame in builder.take()] == [[3]]


FRAME = Frame(
    1,
    [CLICKS, VIEWS],
    [0, 1, 0],
    [10, 7, 12],
    [NOW_MS] * 3,
    ["u1", "u2", "u1"],
    ["a", "b", "c"],
    ["click", "view", "click"],
    [NOW_MS - 5, NOW_MS - 4, NOW_MS - 3],
    [None, "e7", None],
    {1: Extra("s1", 4.5, "r1", 3, '{"page":1}'), 2: Extra(None, 0.0, None, None, None)},
)


def test_ids_that_no_app_gave_are_derived_from_the_source() -> None:
    assert event_ids(FRAME) == ["clicks-0-10", "e7", "clicks-0-12"]


def test_the_events_of_a_frame_can_be_read_by_people_and_by_the_decoder() -> None:
    written = [msgspec.json.encode(event) for event in events_of(FRAME)]
    extra = b'"session_id":"s1","value":4.5,"recommendation_id":"r1","position":3,"context":{"page":1}'
    assert written == [
        b'{"user_id":"u1","item_id":"a","type":"click","event_id":"clicks-0-10","event_time":1767225599995}',
        b'{"user_id":"u2","item_id":"b","type":"view","event_id":"e7","event_time":1767225599996,%b}' % extra,
        b'{"user_id":"u1","item_id":"c","type":"click","event_id":"clicks-0-12","event_time":1767225599997,"value":0.0}',
    ]
    assert [decode_event(raw, 1000).item_id for raw in written] == ["a", "b", "c"]


def test_control_events_travel_with_the_user_whose_window_they_are_for() -> None:
    builder = FrameBuilder(10, 10_000)
    source = Source("clicks", "id-of-clicks", 0)
    asked = [
        b'{"user_id":"ana","type":"$erase","event_id":"e1"}',
        b'{"user_id":"ana","type":"$identify","anonymous_id":"device-17","event_id":"e2"}',
    ]
    for offset, raw in enumerate(asked):
        event = decode_event(raw, 1000)
        builder.add(event, source, offset, NOW_MS, event.type or "", NOW_MS, len(raw))
    (frame,) = builder.take()
    assert (frame.user, frame.item) == (["ana", "device-17"], ["", "ana"])
    assert [msgspec.json.encode(event) for event in events_of(frame)] == [
        b'{"user_id":"ana","type":"$erase","event_id":"e1","event_time":1767225600000}',
        b'{"user_id":"ana","anonymous_id":"device-17","type":"$identify","event_id":"e2","event_time":1767225600000}',
    ]


def test_the_wire_format_is_a_plain_messagepack_array() -> None:
    # Frames of an older version stay in the log: what is written must not change under version 1.
    plain = msgspec.msgpack.decode(encode_frame(FRAME), strict=True)
    assert plain == [
        1,
        [["clicks", "id-of-clicks", 0], ["views", "id-of-views", 3]],
        [0, 1, 0],
        [10, 7, 12],
        [NOW_MS] * 3,
        ["u1", "u2", "u1"],
        ["a", "b", "c"],
        ["click", "view", "click"],
        [NOW_MS - 5, NOW_MS - 4, NOW_MS - 3],
        [None, "e7", None],
        {1: ["s1", 4.5, "r1", 3, '{"page":1}'], 2: [None, 0.0, None, None, None]},
    ]


PARTS = list(msgspec.msgpack.decode(encode_frame(FRAME)))


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, 2, "frame version 2, this worker reads version 1"),
        (2, [0, 2, 0], "a source index outside 0 to 1"),
        (2, [0, -1, 0], "a source index outside 0 to 1"),
        (1, [], "a source index outside 0 to -1"),
        (5, ["u1"], "columns of different lengths"),
        (9, [None] * 4, "columns of different lengths"),
        (5, ["u1", 2, "u1"], "not a frame: Expected `str`, got `int`"),
        (3, None, "not a frame: Expected `array`, got `None`"),
    ],
)
def test_a_frame_that_is_wrong_in_one_place_is_refused(place: int, wrong: object, message: str) -> None:
    raw = msgspec.msgpack.encode([*PARTS[:place], wrong, *PARTS[place + 1 :]])
    with pytest.raises(InvalidFrame) as caught:
        decode_frame(raw)
    assert message in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"\x91" * 100_000, b'{"user_id":"u"}', b"\xa1\xff", b"\x91\xa1\xff"])
def test_what_is_no_frame_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidFrame, match="not a frame"):
        decode_frame(raw)


@given(st.binary(max_size=100))
def test_arbitrary_bytes_raise_nothing_but_invalid_frame(raw: bytes) -> None:
    with pytest.raises(InvalidFrame):
        decode_frame(raw)


WIRE = encode_frame(FRAME)


@given(st.lists(st.tuples(st.integers(0, len(WIRE) - 1), st.binary(max_size=3), st.integers(0, 3)), max_size=3))
def test_a_damaged_frame_is_refused_or_still_whole(mutations: list[tuple[int, bytes, int]]) -> None:
    raw = WIRE
    for place, inserted, removed in mutations:
        raw = raw[:place] + inserted + raw[place + removed :]
    try:
        frame = decode_frame(raw)
    except InvalidFrame:
        return
    # What the applier does with a frame that was accepted.
    assert len(columns_of([frame])) == len(event_ids(frame)) == len(events_of(frame))
