"""Generations: what is recorded of each, which one is served, and what a backfill reads into one."""

from typing import Literal

import msgspec
from msgspec import Struct


class Serving(Struct, frozen=True):
    """What readers read and live workers write; one key holds it, so that it moves at once.

    Attributes:
        generation: The namespace of the rows.
        model: Version of the model that its rows are written with; "" stands for the configured bundle's.
        previous_generation, previous_model: What was served before: what a rollback goes back to. "" for none.
        since_ms: When it was activated, milliseconds since 1970.
    """

    generation: str
    model: str = ""
    previous_generation: str = ""
    previous_model: str = ""
    since_ms: int = 0


class Generation(Struct, frozen=True):
    """What is recorded of a generation.

    Attributes:
        model_name, model: Name and version of the model of its vectors.
        space: Of that model (`models.bundle.Bundle.space`); another of the same may take its place.
        bundle: Where that model's bundle was.
        created_ms: Milliseconds since 1970.
        origin: What began it: a live worker, or a backfill.
    """

    name: str
    model_name: str
    model: str
    space: str
    bundle: str
    created_ms: int
    origin: Literal["live", "backfill"]


class SourceRange(Struct, frozen=True):
    """The offsets of one partition that a backfill reads: from ``start`` up to but not including ``end``."""

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int


class SourceFile(Struct, frozen=True):
    """A file that a backfill reads, and its size: with another one it is not the file that was planned for."""

    path: str
    bytes: int


class Mark(Struct, frozen=True):
    """The highest offset of a raw partition that counts as applied."""

    topic: str
    topic_id: str
    partition: int
    offset: int


class Seal(Struct, frozen=True):
    """Where live workers go on in one partition of `interactions` after a backfill of something else.

    Attributes:
        offset: Of the frame that counts as the last one applied; -1: of none.
        marks: What of later frames is left out.
    """

    offset: int
    marks: tuple[Mark, ...] = ()


class Request(Struct, frozen=True):
    """What a person asked for, as it was written: a backfill that died goes on only with the same.

    Attributes:
        source: ``interactions`` frames, ``raw`` topics' events, or ``files``.
        names: The raw topics, or the folders, files and patterns.
        from_datetime, to_datetime, by_duration, from_offsets: The range.
        default_type: Of an event in a file that names no type.
        recommendations: The topic for lists that are sent while the log is replayed; "": none are.
        every: After how many events of a user a list is sent; 0: never.
    """

    source: Literal["interactions", "raw", "files"]
    names: tuple[str, ...] = ()
    from_datetime: str | None = None
    to_datetime: str | None = None
    by_duration: str | None = None
    from_offsets: str | None = None
    default_type: str = ""
    recommendations: str = ""
    every: int = 0


class Plan(Struct, frozen=True):
    """What a backfill reads into a generation. Kept with it, so that a backfill that died goes on with the same.

    Attributes:
        partitions: That users are spread over.
        shares: In how many parts it is read side by side: share s has the partitions p with p mod shares = s.
            Of `interactions` each share is one partition, and only its frames are read; of other sources, all of it.
        topic_id: Id of the `interactions` topic that the generation's watermarks belong to.
        model: Version of the model that encodes.
        created_ms: Milliseconds since 1970.
        beside: The generation that was served then.
        ranges: What is read of topics; of `interactions` one a partition, in order.
        files: What is read of files, in order.
        seals: By partition the watermark at the end; of `interactions` none, for there it is where reading ends.
        follows: Once all is read, go on to where `interactions` ends by then.
        before_ms: How long the round before this one took, which ended where this one begins; None: this is the first.
    """

    request: Request
    partitions: int
    shares: int
    topic_id: str
    model: str
    created_ms: int
    beside: str = ""
    ranges: tuple[SourceRange, ...] = ()
    files: tuple[SourceFile, ...] = ()
    seals: tuple[Seal, ...] = ()
    follows: bool = False
    before_ms: int | None = None

    def partitions_of(self, share: int) -> list[int]:
        """The partitions of a share."""
        return list(range(share, self.partitions, self.shares))


class Progress(Struct, frozen=True):
    """How far one partition of a generation is filled by its plan.

    Attributes:
        next: Position of the next event to read: an offset in `interactions`, else how many records were read before it.
        events: Events that entered a window or were dropped as repeats or late.
        repeats, late: Those that were dropped.
        bad: Records or frames that held no event.
        is_done: All is read and every window encoded.
    """

    next: int
    events: int = 0
    repeats: int = 0
    late: int = 0
    bad: int = 0
    is_done: bool = False


def encode_record(record: Serving | Generation | Plan) -> bytes:
    """JSON, as in Redis."""
    return msgspec.json.encode(record)


def decode_serving(raw: bytes) -> Serving:
    """The serving in ``raw``; raises msgspec.DecodeError where it is none."""
    return _serving_decoder.decode(raw)


def decode_generation(raw: bytes) -> Generation:
    """The generation in ``raw``; raises msgspec.DecodeError where it is none."""
    return _generation_decoder.decode(raw)


def decode_plan(raw: bytes) -> Plan:
    """The plan in ``raw``; raises msgspec.DecodeError where it is none."""
    return _plan_decoder.decode(raw)


_serving_decoder = msgspec.json.Decoder(Serving)
_generation_decoder = msgspec.json.Decoder(Generation)
_plan_decoder = msgspec.json.Decoder(Plan)
