"""`driftline users show` and `driftline users export`."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from streams.cli.options import BundlePath, ConfigFile, Output, OutputFormat, RedisUrl, operator_settings
from streams.cli.results import Counting, note_console, print_json, result_console, table, time_of
from streams.errors import UsageError

app = typer.Typer(name="users", help="Look at users, or take all of them out.", no_args_is_help=True)


class ExportFormat(StrEnum):
    """What `driftline users export` writes."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@app.command()
def show(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    redis_url: RedisUrl = None,
    bundle: BundlePath = None,
) -> None:
    """Show a user's window, vector and recommendations.

    As JSON: `user_id`, `partition`, `model` (version), `updated_at`, `vector_dim`, `vector_norm`, `drift`; `window`, oldest
    first, of `item_id`, `type`, `event_time`, `event_id`, `title`; `recommendation_id`, `strategy`, `generated_at`, `trigger`;
    `recommendations`, best first, of `rank`, `item_id`, `title`, `score`, `because`. Times are milliseconds since 1970; titles
    are null unless the configured bundle is the one that the vector was made with. A user that is not there ends the
    command with exit code 1.
    """
    settings = operator_settings(config, redis__url=redis_url, model__bundle=bundle)
    from streams.services.users import show_user  # noqa: PLC0415 - `driftline --help` needs no ONNX Runtime
    from streams.store.redis import RedisStore  # noqa: PLC0415

    with closing(RedisStore(settings.redis)) as store:
        found = show_user(settings, store, user)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    console = result_console()
    drift = "none, it is the first" if found.drift is None else f"{found.drift:.4f}"
    console.print(
        table(
            f"User {user}",
            ("", ""),
            [
                ("updated", time_of(found.updated_at)),
                ("model", found.model),
                ("vector", f"{found.vector_dim} numbers, norm {found.vector_norm:.4f}"),
                ("drift", drift),
                ("partition", str(found.partition)),
            ],
        )
    )
    console.print(
        table(
            f"\nWindow ({len(found.window)} events, newest first)".strip(),
            ("time", "type", "item", "title", "event id"),
            [
                (time_of(event.event_time), event.type, event.item_id, event.title, event.event_id)
                for event in reversed(found.window)
            ],
        )
    )
    console.print(
        table(
            f"Recommendations ({found.strategy}, {time_of(found.generated_at)})",
            ("rank", "item", "title", "score", "because"),
            [
                (
                    item.rank,
                    item.item_id,
                    item.title,
                    None if item.score is None else f"{item.score:.4f}",
                    ", ".join(item.because) or None,
                )
                for item in found.recommendations
            ],
            numbers=("rank", "score"),
        )
    )


@app.command()
def export(
    export_format: Annotated[ExportFormat, typer.Option("--format", help="What to write.")] = ExportFormat.JSONL,
    out: Annotated[str, typer.Option("--out", metavar="FILE|-", help="Where to write; - is stdout.")] = "-",
    config: ConfigFile = None,
    redis_url: RedisUrl = None,
) -> None:
    """Write every user, one a line or a row, while everything goes on.

    Fields: `user_id`; `window`, oldest first, of `item_id`, `type`, `event_time` (milliseconds since 1970), `event_id`;
    `vector`; `recommendations` (the whole recommendation); `model`; `updated_at`. A file appears under its name only when
    it is whole. Users that change meanwhile are written as they were before or after.
    """
    settings = operator_settings(config, redis__url=redis_url)
    from streams.services.export import write_jsonl, write_parquet  # noqa: PLC0415 - as above
    from streams.services.users import ExportedUser, each_user  # noqa: PLC0415
    from streams.store.redis import RedisStore  # noqa: PLC0415

    if export_format is ExportFormat.PARQUET and out == "-" and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal: name a file with --out")
    count = 0
    write = write_jsonl if export_format is ExportFormat.JSONL else write_parquet
    with closing(RedisStore(settings.redis)) as store, Counting("users") as counting, _opened(out) as stream:

        def counted() -> Iterator[ExportedUser]:
            nonlocal count
            for user in each_user(store.scan_users()):
                yield user
                count += 1
                if count % 200 == 0:
                    counting.show(count)

        write(counted(), stream)
    note_console().print(f"{count:,} users written to {'stdout' if out == '-' else out}")


@contextmanager
def _opened(out: str) -> Iterator[BinaryIO]:
    if out == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(out)
    beside = path.with_name(f".{path.name}.part")
    try:
        stream = beside.open("wb")
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot be written: {error.strerror}; name a file in a folder of yours"
        ) from error
    try:
        with stream:
            yield stream
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
