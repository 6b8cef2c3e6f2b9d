"""The simulated apps' messages, as a producer gets them."""

import json
from threading import Event as Flag

import pytest

from streams.contracts.event import InvalidEvent, decode_event, event_time_ms
from streams.demo.traffic import Sent, Traffic, visitor_count

NOW_MS = 1_800_000_000_000
LIMIT = 10_000


class Recorder:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, str]] = []
        self.flushed = False

    def send(self, topic: str, value: bytes | None, key: bytes | str | None = None) -> None:
        assert isinstance(value, bytes)
        assert isinstance(key, str)
        self.messages.append((topic, value, key))

    def poll(self) -> int:
        return 0

    def flush(self) -> None:
        self.flushed = True


def run(events_per_second: float, seconds: float) -> tuple[Traffic, Recorder, list[Sent]]:
    recorder, sent = Recorder(), list[Sent]()
    traffic = Traffic(recorder, {"click": "clicks", "view": "views"}, 20, events_per_second, sent.append)
    traffic.run(Flag(), seconds)
    return traffic, recorder, sent


def reason(value: bytes) -> str | None:
    try:
        event_time_ms(decode_event(value, LIMIT), NOW_MS, NOW_MS)
    except InvalidEvent as error:
        return error.reason
    return None


def test_the_rate_is_kept_to_the_event() -> None:
    traffic, recorder, sent = run(4000, 0.1)
    assert len(recorder.messages) == traffic.sent == 400
    assert len(sent) == 400 - traffic.bad
    assert recorder.flushed


def test_one_event_of_every_hundred_is_bad_in_four_ways_in_turn() -> None:
    traffic, recorder, _ = run(4000, 0.1)
    reasons = {place: reason(value) for place, (_, value, _) in enumerate(recorder.messages)}
    assert {place: why for place, why in reasons.items() if why is not None} == {
        10: "not_json",
        110: "missing_field",
        210: "absurd_time",
        310: "invalid_utf8",
    }
    assert traffic.bad == 4


def test_clicks_and_views_go_to_their_topics_keyed_by_the_visitor() -> None:
    _, recorder, sent = run(4000, 0.1)
    good = [(topic, json.loads(value), key) for topic, value, key in recorder.messages if reason(value) is None]
    assert {topic for topic, _, _ in good} == {"clicks", "views"}
    assert all(event["user_id"] == key for _, event, key in good)
    assert [(event["user_id"], event["event_id"]) for _, event, _ in good] == [
        (each.user_id, each.event_id) for each in sent
    ]
    assert len({event["event_id"] for _, event, _ in good}) == len(good)


def test_a_stop_ends_traffic_that_has_no_end_of_its_own() -> None:
    stop = Flag()
    stop.set()
    recorder = Recorder()
    Traffic(recorder, {"click": "clicks", "view": "views"}, 1, 100, lambda _: None).run(stop, None)
    assert recorder.flushed
    assert recorder.messages == []


@pytest.mark.parametrize(("rate", "visitors"), [(1, 5), (200, 200), (2000, 1000)])
def test_a_visitor_makes_about_one_event_a_second(rate: float, visitors: int) -> None:
    assert visitor_count(rate) == visitors
