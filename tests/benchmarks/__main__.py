"""The benchmark: Driftline and a stock Faust agent doing the same work, on a real Kafka and a real Redis.

    make bench                                    everything, about twelve minutes
    make bench ARGS="--quick"                     one run, pooling model only, under three minutes
    make bench ARGS="--only catch-up --runs 5"
    make bench ARGS="--output markdown"           the table for the README

**Workload.** 20,000 users whose activity falls as 1 / (rank + 50), 2,000 items (or those of the demo bundle) whose
popularity falls as 1 / (rank + 10); JSON events of about 150 bytes without event_id, keyed by user, 8 partitions. Before
every run Redis is put back to a snapshot in which every user has a window between its least and its greatest length: so
both sides work on the windows of people who have been there for months, however far they get.

**Models.** `pooling`: the mean of the window's item vectors, 32 dimensions, windows of 50 cut to 25; its encoder costs next
to nothing, so it shows the engine's own cost. `demo`: the transformer that ships with Driftline.

**The rival** is `stock_agent.py`. Ours and its runs take turns, so that a noise on the machine hits both. Everything is a
process of its own, and all of them share this machine's cores: generator, Kafka, Redis, ingest, evolve.

A fresh broker spends most of its time compiling itself: it is warmed up before the first figure.

**Figures.** Medians over the runs, least and greatest in brackets.
Catching up: events a second by the watermarks in Redis, from 15 % of the backlog on; from raw events: from the first frame
that ingest writes (Kafka's timestamp) to the last event's vector in Redis.
Live: the highest rate at which, over the second half of a step, less than half a second of events waits and what waits does
not grow.
Freshness: from an event's Kafka timestamp (taken when the app hands it to its producer) to the moment when another process
has read the vector from Redis (`reader.py`).
With the demo model catching up and freshness are measured unless `--only` asks for more.
Memory: Redis's used memory over its users; resident sizes after 20,000 events. Script: by Redis's own statistics.
Backfill: `driftline backfill` of a log in `interactions`, from the start of the command to its end, and a live worker that
catches up on the same log; `--only backfill --events 50000000 --users 1000000` for a large one.
Change: the longest time in which a partition of `recommendations` got nothing, by the broker's clock, from the start of
`model activate` or `generations activate` to some seconds after its end; and over as long a time in which nothing is changed.
Lists: processor time on one thread, without Kafka and Redis (`lists.py`): `--only lists` takes seconds.
"""

import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from export.pooling import write_pooling_bundle
from streams.errors import DriftlineError
from streams.observe.logs import configure_logging
from streams.services.bundle import DEMO_BUNDLE
from tests.benchmarks import backfill, catch_up, change, footprint, lists, live
from tests.benchmarks.interference import Interference
from tests.benchmarks.report import Figure, as_json, as_markdown, machine, print_table
from tests.benchmarks.rig import Assistant, BenchmarkFailed, Rig
from tests.benchmarks.workload import USERS, item_ids

_RATES: Final = (250.0, 1000.0, 2000.0, 4000.0)
_FEW_RATES: Final = (1000.0,)


class Part(StrEnum):
    """What can be measured by itself."""

    CATCH_UP = "catch-up"
    LIVE = "live"
    FRESHNESS = "freshness"
    MEMORY = "memory"
    SCRIPT = "script"
    LISTS = "lists"
    BACKFILL = "backfill"
    CHANGE = "change"


class Model(StrEnum):
    """What is served."""

    POOLING = "pooling"
    DEMO = "demo"


