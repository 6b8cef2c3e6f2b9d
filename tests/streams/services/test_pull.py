import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from pyarrow import parquet

from streams.contracts.erasure import Erasures
from streams.contracts.event import Event
from streams.contracts.frame import FrameBuilder, Source, encode_frame
from streams.errors import DataError, LogGap, LogUnavailable
from streams.log.topics import Extent, Message, Partition
from streams.services.pull import (
    Cleaner,
    Events,
    pull_events,
    read_to_end,
    write_jsonl,
    write_jsonl_gz,
    write_parquet,
)

CLICKS = Source("clicks", "id-1", 0)
CLICKS_ANEW = Source("clicks", "id-2", 0)
VIEWS = Source("views", "id-3", 0)
P0, P1 = Partition("interactions", 0), Partition("interactions", 1)


def frame(*events: tuple[Source, int, Event], partition: int = 0, offset: int = 0) -> Message:
    """A message of `interactions`; each event with its place in the raw log."""
    builder = FrameBuilder(1000, 500_000)
    for source, raw_offset, event in events:
        builder.add(event, source, raw_offset, 5, event.type or "click", 1_700_000_000_000 + raw_offset, 100)
    (built,) = builder.take()
    return Message("interactions", partition, offset, 0, None, encode_frame(built), ())


def ids_of(events: Events) -> list[object]:
    return [event["event_id"] for event in events]


class Scripted:
    """A reader that gives lists of messages, one a call, and then nothing."""

    def __init__(self, *reads: Sequence[Message]) -> None:
        self._reads = iter(reads)

    def read(self, count: int, wait_s: float) -> list[Message]:
        return list(next(self._reads, ()))


def ticking() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += 10


def test_what_ingest_sent_again_is_left_out_by_its_place_in_the_raw_log() -> None:
    cleaner = Cleaner(Erasures())
    first = frame((CLICKS, 0, Event("u", "a")), (VIEWS, 0, Event("u", "b")), (CLICKS, 1, Event("v", "c")))
    # A crash before the commit: the last event goes out again, and a new one with it.
    second = frame((CLICKS, 1, Event("v", "c")), (CLICKS, 2, Event("v", "c")))
    assert ids_of(cleaner.new_events(first)) == ["clicks-0-0", "views-0-0", "clicks-0-1"]
    assert ids_of(cleaner.new_events(second)) == ["clicks-0-2"]
    assert (cleaner.resent, cleaner.repeats) == (1, 0)


def test_each_partition_has_marks_of_its_own() -> None:
    cleaner = Cleaner(Erasures())
    assert len(cleaner.new_events(frame((CLICKS, 9, Event("u", "a")), partition=0))) == 1
    assert len(cleaner.new_events(frame((CLICKS, 4, Event("v", "a")), partition=1))) == 1
    assert cleaner.resent == 0


def test_what_an_app_sent_again_under_the_same_id_is_left_out_for_that_user() -> None:
    cleaner = Cleaner(Erasures())
    found = cleaner.new_events(
        frame(
            (CLICKS, 0, Event("u", "a", event_id="e")),
            (CLICKS, 1, Event("u", "b", event_id="e")),
            (VIEWS, 0, Event("u", "c", event_id="e")),
            (CLICKS, 2, Event("v", "a", event_id="e")),
            (CLICKS, 3, Event("u", "a")),
        )
    )
    assert [(event["user_id"], event["item_id"]) for event in found] == [("u", "a"), ("v", "a"), ("u", "a")]
    assert (cleaner.resent, cleaner.repeats) == (0, 2)


def test_events_of_a_topic_made_anew_are_new_and_keep_an_id_of_their_own() -> None:
    cleaner = Cleaner(Erasures())
    assert ids_of(cleaner.new_events(frame((CLICKS, 0, Event("u", "a"))))) == ["clicks-0-0"]
    assert ids_of(cleaner.new_events(frame((CLICKS_ANEW, 0, Event("u", "b"))))) == ["clicks-0-0-id-2"]
    assert (cleaner.resent, cleaner.repeats) == (0, 0)


def test_what_asks_for_something_and_what_is_handed_over_is_no_event_to_train_on() -> None:
    cleaner = Cleaner(Erasures())
    found = cleaner.new_events(
        frame(
            (CLICKS, 0, Event("device", "a")),
            (CLICKS, 1, Event("u", type="$identify", anonymous_id="device")),
            (CLICKS, 2, Event("v", type="$erase")),
        )
    )
    assert [(event["user_id"], event.get("item_id")) for event in found] == [("device", "a")]
    handed = frame((Source("interactions", "id-i", 1), 2**22, Event("u", "a", event_id="clicks-0-0")))
    assert cleaner.new_events(handed) == []
    assert (cleaner.resent, cleaner.repeats) == (0, 0)


