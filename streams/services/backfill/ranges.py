"""Which offsets of a topic a person means: from when, to when, or from where.

Kafka finds a time by the timestamps of the messages, not by the times of the events in them. A raw topic's messages are
dated when the app produced them; those of `interactions` are frames, dated when ingest wrote them: what lay in the raw
topics while ingest was stopped is found under the time at which it went on.
"""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from streams.errors import UsageError
from streams.log.admin import LogAdmin
from streams.log.topics import Extent, Partition, Topic
from streams.services.datetimes import parse_datetime
from streams.services.topics import partitions_of

# Years and months are no lengths of time, so there are none of them, as with kafka-consumer-groups.
_DURATION: Final = re.compile(
    r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.(\d{1,9}))?S)?)?", re.ASCII | re.IGNORECASE
)
_OFFSET: Final = re.compile(r"(\d+):(\d+)", re.ASCII)


class Range(Struct, frozen=True):
    """The part of one topic that is meant; without any bound all of it.

    Attributes:
        from_datetime: Milliseconds since 1970; starts at the first message dated then or later.
        to_datetime: Milliseconds since 1970; ends before the first message dated then or later.
        from_offsets: By partition the offset to start at; a partition that is not named starts at its beginning.
    """

    from_datetime: int | None = None
    to_datetime: int | None = None
    from_offsets: Mapping[int, int] | None = None


def parse_range(
    from_datetime: str | None, to_datetime: str | None, by_duration: str | None, from_offsets: str | None, now_ms: int
) -> Range:
    """The range that a command's options describe.

    Args:
        from_datetime, to_datetime: As `parse_datetime` takes them.
        by_duration: As `parse_duration` takes it: from so long before now.
        from_offsets: As `parse_offsets` takes it.
        now_ms: What the duration is measured back from, milliseconds since 1970.

    Raises:
        UsageError: One of them can't be read, two name a start, or the end is not after the start.
    """
    starts = {"--from-datetime": from_datetime, "--by-duration": by_duration, "--from-offsets": from_offsets}
    given = [option for option, text in starts.items() if text is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} each say where to start: give one of them")
    start_ms = None
    if from_datetime is not None:
        start_ms = parse_datetime("--from-datetime", from_datetime)
    elif by_duration is not None:
        start_ms = max(0, now_ms - parse_duration("--by-duration", by_duration))
    end_ms = None if to_datetime is None else parse_datetime("--to-datetime", to_datetime)
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        start = f"{given[0]} {starts[given[0]]}"
        raise UsageError(f"--to-datetime {to_datetime} is not after {start}: nothing lies between them")
    offsets = None if from_offsets is None else parse_offsets("--from-offsets", from_offsets)
    return Range(start_ms, end_ms, offsets)


def parse_duration(option: str, text: str) -> int:
    """Milliseconds of a duration in ISO 8601, of weeks, days, hours, minutes and seconds: P7D, PT1H30M.

    Raises:
        UsageError: It is none, or counts in years or months.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        raise UsageError(
            f"{option} {text!r} is not a duration. Write it as in P7D (seven days), PT1H30M or P1DT12H; years and "
            "months have no fixed length, so write days or weeks"
        )
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in found.groups()[:5])
    fraction_ms = int((found[6] or "").ljust(3, "0")[:3])
    return (((weeks * 7 + days) * 24 + hours) * 60 + minutes) * 60_000 + seconds * 1000 + fraction_ms


def parse_offsets(option: str, text: str) -> dict[int, int]:
    """Offsets by partition, from PARTITION:OFFSET with commas between them: 0:1000,3:55.

    Raises:
        UsageError: It is not in that form, or names a partition twice.
    """
    offsets: dict[int, int] = {}
    for part in text.split(","):
        found = _OFFSET.fullmatch(part.strip())
        if found is None:
            raise UsageError(
                f"{option} {text!r}: {part.strip()!r} is not PARTITION:OFFSET. Write it as in 0:1000,3:55 (partition 0 "
                "from offset 1000, partition 3 from offset 55, all others from their beginnings)"
            )
        number = int(found[1])
        if number in offsets:
            raise UsageError(f"{option} {text!r} names partition {number} twice. Name each once, as in 0:1000,3:55")
        offsets[number] = int(found[2])
    return offsets


def resolve(admin: LogAdmin, topic: Topic, wanted: Range) -> dict[Partition, Extent]:
    """The offsets that a range means in the topic as it is now: of every partition, an empty extent where none.

    Raises:
        UsageError: An offset to start at is not in its partition's log, or there is no such partition.
        LogUnavailable, AuthenticationFailed, TopicMissing: Kafka says so.
    """
    partitions = partitions_of(topic)
    extents = admin.extents(partitions)
    starts: dict[Partition, int] = {partition: extent.start for partition, extent in extents.items()}
    # A time after the last message is the end of the log, as it was when asked: what came since is left out.
    ends: dict[Partition, int] = {partition: extent.end for partition, extent in extents.items()}
    if wanted.from_datetime is not None:
        found = admin.offsets_at(partitions, wanted.from_datetime)
        starts = {partition: _within(found[partition], extent) for partition, extent in extents.items()}
    if wanted.to_datetime is not None:
        found = admin.offsets_at(partitions, wanted.to_datetime)
        ends = {partition: _within(found[partition], extent) for partition, extent in extents.items()}
    for number, offset in (wanted.from_offsets or {}).items():
        partition = Partition(topic.name, number)
        if number >= topic.partitions:
            raise UsageError(
                f"offset {offset} of {topic.name} partition {number} is asked for, but the topic has "
                f"{topic.partitions} partitions, 0 to {topic.partitions - 1}"
            )
        extent = extents[partition]
        if not extent.start <= offset <= extent.end:
            raise UsageError(
                f"offset {offset} of {topic.name} partition {number} is asked for, but its log starts at "
                f"{extent.start} and ends at {extent.end}. Name an offset from {extent.start} to {extent.end}"
            )
        starts[partition] = offset
    return {partition: Extent(starts[partition], max(starts[partition], ends[partition])) for partition in partitions}


def _within(offset: int | None, extent: Extent) -> int:
    """The offset, or that end of the log which it lies beyond: the log may move between two questions."""
    return extent.end if offset is None else min(max(offset, extent.start), extent.end)