class OutputFormat(StrEnum):
    """How the figures are printed."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One short run, pooling model only.")] = False,
    runs: Annotated[int | None, typer.Option(min=1, help="Runs of each measurement; default 3.")] = None,
    only: Annotated[list[Part] | None, typer.Option(help="Measure this alone; may be given several times.")] = None,
    model: Annotated[list[Model] | None, typer.Option(help="Serve this model alone.")] = None,
    events: Annotated[
        int | None,
        typer.Option(min=1000, help="Of the log that is replayed; default 4,000,000, with --quick a million."),
    ] = None,
    users: Annotated[int, typer.Option(min=100, help="Of the log that is replayed.")] = USERS,
    output: Annotated[OutputFormat, typer.Option("--output", "-o", help="How to print the figures.")] = (
        OutputFormat.TABLE
    ),
) -> None:
    """Measure Driftline against a stock Faust agent."""
    # Standard output is for the figures; logs go beside it.
    configure_logging("console", "error", "benchmark")
    log = Console(stderr=True, highlight=False)
    about = machine()
    parts = set(only or Part)
    models = model or ([Model.POOLING] if quick else list(Model))
    runs = runs or (1 if quick else 3)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as directory:
        if Part.LISTS in parts:
            figures += _measure_lists(Path(directory), runs=runs, log=log)
        if with_servers := parts - {Part.LISTS}:
            pooling = Path(directory) / "pooling"
            write_pooling_bundle(pooling, item_ids())
            with Rig(Path(directory)) as rig:
                for chosen in models:
                    bundle = pooling if chosen is Model.POOLING else DEMO_BUNDLE
                    if not (bundle / "manifest.json").exists():
                        log.print(f"{bundle} is not there: nothing is measured with the {chosen} model")
                        continue
                    # Unless asked for: the engine's own limits are the same with any model.
                    wanted = with_servers
                    if not only and chosen is not Model.POOLING:
                        wanted = with_servers - {Part.LIVE, Part.MEMORY}
                    replayed = events or (1_000_000 if quick else 4_000_000), users
                    figures += _measure(rig, bundle, chosen, wanted, quick=quick, runs=runs, replayed=replayed, log=log)
    if output is OutputFormat.JSON:
        print(as_json(figures, about))
    elif output is OutputFormat.MARKDOWN:
        print(as_markdown(figures, about))
    else:
        print_table(figures, about, Console())


def _measure_lists(directory: Path, *, runs: int, log: Console) -> list[Figure]:
    interference = Interference()
    figures = lists.measure(directory, runs=runs, say=lambda what: log.print(f"[dim]{what}[/]"))
    share = interference.share()
    for figure in figures:
        figure.others = share
    return figures


def _measure(
    rig: Rig,
    bundle: Path,
    model: Model,
    parts: set[Part],
    *,
    quick: bool,
    runs: int,
    replayed: tuple[int, int],
    log: Console,
) -> list[Figure]:
    def say(what: str) -> None:
        log.print(f"[dim]{model}: {what}[/]")

    figures: list[Figure] = []
    top: Figure | None = None
    interference = Interference()

    def add(found: Sequence[Figure]) -> None:
        share = interference.share()
        for figure in found:
            figure.others = share
        figures.extend(found)
        say(f"other processes had {100 * share:.0f} % of the machine meanwhile")

    with Assistant("tests.benchmarks.generator", rig.kafka.bootstrap_servers, str(bundle)) as generator:
        if parts & {Part.CATCH_UP, Part.LIVE, Part.FRESHNESS, Part.BACKFILL, Part.CHANGE}:
            say("warming the broker up")
            live.warm_broker(rig, generator, bundle, seconds=12.0 if quick else 40.0)
            interference.share()
        if Part.CATCH_UP in parts:
            events, seconds = (60_000, 4.0) if quick else (100_000, 6.0)
            add(
                catch_up.measure(
                    rig, generator, bundle, model, runs=runs, events=events, stock_seconds=seconds, say=say
                )
            )
        if Part.LIVE in parts:
            top = live.top_rates(rig, generator, bundle, model, runs=runs, seconds=4.0, say=say)
            add([top])
        if Part.FRESHNESS in parts:
            rates = _RATES if model is Model.POOLING else _FEW_RATES
            seconds = 4.0 if quick else 6.0
            add(
                live.freshness(rig, generator, bundle, model, runs=runs, seconds=seconds, rates=rates, top=top, say=say)
            )
        # What is served is changed by the same steps, whatever the model.
        if Part.CHANGE in parts and model is Model.POOLING:
            add(change.measure(rig, generator, model, runs=runs, say=say))
        if Part.MEMORY in parts:
            add(footprint.memory(rig, generator, bundle, model, runs=runs, say=say))
    if Part.BACKFILL in parts:
        events, users = replayed
        seconds = 8.0 if quick else 15.0
        add(backfill.measure(rig, bundle, model, runs=runs, events=events, users=users, live_seconds=seconds, say=say))
    # The rows of the two models differ in length only by the vector; and the swap does not know the model.
    if Part.SCRIPT in parts and model is Model.POOLING:
        add(footprint.script(rig, bundle, model, runs=runs, say=say))
    return figures


if __name__ == "__main__":
    try:
        typer.run(main)
    except (BenchmarkFailed, DriftlineError) as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False)
        sys.exit(1)
