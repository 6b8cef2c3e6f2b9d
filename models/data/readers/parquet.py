"""Logs in Parquet: one event a row."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.data.readers.collect import MAX_TIME_MS, TIME_RULE, EventCollector
from models.errors import DataError, MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

_REQUIRED = ("user_id", "item_id", "event_time")
_OPTIONAL = ("type", "event_id")
_ROWS_A_BATCH = 65_536


def collect_parquet(path: Path, collector: EventCollector, rows_before: int, default_type: str) -> int:
    """Collect the events of one file, whose columns may be strings or whole numbers.

    Args:
        rows_before: Rows of the files before this one.
        default_type: The type of an event that names none.

    Returns:
        The number of rows.

    Raises:
        DataError: The file cannot be read, lacks a column, or a row has no user, item or time.
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - only this format needs it
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtra("parquet", "pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in _REQUIRED if name not in names]
            if missing:
                raise DataError(
                    f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}. A log has the columns "
                    "user_id, item_id, event_time and, if you like, type and event_id"
                )
            columns = [*_REQUIRED, *(name for name in _OPTIONAL if name in names)]
            rows = 0
            for batch in file.iter_batches(_ROWS_A_BATCH, columns=columns):
                _collect_batch(path, batch, rows, collector, rows_before, default_type)
                rows += batch.num_rows
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot read {path}: {reason}. Check the path and its permissions") from error
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}). Write it again") from error
    return rows


def _collect_batch(
    path: Path, batch: "pa.RecordBatch", rows: int, collector: EventCollector, rows_before: int, default_type: str
) -> None:
    users = _texts(path, batch.column("user_id"), "user_id")
    items = _texts(path, batch.column("item_id"), "item_id")
    times = _times(path, batch.column("event_time"), rows)
    nothing: list[str | None] = [None] * batch.num_rows
    types = _texts(path, batch.column("type"), "type") if "type" in batch.schema.names else nothing
    ids = _texts(path, batch.column("event_id"), "event_id") if "event_id" in batch.schema.names else nothing
    for row, (user_id, item_id, time_ms, event_type, event_id) in enumerate(
        zip(users, items, times, types, ids, strict=True), start=rows + 1
    ):
        if not user_id or not item_id or time_ms is None:
            lacking = "user_id" if not user_id else "item_id" if not item_id else "event_time"
            raise DataError(f"{path}, row {row}: {lacking} is empty. Every row needs user_id, item_id and event_time")
        if not 0 <= time_ms <= MAX_TIME_MS:
            raise DataError(f"{path}, row {row}: event_time {time_ms} is out of range. {TIME_RULE}")
        collector.add(user_id, item_id, event_type or default_type, time_ms, event_id or None, rows_before + row)


def _texts(path: Path, column: "pa.Array[Any]", name: str) -> list[str | None]:
    """A column of ids; whole numbers in decimal."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    kind = column.type.value_type if isinstance(column.type, pa.DictionaryType) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        if not pa.types.is_integer(kind):
            raise DataError(f"{path}: column {name} is of type {column.type}. Ids and types are strings or integers")
        column = column.cast(kind)
    found: list[str | None] = column.cast(pa.string()).to_pylist()
    return found


def _times(path: Path, column: "pa.Array[Any]", rows: int) -> list[int | None]:
    """Milliseconds since 1970. A timestamp without a zone is taken as UTC, as most tools write it."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    kind = column.type
    if pa.types.is_floating(kind):
        # What pandas makes of whole numbers when one of them is missing.
        values: list[Any] = column.to_pylist()
        place = next((place for place, value in enumerate(values) if value is None or not math.isfinite(value)), None)
        if place is not None:
            raise DataError(f"{path}, row {rows + place + 1}: event_time {values[place]} is no number. {TIME_RULE}")
        return [math.floor(value) for value in values]
    if pa.types.is_timestamp(kind):
        # Twice: a timestamp of nanoseconds is cut to milliseconds, and that is its number.
        column = column.cast(pa.timestamp("ms", kind.tz), safe=False).cast(pa.int64())
    elif not pa.types.is_integer(kind):
        raise DataError(
            f"{path}: column event_time is of type {kind}. It takes timestamps, or whole milliseconds since 1970"
        )
    found: list[int | None] = column.to_pylist()
    return found
