"""Events in files: JSON lines, plain or packed by gzip or zstd, and Parquet as `driftline data pull` writes it."""

import glob
import gzip
import math
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, cast

from msgspec import Struct

from streams.contracts.event import (
    CONTROL_TYPES,
    IDENTIFY,
    MAX_ID_LENGTH,
    MAX_TYPE_LENGTH,
    RESERVED,
    Event,
    InvalidEvent,
    check_subject,
    decode_event,
    event_time_ms,
    may_be_control,
)
from streams.errors import DataError, MissingExtra, UsageError
from streams.services.backfill.events import BATCH_RECORDS, BadRecords, Batch, Count, SourceEvent, source_event

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

MAX_LINE_BYTES: Final = 1024 * 1024
"""Bytes of one line at most; ingest takes no event that is larger."""
_SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".parquet", ".pq")
_PACKED: Final = (".gz", ".zst")
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_PARQUET_MAGIC: Final = b"PAR1"
_UTF8_MARK: Final = b"\xef\xbb\xbf"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_BLOCK_BYTES: Final = 256 * 1024
# For the estimate: so many files that are packed alike, and of each so much of its beginning.
_SAMPLE_FILES: Final = 16
_SAMPLE_LINES: Final = 100_000
_SAMPLE_BYTES: Final = 1024 * 1024
_REQUIRED: Final = ("user_id", "item_id", "event_time")
_OPTIONAL: Final = ("type", "event_id", "anonymous_id")


class _Part(Struct, frozen=True):
    """Consecutive records of a file.

    Attributes:
        kind: "line" or "row".
        first: The number of the first of them in its file, from 1.
        decode: Makes an event of a record; None: there is nothing in it. Raises `InvalidEvent`.
    """

    kind: str
    first: int
    records: Sequence[Any]
    decode: Callable[[Any], Event | None]

    def without(self, skip: int) -> "_Part":
        """What is left of it when the first ``skip`` records of the file are left out."""
        if self.first > skip:
            return self
        return _Part(self.kind, skip + 1, self.records[skip + 1 - self.first :], self.decode)


class FileSource:
    """Files of events, read in the order of their paths, lines and rows in order: the same files, the same events.

    A record is a line or a row. An event's topic is its file's name, its offset the number of its record, from 1. An
    event without an id gets one from these. An event needs an ``event_time``: a file has no timestamp of Kafka's to take
    its place. Empty lines count as records and are skipped.

    Args:
        patterns: Folders, of which every file that ends in .jsonl, .ndjson, .json (each with or without .gz, .zst),
            .parquet or .pq is taken, at any depth, except those whose path has a part that begins with "." or "_", as
            other tools name what is not data; patterns with *, ? or **; and files, of any name.
        default_type: The type of an event that names none.
        now_ms: What "the future" is measured from, milliseconds since 1970; None: from now.

    Attributes:
        files: What is read, each file once, in order.
        bad: What was no event in all that was read so far.

    Raises:
        UsageError: There is no file for one of the patterns.
    """

    def __init__(self, patterns: Sequence[str], default_type: str, now_ms: int | None = None) -> None:
        self.files = find_files(patterns)
        self.bad = BadRecords()
        self._default_type = default_type
        self._now_ms = round(time.time() * 1000) if now_ms is None else now_ms

    def count(self) -> Count:
        """How many records there are: Parquet says so, lines are estimated from a sample of each kind of file.

        Raises:
            DataError, MissingExtra: As `read` says.
        """
        exact = 0
        lines: dict[bytes, list[Path]] = defaultdict(list)
        for path in self.files:
            if _is_parquet(path):
                with _parquet(path) as file:
                    exact += file.metadata.num_rows
            else:
                lines[_packing(path)].append(path)
        estimates = [_estimate_lines(paths) for paths in lines.values()]
        return Count(exact + sum(each.records for each in estimates), all(each.is_exact for each in estimates))

    def read(self, skip: int = 0, *, only_controls: bool = False) -> Iterator[Batch]:
        """Every event after the first ``skip`` records, in batches of up to 10,000 records.

        Lines that are skipped are counted but not decoded, and rows are not even read: their batches are empty.

        Args:
            only_controls: Leave out, without decoding it, what can't be a control event.

        Raises:
            DataError: A file can't be read, is damaged or cut off, or lacks a column.
            MissingExtra: It is Parquet or zstd, and pyarrow is not installed.
        """
        ordinal = skip
        records = 0
        events: list[SourceEvent] = []
        bad: list[int] = []
        for part, path in self._parts(skip, only_controls):
            if not part.records and not records:
                yield Batch(ordinal, [], [])
            if records and records + len(part.records) > BATCH_RECORDS:
                yield Batch(ordinal, events, bad)
                records = 0
                events, bad = [], []
            events += self._events(path, part, ordinal, bad)
            records += len(part.records)
            ordinal += len(part.records)
        if records:
            yield Batch(ordinal, events, bad)

    def _parts(self, skip: int, only_controls: bool) -> Iterator[tuple[_Part, Path]]:
        for path in self.files:
            number = 0
            parts = _row_parts(path, skip, only_controls) if _is_parquet(path) else _line_parts(path, only_controls)
            for part in parts:
                number = part.first + len(part.records) - 1
                yield part.without(skip), path
            skip = max(0, skip - number)

    def _events(self, path: Path, part: _Part, ordinal: int, bad: list[int]) -> Iterator[SourceEvent]:
        topic, topic_id, decode = path.name, str(path), part.decode
        default_type, now_ms = self._default_type, self._now_ms
        for index, record in enumerate(part.records):
            number = part.first + index
            try:
                event = decode(record)
                if event is None:
                    continue
                time_ms = _time_ms(event, now_ms)
            except InvalidEvent as error:
                self.bad.add(error.reason, f"{path}, {part.kind} {number}", str(error))
                bad.append(ordinal + index)
                continue
            yield source_event(event, default_type, time_ms, topic, topic_id, 0, number, ordinal + index, time_ms)


