"""Printing: results on stdout, for people or for scripts; what is going on, on stderr."""

import math
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

# Where no terminal gives a width, as in a pipe, rich would wrap tables at 80.
_PIPED_WIDTH = 200
_UNITS_S = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def print_json(value: object) -> None:
    """One JSON document on stdout; structs by their fields."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def result_console() -> Console:
    """For results; without markup in what is printed, for most of it comes from apps."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=_PIPED_WIDTH)


def note_console() -> Console:
    """For notes and progress."""
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()
) -> Table:
    """A table of cells as people read them.

    Args:
        numbers: The columns that are aligned to the right.
    """
    found = Table(title=None if title is None else visible(title), title_justify="left", title_style="bold", box=None)
    for column in columns:
        found.add_column(visible(column), justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        found.add_row(*map(_cell, row))
    return found


def visible(text: str) -> Text:
    """The text with everything that a terminal would act on made visible: ids and titles are an app's, not ours."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def time_of(milliseconds: int) -> str:
    """A time in UTC, as people read it; the number itself where no calendar reaches."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")[:23] + "Z"
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)


def duration_of(seconds: float) -> str:
    """A length of time in the largest unit that it fills and the next smaller one: "3 d 4 h", "2 min 5 s", "0.25 s"."""
    if seconds < 60:
        return f"{seconds:g} s"
    whole = int(seconds)
    (size, unit), (smaller_size, smaller) = next(pair for pair in pairwise(_UNITS_S) if whole >= pair[0][0])
    rest = whole % size // smaller_size
    return f"{whole // size:,} {unit}" + (f" {rest} {smaller}" if rest else "")


class Counting:
    """A progress bar on stderr with a count, a rate and the time left; nothing is shown where stderr is no terminal.

    Args:
        unit: What is counted, such as "events".
        total: Of whatever `show` is given as ``done``; None: unknown.
        count, done: Of before, in work that is taken up again.
    """

    def __init__(self, unit: str, total: int | None = None, count: int = 0, done: int = 0) -> None:
        console = note_console()
        self._unit = unit
        self._total = total
        self._first = count, done
        self._started = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(f"0 {unit}", total=total)

    def __enter__(self) -> "Counting":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, count: int, done: int | None = None, note: str = "") -> None:
        """The count so far, how much of the total that is, and what else is to be said."""
        first_count, first_done = self._first
        elapsed = max(time.monotonic() - self._started, 1e-3)
        words = f"{count:,} {self._unit}, {(count - first_count) / elapsed:,.0f}/s"
        if self._total is not None and done is not None and first_done < done < self._total:
            left_s = elapsed * (self._total - done) / (done - first_done)
            words += f", {duration_of(math.ceil(left_s))} left"
        self._progress.update(self._task, completed=done, description=words + note)


def _cell(value: object) -> Text:
    if value is None:
        return Text("–")
    if isinstance(value, Text):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Text(f"{value:,}")
    return visible(str(value))
