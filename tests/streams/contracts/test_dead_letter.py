import json

import pytest

from streams.contracts.dead_letter import (
    DeadLetter,
    Headers,
    Replay,
    mark_headers,
    read_letter,
    read_mark,
    replay_headers,
)

LETTER = DeadLetter(
    b"\xffnot json", b"\x00key", (("trace", b"\xff\x00"), ("empty", None), ("trace", b"again")), "not_json",
    "not valid: ü", "clicks", 3, 1_000_000, "decode", 1_767_225_600_000,
)  # fmt: skip
WRITTEN = [
    ("trace", b"\xff\x00"),
    ("empty", None),
    ("trace", b"again"),
    ("__streams.errors.exception", b"not_json"),
    ("__streams.errors.message", b"not valid: \xc3\xbc"),
    ("__streams.errors.topic", b"clicks"),
    ("__streams.errors.partition", b"3"),
    ("__streams.errors.offset", b"1000000"),
    ("__streams.errors.stage", b"decode"),
    ("__streams.errors.timestamp", b"1767225600000"),
]


def test_our_headers_follow_the_untouched_ones_in_order() -> None:
    assert LETTER.all_headers() == WRITTEN


def test_a_letter_that_dies_a_second_time_keeps_both_stories_the_newest_last() -> None:
    first = DeadLetter(b"x", None, (), "not_json", "first", "clicks", 0, 1, "decode")
    second = DeadLetter(b"x", None, first.all_headers(), "poison", "second", "events.dlq", 0, 9, "encode")
    messages = [value for name, value in second.all_headers() if name == "__streams.errors.message"]
    assert messages == [b"first", b"second"]


def test_a_letter_is_read_as_it_was_written() -> None:
    assert read_letter(b"\xffnot json", b"\x00key", WRITTEN) == LETTER


def test_a_letter_of_before_there_was_a_timestamp_is_read_without_one() -> None:
    found = read_letter(None, None, WRITTEN[:-1])
    assert found is not None
    assert (found.headers, found.offset, found.timestamp_ms) == (LETTER.headers, 1_000_000, None)


def test_only_the_newest_death_is_taken_off() -> None:
    found = read_letter(b"x", None, [*WRITTEN, *WRITTEN[3:]])
    assert found is not None
    assert list(found.headers) == WRITTEN


@pytest.mark.parametrize(
    "headers",
    [
        [],
        WRITTEN[:-2],
        WRITTEN[4:],
        [*WRITTEN, ("trace", b"of a relay")],
        [*WRITTEN[:7], ("__streams.errors.offset", b"x"), *WRITTEN[8:]],
        [*WRITTEN[:7], ("__streams.errors.offset", b"-1"), *WRITTEN[8:]],
        [*WRITTEN[:-1], ("__streams.errors.timestamp", b"9" * 30)],
        [*WRITTEN[:-1], ("__streams.errors.timestamp", None)],
    ],
)
def test_a_message_that_another_program_wrote_is_no_letter(headers: Headers) -> None:
    assert read_letter(b"x", None, headers) is None


def test_what_is_sent_back_has_the_original_headers_and_one_that_says_so() -> None:
    replay = Replay(1, "events.dlq", 2, 41)
    headers = replay_headers(LETTER, replay)
    assert headers[:-1] == WRITTEN[:3]
    name, value = headers[-1]
    assert name == "driftline-replayed"
    assert json.loads(value or b"") == {"times": 1, "topic": "events.dlq", "partition": 2, "offset": 41}
    # It failed again, and is sent back again: the header is there once.
    again = DeadLetter(b"x", None, headers, "not_json", "", "clicks", 3, 1_000_007, "decode")
    assert again.replay() == replay
    assert [name for name, _ in replay_headers(again, Replay(2, "events.dlq", 0, 50))].count("driftline-replayed") == 1


@pytest.mark.parametrize(
    "value", [None, b"", b"\xff", b"{}", b'{"times":0,"topic":"t","partition":0,"offset":0}', b"["]
)
def test_an_app_that_writes_our_header_is_not_believed(value: bytes | None) -> None:
    letter = DeadLetter(b"x", None, (("driftline-replayed", value),), "not_json", "", "clicks", 0, 1, "decode")
    assert letter.replay() is None


def test_a_mark_is_no_letter_and_a_letter_no_mark() -> None:
    replay = Replay(3, "events.dlq", 2, 41)
    assert read_mark(None, mark_headers(replay)) == replay
    assert read_letter(None, None, mark_headers(replay)) is None
    assert read_mark(b"x", mark_headers(replay)) is None
    assert read_mark(None, WRITTEN) is None
