"""`driftline deadletters list`, `show` and `replay`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.options import BootstrapServers, ConfigFile, Output, OutputFormat, RedisUrl, operator_settings
from streams.cli.results import Counting, print_json, result_console, table, time_of, visible
from streams.contracts.pseudonym import Pseudonyms
from streams.errors import DeliveryFailed, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from streams.log.readers import TailReader
    from streams.log.topics import Extent, Partition
    from streams.services.deadletters import Content, Filter, Letter, Replayed
    from streams.settings import Settings

app = typer.Typer(name="deadletters", help="Events that could not be processed.", no_args_is_help=True)

Reasons = Annotated[list[str] | None, typer.Option("--reason", help="Only this reason; may be given more than once.")]
SourceTopics = Annotated[
    list[str] | None, typer.Option("--topic", help="Only from this source topic; may be given more than once.")
]
From = Annotated[
    str | None,
    typer.Option("--from-datetime", metavar="TIME", help="Only written at or after it; ISO 8601, UTC by default."),
]
To = Annotated[
    str | None, typer.Option("--to-datetime", metavar="TIME", help="Only written before it; ISO 8601, UTC by default.")
]


@app.command("list")
def list_(
    reason: Reasons = None,
    topic: SourceTopics = None,
    from_datetime: From = None,
    to_datetime: To = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many to show: the newest.")] = 100,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Show the dead letters as of now: where each lies, where it came from and why.

    As JSON: `topic`; `matching` (letters that the filters let through), `by_reason` (how many of each); `letters`, the
    newest ones, oldest first, of `partition`, `offset`, `written_at` (milliseconds since 1970), `reason`, `source`
    (`topic`, `partition`, `offset` of the original message), `stage`, `message`, `replays` (how often the event had been
    sent back before it died this time), `sent_back` (a replay has sent this letter back); `others`: messages that are no
    letters of ours.
    """
    wanted = _filter(reason, topic, from_datetime, to_datetime)
    settings = operator_settings(config, level="warning", kafka__bootstrap_servers=bootstrap_servers)
    from streams.services.deadletters import list_letters, survey  # noqa: PLC0415 - `driftline --help` needs no client library

    name = settings.topics.dead_letters
    with _opened(settings) as (reader, extents), _counting("messages read", extents) as report:
        found = list_letters(name, survey(reader, extents, report), wanted, limit)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    console = result_console()
    if found.letters:
        console.print(
            table(
                None,
                ("letter", "written", "reason", "topic", "partition", "offset", "stage", "message", "replays", ""),
                [
                    (
                        _place(letter),
                        time_of(letter.written_at),
                        letter.reason,
                        letter.source.topic,
                        letter.source.partition,
                        letter.source.offset,
                        letter.stage,
                        letter.message,
                        letter.replays,
                        "sent back" if letter.sent_back else "",
                    )
                    for letter in found.letters
                ],
                numbers=("partition", "offset", "replays"),
            )
        )
    reasons = ", ".join(f"{count:,} {name}" for name, count in found.by_reason.items())
    shown = f", the newest {len(found.letters):,} shown" if len(found.letters) < found.matching else ""
    console.print(visible(f"{found.matching:,} letters in {name}{f': {reasons}' if reasons else ''}{shown}"))
    if found.others:
        console.print(f"{found.others:,} messages in it are no letters of Driftline")


