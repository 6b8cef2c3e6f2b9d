"""`driftline model publish`, `list`, `activate` and `rollback`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.options import ConfigFile, Output, OutputFormat, Provider, RedisUrl, operator_settings
from streams.cli.results import note_console, print_json, result_console, table, visible

if TYPE_CHECKING:
    from streams.contracts.generation import Serving

app = typer.Typer(
    name="model", help="Change the model while everything runs (see `models` for the families).", no_args_is_help=True
)

Registry = Annotated[
    Path | None, typer.Option("--registry", help="Folder of the published versions; default: model.registry.")
]


@app.command()
def publish(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that `driftline export` wrote.")],
    registry: Registry = None,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    provider: Provider = None,
) -> None:
    """Copy a bundle into the registry as a version, once it works here: hashes, shapes, golden sample.

    As JSON: `version`, `name`, `path`.
    """
    settings = operator_settings(config, level="warning", model__registry=registry, model__provider=provider)
    from streams.services.registry import publish as publish_bundle  # noqa: PLC0415 - `driftline --help` needs no ONNX

    found = publish_bundle(settings, bundle)
    if output is OutputFormat.JSON:
        print_json({"version": found.config.version, "name": found.config.name, "path": str(found.path)})
    else:
        result_console().print(visible(f"{found.config.name} {found.config.version} is in {found.path}"))


@app.command("list")
def list_(
    registry: Registry = None,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    redis_url: RedisUrl = None,
) -> None:
    """Show the published versions, the newest first, and what can be done with each.

    As JSON: a list of `version`, `name`, `created_at` (ISO 8601), `fits` (served; in place: `model activate` serves it;
    backfill: its vectors are of another space, so it needs a generation of its own; broken), `path`, `metrics`, `error`.
    """
    settings = operator_settings(config, redis__url=redis_url, model__registry=registry)
    from streams.services.registry import list_published  # noqa: PLC0415 - as above

    found = list_published(settings)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    if not found:
        note_console().print(
            visible(f"no version in {settings.model.registry} yet: `driftline model publish` adds one")
        )
        return
    result_console().print(
        table(
            None,
            ("version", "model", "exported", "fits", "metrics"),
            [
                (
                    each.version,
                    each.name,
                    each.created_at,
                    each.error or each.fits,
                    ", ".join(f"{name} {value:.4g}" for name, value in each.metrics.items()),
                )
                for each in found
            ],
        )
    )


@app.command()
def activate(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="As `list` has it.")],
    registry: Registry = None,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    redis_url: RedisUrl = None,
    provider: Provider = None,
) -> None:
    """Serve a published version in the place of the one that is served, without stopping anything.

    It must have the same items, item vectors and window rule: readers then never mix vectors that cannot be compared. Any
    other model goes through a generation of its own, and this says how. Workers load it beside, replay its golden sample and
    change over between two batches; rows of users without new events follow in the background
    (`evolve.sweep_users_per_second`).

    As JSON: `generation`, `model`, `previous_generation`, `previous_model`, `since_ms`.
    """
    settings = operator_settings(
        config, level="warning", redis__url=redis_url, model__registry=registry, model__provider=provider
    )
    from streams.services.registry import activate_version  # noqa: PLC0415 - as above

    _print_serving(activate_version(settings, version), output)


@app.command()
def rollback(
    registry: Registry = None,
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    redis_url: RedisUrl = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Where workers have it; default: model.bundle.")
    ] = None,
    provider: Provider = None,
) -> None:
    """Serve the version that was served before. As JSON: as `activate`."""
    settings = operator_settings(
        config,
        redis__url=redis_url,
        model__registry=registry,
        model__bundle=bundle,
        model__provider=provider,
    )
    from streams.services.registry import roll_back  # noqa: PLC0415 - as above

    _print_serving(roll_back(settings), output)


def _print_serving(serving: "Serving", output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(serving)
        return
    console = result_console()
    console.print(visible(f"Version {serving.model} is served, in generation {serving.generation}"))
    console.print(visible(f"Before: {serving.previous_model}; `driftline model rollback` goes back"))