def test_what_people_did_before_they_were_erased_is_left_out() -> None:
    erasures = Erasures()
    erasures.add("u", 5)  # when these frames say that it came
    cleaner = Cleaner(erasures)
    found = cleaner.new_events(frame((CLICKS, 0, Event("u", "a")), (CLICKS, 1, Event("v", "a"))))
    assert ([event["user_id"] for event in found], cleaner.erased) == (["v"], 1)


@pytest.mark.parametrize("value", [None, b"", b"no frame"])
def test_a_message_that_is_no_frame_is_counted_and_left_out(value: bytes | None) -> None:
    cleaner = Cleaner(Erasures())
    assert cleaner.new_events(Message("interactions", 0, 0, 0, None, value, ())) == []
    assert cleaner.invalid_frames == 1


def message(partition: int, offset: int) -> Message:
    return Message("interactions", partition, offset, 0, None, b"", ())


def test_a_log_is_read_to_where_it_ended_and_not_beyond() -> None:
    reader = Scripted([message(0, 3), message(1, 0)], [], [message(0, 4), message(0, 5)], [message(1, 1)])
    extents = {P0: Extent(3, 5), P1: Extent(0, 2), Partition("interactions", 2): Extent(7, 7)}
    found = [(m.partition, m.offset) for m in read_to_end(reader, extents)]
    assert found == [(0, 3), (1, 0), (0, 4), (1, 1)]


def test_an_empty_log_is_read_without_asking() -> None:
    assert list(read_to_end(Scripted(), {P0: Extent(0, 0)})) == []


def test_messages_that_vanish_while_they_are_read_are_not_skipped_silently() -> None:
    reader = Scripted([message(0, 0), message(0, 2)])
    with pytest.raises(LogGap, match="interactions partition 0: expected offset 1, got 2"):
        list(read_to_end(reader, {P0: Extent(0, 3)}))


def test_silence_ends_the_reading_with_what_is_missing() -> None:
    clock = ticking()
    with pytest.raises(LogUnavailable, match="nothing for 30 s; still to come: interactions partition 1 at offset 1"):
        list(read_to_end(Scripted([message(1, 0)]), {P1: Extent(0, 2)}, lambda: next(clock)))


FULL = Event(
    "u", "b", "view", "e2", None, "s", 2.5, "r", 3, msgspec.Raw(b'{"page": "home"}')
)  # user, item, type, event id, time, session, value, recommendation, position, context
EXPECTED = [
    {
        "user_id": "ü",
        "item_id": "a",
        "type": "click",
        "event_id": "clicks-0-0",
        "event_time": 1_700_000_000_000,
    },
    {
        "user_id": "u",
        "item_id": "b",
        "type": "view",
        "event_id": "e2",
        "event_time": 1_700_000_000_001,
        "session_id": "s",
        "value": 2.5,
        "recommendation_id": "r",
        "position": 3,
        "context": {"page": "home"},
    },
]


def pulled(write: object) -> bytes:
    out = io.BytesIO()
    reader = Scripted([frame((CLICKS, 0, Event("ü", "a"))), frame((CLICKS, 1, FULL), offset=1)])
    reports: list[tuple[int, int]] = []
    found = pull_events(
        reader,
        {P0: Extent(0, 2), P1: Extent(6, 6)},
        "x",
        lambda events: write(events, out),  # type: ignore[operator]
        lambda count, frames: reports.append((count, frames)),
        Erasures(),
    )
    assert msgspec.to_builtins(found) == {
        "path": "x", "events": 2, "frames": 2, "resent": 0, "repeats": 0, "erased": 0, "invalid_frames": 0, "deleted_frames": 6,
    }  # fmt: skip
    assert reports == [(1, 1), (2, 2)]
    return out.getvalue()


def test_json_lines_hold_every_field_of_event_v1_plain_and_packed() -> None:
    assert [json.loads(line) for line in pulled(write_jsonl).splitlines()] == EXPECTED
    assert [json.loads(line) for line in gzip.decompress(pulled(write_jsonl_gz)).splitlines()] == EXPECTED


def test_parquet_holds_the_same_with_the_context_as_text(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    path.write_bytes(pulled(write_parquet))
    optional = dict.fromkeys(("session_id", "value", "recommendation_id", "position", "context"))
    assert parquet.read_table(path).to_pylist() == [
        {**EXPECTED[0], **optional},
        {**EXPECTED[1], "context": '{"page": "home"}'},
    ]


def test_a_topic_without_events_is_refused() -> None:
    def drained(events: Iterable[Events]) -> None:
        assert list(events) == []

    with pytest.raises(DataError, match="interactions holds no event, so nothing was written"):
        pull_events(Scripted(), {P0: Extent(0, 0)}, "x", drained, lambda *_: None, Erasures())