def _time_ms(event: Event, now_ms: int) -> int:
    if event.event_time is None:
        raise InvalidEvent("missing_field", "there is no event_time, and a file has no other time for the event")
    return event_time_ms(event, 0, now_ms)


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that folders, patterns and paths mean, each once, in order of their paths.

    Raises:
        UsageError: There is none for one of them.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        files = list(_matches(pattern))
        if not files:
            folder = Path(pattern).is_dir()
            raise UsageError(
                f"the folder {pattern} holds no file that ends in {', '.join(_SUFFIXES)}. Name the files themselves"
                if folder
                else f"no file matches {pattern}. Check the path; a pattern is as in 'logs/*.jsonl.gz' or 'logs/**/*.parquet'"
            )
        for path in files:
            found.setdefault(path.resolve(), path)
    return sorted(found.values())


def _matches(pattern: str) -> Iterator[Path]:
    # A file may have a name like a pattern.
    names = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)  # noqa: PTH207 - ** and absolute
    for path in map(Path, names):
        if not path.is_dir():
            yield path
            continue
        for folder, folders, files in os.walk(path):
            folders[:] = [name for name in folders if name[0] not in "._"]
            yield from (Path(folder, name) for name in files if name[0] not in "._" and _is_data(name))


def _is_data(name: str) -> bool:
    lowered = name.lower()
    for packed in _PACKED:
        lowered = lowered.removesuffix(packed)
    return lowered.endswith(_SUFFIXES)


def _open(path: Path) -> FileIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error


def _magic_of(path: Path) -> bytes:
    with _open(path) as file:
        try:
            return file.read(4)
        except OSError as error:
            raise _unreadable(path, error) from error


def _is_parquet(path: Path) -> bool:
    return _magic_of(path) == _PARQUET_MAGIC


def _packing(path: Path) -> bytes:
    magic = _magic_of(path)
    return next((packing for packing in (_GZIP_MAGIC, _ZSTD_MAGIC) if magic.startswith(packing)), b"")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {path}: {error.strerror or error}. Check the path and its permissions")


# JSON lines


def _line_parts(path: Path, only_controls: bool) -> Iterator[_Part]:
    first = 1
    decode = _decode_if_control if only_controls else _decode_line
    with _open(path) as file:
        for lines in _lines(path, file):
            for start in range(0, len(lines), BATCH_RECORDS):
                some = lines[start : start + BATCH_RECORDS]
                yield _Part("line", first, some, decode)
                first += len(some)


