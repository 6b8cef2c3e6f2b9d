"""`driftline topics create`, `describe` and `adopt`."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.options import BootstrapServers, ConfigFile, Output, OutputFormat, RedisUrl, operator_settings
from streams.cli.results import note_console, print_json, result_console, table, visible
from streams.errors import UsageError

if TYPE_CHECKING:
    from streams.services.topics import Adoption

app = typer.Typer(name="topics", help="Make and look after the topics.", no_args_is_help=True)


@app.command()
def create(
    output: Output = OutputFormat.TABLE, config: ConfigFile = None, bootstrap_servers: BootstrapServers = None
) -> None:
    """Make the topics of the settings that do not exist; those that do are left alone.

    As JSON: a list of `topic`, `role`, `created`, `partitions`, `note`.
    """
    settings = operator_settings(config, kafka__bootstrap_servers=bootstrap_servers)
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - `driftline --help` needs no client library
    from streams.services.topics import create_missing_topics  # noqa: PLC0415

    with LogAdmin(settings.kafka) as admin:
        found = create_missing_topics(settings, admin)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    rows = [
        (each.topic, each.role, each.partitions, "created" if each.created else "exists, left alone", each.note or "")
        for each in found
    ]
    result_console().print(table(None, ("topic", "role", "partitions", "", "note"), rows, numbers=("partitions",)))


@app.command()
def describe(
    output: Output = OutputFormat.TABLE, config: ConfigFile = None, bootstrap_servers: BootstrapServers = None
) -> None:
    """Show the topics of the settings as they are.

    As JSON: a list of `topic`, `role`, `topic_id`, `partitions`, `messages`, `end`, `config`; of a topic that does not exist
    all but the first two are null.
    """
    settings = operator_settings(config, kafka__bootstrap_servers=bootstrap_servers)
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - as above
    from streams.services.topics import describe_topics  # noqa: PLC0415

    with LogAdmin(settings.kafka) as admin:
        found = describe_topics(settings, admin)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    rows = [
        (each.topic, each.role, "does not exist: `driftline topics create`", None, None, "")
        if each.config is None
        else (
            each.topic,
            each.role,
            each.topic_id,
            each.partitions,
            each.messages,
            ", ".join(f"{name}={value}" for name, value in each.config.items()),
        )
        for each in found
    ]
    columns = ("topic", "role", "id", "partitions", "messages", "configuration")
    result_console().print(table(None, columns, rows, numbers=("partitions", "messages")))


@app.command()
def adopt(
    topic: Annotated[str, typer.Argument(help="A raw topic of the settings, or interactions.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reingest: Annotated[
        bool,
        typer.Option(
            "--reingest",
            help="With interactions: have ingest read the raw topics again, to bring back what was only in lost frames.",
        ),
    ] = False,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
) -> None:
    """Go on with a topic that was deleted and made anew on purpose, from its beginning.

    Of a raw topic ingest must be stopped, of `interactions` evolve. What was applied stays applied, and no event of the
    new topic is lost or counts twice. For `interactions` it is also the way on after retention deleted frames that were
    not applied yet. As JSON: `topic`, `role`, `topic_id`, `group`, `changes` (a list of `partition`, `before`,
    `before_topic_id`, `after`: the next offset to be read) and `reingest` (the raw topics that are read again).
    """
    settings = operator_settings(config, kafka__bootstrap_servers=bootstrap_servers, redis__url=redis_url)
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - as above
    from streams.services.topics import adopt_interactions, adopt_source  # noqa: PLC0415
    from streams.store.redis import open_served_store  # noqa: PLC0415

    names = settings.topics
    with ExitStack() as opened:
        ingest = opened.enter_context(LogAdmin(settings.kafka, settings.ingest.group))
        run: Callable[[bool], Adoption]
        if topic in names.sources:
            if reingest:
                raise UsageError(
                    f"--reingest goes with {names.interactions}; {topic} is read from its beginning anyway"
                )

            def run(dry_run: bool) -> "Adoption":
                return adopt_source(settings, ingest, topic, dry_run=dry_run)

        elif topic == names.interactions:
            evolve = opened.enter_context(LogAdmin(settings.kafka, settings.evolve.group))
            store = opened.enter_context(closing(open_served_store(settings.redis)))

            def run(dry_run: bool) -> "Adoption":
                return adopt_interactions(settings, evolve, ingest, store, reingest=reingest, dry_run=dry_run)

        else:
            raise UsageError(
                f"{topic} is not read by a service that keeps its place in it; these are: "
                f"{', '.join([*names.sources, names.interactions])}"
            )
        planned = run(True)
        if planned.changes or planned.reingest:
            if not yes:
                _print_changes(planned, "would be")
                typer.confirm("Go on?", abort=True, err=True)
            planned = run(False)
    if output is OutputFormat.JSON:
        print_json(planned)
    elif planned.changes or planned.reingest:
        _print_changes(planned, "is")
    else:
        result_console().print(visible(f"Nothing to do: group {planned.group} is in step with {topic}."))


def _print_changes(adoption: "Adoption", verb: str) -> None:
    console = note_console() if verb == "would be" else result_console()
    rows = [
        (change.partition, change.before, change.before_topic_id or None, change.after, adoption.topic_id or None)
        for change in adoption.changes
    ]
    title = f"Where group {adoption.group} reads on in {adoption.topic} {verb} changed:"
    columns = ("partition", "offset before", "of topic id", "offset now", "of topic id now")
    if rows:
        console.print(table(title, columns, rows, numbers=columns))
    if adoption.reingest:
        console.print(visible(f"Ingest {verb} sent back to the beginning of {', '.join(adoption.reingest)}."))
