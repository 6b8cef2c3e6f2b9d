import pytest

from streams.cli.deadletters import _filter, _parsed_place
from streams.errors import UsageError


def test_times_are_those_of_a_backfill_utc_unless_they_say_otherwise() -> None:
    wanted = _filter(None, None, "2026-01-01T00:00:00", "2026-01-01T02:00:00+01:00")
    assert (wanted.from_ms, wanted.to_ms) == (1_767_225_600_000, 1_767_225_600_000 + 3_600_000)


def test_a_place_is_a_partition_and_an_offset() -> None:
    assert _parsed_place("3:17") == (3, 17)


@pytest.mark.parametrize("written", ["17", "3:", ":17", "a:b", "-1:4", "1:2:3"])
def test_another_place_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(UsageError, match="should be PARTITION:OFFSET, such as 0:17"):
        _parsed_place(written)
