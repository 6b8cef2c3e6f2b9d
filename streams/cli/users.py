"""`driftline users show`, `driftline users explain` and `driftline users export`."""

import sys
from collections.abc import Iterator
from contextlib import closing
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from streams.cli.options import BundlePath, ConfigFile, Output, OutputFormat, Provider, RedisUrl, operator_settings
from streams.cli.output_file import written_whole
from streams.cli.results import Counting, duration_of, note_console, print_json, result_console, table, time_of, visible
from streams.contracts.pseudonym import Pseudonyms
from streams.errors import UsageError

if TYPE_CHECKING:
    from streams.services.users import ExplainedItem, ExplainedUser

app = typer.Typer(name="users", help="Look at users, or take all of them out.", no_args_is_help=True)


class ExportFormat(StrEnum):
    """What `driftline users export` writes."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@app.command()
def show(
    user: Annotated[str, typer.Argument(help="The user's id, as apps send it.")],
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
    from streams.services.users import show_user  # noqa: PLC0415 - `driftline --help` needs no NumPy
    from streams.store.redis import open_served_store  # noqa: PLC0415

    with closing(open_served_store(settings.redis)) as store:
        found = show_user(settings, store, Pseudonyms(settings.ingest.pseudonym_key()).of(user))
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
def explain(
    user: Annotated[str, typer.Argument(help="The user's id, as apps send it.")],
    top: Annotated[
        int,
        typer.Option("--top", min=1, help="Events to show of those that raised an item, and of those that lowered it."),
    ] = 3,
    item: Annotated[
        str | None, typer.Option("--item", help="Explain this item, recommended or not, in the place of the list.")
    ] = None,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    redis_url: RedisUrl = None,
    bundle: BundlePath = None,
    provider: Provider = None,
) -> None:
    """Show which events of a user's window raised or lowered each recommended item.

    An event's contribution is by how much the item's score would be lower had the event never happened: exact, for the
    window is encoded again without it. Contributions do not add up to the score.

    As JSON, with every event: `user_id`, `model` (version), `recommendation_id`, `strategy`; `window`, oldest first, of
    `item_id`, `type`, `event_time` (milliseconds since 1970), `event_id`, `title`, `age_s` (seconds before the newest event
    that the model read; null: it did not read this one); `items`, best first, of `rank` (null: not in the list),
    `item_id`, `title`, `score`, `contributions` (one an event, in the order of `window`). Where the list is the popular
    items, scores are null and contributions 0. A user that is not there ends the command with exit code 1.
    """
    settings = operator_settings(config, redis__url=redis_url, model__bundle=bundle, model__provider=provider)
    from streams.services.users import explain_user  # noqa: PLC0415 - as above
    from streams.store.redis import open_served_store  # noqa: PLC0415

    with closing(open_served_store(settings.redis)) as store:
        found = explain_user(settings, store, Pseudonyms(settings.ingest.pseudonym_key()).of(user), item)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    console = result_console()
    for part in _explanation(found, top):
        console.print(part)


def _explanation(found: "ExplainedUser", top: int) -> Iterator[Table | Text]:
    unread = sum(event.age_s is None for event in found.window)
    if unread == len(found.window):
        yield visible(
            f"The model {found.model} knows none of the {unread:,} items in the window of {found.user_id}, so the list is "
            "the popular items: no event raised or lowered any of them."
        )
        return
    yield table(
        f"What moved each score: user {found.user_id}, model {found.model}",
        ("rank", "item", "title", "score", "by", "event", "of", "type", "before the newest"),
        [row for item in found.items for row in _because(found, item, top)],
        numbers=("rank", "score", "by", "before the newest"),
    )
    if unread:
        yield Text(
            f"{unread:,} of the {len(found.window):,} events of the window did nothing: the model does not know their items, "
            "or does not look back so far."
        )


def _because(found: "ExplainedUser", item: "ExplainedItem", top: int) -> Iterator[tuple[object, ...]]:
    """The lines of one item: what raised it, most first, then what lowered it, least first."""
    ordered = sorted(zip(item.contributions, found.window, strict=True), key=lambda pair: -pair[0])
    raised = [(by, event) for by, event in ordered if by > 0][:top]
    lowered = [(by, event) for by, event in ordered if by < 0][-top:]
    score = None if item.score is None else f"{item.score:.4f}"
    named: tuple[object, ...] = (item.rank, item.item_id, item.title, score)
    if not raised and not lowered:
        yield (*named, *[None] * 5)
    for by, event in raised + lowered:
        change = Text(f"{by:+.4f}", "green" if by > 0 else "red")
        yield (*named, change, event.item_id, event.title, event.type, duration_of(event.age_s or 0.0))
        named = ("", "", "", "")


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
    from streams.store.redis import open_served_store  # noqa: PLC0415

    if export_format is ExportFormat.PARQUET and out == "-" and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal: name a file with --out")
    count = 0
    write = write_jsonl if export_format is ExportFormat.JSONL else write_parquet
    with (
        closing(open_served_store(settings.redis)) as store,
        Counting("users") as counting,
        written_whole(out) as stream,
    ):

        def counted() -> Iterator[ExportedUser]:
            nonlocal count
            for user in each_user(store.scan_users()):
                yield user
                count += 1
                if count % 200 == 0:
                    counting.show(count)

        write(counted(), stream)
    note_console().print(f"{count:,} users written to {'stdout' if out == '-' else out}")
