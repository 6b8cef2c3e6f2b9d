import io

import pytest
from rich.console import Console

from streams.cli.results import duration_of, table, time_of, visible


def rendered(console_input: object) -> str:
    out = io.StringIO()
    Console(file=out, width=100, markup=False).print(console_input)
    return out.getvalue()


def test_what_an_app_put_into_an_id_cannot_act_on_the_terminal() -> None:
    assert visible("a\x1b[2Jb\r\nc").plain == "a\\x1b[2Jb\\r\\nc"
    assert visible("Amélie [bold]千[/bold]").plain == "Amélie [bold]千[/bold]"


def test_a_table_shows_brackets_as_they_are_groups_digits_and_marks_what_is_missing() -> None:
    text = rendered(table("Window", ("item", "count"), [("[red]x[/red]", 12345), (None, 1)], numbers=("count",)))
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "Window"
    assert lines[1].split() == ["item", "count"]
    assert lines[2].split() == ["[red]x[/red]", "12,345"]
    assert lines[3].split() == ["–", "1"]
    assert lines[3].endswith("1")


def test_times_are_utc_to_the_millisecond_and_one_beyond_the_calendar_is_its_number() -> None:
    assert time_of(1_700_000_000_123) == "2023-11-14 22:13:20.123Z"
    assert time_of(10**18) == str(10**18)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (59.999, "59.999 s"),
        (60, "1 min"),
        (125.9, "2 min 5 s"),
        (3_600, "1 h"),
        (2 * 3_600 + 59, "2 h"),
        (86_399, "23 h 59 min"),
        (3 * 86_400 + 4 * 3_600 + 5, "3 d 4 h"),
        (1_000 * 86_400, "1,000 d"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration_of(seconds) == words
