import gzip
import io
from collections.abc import Sequence
from io import BufferedReader

import pytest

from streams.errors import DataError, UsageError
from streams.services.produce import MAX_LINE_BYTES, Pace, key_by, produce_lines, read_lines


class Clock:
    """A clock that only sleeping moves, by exactly as long as asked for, or by ``slip`` longer."""

    def __init__(self, slip_s: float = 0.0) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []
        self._slip_s = slip_s

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds + self._slip_s


class Sink:
    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None, bytes | str | None]] = []
        self.flushed = 0

    def send(self, topic: str, value: bytes | None, key: bytes | str | None = None) -> None:
        self.sent.append((topic, value, key))

    def flush(self) -> None:
        self.flushed = len(self.sent)


def read(raw: bytes) -> Sequence[bytes]:
    return list(read_lines(BufferedReader(io.BytesIO(raw)), "events.jsonl"))


@pytest.mark.parametrize("rate", [0.5, 7.0, 400.0, 10_000.0])
def test_the_n_th_event_is_due_n_over_the_rate_after_the_first(rate: float) -> None:
    clock = Clock()
    pace = Pace(rate, clock, clock.sleep)
    for number in range(5000):
        pace.wait()
        due = 100.0 + number / rate
        # Never early, and late by no more than the shortest sleep.
        assert due - 1e-6 <= clock.now <= due + 0.002 + 1e-6


def test_at_a_high_rate_many_events_go_after_each_sleep() -> None:
    clock = Clock()
    pace = Pace(10_000, clock, clock.sleep)
    for _ in range(10_001):
        pace.wait()
    assert clock.now == pytest.approx(101.0, abs=0.003)
    assert len(clock.sleeps) <= 501  # 1 s in sleeps of at least 2 ms


def test_sleeps_that_last_too_long_do_not_lower_the_rate() -> None:
    clock = Clock(slip_s=0.01)
    pace = Pace(1000, clock, clock.sleep)
    for _ in range(10_001):
        pace.wait()
    assert clock.now == pytest.approx(110.0, abs=0.02)


def test_a_long_interruption_is_not_followed_by_a_burst() -> None:
    clock = Clock()
    pace = Pace(100, clock, clock.sleep)
    pace.wait()
    clock.now += 60.0
    before = clock.now
    for _ in range(100):
        pace.wait()
    # A tenth of a second, 10 events, may be made up for; the other 90 are a second's worth but that.
    assert clock.now - before == pytest.approx(0.9, abs=0.02)


def test_without_a_rate_nothing_waits() -> None:
    clock = Clock()
    pace = Pace(None, clock, clock.sleep)
    for _ in range(1000):
        pace.wait()
    assert clock.now == 100.0


@pytest.mark.parametrize("rate", [0.0, -3.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="--rate"):
        Pace(rate)


def test_lines_lose_their_ends_and_nothing_else() -> None:
    assert read(b' {"a": 1} \r\n\n\xff\n{"b": 2}') == [b' {"a": 1} ', b"", b"\xff", b'{"b": 2}']


def test_a_gzip_file_is_read_as_what_it_holds_whatever_its_name() -> None:
    assert read(gzip.compress(b"one\ntwo\n")) == [b"one", b"two"]


def test_a_damaged_gzip_file_is_an_error_that_names_file_and_line() -> None:
    whole = gzip.compress(b"one\n" * 1000)
    with pytest.raises(DataError, match=r"events\.jsonl, line \d+: cannot be read"):
        read(whole[:-9])


def test_a_line_that_no_message_can_hold_is_an_error_and_not_cut_in_two() -> None:
    assert len(read(b"x" * MAX_LINE_BYTES + b"\n")) == 1
    with pytest.raises(DataError, match="line 2: longer than"):
        read(b"one\n" + b"x" * (MAX_LINE_BYTES + 1) + b"\n")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (b'{"user_id": "ana", "x": [1, {}]}', "ana"),
        (b'{"x": 1, "user_id": "\\u00e9"}', "é"),
        (b'{"user_id": 7}', None),
        (b'{"user_id": null}', None),
        (b'{"other": "ana"}', None),
        (b"[]", None),
        (b"{", None),
        (b'{"user_id": "\xff"}', None),
        (b"[" * 100_000, None),
    ],
)
def test_the_key_is_the_string_in_the_field_and_none_where_there_is_none(line: bytes, key: str | None) -> None:
    assert key_by("user_id")(line) == key


def test_another_field_may_be_the_key() -> None:
    assert key_by("session.id")(b'{"user_id": "ana", "session.id": "s1"}') == "s1"


def test_every_line_but_the_empty_ones_is_sent_untouched_and_acknowledged() -> None:
    sink, clock = Sink(), Clock()
    reports: list[int] = []
    lines = [b' { "user_id" :"ana"}', b"", b"  ", b"bad", b'{"user_id":"bo"}']
    produced = produce_lines(sink, "clicks", lines, key_by("user_id"), Pace(None), reports.append, clock)
    assert sink.sent == [
        ("clicks", b' { "user_id" :"ana"}', "ana"),
        ("clicks", b"bad", None),
        ("clicks", b'{"user_id":"bo"}', "bo"),
    ]
    assert sink.flushed == 3
    assert (produced.events, produced.without_key, produced.empty_lines) == (3, 1, 2)
    assert reports == [3]
