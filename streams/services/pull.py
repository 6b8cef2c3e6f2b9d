"""The `interactions` topic as a file: a log to train on, without what crashes and apps sent twice."""

import gzip
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Final, Protocol

import msgspec
from msgspec import Struct

from streams.contracts.erasure import Erasures
from streams.contracts.event import CONTROL_TYPES
from streams.contracts.frame import Frame, InvalidFrame, Source, decode_frame, events_of
from streams.errors import DataError, LogGap, LogUnavailable, MissingExtra
from streams.log.topics import Extent, Message, Partition

# A frame may have half a megabyte.
_FRAMES_A_READ: Final = 50
_WAIT_S: Final = 0.2
# librdkafka goes on trying by itself; a broker that starts again is back in less.
_SILENCE_S: Final = 30.0
_ROWS_A_GROUP: Final = 65_536

Events = list[dict[str, object]]
"""Events of one frame, each an Event v1 as a plain object."""


class FrameReader(Protocol):
    """Where frames come from; `streams.log.readers.TailReader` is one."""

    def read(self, count: int, wait_s: float) -> list[Message]:
        """Up to ``count`` messages, those that come within ``wait_s``."""


class Pulled(Struct, frozen=True):
    """What `driftline data pull` wrote, and what it left out.

    Attributes:
        events: Written.
        resent: Left out: ingest had sent them a second time, after a crash.
        repeats: Left out: the app had sent that event id of that user before.
        erased: Left out: their user was erased since.
        invalid_frames: Left out: no frames of this version.
        deleted_frames: Were not there any more: retention had deleted them.
    """

    path: str
    events: int
    frames: int
    resent: int
    repeats: int
    erased: int
    invalid_frames: int
    deleted_frames: int


class Cleaner:
    """Takes frames in the order of the log and gives each event once, under the user who it was sent for.

    What asks for something is no event to train on, and what was handed over to another user is in the log already.
    It remembers every event id, some 150 bytes an event: as much as reading the file to train on takes again.
    """

    def __init__(self, erasures: Erasures) -> None:
        self._erasures = erasures
        self.resent = self.repeats = self.erased = self.invalid_frames = 0
        # Of each partition the highest offset of every raw partition, as the watermarks of evolve hold it.
        self._marks: dict[int, dict[Source, int]] = defaultdict(dict)
        self._ids: dict[str, set[str]] = defaultdict(set)

    def new_events(self, message: Message) -> Events:
        """The events of a frame that were in none before it."""
        try:
            frame = decode_frame(message.value or b"")
        except InvalidFrame:
            self.invalid_frames += 1
            return []
        if any(source.topic == message.topic for source in frame.sources):
            return []  # a handover
        marks = self._marks[message.partition]
        return [event for index, event in enumerate(events_of(frame)) if self._is_new(frame, index, event, marks)]

    def _is_new(self, frame: Frame, index: int, event: dict[str, object], marks: dict[Source, int]) -> bool:
        source, offset = frame.sources[frame.source[index]], frame.offset[index]
        if offset <= marks.get(source, -1):
            self.resent += 1
            return False
        marks[source] = offset
        if frame.type[index] in CONTROL_TYPES:
            return False
        if self._erasures and self._erasures.covers(frame.user[index], frame.appended_ms[index]):
            self.erased += 1
            return False
        known = self._ids[frame.user[index]]
        event_id = str(event["event_id"])
        if event_id in known:
            if frame.event_id[index] is not None:
                self.repeats += 1
                return False
            # A derived id is a place in a topic; the same one again is a place in that topic made anew.
            event_id = event["event_id"] = f"{event_id}-{source.topic_id}"
        known.add(event_id)
        return True


