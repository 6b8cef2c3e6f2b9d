from collections.abc import Callable, Sequence
from typing import Any

import pytest

from streams.contracts.dead_letter import DeadLetter, Headers, Replay, mark_headers, read_letter
from streams.contracts.erasure import Erasures
from streams.contracts.pseudonym import Pseudonyms
from streams.errors import DeliveryFailed, DriftlineError, UsageError
from streams.log.topics import Extent, Message, Partition, Topic
from streams.services.deadletters import (
    Content,
    ErasedLetters,
    Filter,
    Letter,
    NamedContent,
    Origin,
    ReplayPlan,
    SentBack,
    Survey,
    list_letters,
    plan_replay,
    send_back,
    show_letter,
    survey,
)

DLQ = "events.dlq"
T0 = 1_767_225_600_000
CLICKS = Topic("clicks", "id-c", 3)
SOURCES = {"clicks": CLICKS}


class Log:
    """A dead-letter topic of two partitions in memory, and the raw topics that its letters go back to."""

    def __init__(self) -> None:
        self.partitions: list[list[Message]] = [[], []]
        self.sent: list[Message] = []
        self.now = T0
        self.erasures = Erasures()
        self.pseudonyms = Pseudonyms(None)
        self.fails_at_flush: int | None = None
        self.refuses: set[bytes] = set()
        self._unflushed: list[Message] = []
        self._told: list[Callable[[], None]] = []
        self._flushes = 0

    # As a topic

    def write(self, value: bytes | None, headers: Headers, partition: int = 0, key: bytes | None = None) -> None:
        log = self.partitions[partition]
        self.now += 1000
        log.append(Message(DLQ, partition, len(log), self.now, key, value, headers))

    def bury(self, letter: DeadLetter, partition: int = 0) -> None:
        self.write(letter.value, letter.all_headers(), partition, letter.key)

    @property
    def extents(self) -> dict[Partition, Extent]:
        return {Partition(DLQ, number): Extent(0, len(log)) for number, log in enumerate(self.partitions)}

    def reader(self) -> "Reader":
        return Reader([message for log in self.partitions for message in log])

    # As a producer

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: Headers = (),
        timestamp_ms: int = 0,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        assert not isinstance(key, str)
        if value in self.refuses and on_failure is not None:
            self._told.append(lambda: on_failure("too large"))
            return
        self._unflushed.append(Message(topic, partition, -1, timestamp_ms, key, value, headers))

    def flush(self) -> None:
        self._flushes += 1
        unflushed, self._unflushed = self._unflushed, []
        told, self._told = self._told, []
        for tell in told:
            tell()
        if self._flushes == self.fails_at_flush:
            raise DeliveryFailed("no")
        for message in unflushed:
            if message.topic == DLQ:
                self.write(message.value, message.headers, message.partition, message.key)
            else:
                self.sent.append(message)

    # As a command

    def survey(self) -> Survey:
        return survey(self.reader(), self.extents, lambda _: None, ErasedLetters(self.erasures, self.pseudonyms))

    def plan(self, wanted: Filter | None = None, max_replays: int = 1, limit: int | None = None) -> ReplayPlan:
        return plan_replay(self.survey(), wanted or Filter(), ["clicks", "gone"], SOURCES, max_replays, limit)

    def replay(self, **options: Any) -> int:
        outcome = send_back(self.plan(**options), self.reader(), self.extents, self, SOURCES, lambda _: None)
        assert not outcome.refused
        return outcome.sent

    def letters(self) -> list[Letter]:
        return list(self.survey().letters())


class Reader:
    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = list(messages)

    def read(self, count: int, wait_s: float) -> list[Message]:
        found, self._messages = self._messages[:count], self._messages[count:]
        return found


@pytest.fixture
def log() -> Log:
    return Log()


def bad(offset: int, value: bytes | None = b"bad", **fields: Any) -> DeadLetter:
    """A letter of ingest's."""
    given = {
        "headers": (("trace", b"\xff"),), "reason": "not_json", "message": "not valid", "topic": "clicks", "partition": 1,
        "stage": "decode", "timestamp_ms": T0 - 7, **fields,
    }  # fmt: skip
    return DeadLetter(value, b"key", offset=offset, **given)


