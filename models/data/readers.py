"""Logs in files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from models.data.events import LoggedEvent
from models.errors import DataError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Id = Annotated[str, msgspec.Meta(min_length=1)]


class _EventLine(msgspec.Struct, frozen=True):
    """The fields of Event v1 that training reads. In a file there is no Kafka timestamp, so a time is required."""

    user_id: _Id
    item_id: _Id
    event_time: Annotated[datetime, msgspec.Meta(tz=True)] | int
    type: _Id = "click"
    event_id: str | None = None


def read_log(path: str | Path) -> list[LoggedEvent]:
    """Read a log of events in JSON lines, each an Event v1 with `event_time`.

    A type that is not given is "click"; an event id that is not given is the line's number. Empty lines are skipped.

    Args:
        path: The file, UTF-8.

    Returns:
        The events in the order of the file.

    Raises:
        DataError: The file cannot be read, holds no event, or a line is no event. The message names file and line.
    """
    path = Path(path)
    decoder = msgspec.json.Decoder(_EventLine)
    events = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    event = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise DataError(
                        f"{path}, line {number}: not an event: {error}. "
                        "Every line needs user_id, item_id and event_time (ISO 8601 with offset, or epoch milliseconds)"
                    ) from error
                time = event.event_time
                time_ms = time if isinstance(time, int) else (time - _EPOCH) // timedelta(milliseconds=1)
                # Zero-padded, so that lines of one millisecond keep the order of the file.
                event_id = event.event_id or f"{number:012d}"
                events.append(LoggedEvent(event.user_id, event.item_id, event.type, time_ms, event_id))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Check the path and its permissions") from error
    if not events:
        raise DataError(f"{path} holds no event. A log has one JSON event a line")
    return events
