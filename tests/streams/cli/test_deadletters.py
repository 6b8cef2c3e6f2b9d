import pytest

from streams.cli.deadletters import _milliseconds, _parsed_place
from streams.errors import UsageError


@pytest.mark.parametrize(
    "written", ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "2025-12-31 23:00:00.000-01:00"]
)
def test_a_time_with_an_offset_is_an_instant(written: str) -> None:
    assert _milliseconds("--from-datetime", written) == 1_767_225_600_000


@pytest.mark.parametrize("written", ["2026-01-01T00:00:00", "2026-01-01", "yesterday", "", "1767225600000"])
def test_a_time_without_an_offset_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(UsageError, match=rf"--to-datetime {written}: should be ISO 8601 with an offset, such as 2026-"):
        _milliseconds("--to-datetime", written)


def test_a_place_is_a_partition_and_an_offset() -> None:
    assert _parsed_place("3:17") == (3, 17)


@pytest.mark.parametrize("written", ["17", "3:", ":17", "a:b", "-1:4", "1:2:3"])
def test_another_place_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(UsageError, match="should be PARTITION:OFFSET, such as 0:17"):
        _parsed_place(written)
