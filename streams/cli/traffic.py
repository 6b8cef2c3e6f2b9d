"""`driftline produce` and `driftline recommendations follow`."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from streams.cli.options import BootstrapServers, ConfigFile, Output, OutputFormat, operator_settings
from streams.cli.results import Counting, note_console, print_json, result_console, time_of, visible
from streams.contracts.pseudonym import Pseudonyms
from streams.contracts.recommendation import decode_recommendation
from streams.errors import DriftlineError, UsageError

recommendations_app = typer.Typer(name="recommendations", help="Read what goes out.", no_args_is_help=True)

_TAIL_MESSAGES = 500
_TAIL_WAIT_S = 0.1
_INTERRUPTED = 130  # what a shell makes of SIGINT


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(produce)
    app.add_typer(recommendations_app)


def produce(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="JSON lines, plain or gzip; - is stdin.")],
    topic: Annotated[str, typer.Option("--topic", help="Where to send them, such as clicks.")],
    rate: Annotated[
        float | None, typer.Option("--rate", help="Events a second; default: as fast as Kafka takes.")
    ] = None,
    key_field: Annotated[str, typer.Option("--key-by", help="The field whose string becomes the key.")] = "user_id",
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Send JSON lines to a topic, each line as it is, and wait until Kafka has them all.

    Empty lines are left out; a line that has no such field, or is not JSON, goes out without a key: ingest judges it.
    As JSON: `topic`, `events`, `without_key`, `empty_lines`, `seconds`, `events_per_second`.
    """
    settings = operator_settings(config, level="warning", kafka__bootstrap_servers=bootstrap_servers)
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - `driftline --help` needs no client library
    from streams.log.producer import Producer  # noqa: PLC0415
    from streams.services.produce import Pace, key_by, produce_lines, read_lines  # noqa: PLC0415

    pace = Pace(rate)
    notes = note_console()
    with LogAdmin(settings.kafka) as admin:
        admin.topics([topic])
    if topic not in settings.topics.sources:
        notes.print(visible(f"note: ingest does not read {topic}; topics.sources is {sorted(settings.topics.sources)}"))
    acknowledged = 0
    with _opened(file) as (source, size), Counting("events", size) as counting:

        def report(count: int) -> None:
            nonlocal acknowledged
            acknowledged = count
            # In a gzip file this is the place in the file as it lies on disk, so that it fits its size.
            counting.show(count, None if size is None else os.lseek(source.fileno(), 0, os.SEEK_CUR))

        producer = Producer(settings.kafka, linger_ms=5)
        try:
            produced = produce_lines(producer, topic, read_lines(source, file), key_by(key_field), pace, report)
        except KeyboardInterrupt:
            producer.flush()
            notes.print(f"interrupted; at least {acknowledged:,} events are in Kafka, and all that were sent by now")
            raise typer.Exit(_INTERRUPTED) from None
        except DriftlineError:
            notes.print(f"at least {acknowledged:,} events are in Kafka")
            raise
    if output is OutputFormat.JSON:
        print_json(produced)
    else:
        result_console().print(
            visible(
                f"{produced.events:,} events sent to {topic} in {produced.seconds:.1f} s "
                f"({produced.events_per_second:,.0f}/s)"
                + (f"; {produced.without_key:,} without {key_field}, so without a key" if produced.without_key else "")
            )
        )


@recommendations_app.command()
def follow(
    user: Annotated[str | None, typer.Option("--user", help="Only this user's.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="All that the topic has, then those that come.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="End after so many.")] = None,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Print recommendations as they go out, until Ctrl-C. As JSON: one a line, as it is on the topic."""
    settings = operator_settings(config, level="warning", kafka__bootstrap_servers=bootstrap_servers)
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - as above
    from streams.log.readers import TailReader  # noqa: PLC0415

    name = settings.topics.recommendations
    with LogAdmin(settings.kafka) as admin:
        topics = admin.topics([name]).values()
    key = None if user is None else Pseudonyms(settings.ingest.pseudonym_key()).of(user).encode()
    remaining = limit
    with (
        _interruptible() as interrupted,
        closing(TailReader(settings.kafka, topics, from_beginning=from_beginning)) as reader,
    ):
        while not interrupted() and remaining != 0:
            for message in reader.read(_TAIL_MESSAGES, _TAIL_WAIT_S):
                if message.value is None or (key is not None and message.key != key):
                    continue
                line = message.value.decode(errors="replace") if output is OutputFormat.JSON else _line(message.value)
                if line is None:
                    place = f"{name} partition {message.partition} offset {message.offset}"
                    note_console().print(f"{place} is no recommendation; left out")
                    continue
                typer.echo(line)
                if remaining is not None:
                    remaining -= 1
                    if remaining == 0:
                        break


def _line(raw: bytes) -> str | None:
    try:
        found = decode_recommendation(raw)
    except msgspec.DecodeError:
        return None
    drift = "first" if found.vector.drift is None else f"{found.vector.drift:.3f}"
    items = ", ".join(item.item_id for item in found.items)
    trigger = found.trigger
    text = f"{found.user_id}  {trigger.type} {trigger.item_id}  drift {drift}  {found.strategy}: {items}"
    return f"{time_of(found.generated_at)}  {visible(text).plain}"


@contextmanager
def _interruptible() -> Iterator["Interrupted"]:
    """Ctrl-C and SIGTERM set a flag, so that a line is never cut; a second one ends the process at once."""
    flag = Interrupted()
    before = {number: signal.signal(number, flag.set) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupted:
    """Whether somebody wants this to end."""

    def __init__(self) -> None:
        self._is_set = False

    def __call__(self) -> bool:
        """Whether it is so."""
        return self._is_set

    def set(self, number: int, _: object) -> None:
        """A signal's handler."""
        self._is_set = True
        # Whoever reads our output may have stopped reading: then no flag is looked at any more.
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def _opened(file: str) -> Iterator[tuple[BufferedReader, int | None]]:
    """A file or stdin, and its size in bytes where it has one."""
    if file == "-":
        with os.fdopen(sys.stdin.fileno(), "rb", closefd=False) as stdin:
            yield stdin, None
        return
    path = Path(file)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read: {error.strerror}; name a file of JSON lines, or - for stdin"
        ) from error
    with stream:
        yield stream, path.stat().st_size if path.is_file() else None
