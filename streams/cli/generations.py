"""`driftline generations list`, `compare`, `activate` and `drop`."""

from typing import TYPE_CHECKING, Annotated

import typer

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
from streams.cli.results import Counting, note_console, print_json, result_console, table, time_of, visible

if TYPE_CHECKING:
    from rich.console import Console

    from streams.services.generations import Comparison

app = typer.Typer(
    name="generations",
    help="Rows side by side: the live ones, and those that a backfill filled.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="GENERATION", help="Its name, as `list` has it.")]
Users = Annotated[int, typer.Option("--users", min=1, help="Users of each side to look at, at most.")]


@app.command("list")
def list_(
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
) -> None:
    """Show the generations: which is served, what model each is of, and what each lacks.

    As JSON: a list, oldest first, of `name`, `state` (live, previous: served before, filling: a backfill is not done, or
    ready), `model_name`, `model` (version), `origin` (live or backfill), `created_at` (milliseconds since 1970), `lag` (frames
    of `interactions` that it lacks; null: a partition was never begun), `unencoded` (users without a vector yet), `claimed`
    (a backfill is at it) and `bundle`.
    """
    settings = operator_settings(config, kafka__bootstrap_servers=bootstrap_servers, redis__url=redis_url)
    from streams.services.generations import list_generations  # noqa: PLC0415 - `driftline --help` needs no client library

    found = list_generations(settings)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    if not found:
        note_console().print("no generation yet: evolve begins one, or `driftline backfill`")
        return
    result_console().print(
        table(
            None,
            ("generation", "state", "model", "version", "begun by", "begun", "lag in frames", "to encode"),
            [
                (
                    each.name,
                    f"{each.state}, being written" if each.claimed else each.state,
                    each.model_name,
                    each.model,
                    each.origin,
                    time_of(each.created_at),
                    each.lag,
                    each.unencoded,
                )
                for each in found
            ],
            numbers=("lag in frames", "to encode"),
        )
    )


@app.command()
def compare(
    generation: Name,
    to: Annotated[
        str | None, typer.Option("--to", metavar="GENERATION", help="With which; default: the one that is served.")
    ] = None,
    users: Users = 10_000,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Users to show side by side.")] = 5,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
) -> None:
    """Compare a generation with the one that is served, user by user.

    Users with events that are still to come in one of the two are counted and left out, unless it lacks over 10,000 frames.

    As JSON: `here` (the one compared with), `there`, `users_here` and `users_there` (looked at), `moving` (of those, left out;
    null: nobody, for too many frames), `missing_there` and `missing_here` (users without a row on the other side),
    `compared` (in both), `differing_windows`, `distances` of vectors (cosine, 0 to 2: `p50`, `p99`, `max`; null where they
    cannot be compared), `list_overlap` (mean share of items in common), `samples`: `user_id`, `same_window`, `distance`, and
    the items listed `here` and `there`, best first.
    """
    settings = operator_settings(config, kafka__bootstrap_servers=bootstrap_servers, redis__url=redis_url)
    from streams.services.generations import compare_generations  # noqa: PLC0415 - as above

    found = compare_generations(settings, to, generation, users, samples)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    _print_comparison(result_console(), found)


@app.command()
def activate(
    generation: Name,
    max_lag: Annotated[
        int, typer.Option("--max-lag", min=0, help="Frames that it may lack: live workers read them before they go on.")
    ] = 10_000,
    max_missing: Annotated[
        float, typer.Option("--max-missing", min=0, max=1, help="Share of the live users that it may lack.")
    ] = 0.01,
    max_differing: Annotated[
        float, typer.Option("--max-differing", min=0, max=1, help="Share of users whose window may differ.")
    ] = 0.01,
    min_overlap: Annotated[
        float, typer.Option("--min-overlap", min=0, max=1, help="Mean share of items that lists must have in common.")
    ] = 0.0,
    users: Users = 10_000,
    ignore_limits: Annotated[
        bool, typer.Option("--ignore-limits", help="Activate it even if it does not keep these limits.")
    ] = False,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    bundle: BundlePath = None,
    provider: Provider = None,
) -> None:
    """Serve a generation from now on. To go back, activate the one before.

    Readers read it at once. Live workers load its model, finish the batch they are in, read what the generation lacks again,
    and go on from there: no event is lost and none counts twice. A generation that is not filled whole, or whose model
    cannot be loaded here, is refused, whatever the flags; one that does not keep the limits ends the command with exit code 3.
    One that was served before lacks what came since: `driftline backfill --generation NAME --execute` reads it first.

    As JSON: `serving` (`generation`, `model`, `previous_generation`, `previous_model`, `since_ms`), `lag` (frames that live
    workers read again), `comparison` (as `compare` gives it, without samples; null where nothing was live) and `ignored`
    (limits that were not kept).
    """
    settings = operator_settings(
        config,
        kafka__bootstrap_servers=bootstrap_servers,
        redis__url=redis_url,
        model__bundle=bundle,
        model__provider=provider,
    )
    from streams.services.generations import Limits  # noqa: PLC0415 - as above
    from streams.services.generations import activate as activate_generation  # noqa: PLC0415

    limits = Limits(max_lag, max_missing, max_differing, min_overlap)
    found = activate_generation(settings, generation, limits, users, ignore_limits=ignore_limits)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    console = result_console()
    if found.comparison is not None:
        _print_comparison(console, found.comparison)
    for each in found.ignored:
        console.print(visible(f"Ignored: {each}"))
    serving = found.serving
    console.print(visible(f"Generation {serving.generation} is served, with model version {serving.model}"))
    if found.comparison is not None:
        console.print(visible(f"Back: driftline generations activate {serving.previous_generation}"))


@app.command()
def drop(
    generation: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    redis_url: RedisUrl = None,
) -> None:
    """Remove a generation's rows for good, in small steps that hold nobody up. The one that is served is refused.

    As JSON: `generation` and `keys` (removed).
    """
    settings = operator_settings(config, redis__url=redis_url)
    from streams.services.generations import drop as drop_generation  # noqa: PLC0415 - as above

    if not yes:
        typer.confirm(f"Remove every row of generation {generation}?", abort=True, err=True)
    keys = 0
    with Counting("keys removed") as counting:
        for removed in drop_generation(settings, generation):
            keys += removed
            counting.show(keys)
    if output is OutputFormat.JSON:
        print_json({"generation": generation, "keys": keys})
    else:
        result_console().print(visible(f"Generation {generation} is gone: {keys:,} keys removed"))


def _print_comparison(console: "Console", found: "Comparison") -> None:
    distances, overlap = found.distances, found.list_overlap
    console.print(
        table(
            None,
            ("", found.here, found.there),
            [
                ("users looked at", found.users_here, found.users_there),
                ("missing on the other side", found.missing_there, found.missing_here),
            ],
            numbers=(found.here, found.there),
        )
    )
    if found.moving is None:
        console.print("One of the two lacks more frames than were looked into: users in them are compared as they are")
    else:
        console.print(f"Left out, for events that are still to come in one of the two: {found.moving:,} users")
    console.print(f"Users on both sides: {found.compared:,}, of these {found.differing_windows:,} with another window")
    if distances is None:
        console.print("Vectors: not to be compared")
    else:
        console.print(
            f"Distance of vectors: p50 {distances.p50:.4f}, p99 {distances.p99:.4f}, greatest {distances.max:.4f}"
        )
    if overlap is not None:
        console.print(f"Items that two lists have in common: {overlap:.1%}")
    if found.samples:
        console.print(
            table(
                None,
                ("user", "window", "distance", f"list in {found.here}", f"list in {found.there}"),
                [
                    (
                        sample.user_id,
                        "same" if sample.same_window else "another",
                        None if sample.distance is None else f"{sample.distance:.4f}",
                        ", ".join(sample.here),
                        ", ".join(sample.there),
                    )
                    for sample in found.samples
                ],
                numbers=("distance",),
            )
        )
