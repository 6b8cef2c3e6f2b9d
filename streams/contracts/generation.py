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


class Plan(Struct, frozen=True):
    """What a backfill reads into a generation. Kept with it, so that a backfill that died goes on with the same.

    Attributes:
        source: ``interactions`` frames, ``raw`` topics' events, or ``files``.
        partitions: That users are spread over.
        shares: In how many parts it is read side by side: share s has the partitions p with p mod shares = s.
            Of ``interactions`` each share reads only the frames of its partitions; of other sources, all of it.
        ranges: What is read of topics.
        files: What is read of files, in order.
        default_type: Of an event in a file that names no type.
        topic_id: Id of the `interactions` topic that the generation's watermarks belong to.
        model: Version of the model that encodes.
        created_ms: Milliseconds since 1970.
    """

    source: Literal["interactions", "raw", "files"]
    partitions: int
    shares: int
    ranges: tuple[SourceRange, ...]
    files: tuple[str, ...]
    default_type: str
    topic_id: str
    model: str
    created_ms: int

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