def poison(offset: int) -> DeadLetter:
    """A letter of evolve's: the event as it was rebuilt, its id included."""
    event = b'{"user_id":"u","item_id":"i","type":"click","event_id":"clicks-1-4","event_time":1767225600000}'
    return DeadLetter(event, b"u", (), "poison", "the model fails", "clicks", 1, offset, "encode", T0)


def test_letters_are_read_in_brief_and_marks_and_strangers_are_none(log: Log) -> None:
    log.bury(bad(4))
    log.write(b"of another program", ())
    log.bury(bad(9, reason="too_large", message="ü"), partition=1)
    log.write(None, mark_headers(Replay(1, DLQ, 0, 0)))
    found = log.survey()
    assert list(found.letters()) == [
        Letter(0, 0, T0 + 1000, "not_json", Origin("clicks", 1, 4), "decode", "not valid", 0, sent_back=True),
        Letter(1, 0, T0 + 3000, "too_large", Origin("clicks", 1, 9), "decode", "ü", 0, sent_back=False),
    ]
    assert found.others == 1


def test_a_list_holds_the_newest_and_counts_all(log: Log) -> None:
    for offset in range(5):
        log.bury(bad(offset, reason="too_large" if offset % 2 else "not_json"), partition=offset % 2)
    found = list_letters(DLQ, log.survey(), Filter(), 2)
    assert [letter.source.offset for letter in found.letters] == [3, 4]
    assert (found.topic, found.matching, found.others) == (DLQ, 5, 0)
    assert list(found.by_reason.items()) == [("not_json", 3), ("too_large", 2)]


@pytest.mark.parametrize(
    ("wanted", "offsets"),
    [
        (Filter(), [0, 1, 2, 3]),
        (Filter(reasons=frozenset({"too_large", "nul"})), [1, 3]),
        (Filter(topics=frozenset({"views"})), [2, 3]),
        (Filter(from_ms=T0 + 2000), [1, 2, 3]),
        (Filter(to_ms=T0 + 2000), [0]),
        (Filter(frozenset({"nul"}), frozenset({"clicks"}), T0 + 1000, T0 + 4000), []),
    ],
)
def test_filters_let_through_what_is_meant(log: Log, wanted: Filter, offsets: list[int]) -> None:
    for offset, (topic, reason) in enumerate(
        [("clicks", "not_json"), ("clicks", "too_large"), ("views", "not_json"), ("views", "nul")]
    ):
        log.bury(bad(offset, topic=topic, reason=reason))
    assert [letter.source.offset for letter in list_letters(DLQ, log.survey(), wanted, 9).letters] == offsets


def test_a_reason_that_no_letter_can_have_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"--reason notjson: no such reason; there are null_value, too_large, .* poison"
    ):
        Filter(frozenset({"notjson", "nul"}))


def test_a_time_span_that_is_empty_is_refused() -> None:
    with pytest.raises(UsageError, match="before --to-datetime"):
        Filter(from_ms=5, to_ms=5)


def test_one_letter_is_shown_whole_as_text_or_hex(log: Log) -> None:
    log.bury(bad(4, b"\xff\x00"))
    log.bury(bad(5, None, headers=(("a", b"\xc3\xbc"), ("b", None)), timestamp_ms=None))
    log.replay(limit=1)
    first = show_letter(log.reader(), log.extents, 0, 0, lambda _: None)
    assert first.value == Content(None, "ff00")
    assert first.key == Content("key", None)
    assert first.headers == [NamedContent("trace", Content(None, "ff"))]
    assert first.timestamp == T0 - 7
    assert first.letter.sent_back
    second = show_letter(log.reader(), log.extents, 0, 1, lambda _: None)
    assert second.value == Content(None, None)
    assert second.headers == [NamedContent("a", Content("ü", None)), NamedContent("b", Content(None, None))]
    assert second.timestamp is None
    assert not second.letter.sent_back


@pytest.mark.parametrize("place", [(0, 1), (0, 7), (5, 0)])
def test_a_place_without_a_letter_is_said_to_have_none(log: Log, place: tuple[int, int]) -> None:
    log.bury(bad(4))
    log.write(None, mark_headers(Replay(1, DLQ, 0, 0)))
    with pytest.raises(DriftlineError, match=f"no dead letter lies at {place[0]}:{place[1]}"):
        show_letter(log.reader(), log.extents, *place, lambda _: None)


