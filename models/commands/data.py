"""`driftline data describe`. Importable without torch."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.commands.results import Output
from models.data.describe import LogDescription, Spread, describe_log
from models.data.events import user_sequences
from models.data.readers import LogFormat, read_events

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_TYPES = 10


def describe(
    source: Annotated[str, typer.Argument(help="A log: a file, or a folder or pattern of JSON lines or Parquet.")],
    log_format: Annotated[LogFormat, typer.Option("--format", help="How it is written.")] = LogFormat.AUTO,
    min_rating: Annotated[float | None, typer.Option(help="Only ratings of at least this count.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the log into this file, such as log.png.")] = None,
    output: Annotated[Output, typer.Option(help="How to print the result.")] = Output.table,
) -> None:
    """Show what a log holds: users, items, types, times, and how unevenly items are liked.

    As JSON: `users`, `items`, `events`; `density`, the share of all pairs of user and item that occur; `types`;
    `one_event_users`; `repeats`, events left out because their user had one of the same id; `returns`, the share of events
    whose item the user had before; `ties`, the share of events at the same millisecond as the user's one before;
    `events_per_user` and `gap_seconds` with `min`, `median`, `p90`, `max`; `first_ms`, `last_ms`; `top_1_percent` and
    `top_10_percent`, the share of events that the most popular items have; `gini`. What needs times is null without.
    """
    log = read_events(source, log_format, min_rating)
    sequences = user_sequences(log.events)
    found = describe_log(log, sequences)
    if plot is not None:
        from models.data.plot import plot_log

        plot_log(log, sequences, plot)
    if output is Output.json:
        typer.echo(msgspec.json.encode(found))
        return
    table = Table("", "", show_header=False, title=Text(source), title_justify="left")
    for name, value in _rows(found):
        table.add_row(name, Text(value))  # names of types are an app's, not markup of ours
    Console().print(table)


def _rows(found: LogDescription) -> list[tuple[str, str]]:
    types = [f"{name!r} {count:,}" for name, count in found.types.items()]
    more = [] if len(types) <= _MOST_TYPES else [f"and {len(types) - _MOST_TYPES:,} more"]
    rows = [
        ("users", f"{found.users:,}"),
        ("items", f"{found.items:,}"),
        ("events", f"{found.events:,}"),
        ("events per user", _spread(found.events_per_user)),
        ("users with one event", f"{found.one_event_users:,} ({found.one_event_users / found.users:.1%})"),
        ("density", f"{found.density:.3%}"),
        ("types", ", ".join(types[:_MOST_TYPES] + more)),
        ("repeats left out", f"{found.repeats:,}"),
        ("returns to an item", f"{found.returns:.1%}"),
        ("events of the top 1 % of items", f"{found.top_1_percent:.1%}"),
        ("events of the top 10 % of items", f"{found.top_10_percent:.1%}"),
        ("Gini of item popularity", f"{found.gini:.3f}"),
    ]
    if found.first_ms is None or found.last_ms is None:
        return [*rows, ("times", "none: the order of the source")]
    days = (found.last_ms - found.first_ms) / 86_400_000
    rows.append(("times", f"{_time(found.first_ms)} to {_time(found.last_ms)} ({days:,.1f} days)"))
    if found.gap_seconds is not None:
        rows.append(("seconds between a user's events", _spread(found.gap_seconds)))
    if found.ties is not None:
        rows.append(("at the same millisecond", f"{found.ties:.1%}"))
    return rows


def _spread(spread: Spread) -> str:
    return f"min {spread.min:,.12g}, median {spread.median:,.12g}, p90 {spread.p90:,.12g}, max {spread.max:,.12g}"


def _time(milliseconds: int) -> str:
    return (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(sep=" ", timespec="seconds")[:19] + "Z"
