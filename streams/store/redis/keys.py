"""Names of keys, and how a watermark is written into one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streams.contracts.frame import Source
from streams.store.protocol import Watermark


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one generation."""

    key_prefix: str
    generation: str

    @property
    def prefix(self) -> str:
        """What every key of the generation begins with."""
        return f"{self.key_prefix}:{self.generation}:"

    @property
    def serving(self) -> str:
        """Which generation is served; the same for all of them."""
        return f"{self.key_prefix}:generation"

    @property
    def partitions(self) -> str:
        """How many partitions users are spread over."""
        return self.prefix + "partitions"

    @property
    def plan(self) -> str:
        """What a backfill reads."""
        return self.prefix + "plan"

    @property
    def nothing(self) -> str:
        """A key that does not exist, to try a right on."""
        return self.prefix + "nothing"

    @property
    def every_user(self) -> str:
        """A pattern of all rows. A literal { } needs no escape; what settings allow in a prefix is not special."""
        return self.prefix + "{*}:user:*"

    def watermark(self, partition: int) -> str:
        """How far a partition is applied."""
        return f"{self.prefix}{{{partition}}}:watermark"

    def user(self, partition: int, user_id: str) -> str:
        """A user's row."""
        return f"{self.prefix}{{{partition}}}:user:{user_id}"

    def swept(self, partition: int) -> str:
        """The activation since which a partition was looked through for rows of other versions."""
        return f"{self.prefix}{{{partition}}}:swept"

    def claim(self, partition: int) -> str:
        """Which worker fills a partition."""
        return f"{self.prefix}{{{partition}}}:claim"

    def progress(self, partition: int) -> str:
        """How far a partition is filled."""
        return f"{self.prefix}{{{partition}}}:progress"

    def reading(self, partition: int) -> str:
        """How far the worker that fills a partition has read, as it says."""
        return f"{self.prefix}{{{partition}}}:reading"

    def unencoded(self, partition: int) -> str:
        """Users whose window is ahead of their vector."""
        return f"{self.prefix}{{{partition}}}:unencoded"

    def partition_and_user(self, key: bytes) -> tuple[int, str]:
        """Whose row a key is."""
        tag, _, user_id = key.decode().removeprefix(self.prefix).partition(":user:")
        return int(tag.strip("{}")), user_id


def watermark_of(fields: Mapping[bytes, bytes]) -> Watermark:
    """The watermark that the fields of a hash are."""
    marks = {_source(name.decode()): int(offset) for name, offset in fields.items() if name.startswith(b"mark:")}
    return Watermark(int(fields[b"offset"]), fields[b"topic_id"].decode(), int(fields[b"partitions"]), marks)


def fields_of(watermark: Watermark) -> dict[Any, Any]:
    """The fields of a hash that hold a watermark."""
    return {
        "offset": watermark.offset,
        "topic_id": watermark.topic_id,
        "partitions": watermark.partitions,
        **{mark_field(source): offset for source, offset in watermark.marks.items()},
    }


def mark_field(source: Source) -> str:
    """The field that holds the mark of a raw partition."""
    return f"mark:{source.topic}:{source.topic_id}:{source.partition}"


def _source(field: str) -> Source:
    # Neither a topic's name nor its id can hold a colon.
    _, topic, topic_id, partition = field.split(":")
    return Source(topic, topic_id, int(partition))
