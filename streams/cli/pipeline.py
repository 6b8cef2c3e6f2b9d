"""`driftline status` and `driftline doctor`."""

from contextlib import closing
from typing import Final

import typer
from rich.text import Text

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
from streams.cli.results import print_json, result_console, table, visible

_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(status)
    app.command()(doctor)


def status(
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    bundle: BundlePath = None,
) -> None:
    """Show how far the pipeline is.

    As JSON:

    - `total_lag`: events of raw topics plus frames of `interactions` still to be done; 0 exactly when every event produced
      before is in Redis or dead-lettered
    - `raw` (a list, in events) and `interactions` (in frames): `topic`, `partitions`, `log_end`, `applied`, `lag`, `made_anew`
      (deleted and made again: see `topics adopt`), `offsets` (a list of `partition`, `log_start`, `log_end`, `applied`, `lag`)
    - `generation`: that is served; `watermarks`: partition of `interactions` to the offset of the frame applied last, the one
      before the log's first while none is; null: no worker has had the partition yet
    - `store_partitions`: null while the store is empty
    - `recommendations`, `dead_letters`: `topic`, `partitions`, `log_end`
    - `model`: `name`, `version`, `error` of the bundle that is served
    - `workers`: `ingest` and `evolve`, lists of `client_id`, `host`, `partitions` by topic; null where Kafka does not tell
    """
    settings = operator_settings(
        config, kafka__bootstrap_servers=bootstrap_servers, redis__url=redis_url, model__bundle=bundle
    )
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - `driftline --help` needs no client library
    from streams.services.status import pipeline_status  # noqa: PLC0415
    from streams.store.redis import RedisGenerations, RedisStore  # noqa: PLC0415

    with closing(RedisGenerations(settings.redis)) as generations:
        serving = generations.serving()
        record = generations.find(serving.generation)
    store = RedisStore(settings.redis, serving.generation)
    with LogAdmin(settings.kafka, settings.ingest.group) as admin, closing(store):
        found = pipeline_status(settings, admin, store, serving, record)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    console = result_console()
    steps = [("events", step) for step in found.raw] + [("frames", found.interactions)]
    console.print(
        table(
            None,
            ("topic", "partitions", "log end", "applied", "lag", "in", ""),
            [
                (
                    step.topic, step.partitions, step.log_end, step.applied, step.lag, unit,
                    "deleted and made anew: see `driftline topics adopt`" if step.made_anew else "",
                )
                for unit, step in steps
            ]
            + [
                (each.topic, each.partitions, each.log_end, None, None, unit, "")
                for unit, each in (("recommendations", found.recommendations), ("dead letters", found.dead_letters))
            ],
            numbers=("partitions", "log end", "applied", "lag"),
        )
    )  # fmt: skip
    console.print(
        visible(
            f"Watermarks of generation {found.generation}: "
            + ("  ".join(f"{p}:{'–' if n is None else n}" for p, n in found.watermarks.items()))
        )
    )
    model = found.model
    console.print(visible(f"Model: {model.error or f'{model.name} {model.version}'}"))
    if found.workers is None:
        console.print("Workers: this Kafka does not tell")
    else:
        for name, workers in (("ingest", found.workers.ingest), ("evolve", found.workers.evolve)):
            console.print(visible(f"Workers of {name}: {len(workers) or 'none'}"))
            for worker in workers:
                parts = ", ".join(f"{topic} {numbers}" for topic, numbers in worker.partitions.items())
                console.print(visible(f"  {worker.client_id} on {worker.host}: {parts or 'nothing assigned'}"))
    console.print(f"Total lag: {found.total_lag:,}", style="bold green" if found.total_lag == 0 else "bold yellow")


def doctor(
    output: Output = OutputFormat.TABLE,
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    bundle: BundlePath = None,
    provider: Provider = None,
) -> None:
    """Check settings, Kafka, topics, Redis, the model and what it runs on, and say how to mend each.

    As JSON: `ok`, and `checks`, a list of `name`, `verdict` (ok, warning, failed, skipped), `found`, `mend`. The exit code
    is 1 if a check failed.
    """
    from streams.services.doctor import diagnose  # noqa: PLC0415 - as above

    found = diagnose(
        lambda: operator_settings(
            config,
            kafka__bootstrap_servers=bootstrap_servers,
            redis__url=redis_url,
            model__bundle=bundle,
            model__provider=provider,
        )
    )
    if output is OutputFormat.JSON:
        print_json(found)
    else:
        rows = [
            (Text(check.verdict, _STYLES[check.verdict]), check.name, line)
            for check in found.checks
            for line in (check.found, *([f"→ {check.mend}"] if check.mend else ()))
        ]
        result_console().print(table(None, ("verdict", "check", "found"), rows))
    if not found.ok:
        raise typer.Exit(1)
