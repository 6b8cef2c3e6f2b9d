"""Logs in JSON lines: one Event v1 a line, plain, gzip or zstd."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from models.data.readers.collect import EventCollector, InvalidTime, milliseconds_of
from models.data.readers.files import read_lines
from models.errors import DataError

_Id = Annotated[str, msgspec.Meta(min_length=1)]


class _EventLine(msgspec.Struct, frozen=True, gc=False):
    """The fields of Event v1 that training reads. In a file there is no Kafka timestamp, so a time is required."""

    user_id: _Id
    item_id: _Id
    event_time: Annotated[datetime, msgspec.Meta(tz=True)] | int
    type: _Id | None = None
    event_id: _Id | None = None


class _Kind(msgspec.Struct, frozen=True):
    type: str = ""


_kind_decoder = msgspec.json.Decoder(_Kind)


def collect_json_lines(path: Path, collector: EventCollector, lines_before: int, default_type: str) -> int:
    """Collect the events of one file; empty lines are skipped, and control events (`$erase`, `$identify`), which name no item.

    Args:
        lines_before: Lines of the files before this one.
        default_type: The type of an event that names none.

    Returns:
        The number of lines.

    Raises:
        DataError: The file cannot be read, or a line is no event with a time.
    """
    decoder = msgspec.json.Decoder(_EventLine)
    number = 0
    for number, line in enumerate(read_lines(path), start=1):
        if not line or line.isspace():
            continue
        try:
            event = decoder.decode(line)
            time_ms = milliseconds_of(event.event_time)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidTime) as error:
            if _is_control(line):
                continue
            raise DataError(
                f"{path}, line {number}: not an event: {error}. "
                "Every line needs user_id, item_id and event_time (ISO 8601 with offset, or epoch milliseconds)"
            ) from error
        collector.add(
            event.user_id, event.item_id, event.type or default_type, time_ms, event.event_id, lines_before + number
        )
    return number


def _is_control(line: bytes) -> bool:
    try:
        return _kind_decoder.decode(line).type.startswith("$")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
