"""`driftline demo`: the whole engine in one terminal, on a machine with nothing else installed."""

import sys
from contextlib import suppress
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from streams.cli.options import BundlePath, Output, OutputFormat

_TOLD_TO_STOP = 130


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(demo)


def demo(
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1, max=86_400, help="How long visitors browse; default: Ctrl-C.")
    ] = None,
    events_per_second: Annotated[
        float, typer.Option("--events-per-second", min=1, max=2000, help="Clicks and views of all visitors together.")
    ] = 200,
    bundle: BundlePath = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show the engine at work: embedded Kafka and Redis, simulated visitors, one of them live on the screen.

    Needs no Java, no Docker and no torch. **Ingest** and **evolve** are the services of production; only their
    addresses differ. Ctrl-C sums up and leaves nothing running and no files.

    *Freshness* is measured from outside: about 20 events a second are timed from just before the producer gets them until
    their visitor's row, read back from Redis, holds the event and its vector. The embedded Kafka answers a
    waiting reader every 10 to 20 ms only, so a real one is fresher.

    One event in a hundred is broken on purpose, to show that it ends as a dead letter. `--output json` prints one
    summary at the end and nothing else on stdout: `events` (messages on the raw topics; each was applied or is one of
    `dead_letters`), `recommendations` (messages on that topic), `users` (rows in Redis), `freshness_ms`.
    """
    # Imported here so that `driftline --help` needs neither Kafka's client nor the catalogue.
    from streams.demo.run import DemoPlan, run_demo  # noqa: PLC0415

    as_json = output is OutputFormat.JSON
    # With JSON a person at the terminal still sees on stderr that something happens.
    console = Console(stderr=True, quiet=not sys.stderr.isatty()) if as_json else Console()
    summary = run_demo(DemoPlan(events_per_second, seconds, bundle), console, live=console.is_terminal and not as_json)
    if summary is None:
        with suppress(OSError):  # the terminal may be what is gone
            typer.echo("Ended without a summary; nothing is left running.", err=True)
        raise typer.Exit(_TOLD_TO_STOP)
    if as_json:
        typer.echo(msgspec.json.encode(summary).decode())
        return
    fresh = summary.freshness_ms
    console.print(
        f"[bold]{summary.events:,} events[/] in {summary.seconds:.0f} s ({summary.events_per_second:.0f}/s), "
        f"{summary.recommendations:,} recommendations, {summary.users:,} users with a vector.\n"
        f"[bold]Freshness[/] p50 {_ms(fresh.p50)}, p99 {_ms(fresh.p99)}, from event produced to vector readable "
        f"({fresh.samples:,} measured).\n"
        f"{summary.bad_events:,} events were broken on purpose: {summary.dead_letters:,} dead letters. "
        "Everything else was applied; nothing is left running.",
        highlight=False,
        soft_wrap=not console.is_terminal,
    )


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"
