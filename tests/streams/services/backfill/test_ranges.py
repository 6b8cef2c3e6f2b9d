from collections.abc import Iterable, Mapping

import pytest

from streams.errors import UsageError
from streams.log.admin import LogAdmin
from streams.log.topics import Extent, Partition, Topic
from streams.services.backfill.ranges import (
    Range,
    parse_duration,
    parse_offsets,
    parse_range,
    resolve,
)

TOPIC = Topic("clicks", "id-1", 2)
P0, P1 = Partition("clicks", 0), Partition("clicks", 1)
# 2026-11-28T04:00:00Z
FOUR = 1_795_838_400_000
HOUR = 3_600_000


class Scripted(LogAdmin):
    """A log of two partitions that answers from memory.

    Args:
        at: Of each time that is asked for, what Kafka finds.
    """

    def __init__(self, p0: Extent, p1: Extent, at: Mapping[int, Mapping[Partition, int | None]] | None = None) -> None:
        self._extents = {P0: p0, P1: p1}
        self._at = at or {}

    def extents(self, partitions: Iterable[Partition]) -> dict[Partition, Extent]:
        return {partition: self._extents[partition] for partition in partitions}

    def offsets_at(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int | None]:
        return {partition: self._at[time_ms][partition] for partition in partitions}


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("P7D", 7 * 24 * HOUR),
        ("P2W", 14 * 24 * HOUR),
        ("PT1H30M", HOUR + HOUR // 2),
        ("P1DT12H", 36 * HOUR),
        ("PT0.25S", 250),
        ("PT90S", 90_000),
        ("PT1.5S", 1500),
        ("pt5m", 300_000),
        ("P0D", 0),
    ],
)
def test_a_duration_counts_in_weeks_to_seconds(text: str, milliseconds: int) -> None:
    assert parse_duration("--by-duration", text) == milliseconds


@pytest.mark.parametrize("text", ["", "P", "PT", "P1DT", "7D", "P1Y", "P1M", "P-1D", "PT1.S", "1 week", "P1.5D", "P٣D"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--by-duration .* is not a duration.*PT1H30M"):
        parse_duration("--by-duration", text)


def test_offsets_are_given_by_partition() -> None:
    assert parse_offsets("--from-offsets", "0:1000, 3:55") == {0: 1000, 3: 55}


@pytest.mark.parametrize("text", ["", "1000", "0:", "0:-1", "a:5", "0:1,", "0:1:2"])
def test_what_are_no_offsets_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not PARTITION:OFFSET.*0:1000,3:55"):
        parse_offsets("--from-offsets", text)


def test_a_partition_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'0:1,0:2' names partition 0 twice"):
        parse_offsets("--from-offsets", "0:1,0:2")


def test_options_make_a_range() -> None:
    assert parse_range(None, None, None, None, FOUR) == Range()
    assert parse_range("2026-11-28T03:00", "2026-11-28T04:00", None, None, 0) == Range(FOUR - HOUR, FOUR)
    assert parse_range(None, None, "PT1H", None, FOUR) == Range(FOUR - HOUR)
    assert parse_range(None, None, "P99999W", None, FOUR) == Range(0)
    assert parse_range(None, "2026-11-28T04:00", None, "1:7", 0) == Range(None, FOUR, {1: 7})


def test_two_starts_are_refused() -> None:
    with pytest.raises(UsageError, match="--from-datetime and --by-duration each say where to start"):
        parse_range("2026-11-28", None, "P1D", None, FOUR)


def test_an_end_that_is_not_after_the_start_is_refused() -> None:
    with pytest.raises(UsageError, match="--to-datetime 2026-11-28T03:00 is not after --by-duration PT1H"):
        parse_range(None, "2026-11-28T03:00", "PT1H", None, FOUR)


def test_without_bounds_the_whole_log_is_meant() -> None:
    assert resolve(Scripted(Extent(3, 9), Extent(0, 0)), TOPIC, Range()) == {P0: Extent(3, 9), P1: Extent(0, 0)}


def test_times_bound_each_partition_by_its_own_messages() -> None:
    admin = Scripted(Extent(3, 9), Extent(0, 4), {10: {P0: 5, P1: 0}, 20: {P0: 7, P1: 2}})
    assert resolve(admin, TOPIC, Range(10, 20)) == {P0: Extent(5, 7), P1: Extent(0, 2)}


def test_a_time_past_the_end_gives_nothing_and_as_an_end_gives_all() -> None:
    admin = Scripted(Extent(3, 9), Extent(0, 4), {10: {P0: None, P1: None}})
    assert resolve(admin, TOPIC, Range(10)) == {P0: Extent(9, 9), P1: Extent(4, 4)}
    assert resolve(admin, TOPIC, Range(to_datetime=10)) == {P0: Extent(3, 9), P1: Extent(0, 4)}


def test_what_came_after_the_ends_were_asked_for_is_left_out() -> None:
    admin = Scripted(Extent(3, 9), Extent(0, 4), {10: {P0: 11, P1: 2}})
    assert resolve(admin, TOPIC, Range(10)) == {P0: Extent(9, 9), P1: Extent(2, 4)}


def test_offsets_start_the_partitions_that_they_name() -> None:
    admin = Scripted(Extent(3, 9), Extent(0, 4), {20: {P0: 5, P1: 2}})
    assert resolve(admin, TOPIC, Range(from_offsets={0: 5})) == {P0: Extent(5, 9), P1: Extent(0, 4)}
    assert resolve(admin, TOPIC, Range(from_offsets={0: 9, 1: 4})) == {P0: Extent(9, 9), P1: Extent(4, 4)}
    # Where the end is reached before the start, nothing is meant.
    assert resolve(admin, TOPIC, Range(None, 20, {0: 6})) == {P0: Extent(6, 6), P1: Extent(0, 2)}


@pytest.mark.parametrize("offset", [2, 10])
def test_an_offset_outside_of_the_log_is_refused_naming_its_extent(offset: int) -> None:
    with pytest.raises(UsageError, match=f"offset {offset} of clicks partition 0 .* starts at 3 and ends at 9"):
        resolve(Scripted(Extent(3, 9), Extent(0, 4)), TOPIC, Range(from_offsets={0: offset}))


def test_a_partition_that_the_topic_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="partition 2 is asked for, but the topic has 2 partitions, 0 to 1"):
        resolve(Scripted(Extent(3, 9), Extent(0, 4)), TOPIC, Range(from_offsets={2: 0}))
