"""`driftline data pull`. `driftline data describe` comes in from the model side: see `streams.cli`."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Final

import typer

from streams.cli.options import BootstrapServers, ConfigFile, Output, OutputFormat, RedisUrl, operator_settings
from streams.cli.output_file import written_whole
from streams.cli.results import Counting, note_console, print_json, result_console, visible
from streams.errors import UsageError

app = typer.Typer(name="data", help="Logs of events: look at one, or write one from Kafka.", no_args_is_help=True)

_ENDINGS: Final = (".jsonl", ".jsonl.gz", ".parquet")


@app.command()
def pull(
    out: Annotated[Path, typer.Option("--out", help="The file to write: .jsonl, .jsonl.gz or .parquet.")],
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
) -> None:
    """Write the events of `interactions`, from its beginning to its end as of now, to a file to train on.

    Each event is an Event v1 with all of its fields, and there once: what ingest sent again after a crash, and what an app
    sent again under the same event id, is left out and counted. So is what people did before they were erased; Redis knows
    of whom. The file appears under its name only when it is whole.
    `driftline train --data` and `driftline produce` read it.

    As JSON: `path`, `events`, `frames`; left out: `resent`, `repeats`, `erased` (events), `invalid_frames`, and `deleted_frames` that
    retention has deleted.
    """
    if not out.name.endswith(_ENDINGS):
        raise UsageError(f"--out {out}: its name should end with {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]}")
    settings = operator_settings(
        config, level="warning", kafka__bootstrap_servers=bootstrap_servers, redis__url=redis_url
    )
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - `driftline --help` needs no client library
    from streams.log.readers import TailReader  # noqa: PLC0415
    from streams.log.topics import Partition  # noqa: PLC0415
    from streams.services.pull import pull_events, write_jsonl, write_jsonl_gz, write_parquet  # noqa: PLC0415
    from streams.store.redis import RedisErasures  # noqa: PLC0415

    with closing(RedisErasures(settings.redis)) as store:
        erasures = store.read()
    write = {".parquet": write_parquet, ".gz": write_jsonl_gz, ".jsonl": write_jsonl}[out.suffix]
    with LogAdmin(settings.kafka) as admin:
        topic = admin.topics([settings.topics.interactions])[settings.topics.interactions]
        extents = admin.extents(Partition(topic.name, number) for number in range(topic.partitions))
    total = sum(extent.end - extent.start for extent in extents.values())
    with (
        closing(TailReader(settings.kafka, [topic], from_beginning=True)) as reader,
        Counting("events", total) as counting,
        written_whole(str(out)) as stream,
    ):
        pulled = pull_events(reader, extents, str(out), lambda events: write(events, stream), counting.show, erasures)
    notes = note_console()
    if pulled.invalid_frames:
        notes.print(f"{pulled.invalid_frames:,} messages were no frames of this version; left out")
    if pulled.deleted_frames:
        notes.print(f"the log no longer has its {pulled.deleted_frames:,} oldest frames: retention deleted them")
    if output is OutputFormat.JSON:
        print_json(pulled)
    else:
        result_console().print(
            visible(
                f"{pulled.events:,} events written to {out}; left out: {pulled.resent:,} that ingest sent again, "
                f"{pulled.repeats:,} that apps sent again, {pulled.erased:,} of people who were erased since"
            )
        )