def test_a_letter_goes_back_as_it_came_with_one_header_more(log: Log) -> None:
    log.bury(bad(4, b"\xff\x00"))
    assert log.replay() == 1
    (sent,) = log.sent
    assert (sent.topic, sent.partition, sent.key, sent.value) == ("clicks", 1, b"key", b"\xff\x00")
    assert sent.timestamp_ms == T0 - 7
    replayed = b'{"times":1,"topic":"events.dlq","partition":0,"offset":0}'
    assert list(sent.headers) == [("trace", b"\xff"), ("driftline-replayed", replayed)]


def test_what_cannot_be_kept_is_left_to_kafka(log: Log) -> None:
    log.bury(bad(4, partition=7, timestamp_ms=None))
    log.replay()
    (sent,) = log.sent
    assert sent.partition == -1, "the topic has three partitions now"
    assert sent.timestamp_ms == T0 + 1000, "when the letter was written"


def test_a_second_replay_sends_nothing_twice_and_the_mark_lies_behind_its_letter(log: Log) -> None:
    log.bury(bad(4), partition=1)
    log.bury(bad(5))
    assert log.replay() == 2
    assert log.replay() == 0
    assert log.plan().left_out == {"sent_back_before": 2}
    assert [[message.value for message in partition] for partition in log.partitions] == [[b"bad", None]] * 2


def test_a_letter_that_ingest_wrote_twice_is_sent_once(log: Log) -> None:
    log.bury(bad(4))
    log.bury(bad(4), partition=1)
    plan = log.plan()
    assert (plan.to_send, plan.left_out) == ({"clicks": 1}, {"copies": 1})
    log.replay()
    assert len(log.sent) == 1
    assert log.plan().left_out == {"sent_back_before": 2}


def test_the_same_place_in_a_topic_made_anew_is_another_message(log: Log) -> None:
    log.bury(bad(4))
    log.bury(bad(4, timestamp_ms=T0 + 99))
    log.bury(bad(4, b"worse"))
    assert log.replay() == 3


def dies_again(log: Log, offset: int) -> None:
    """What was sent back last fails once more."""
    sent = log.sent[-1]
    log.bury(bad(offset, sent.value, headers=sent.headers))


def test_what_fails_again_is_a_new_letter_and_is_not_looped(log: Log) -> None:
    log.bury(bad(4))
    log.replay()
    dies_again(log, 20)
    assert [(letter.replays, letter.sent_back) for letter in log.letters()] == [(0, True), (1, False)]
    assert log.replay() == 0
    assert log.plan().left_out == {"sent_back_before": 1, "too_often": 1}
    # Who insists may.
    assert log.replay(max_replays=2) == 1
    dies_again(log, 21)
    assert [letter.replays for letter in log.letters()] == [0, 1, 2]
    assert log.replay(max_replays=2) == 0


def test_an_event_that_breaks_the_model_again_is_not_looped_though_no_header_outlives_a_frame(log: Log) -> None:
    log.bury(poison(4))
    log.bury(poison(4))  # evolve was killed between produce and swap
    assert log.replay() == 1
    log.bury(poison(30))
    assert [(letter.replays, letter.sent_back) for letter in log.letters()] == [(0, True), (0, True), (1, False)]
    assert log.replay() == 0
    assert log.replay(max_replays=2) == 1
    log.bury(poison(31))
    assert [letter.replays for letter in log.letters()] == [0, 0, 1, 2]


def test_what_must_not_or_cannot_go_back_is_counted_with_its_reason(log: Log) -> None:
    log.bury(bad(1, topic="interactions", stage="frame", reason="invalid_frame"))
    log.bury(bad(2, topic="once_a_source"))
    log.bury(bad(3, topic="gone"))
    log.bury(bad(4))
    plan = log.plan()
    assert plan.to_send == {"clicks": 1}
    assert plan.left_out == {"frames": 1, "not_a_source": 1, "no_such_topic": 1}
    assert plan.matching == 4
    assert log.replay() == 1


def test_a_limit_takes_the_oldest_and_the_next_replay_goes_on(log: Log) -> None:
    for offset in range(5):
        log.bury(bad(offset, b"%d" % offset), partition=offset % 2)
    plan = log.plan(limit=2)
    assert (plan.to_send, plan.not_reached) == ({"clicks": 2}, 3)
    assert [log.replay(limit=2) for _ in range(4)] == [2, 2, 1, 0]
    assert sorted(message.value or b"" for message in log.sent) == [b"0", b"1", b"2", b"3", b"4"]
    assert {message.value for message in log.sent[:2]} == {b"0", b"1"}


