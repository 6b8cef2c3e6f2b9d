"""`driftline ingest`, `driftline evolve`, and `driftline up`, which runs one of each."""

import asyncio
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated

import structlog
import typer
from prometheus_client import CollectorRegistry

from streams.cli.options import BootstrapServers, BundlePath, ConfigFile, HttpPort, Provider, RedisUrl, settings_from
from streams.observe.health import Health
from streams.observe.http import HttpServer, serve_http
from streams.observe.logs import configure_logging
from streams.settings import Settings

_logger = structlog.get_logger("driftline.up")

INGEST_PORT = 8010
EVOLVE_PORT = 8011


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(ingest)
    app.command()(evolve)
    app.command()(up)


def ingest(config: ConfigFile = None, bootstrap_servers: BootstrapServers = None, http_port: HttpPort = None) -> None:
    """Read raw events, check them, and pack them into frames. Run as many as there are raw partitions."""
    settings = settings_from(config, kafka__bootstrap_servers=bootstrap_servers, http__port=http_port)
    configure_logging(settings.log.format, settings.log.level, "ingest")
    # Imported here so that `driftline --help` needs neither ONNX Runtime nor Faust.
    from streams.observe.metrics import IngestMetrics, new_registry  # noqa: PLC0415
    from streams.services.ingest import Ingest  # noqa: PLC0415
    from streams.services.process import settle_process  # noqa: PLC0415

    registry = new_registry()
    health = Health(settings.evolve.stall_s)
    with _http(settings, INGEST_PORT, health, registry):
        service = Ingest(settings, IngestMetrics.on(registry), health)
        settle_process(threads=1)

        def stop(_: int, __: FrameType | None) -> None:
            service.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        service.run()


def evolve(
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    bundle: BundlePath = None,
    provider: Provider = None,
    http_port: HttpPort = None,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Redis is empty and should be: apply the whole log again, from its beginning."),
    ] = False,
) -> None:
    """Keep every user's vector and recommendations fresh. Run as many as `interactions` has partitions."""
    settings = settings_from(
        config,
        kafka__bootstrap_servers=bootstrap_servers,
        redis__url=redis_url,
        model__bundle=bundle,
        model__provider=provider,
        http__port=http_port,
    )
    configure_logging(settings.log.format, settings.log.level, "evolve")
    from streams.observe.metrics import EvolveMetrics, new_registry  # noqa: PLC0415 - as above
    from streams.services.evolve import Evolve  # noqa: PLC0415
    from streams.services.parts import open_parts  # noqa: PLC0415
    from streams.services.process import settle_process  # noqa: PLC0415

    registry = new_registry()
    health = Health(settings.evolve.stall_s)
    with _http(settings, EVOLVE_PORT, health, registry):
        service = Evolve(settings, open_parts(settings), EvolveMetrics.on(registry), health, rebuild=rebuild)
        settle_process(settings.model.threads)
        asyncio.run(service.run())


def up(
    config: ConfigFile = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    bundle: BundlePath = None,
    provider: Provider = None,
) -> None:
    """Run one ingest and one evolve on this machine, until Ctrl-C or until one of them ends; makes missing topics."""
    flags = {
        "--config": config,
        "--bootstrap-servers": bootstrap_servers,
        "--redis-url": redis_url,
        "--bundle": bundle,
        "--provider": provider,
    }
    settings = settings_from(
        config,
        kafka__bootstrap_servers=bootstrap_servers,
        redis__url=redis_url,
        model__bundle=bundle,
        model__provider=provider,
    )
    configure_logging(settings.log.format, settings.log.level, "up")
    from streams.log.admin import LogAdmin  # noqa: PLC0415 - as above
    from streams.services.topics import create_missing_topics  # noqa: PLC0415

    with LogAdmin(settings.kafka) as admin:
        for topic in create_missing_topics(settings, admin):
            if topic.created:
                _logger.info("topic created", topic=topic.topic, partitions=topic.partitions)
    of_ingest = ("--config", "--bootstrap-servers")
    sys.exit(
        run_services(
            {
                "ingest": _arguments({name: flags[name] for name in of_ingest}),
                "evolve": _arguments(flags),
            }
        )
    )


def run_services(arguments: dict[str, list[str]], environment: dict[str, str] | None = None) -> int:
    """Run services as children until a signal or until one ends; then stop the others.

    Args:
        arguments: Flags by the name of the service.
        environment: Of the children; None: this process's.

    Returns:
        0 after a signal; else the exit code of the service that ended first.
    """
    # Set by a signal or by the first child that ends, whichever comes first.
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    children = {
        name: subprocess.Popen([sys.executable, "-m", "streams.cli", name, *flags], env=environment)
        for name, flags in arguments.items()
    }
    for child in children.values():
        threading.Thread(target=_set_at_end, args=(child, over), daemon=True).start()
    over.wait()
    ended = {name: child.returncode for name, child in children.items() if child.poll() is not None}
    for child in children.values():
        child.terminate()
    for child in children.values():
        child.wait()
    for name, code in ended.items():
        _logger.error("a service ended, so the others were stopped", name=name, exit_code=code)
    return next(iter(ended.values()), 0)


def _set_at_end(child: subprocess.Popen[bytes], over: threading.Event) -> None:
    child.wait()
    over.set()


def _arguments(flags: dict[str, Path | str | None]) -> list[str]:
    return [part for name, value in flags.items() if value is not None for part in (name, str(value))]


def _http(
    settings: Settings, default_port: int, health: Health, registry: CollectorRegistry
) -> AbstractContextManager[HttpServer | None]:
    server = serve_http(
        settings.http.host, settings.http.port, default_port=default_port, health=health, registry=registry
    )
    return nullcontext() if server is None else server