def _lines(path: Path, file: FileIO) -> Iterator[list[bytes]]:
    """The lines of a file without their ends, some at a time; of one that is too long only so much that it shows.

    Raises:
        DataError: The file can't be read, is damaged or cut off, or is UTF-16.
        MissingExtra: It is zstd, and pyarrow is not installed.
    """
    count = 0
    try:
        with _unpacked(file, _packing(path)) as stream:
            rest = stream.read(_BLOCK_BYTES)
            if rest.startswith(_UTF16_MARKS):
                raise DataError(f"{path} is UTF-16. Convert it, as in: iconv -f UTF-16 -t UTF-8")
            rest = rest.removeprefix(_UTF8_MARK)
            while True:
                *lines, rest = rest.split(b"\n")
                if lines:
                    count += len(lines)
                    yield lines
                block = stream.read(_BLOCK_BYTES)
                if not block:
                    break
                rest = rest[: MAX_LINE_BYTES + 1] + block
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise _unreadable(path, error) from error
        raise DataError(
            f"{path}: damaged or cut off soon after line {count}: {error}. Fetch it again, or leave it out"
        ) from error
    if rest:
        yield [rest]


@contextmanager
def _unpacked(file: FileIO, packing: bytes) -> Iterator[BinaryIO]:
    if packing == _GZIP_MAGIC:
        with gzip.GzipFile(fileobj=file) as gzipped:
            yield cast("BinaryIO", gzipped)
    elif packing == _ZSTD_MAGIC:
        try:
            import pyarrow as pa  # noqa: PLC0415 - only this packing and Parquet need it
        except ModuleNotFoundError as error:
            raise MissingExtra("parquet", "pyarrow") from error
        with pa.CompressedInputStream(file, "zstd") as zstd:
            yield cast("BinaryIO", zstd)
    else:
        yield file


def _decode_line(line: bytes) -> Event | None:
    if not line or line.isspace():
        return None
    if len(line) > MAX_LINE_BYTES:
        raise InvalidEvent("too_large", f"the line has more than {MAX_LINE_BYTES:,} bytes")
    return decode_event(line, MAX_LINE_BYTES)


def _decode_if_control(line: bytes) -> Event | None:
    return _decode_line(line) if may_be_control(line) else None


def _estimate_lines(paths: Sequence[Path]) -> Count:
    """The lines of files that are packed alike, from the beginnings of some of them."""
    sampled = paths[:: math.ceil(len(paths) / _SAMPLE_FILES)]
    samples = [_sample(path) for path in sampled]
    lines = sum(sample.lines for sample in samples)
    if len(sampled) == len(paths) and all(sample.is_whole for sample in samples):
        return Count(lines, is_exact=True)
    taken = sum(sample.bytes_on_disk for sample in samples)
    return Count(round(lines / max(1, taken) * sum(path.stat().st_size for path in paths)), is_exact=False)


class _Sample(NamedTuple):
    lines: int
    bytes_on_disk: int
    is_whole: bool


def _sample(path: Path) -> _Sample:
    found = 0
    with _open(path) as file:
        for lines in _lines(path, file):
            found += len(lines)
            if found >= _SAMPLE_LINES or file.tell() >= _SAMPLE_BYTES:
                return _Sample(found, file.tell(), is_whole=False)
        return _Sample(found, file.tell(), is_whole=True)


# Parquet


class _Row(NamedTuple):
    """A row as it was found."""

    user_id: str | None
    item_id: str | None
    event_time: int | None
    type: str | None
    event_id: str | None
    anonymous_id: str | None


@contextmanager
def _parquet(path: Path) -> "Iterator[parquet.ParquetFile]":
    try:
        import pyarrow as pa  # noqa: PLC0415 - as above
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtra("parquet", "pyarrow") from error
    try:
        # Columns come through buffers of this size: a file that is one row group is not read into memory whole.
        with parquet.ParquetFile(path, buffer_size=_BLOCK_BYTES) as file:
            yield file
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}. Write it again, or leave it out") from error


def _row_parts(path: Path, skip: int, only_controls: bool) -> Iterator[_Part]:
    """The rows of a file, without the row groups that lie in the first ``skip`` rows: an empty part stands for those.

    Raises:
        DataError: The file can't be read or is damaged, or lacks a column, or one is of another type.
        MissingExtra: pyarrow is not installed.
    """
    with _parquet(path) as file:
        names = file.schema_arrow.names
        missing = [name for name in _REQUIRED if name not in names]
        if missing:
            raise DataError(
                f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}. Events have the columns "
                "user_id, item_id, event_time and, if you like, type, event_id and anonymous_id"
            )
        columns = [*_REQUIRED, *(name for name in _OPTIONAL if name in names)]
        first = 1
        groups = list(range(file.num_row_groups))
        while groups and first - 1 + file.metadata.row_group(groups[0]).num_rows <= skip:
            first += file.metadata.row_group(groups.pop(0)).num_rows
        if first > 1:
            yield _Part("row", first, [], _checked)
        for batch in file.iter_batches(BATCH_RECORDS, row_groups=groups, columns=columns):
            if only_controls and not _has_control(path, batch):
                yield _Part("row", first, range(batch.num_rows), _nothing)
            else:
                yield _Part("row", first, _rows(path, batch), _checked)
            first += batch.num_rows