@app.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="The letter, as `list` names it.")],
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Show everything of one dead letter.

    As JSON: `letter`, as `list` gives it; and of the original message `timestamp` (Kafka's, milliseconds since 1970; null:
    the letter does not say), `key`, `value` and `headers` (a list of `name`, `value`). A key or value is `text` where it
    is UTF-8, else `hex`; both are null where there is none. A letter that is not there ends the command with exit code 1.
    """
    partition, offset = _parsed_place(letter)
    settings = operator_settings(config, level="warning", kafka__bootstrap_servers=bootstrap_servers)
    from streams.services.deadletters import show_letter  # noqa: PLC0415 - as above

    name = settings.topics.dead_letters
    with _opened(settings) as (reader, extents), _counting("messages read", extents) as report:
        found = show_letter(reader, extents, partition, offset, report)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    brief = found.letter
    source = f"{brief.source.topic} partition {brief.source.partition} offset {brief.source.offset}"
    rows: list[tuple[str, object]] = [
        ("letter", f"{name} {_place(brief)}"),
        ("written", time_of(brief.written_at)),
        ("reason", brief.reason),
        ("message", brief.message),
        ("stage", brief.stage),
        ("came from", source),
        ("sent at", None if found.timestamp is None else time_of(found.timestamp)),
        ("replays before", brief.replays),
        ("sent back", "yes" if brief.sent_back else "no"),
        ("key", _shown(found.key)),
        *((f"header {header.name}", _shown(header.value)) for header in found.headers),
        ("value", _shown(found.value)),
    ]
    result_console().print(table(None, ("", ""), rows))


@app.command()
def replay(
    reason: Reasons = None,
    topic: SourceTopics = None,
    from_datetime: From = None,
    to_datetime: To = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Send at most so many: the oldest.")] = None,
    max_replays: Annotated[
        int,
        typer.Option("--max-replays", min=1, help="Leave out an event that was sent back as often and failed again."),
    ] = 1,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; without, only say what would be done.")] = False,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
) -> None:
    """Send dead letters back to their source topics, as after a limit was raised or a bug mended. Dry run by default.

    Each goes back with its bytes, key, headers, partition and timestamp, and one header that says so: `driftline-replayed`,
    JSON of `times` (that its event has been sent back by now) and of `topic`, `partition` and `offset` of the letter. What
    fails again becomes a new letter.

    A letter is sent back once, however often this runs: a mark behind it in the dead-letter topic says so. After a crash,
    and when two run at once, the same letters may go twice; an event with an `event_id` counts once all the same. Let
    ingest run meanwhile: Kafka deletes messages by their timestamp, and these are old. What is older than the erasure of its
    user stays where it is.

    As JSON: `executed`, `matching` (letters that the filters let through), `to_send` (topic to how many), `sent`,
    `refused` (letter to why Kafka did not accept it; the command then ends with exit code 13), `left_out` (reason to how
    many; the reasons: `sent_back_before`, `too_often`, `erased` (the user was, after the event), `pseudonyms` (it names the
    user by one), `copies` of one message, `frames`, `not_a_source`, `no_such_topic`) and `not_reached` (beyond `--limit`).
    """
    wanted = _filter(reason, topic, from_datetime, to_datetime)
    settings = operator_settings(
        config, level="warning", kafka__bootstrap_servers=bootstrap_servers, redis__url=redis_url
    )
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - as above
    from streams.log.producer import Producer  # noqa: PLC0415
    from streams.services.deadletters import (  # noqa: PLC0415
        ErasedLetters,
        Replayed,
        SentBack,
        plan_replay,
        send_back,
        survey,
    )
    from streams.store.redis import RedisErasures  # noqa: PLC0415

    with LogAdmin(settings.kafka) as admin:
        sources = admin.existing_topics(settings.topics.sources)
    with closing(RedisErasures(settings.redis)) as erasures:
        erased = ErasedLetters(erasures.read(), Pseudonyms(settings.ingest.pseudonym_key()))
    with _opened(settings) as (reader, extents), _counting("messages read", extents) as report:
        found = survey(reader, extents, report, erased)
    plan = plan_replay(found, wanted, settings.topics.sources, sources, max_replays, limit)
    outcome = SentBack(0, {})
    if execute and plan.chosen:
        # The extents of before: what has come since was not planned for.
        with _opened(settings) as (reader, _), Counting("letters sent back", len(plan.chosen)) as counting:
            producer = Producer(settings.kafka)
            outcome = send_back(plan, reader, extents, producer, sources, lambda count: counting.show(count, count))
    result = Replayed(
        execute, plan.matching, plan.to_send, outcome.sent, outcome.refused, plan.left_out, plan.not_reached
    )
    if output is OutputFormat.JSON:
        print_json(result)
    else:
        _print_replayed(result)
    if result.refused:
        letter, why = next(iter(result.refused.items()))
        raise DeliveryFailed(f"Kafka did not accept {len(result.refused):,} of the letters; letter {letter}: {why}")


def _print_replayed(result: "Replayed") -> None:
    from streams.services.deadletters import EXPLAINED  # noqa: PLC0415 - as above

    console = result_console()
    verb = "sent back" if result.executed else "would be sent back"
    count = result.sent if result.executed else sum(result.to_send.values())
    where = ", ".join(f"{each:,} to {topic}" for topic, each in sorted(result.to_send.items()))
    told = f": {where}" if where and not result.refused else ""
    console.print(visible(f"{count:,} of {result.matching:,} letters {verb}{told}"))
    for reason, each in result.left_out.items():
        console.print(visible(f"{each:,} left out: {EXPLAINED[reason]}"))
    if result.not_reached:
        console.print(visible(f"{result.not_reached:,} more are beyond --limit"))
    if not result.executed and result.to_send:
        console.print(visible("Nothing was sent: --execute does it"))


@contextmanager
def _opened(settings: "Settings") -> Iterator[tuple["TailReader", Mapping["Partition", "Extent"]]]:
    """The dead-letter topic, to be read from its beginning, and where it starts and ends as of now."""
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - as above
    from streams.log.readers import TailReader  # noqa: PLC0415
    from streams.services.topics import partitions_of  # noqa: PLC0415

    name = settings.topics.dead_letters
    with LogAdmin(settings.kafka) as admin:
        topic = admin.topics([name])[name]
        extents = admin.extents(partitions_of(topic))
    with closing(TailReader(settings.kafka, [topic], from_beginning=True)) as reader:
        yield reader, extents


@contextmanager
def _counting(unit: str, extents: Mapping["Partition", "Extent"]) -> Iterator[Callable[[int], None]]:
    total = sum(extent.end - extent.start for extent in extents.values())
    with Counting(unit, total) as counting:
        yield lambda count: counting.show(count, count)


def _filter(
    reasons: list[str] | None, topics: list[str] | None, from_datetime: str | None, to_datetime: str | None
) -> "Filter":
    from streams.services.datetimes import parse_datetime  # noqa: PLC0415 - as above
    from streams.services.deadletters import Filter  # noqa: PLC0415

    return Filter(
        frozenset(reasons or ()),
        frozenset(topics or ()),
        None if from_datetime is None else parse_datetime("--from-datetime", from_datetime),
        None if to_datetime is None else parse_datetime("--to-datetime", to_datetime),
    )


def _parsed_place(written: str) -> tuple[int, int]:
    partition, _, offset = written.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise UsageError(
            f"{written}: should be PARTITION:OFFSET, such as 0:17, as `driftline deadletters list` shows it"
        )
    return int(partition), int(offset)


def _place(letter: "Letter") -> str:
    return f"{letter.partition}:{letter.offset}"


def _shown(content: "Content") -> "Text | None":
    if content.text is not None:
        return visible(content.text)
    return None if content.hex is None else visible(f"hex {content.hex}")
