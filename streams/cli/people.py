"""`driftline erase`."""

from contextlib import closing
from typing import Annotated

import typer

from streams.cli.options import BootstrapServers, ConfigFile, Output, OutputFormat, RedisUrl, operator_settings
from streams.cli.results import note_console, print_json, result_console, visible
from streams.contracts.erasure import user_digest
from streams.contracts.pseudonym import Pseudonyms
from streams.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(erase)


def erase(
    user: Annotated[str, typer.Argument(metavar="USER_ID", help="The user's id, as apps send it.")],
    topic: Annotated[
        str | None, typer.Option("--topic", help="The raw topic to ask in; default: the first of topics.sources.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long to wait until the rows are gone.")
    ] = 60.0,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; without, only say which rows there are.")] = False,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
) -> None:
    """Erase a user: the rows in every generation go, and replays leave out whatever is older. Dry run by default.

    It sends a `$erase` event to a raw topic, so that the erasure has its place in the log, and waits until ingest and
    evolve have come to it; what the user does afterwards begins a new window. An app may send that event itself.

    It does not reach into Kafka: raw topics, `interactions`, `recommendations` and dead letters keep what they hold until
    their retention ends, files and checkpoints for as long as you keep them. With `ingest.pseudonym_key_file` only the raw
    topics and dead letters hold the id itself. Anonymous ids of the same person are users of their own: erase each.

    As JSON: `executed`, `user_digest` (what stands for the user in what is recorded), `generations` (that had a row), `topic`,
    `erased_at` (milliseconds since 1970; null in a dry run). Rows that are still there after `--timeout` end the command
    with exit code 1; they go all the same once the services come to it.
    """
    settings = operator_settings(
        config, level="warning", kafka__bootstrap_servers=bootstrap_servers, redis__url=redis_url
    )
    topic = topic or next(iter(settings.topics.sources))
    if topic not in settings.topics.sources:
        raise UsageError(f"--topic {topic}: no ingest reads it; topics.sources is {', '.join(settings.topics.sources)}")
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - `driftline --help` needs no client library
    from streams.log.producer import Producer  # noqa: PLC0415
    from streams.services.erase import Erased, ask_for_erasure, rows_of, wait_until_gone  # noqa: PLC0415
    from streams.store.redis import RedisErasures  # noqa: PLC0415

    in_rows = Pseudonyms(settings.ingest.pseudonym_key()).of(user)
    before = rows_of(settings.redis, in_rows)
    erased_at = None
    if execute:
        with LogAdmin(settings.kafka) as admin:
            admin.topics([topic])
        with closing(RedisErasures(settings.redis)) as erasures:
            erased_at = ask_for_erasure(Producer(settings.kafka), erasures, topic, user, in_rows)
        if before:
            note_console().print(visible(f"asked in {topic}; waiting until ingest and evolve have come to it"))
        wait_until_gone(before, lambda: rows_of(settings.redis, in_rows), timeout_s)
    result = Erased(execute, user_digest(in_rows), list(before), topic, erased_at)
    if output is OutputFormat.JSON:
        print_json(result)
        return
    console = result_console()
    names = f"generation{'s' if len(before) > 1 else ''} {', '.join(before)}" if before else "no generation"
    if not execute:
        console.print(
            visible(f"There is a row in {names}. Nothing was erased: --execute does it, by an event to {topic}")
        )
    elif before:
        console.print(visible(f"Erased; there was a row in {names}"))
    else:
        console.print(visible("There was no row. The erasure is recorded and in the log, for what may still come"))