def _nothing(_: int) -> None:
    """The event in a row that was not looked at."""


def _has_control(path: Path, batch: "pa.RecordBatch") -> bool:
    import pyarrow.compute as pc  # noqa: PLC0415 - as above

    if "type" not in batch.schema.names:
        return False
    return bool(pc.any(pc.starts_with(_strings(path, batch.column("type"), "type"), RESERVED)).as_py())


def _rows(path: Path, batch: "pa.RecordBatch") -> list[_Row]:
    names = batch.schema.names
    nothing: list[str | None] = [None] * batch.num_rows
    return list(
        map(
            _Row,
            _texts(path, batch.column("user_id"), "user_id"),
            _texts(path, batch.column("item_id"), "item_id"),
            _times(path, batch.column("event_time")),
            _texts(path, batch.column("type"), "type") if "type" in names else nothing,
            _texts(path, batch.column("event_id"), "event_id") if "event_id" in names else nothing,
            _texts(path, batch.column("anonymous_id"), "anonymous_id") if "anonymous_id" in names else nothing,
        )
    )


def _texts(path: Path, column: "pa.Array[Any]", name: str) -> list[str | None]:
    found: list[str | None] = _strings(path, column, name).to_pylist()
    return found


def _strings(path: Path, column: "pa.Array[Any]", name: str) -> "pa.Array[Any]":
    """A column of ids; whole numbers in decimal."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    kind = column.type.value_type if isinstance(column.type, pa.DictionaryType) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        if not pa.types.is_integer(kind) and not pa.types.is_null(kind):
            raise DataError(f"{path}: column {name} is of type {column.type}. Ids and types are strings or integers")
        column = column.cast(kind)
    return column.cast(pa.string())


def _times(path: Path, column: "pa.Array[Any]") -> list[int | None]:
    """Milliseconds since 1970. A timestamp without a zone is taken as UTC, as most tools write it."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    kind = column.type
    if pa.types.is_floating(kind):
        # What pandas makes of whole numbers when one of them is missing.
        values: list[Any] = column.to_pylist()
        return [None if value is None or not math.isfinite(value) else math.floor(value) for value in values]
    if pa.types.is_timestamp(kind):
        # Twice: a timestamp of nanoseconds is cut to milliseconds, and that is its number.
        column = column.cast(pa.timestamp("ms", kind.tz), safe=False).cast(pa.int64())
    elif not pa.types.is_integer(kind):
        raise DataError(
            f"{path}: column event_time is of type {kind}. It takes timestamps, or whole milliseconds since 1970"
        )
    found: list[int | None] = column.to_pylist()
    return found


def _checked(row: _Row) -> Event:
    """The event in a row, by the rules that `decode_event` has for JSON."""
    item_id = row.item_id
    if row.type in CONTROL_TYPES:
        item_id = item_id or None  # a column of items has something in every row
    elif item_id is None:
        raise InvalidEvent("missing_field", "item_id is empty")
    if row.user_id is None:
        raise InvalidEvent("missing_field", "user_id is empty")
    for name, text, limit in (
        ("user_id", row.user_id, MAX_ID_LENGTH),
        ("item_id", item_id, MAX_ID_LENGTH),
        ("type", row.type, MAX_TYPE_LENGTH),
        ("event_id", row.event_id, MAX_ID_LENGTH),
        ("anonymous_id", row.anonymous_id if row.type == IDENTIFY else None, MAX_ID_LENGTH),
    ):
        if text is None:
            continue
        if not 1 <= len(text) <= limit:
            raise InvalidEvent("bad_length", f"{name} has {len(text)} characters; it has 1 to {limit}")
        if "\0" in text:
            raise InvalidEvent("nul", f"a NUL character is not allowed in {name}")
    event = Event(row.user_id, item_id or "", row.type, row.event_id, row.event_time, anonymous_id=row.anonymous_id)
    check_subject(event)
    return event
