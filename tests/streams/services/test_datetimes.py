import pytest

from streams.errors import UsageError
from streams.services.datetimes import parse_datetime

# 2026-11-28T04:00:00Z
FOUR = 1_795_838_400_000
HOUR = 3_600_000


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-11-28T04:00:00.000", FOUR),
        ("2026-11-28T04:00:00Z", FOUR),
        ("2026-11-28T05:00:00+01:00", FOUR),
        ("2026-11-27T23:30:00.250-04:30", FOUR + 250),
        ("2026-11-28", FOUR - 4 * HOUR),
        ("1970-01-01T00:00:00.001", 1),
    ],
)
def test_a_time_is_utc_unless_it_says_otherwise(text: str, milliseconds: int) -> None:
    assert parse_datetime("--from-datetime", text) == milliseconds


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "1795838400000", "28.11.2026"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--to-datetime .* is not a time.*2026-11-28T04:00:00\.000") as caught:
        parse_datetime("--to-datetime", text)
    assert repr(text) in str(caught.value)


def test_a_time_before_kafkas_first_is_refused() -> None:
    with pytest.raises(UsageError, match="before 1970"):
        parse_datetime("--from-datetime", "1969-12-31T23:59:59")