def read_to_end(
    reader: FrameReader, extents: Mapping[Partition, Extent], clock: Callable[[], float] = time.monotonic
) -> Iterator[Message]:
    """Every message from where each partition's log starts to where it ended when asked; later ones are left out.

    Args:
        reader: Reads the partitions from their beginnings.
        extents: Where the log of each partition starts and ends.

    Raises:
        LogGap: Messages vanished meanwhile, as retention deletes them.
        LogUnavailable: Nothing came for half a minute.
    """
    following = {partition: extent.start for partition, extent in extents.items() if extent.start < extent.end}
    heard_at = clock()
    while following:
        for message in reader.read(_FRAMES_A_READ, _WAIT_S):
            heard_at = clock()
            partition = Partition(message.topic, message.partition)
            expected = following.get(partition)
            if expected is None:
                continue
            if message.offset != expected:
                raise LogGap(
                    f"{message.topic} partition {message.partition}: expected offset {expected}, got {message.offset}: "
                    "messages were deleted while they were read. Run it again; `driftline topics describe` shows the "
                    "topic's retention"
                )
            yield message
            if expected + 1 == extents[partition].end:
                del following[partition]
            else:
                following[partition] = expected + 1
        if clock() - heard_at > _SILENCE_S:
            waiting = ", ".join(f"{p.topic} partition {p.number} at offset {n}" for p, n in following.items())
            raise LogUnavailable(f"Kafka has sent nothing for {_SILENCE_S:g} s; still to come: {waiting}. Run it again")


def pull_events(
    reader: FrameReader,
    extents: Mapping[Partition, Extent],
    path: str,
    write: Callable[[Iterable[Events]], None],
    report: Callable[[int, int], None],
    erasures: Erasures,
) -> Pulled:
    """Write every event of the log as it stands, each once, except those of people who were erased since.

    Args:
        reader: Reads `interactions` from its beginning.
        extents: Where the log of each of its partitions starts and ends.
        path: Of what is written, for the result.
        write: Gets the events, a frame at a time.
        report: Called with the events and the frames so far.

    Raises:
        DataError: There is no event.
        LogGap, LogUnavailable: As `read_to_end` says.
    """
    cleaner = Cleaner(erasures)
    events = frames = 0

    def cleaned() -> Iterator[Events]:
        nonlocal events, frames
        for message in read_to_end(reader, extents):
            found = cleaner.new_events(message)
            frames += 1
            events += len(found)
            yield found
            report(events, frames)

    write(cleaned())
    if not events:
        topics = ", ".join(sorted({partition.topic for partition in extents}))
        raise DataError(f"{topics} holds no event, so nothing was written. Run ingest, and send events")
    deleted = sum(extent.start for extent in extents.values())
    return Pulled(
        path, events, frames, cleaner.resent, cleaner.repeats, cleaner.erased, cleaner.invalid_frames, deleted
    )


def write_jsonl(events: Iterable[Events], out: BinaryIO) -> None:
    """One Event v1 a line."""
    encoder = msgspec.json.Encoder()
    out.writelines(encoder.encode_lines(frame) for frame in events)


def write_jsonl_gz(events: Iterable[Events], out: BinaryIO) -> None:
    """One Event v1 a line, packed."""
    # Neither name nor time of the file inside: the same events make the same bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=6, mtime=0) as packed:
        encoder = msgspec.json.Encoder()
        packed.writelines(encoder.encode_lines(frame) for frame in events)


def write_parquet(events: Iterable[Events], out: BinaryIO) -> None:
    """One event a row, in the columns of Event v1, the context as JSON text; zstd-compressed.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - only this format needs it
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtra("parquet", "pyarrow") from error
    text, number = pa.string(), pa.int64()
    columns: dict[str, pa.DataType] = {
        "user_id": text,
        "item_id": text,
        "type": text,
        "event_id": text,
        "event_time": number,
        "session_id": text,
        "value": pa.float64(),
        "recommendation_id": text,
        "position": number,
        "context": text,
    }
    schema = pa.schema(columns)
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        for group in _groups(events):
            rows: list[dict[str, Any]] = [_with_text(event) for event in group]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema), row_group_size=_ROWS_A_GROUP)


def _groups(events: Iterable[Events]) -> Iterator[Events]:
    group: Events = []
    for frame in events:
        group += frame
        if len(group) >= _ROWS_A_GROUP:
            yield group
            group = []
    if group:
        yield group


def _with_text(event: dict[str, object]) -> dict[str, object]:
    context = event.get("context")
    return event if not isinstance(context, msgspec.Raw) else {**event, "context": bytes(context).decode()}