def test_many_letters_go_in_batches_and_a_failure_leaves_at_most_one_batch_without_marks(log: Log) -> None:
    for offset in range(1200):
        log.bury(bad(offset))
    log.fails_at_flush = 4  # the marks of the second batch
    reports: list[int] = []
    with pytest.raises(DeliveryFailed):
        send_back(log.plan(), log.reader(), log.extents, log, SOURCES, reports.append)
    assert reports == [500]
    assert len(log.sent) == 1000
    assert sum(letter.sent_back for letter in log.letters()) == 500
    log.replay()
    origins = {header for message in log.sent for header in message.headers if header[0] == "driftline-replayed"}
    assert (len(origins), len(log.sent)) == (1200, 1700)


def test_a_letter_that_kafka_refuses_does_not_keep_the_others_back(log: Log) -> None:
    for offset, value in enumerate([b"small", b"huge", b"small too"]):
        log.bury(bad(offset, value))
    log.refuses = {b"huge"}
    found = send_back(log.plan(), log.reader(), log.extents, log, SOURCES, lambda _: None)
    assert found == SentBack(2, {"0:1": "too large"})
    assert [letter.sent_back for letter in log.letters()] == [True, False, True]
    # It is tried again by the next replay; by itself it is no sign that Kafka is away.
    assert send_back(log.plan(), log.reader(), log.extents, log, SOURCES, lambda _: None).refused == {
        "0:1": "too large"
    }
    assert len(log.sent) == 2


def test_a_batch_of_which_kafka_takes_nothing_ends_the_replay(log: Log) -> None:
    for offset in range(600):
        log.bury(bad(offset, b"huge"))
    log.refuses = {b"huge"}
    with pytest.raises(DeliveryFailed, match="Kafka accepted none of 500 letters: too large"):
        log.replay()
    assert not any(letter.sent_back for letter in log.letters())


def test_the_mark_of_a_letter_that_retention_has_deleted_means_nothing(log: Log) -> None:
    log.write(None, mark_headers(Replay(1, DLQ, 0, 77)))
    log.bury(bad(4))
    assert [letter.sent_back for letter in log.letters()] == [False]


def test_an_app_may_send_any_header_and_its_letter_is_still_a_letter(log: Log) -> None:
    strange = (("driftline-replayed", b"nonsense"), ("__streams.errors.offset", b"x"))
    log.bury(bad(4, headers=strange))
    assert log.replay() == 1
    (sent,) = log.sent
    assert [name for name, _ in sent.headers] == ["__streams.errors.offset", "driftline-replayed"]
    assert read_letter(sent.value, sent.key, sent.headers) is None


def test_what_is_older_than_the_erasure_of_its_user_is_left_out(log: Log) -> None:
    log.pseudonyms = Pseudonyms(b"sixteen bytes 16")
    ana = log.pseudonyms.of("ana")
    log.erasures.add(ana, T0 + 500)

    def letter(offset: int, value: bytes, time_ms: int | None, stage: str = "validate") -> DeadLetter:
        return DeadLetter(value, None, (), "absurd_time", "why", "clicks", 0, offset, stage, time_ms)

    for number, (value, time_ms) in enumerate(
        [
            (b'{"user_id":"ana","item_id":"i1"}', T0 + 499),
            (b'{"user_id":"bea","type":"$identify","anonymous_id":"ana"}', T0 + 500),
            (b'{"user_id":"ana","item_id":"i1"}', T0 + 501),
            (b'{"user_id":"bea","item_id":"i1"}', T0 + 1),
            (b'{"user_id":["ana"],"item_id":"i1"}', T0 + 1),
            (b"ana", T0 + 1),
        ]
    ):
        log.bury(letter(number, value, time_ms))
    # Without a time it was before the letter, and that was written after the erasure: nobody knows.
    log.bury(letter(6, b'{"user_id":"ana","item_id":"i2"}', None))
    # What the model fails on names users as rows do.
    log.bury(letter(7, b'{"user_id":"%b","item_id":"i3"}' % ana.encode(), T0 + 1, "encode"))
    log.bury(letter(8, b'{"user_id":"0123456789abcdef","item_id":"i3"}', T0 + 1, "encode"))
    plan = log.plan()
    assert plan.left_out == {"erased": 3, "pseudonyms": 1}
    assert [offset for _, offset in plan.chosen] == [2, 3, 4, 5, 6]
