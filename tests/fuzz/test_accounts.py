"""The judge of `make fuzz` is judged: it sees everything that must not be."""

import msgspec
import pytest

from streams.contracts.dead_letter import DeadLetter
from streams.contracts.event import InvalidEvent, decode_event, event_time_ms
from tests.fuzz.accounts import Accounts, Sent, checksum
from tests.fuzz.messages import MAX_EVENT_BYTES, Fate, hostile_messages

NOW_MS = 1_790_000_000_000
VALUE, KEY, HEADERS = b"\xff", b"key", (("trace", b"1"), ("", None))


@pytest.fixture
def accounts() -> Accounts:
    """Three messages in one partition: one good, one bad, one that may be either."""
    found = Accounts()
    for fate in (Fate.FRAME, Fate.DEAD_LETTER, Fate.EITHER):
        found.sent("clicks", 0, Sent(fate, checksum(VALUE, KEY, HEADERS)))
    return found


def put_into_frame(accounts: Accounts, *offsets: int) -> None:
    accounts.frame(msgspec.msgpack.encode([1, [["clicks", "id", 0]], [0] * len(offsets), offsets, [], []]))


def bury(
    accounts: Accounts, offset: int, value: bytes = VALUE, headers: tuple[tuple[str, bytes | None], ...] = HEADERS
) -> None:
    letter = DeadLetter(value, KEY, headers, "not_json", "why", "clicks", 0, offset, "decode", 5)
    accounts.letter(letter.value, letter.key, letter.all_headers())


def test_each_message_once_where_it_belongs_is_well(accounts: Accounts) -> None:
    put_into_frame(accounts, 0)
    bury(accounts, 1)
    bury(accounts, 2)
    assert (accounts.count, accounts.missing, accounts.twice, accounts.violations) == (3, 0, 0, 0)
    assert (accounts.in_frames, accounts.dead_letters, accounts.reasons) == (1, 2, {"not_json": 2})


def test_what_is_nowhere_is_missing(accounts: Accounts) -> None:
    put_into_frame(accounts, 0)
    assert (accounts.missing, accounts.violations) == (2, 2)


def test_what_is_there_twice_is_seen_in_frames_letters_or_both(accounts: Accounts) -> None:
    put_into_frame(accounts, 0, 0, 2)
    bury(accounts, 1)
    bury(accounts, 1)
    bury(accounts, 2)
    assert (accounts.missing, accounts.twice) == (0, 3)


def test_a_good_message_must_not_be_buried_nor_a_bad_one_accepted(accounts: Accounts) -> None:
    bury(accounts, 0)
    put_into_frame(accounts, 1, 2)
    assert accounts.violations == 2
    assert accounts.wrong == [
        "clicks/0@0 is a dead letter (why) and must not",
        "clicks/0@1 is in a frame and must not",
    ]


def test_a_letter_that_was_changed_or_comes_from_nowhere_is_seen(accounts: Accounts) -> None:
    put_into_frame(accounts, 0)
    bury(accounts, 1, value=b"other")
    bury(accounts, 2, headers=HEADERS[:1])
    bury(accounts, 3)
    assert accounts.violations == 3
    assert accounts.wrong == [
        "clicks/0@1 is not what was sent",
        "clicks/0@2 is not what was sent",
        "clicks/0@3 was never sent",
    ]


def test_a_seed_gives_the_same_messages_of_every_fate() -> None:
    messages = list(hostile_messages(7, 3000))
    assert messages == list(hostile_messages(7, 3000))
    assert {message.fate for message in messages} == set(Fate)
    assert messages != list(hostile_messages(8, 3000))


def test_the_decoder_agrees_with_what_is_surely_good_and_surely_bad() -> None:
    for message in hostile_messages(8, 3000):
        if message.fate is Fate.FRAME:
            decode_event(message.value, MAX_EVENT_BYTES)
        elif message.fate is Fate.DEAD_LETTER:
            with pytest.raises(InvalidEvent):
                event_time_ms(decode_event(message.value, MAX_EVENT_BYTES), NOW_MS, NOW_MS)
