"""Times as people write them in a command's options."""

from datetime import UTC, datetime

from streams.contracts.event import milliseconds_of
from streams.errors import UsageError


def parse_datetime(option: str, text: str) -> int:
    """Milliseconds since 1970 of a time in ISO 8601; without an offset it is UTC.

    Raises:
        UsageError: It is none, or before 1970.
    """
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r} is not a time: {error}. Write it as in 2026-11-28T04:00:00.000 (UTC) or "
            "2026-11-28T05:00:00+01:00"
        ) from error
    milliseconds = milliseconds_of(found if found.tzinfo else found.replace(tzinfo=UTC))
    if milliseconds < 0:
        raise UsageError(f"{option} {text!r} is before 1970, and Kafka's times start there. Leave it out to read all")
    return milliseconds
