"""`driftline backfill`, and the workers that it starts."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import uuid4

import msgspec
import typer
from msgspec import Struct

from streams.cli.options import (
    BootstrapServers,
    BundlePath,
    ConfigFile,
    Output,
    OutputFormat,
    Provider,
    RedisUrl,
    operator_settings,
)
from streams.cli.results import Counting, duration_of, note_console, print_json, result_console, visible
from streams.errors import DriftlineError, StoreUnavailable, UsageError

if TYPE_CHECKING:
    from streams.services.backfill.planning import Planned
    from streams.store.redis import RedisFilling

_WORKER: Final = "backfill-worker"
_POLL_S: Final = 0.5
_RECORDS: Final = {"interactions": "frames", "raw": "messages", "files": "lines and rows"}
# A worker that is told to stop writes its windows first.
_STOP_S: Final = 20.0

Name = Annotated[
    str, typer.Option("--generation", metavar="NAME", help="The generation to fill: letters, digits, - and _.")
]


class Filled(Struct, frozen=True):
    """What a backfill did, or would do. See the command for the fields."""

    executed: bool
    generation: str
    source: str
    model: str
    begun_before: bool
    reads: list[str]
    records: int
    expected_events: int
    expected_seconds: float
    events: int | None = None
    repeats: int | None = None
    late: int | None = None
    bad: int | None = None
    seconds: float | None = None
    events_per_second: float | None = None


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(backfill)
    app.command(_WORKER, hidden=True)(backfill_worker)


def backfill(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILES]...",
            help="Folders, files and quoted patterns ('logs/**/*.parquet') to read in the place of topics.",
            show_default=False,
        ),
    ] = None,
    *,
    generation: Name,
    raw: Annotated[
        list[str] | None,
        typer.Option("--raw", metavar="TOPIC", help="Read this raw topic; may be given more than once."),
    ] = None,
    from_datetime: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Start at the first message dated then or later; ISO 8601, UTC by default."),
    ] = None,
    by_duration: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Start so long ago: P7D, PT1H30M.")
    ] = None,
    to_datetime: Annotated[
        str | None, typer.Option(metavar="TIME", help="End before the first message dated then or later.")
    ] = None,
    from_offsets: Annotated[
        str | None, typer.Option(metavar="OFFSETS", help="Start there, PARTITION:OFFSET: 0:1000,3:55.")
    ] = None,
    event_type: Annotated[
        str | None, typer.Option("--type", help="Type of an event in a file that names none; default: click.")
    ] = None,
    recommendations: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="Send lists there on the way; with --every.")
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Send a user's list after so many of the user's events.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes on this machine; default: one a core.")
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; without, only say what would be done.")] = False,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    bundle: BundlePath = None,
    provider: Provider = None,
) -> None:
    """Replay a log into a generation beside the one that is served, with any model. Dry run by default.

    It reads `interactions`, or part of it; without an end it goes on until nearly nothing is left. With another model, after
    a bug, after Redis was lost: fill a generation, compare, and `driftline generations activate` it. Each user is encoded
    once, at the end. Nothing reads the generation before it is activated, and the one that is served can't be filled.

    **Interrupted** at any point, the same command goes on, with the same result. It may also run on several machines at the
    same time: they share the work. A generation that is filled goes on from where it ends when the command names nothing
    to read.

    **Raw topics** (`--raw`) are read in the order of Kafka's timestamps. What comes after is taken from `interactions`, from
    its beginning, without what was read here: so a range that begins later leaves out for good what lies before it.

    **Files**: JSON lines (.jsonl, .ndjson, .json, also .gz and .zst) or Parquet, such as `driftline data pull` writes. They
    stand for all that the served generation has applied when this begins; what comes after is taken from `interactions`
    from there. Without a served generation, from its beginning: then only an event's `event_id` tells that it is in both.
    An event without an `event_id` is named by its file and line, so `driftline generations compare` finds its window changed.
    A Parquet file has the columns user_id, item_id and event_time, and if you like type, event_id and anonymous_id.

    `--recommendations` sends lists with the mode `replay`, one for a user after every N of its events (or somewhat more, for
    events are taken by the thousands), at least once each.

    As JSON: `executed`, `generation`, `source`, `model` (its version), `begun_before` (it is taken up again), `reads` (topics
    with their offsets, or files); what was left to do: `records` (frames, messages, or lines and rows), `expected_events`,
    `expected_seconds`; and once executed, of all runs together `events`, of them `repeats` and `late`, and `bad` (frames or
    records that held none), and of this run `seconds` and `events_per_second`.
    """
    if files and raw:
        raise UsageError(f"{files[0]} and --raw {raw[0]}: files and topics can't be put in one order. Read one of them")
    flags: dict[str, Any] = {
        "kafka__bootstrap_servers": bootstrap_servers,
        "redis__url": redis_url,
        "model__bundle": bundle,
        "model__provider": provider,
    }
    configured = operator_settings(config, level="warning", **flags).redis.generation
    settings = operator_settings(config, level="warning", **flags, redis__generation=generation)
    from streams.contracts.generation import Request  # noqa: PLC0415 - `driftline --help` needs no client library
    from streams.services.backfill.planning import (  # noqa: PLC0415
        DEFAULT_TYPE,
        check_request,
        estimate,
        make_plan,
        open_target,
        record_plan,
        shown_reads,
    )

    request = Request(
        "files" if files else "raw" if raw else "interactions",
        tuple(files or raw or ()),
        from_datetime,
        to_datetime,
        by_duration,
        from_offsets,
        (event_type or DEFAULT_TYPE) if files else "",
        recommendations or "",
        every or 0,
    )
    check_request(settings, request)
    count = workers or os.cpu_count() or 1
    with open_target(settings, configured, is_named=bundle is not None) as target:
        planned = make_plan(target, request, count, round(time.time() * 1000))
        expected = estimate(settings, planned, count)
        result = Filled(
            execute,
            generation,
            request.source,
            target.bundle.config.version,
            planned.is_begun,
            shown_reads(planned.plan),
            expected.records,
            expected.events,
            expected.seconds,
        )
        if execute:
            if not planned.is_begun:
                record_plan(target, planned)
            worker_flags = {
                "--generation": generation,
                "--config": config,
                "--bootstrap-servers": bootstrap_servers,
                "--redis-url": redis_url,
                "--bundle": target.bundle.path,
                "--provider": provider,
            }
            result = _execute(target.filling, planned, result, worker_flags, count)
    if output is OutputFormat.JSON:
        print_json(result)
    else:
        _print(result)


def backfill_worker(
    *,
    generation: Name,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    bundle: BundlePath = None,
    provider: Provider = None,
) -> None:
    """Fill a generation until its plan is done: what `driftline backfill` starts."""
    settings = operator_settings(
        config,
        level="warning",
        kafka__bootstrap_servers=bootstrap_servers,
        redis__url=redis_url,
        redis__generation=generation,
        model__bundle=bundle,
        model__provider=provider,
    )
    from streams.services.backfill.planning import LEASE_MS  # noqa: PLC0415 - as above
    from streams.services.backfill.worker import FillingWorker  # noqa: PLC0415
    from streams.services.parts import open_engine  # noqa: PLC0415
    from streams.services.process import settle_process  # noqa: PLC0415
    from streams.store.redis import RedisFilling  # noqa: PLC0415

    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
    parent = os.getppid()
    engine, _ = open_engine(settings, mode="replay")
    settle_process(settings.model.threads)
    # Nobody would stop the worker of a command that was killed.
    with (
        closing(RedisFilling(settings.redis, generation, uuid4().hex, LEASE_MS)) as filling,
        closing(
            FillingWorker(settings, engine, filling, lambda: told_to_stop.is_set() or os.getppid() != parent)
        ) as worker,
    ):
        worker.run()


def _execute(
    filling: "RedisFilling", planned: "Planned", result: Filled, flags: Mapping[str, Path | str | None], count: int
) -> Filled:
    """Start workers, and wait until the plan is done."""
    from streams.services.backfill.planning import progress_of  # noqa: PLC0415 - as above

    before = sum(progress.events for progress in planned.progress.values())
    started = time.monotonic()
    with Counting("events", result.records, before) as counting:
        codes = run_workers(flags, count, lambda: _show(counting, filling, planned, result.records))
    partitions = range(planned.plan.partitions)
    progress = progress_of(result.generation, planned.plan, filling.progress(partitions)).values()
    if not all(each.is_done for each in progress):
        failed = next((code for code in codes if code > 0), None)
        if failed is not None:
            sys.exit(failed)  # it has said why
        raise DriftlineError(
            f"generation {result.generation} is not filled yet, and every worker was killed. The same command goes on"
        )
    seconds = time.monotonic() - started
    events = sum(each.events for each in progress)
    return msgspec.structs.replace(
        result,
        events=events,
        repeats=sum(each.repeats for each in progress),
        late=sum(each.late for each in progress),
        bad=sum(each.bad for each in progress),
        seconds=seconds,
        events_per_second=(events - before) / seconds,
    )


def run_workers(flags: Mapping[str, Path | str | None], count: int, watch: Callable[[], None]) -> list[int]:
    """Run workers as children until all have ended; after a signal stop them, and end this process too.

    Args:
        flags: Of each worker.
        watch: Called a few times a second.

    Returns:
        Their exit codes; that of one that was killed is below 0.
    """
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    arguments = [part for name, value in flags.items() if value is not None for part in (name, str(value))]
    command = [sys.executable, "-m", "streams.cli", _WORKER, *arguments]
    # In sessions of their own: Ctrl-C is for this process, which lets them write what they have.
    children = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    while not signals and any(child.poll() is None for child in children):
        with suppress(StoreUnavailable):  # the workers wait for it
            watch()
        time.sleep(_POLL_S)
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if signals:
        note_console().print("stopped; the same command goes on from here")
        sys.exit(128 + signals[0])
    return [child.returncode for child in children]


def _show(counting: Counting, filling: "RedisFilling", planned: "Planned", records: int) -> None:
    plan = planned.plan
    partitions = range(plan.partitions)
    progress = filling.reading(partitions)
    read = [each.next - planned.progress[number].next for number, each in progress.items()]
    # Of a source that is no `interactions`, each partition's users are looked for in all of it.
    done = sum(read) if plan.request.source == "interactions" else sum(read) // plan.partitions
    waiting = filling.count_unencoded(partitions) if done >= records else 0
    events = sum(each.events for each in progress.values())
    counting.show(events, done, f", {waiting:,} users to encode" if waiting else "")


def _print(result: Filled) -> None:
    console = result_console()
    where = f"generation {result.generation}, model {result.model}"
    console.print(visible(f"{where}: from {result.source}"))
    for line in result.reads:
        console.print(visible(f"  {line}"))
    if result.events is None:
        left = " still" if result.begun_before else ""
        console.print(
            visible(
                f"{result.records:,} {_RECORDS[result.source]}{left} to read, about {result.expected_events:,} events, "
                f"about {duration_of(math.ceil(result.expected_seconds))}"
            )
        )
        console.print("Nothing was written: --execute does it")
        return
    console.print(
        visible(
            f"{result.events:,} events, of them {result.repeats:,} repeats and {result.late:,} late; {result.bad:,} "
            f"records held no event; {duration_of(round(result.seconds or 0, 1))}, "
            f"{result.events_per_second:,.0f} events/s"
        )
    )
