import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import UsageError
from streams.log.topics import Extent, Message, Partition, Topic
from streams.services.backfill.events import Count
from streams.services.backfill.raw import RawSource, merged
from streams.settings import Settings, TopicSettings

A0, A1, B0 = Partition("a", 0), Partition("a", 1), Partition("b", 0)


class Scripted:
    """A reader of logs in memory that hands out some at a time, of any partition that is not paused.

    Attributes:
        waiting: Messages handed out, less those that the test says were taken.
        most_waiting: The highest that was.
    """

    def __init__(self, logs: Mapping[Partition, Sequence[Message]], seed: int, at_a_time: int) -> None:
        self._left = {partition: list(log) for partition, log in logs.items()}
        self._random = random.Random(seed)
        self._at_a_time = at_a_time
        self._paused: set[Partition] = set()
        self.unfinished = {partition for partition, log in logs.items() if log}
        self.waiting = self.most_waiting = self.pauses = 0

    def read(self, count: int, wait_s: float) -> list[Message]:
        messages = []
        for _ in range(self._random.randint(0, self._at_a_time)):
            ready = sorted(self.unfinished - self._paused)
            assert ready, "everything is paused, and more is asked for"
            partition = self._random.choice(ready)
            messages.append(self._left[partition].pop(0))
            if not self._left[partition]:
                self.unfinished.discard(partition)
            if not self.unfinished - self._paused:
                break
        self.waiting += len(messages)
        self.most_waiting = max(self.most_waiting, self.waiting)
        return messages

    def pause(self, partition: Partition) -> None:
        self.pauses += 1
        self._paused.add(partition)

    def resume(self, partition: Partition) -> None:
        self._paused.remove(partition)


def log_of(partition: Partition, *timestamps: int) -> list[Message]:
    return [Message(*partition, offset, at, None, b"x" * 10, ()) for offset, at in enumerate(timestamps)]


def in_order(logs: Mapping[Partition, Sequence[Message]]) -> list[tuple[Partition, int]]:
    """Again and again the oldest of the messages that come next in their partitions."""
    left = {partition: list(log) for partition, log in logs.items() if log}
    found = []
    while left:
        partition = min(left, key=lambda p: (left[p][0].timestamp_ms, p))
        found.append((partition, left[partition].pop(0).offset))
        if not left[partition]:
            del left[partition]
    return found


def test_partitions_are_merged_by_timestamp_then_by_place() -> None:
    # Of the second partition of "a" the timestamps go back: it keeps its own order.
    logs = {A0: log_of(A0, 1, 3, 3), A1: log_of(A1, 3, 2), B0: log_of(B0, 3, 9)}
    found = [(message.topic, message.partition, message.offset) for message in merged(Scripted(logs, 1, 3))]
    assert found == [("a", 0, 0), ("a", 0, 1), ("a", 0, 2), ("a", 1, 0), ("a", 1, 1), ("b", 0, 0), ("b", 0, 1)]


def test_nothing_to_read_is_nothing() -> None:
    assert list(merged(Scripted({A0: []}, 1, 3))) == []


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=40), min_size=1, max_size=4),
    st.integers(0, 99),
    st.integers(1, 20),
    st.integers(1, 60),
    st.integers(0, 400),
)
def test_the_order_does_not_depend_on_what_comes_first_and_memory_is_bounded(
    timestamps: list[list[int]], seed: int, at_a_time: int, max_messages: int, max_bytes: int
) -> None:
    partitions = [Partition("t", number) for number in range(len(timestamps))]
    logs = {p: log_of(p, *of_one) for p, of_one in zip(partitions, timestamps, strict=True)}
    reader = Scripted(logs, seed, at_a_time)
    found = []
    for message in merged(reader, max_messages, max_bytes):
        reader.waiting -= 1
        found.append((Partition(message.topic, message.partition), message.offset))
    assert found == in_order(logs)
    # Its share, a head, and what one read brings beyond it: of each partition.
    assert reader.most_waiting <= max_messages + len(partitions) * (2 + at_a_time)


def test_a_partition_that_is_ahead_is_paused_and_goes_on_later() -> None:
    logs = {
        A0: log_of(A0, *range(100, 200), *range(300, 400)),
        A1: log_of(A1, *range(100), *range(200, 300)),
    }
    reader = Scripted(logs, 1, 20)
    found = [message.timestamp_ms for message in merged(reader, max_messages=10)]
    assert found == list(range(400))
    assert reader.pauses > 1


def test_one_partition_is_never_paused() -> None:
    logs = {A0: log_of(A0, *range(200))}
    reader = Scripted(logs, 1, 50)
    assert len(list(merged(reader, max_messages=10))) == 200
    assert reader.pauses == 0


def test_a_topic_that_ingest_does_not_read_is_refused() -> None:
    settings = Settings(topics=TopicSettings(sources={"clicks": "click", "views": "view"}))
    with pytest.raises(UsageError, match="topic buys is none of the raw topics that ingest reads: clicks, views"):
        RawSource(settings, {"buys": Topic("buys", "id", 1)}, {})


def test_what_is_to_be_read_is_counted_by_offsets() -> None:
    settings = Settings(topics=TopicSettings(sources={"a": "click"}))
    source = RawSource(settings, {"a": Topic("a", "id", 2)}, {A0: Extent(5, 9), A1: Extent(3, 3)})
    assert source.count() == Count(4, is_exact=True)
