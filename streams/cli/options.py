"""Options that several commands share, and the settings that they lead to."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from streams.observe.logs import configure_logging
from streams.settings import Settings, load_settings

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Settings file; default: driftline.toml, if there is one.")
]
BootstrapServers = Annotated[
    str | None, typer.Option("--bootstrap-servers", help="Kafka brokers: host:port, with commas between.")
]
RedisUrl = Annotated[str | None, typer.Option("--redis-url", help="Where Redis is: redis://, rediss:// or unix://.")]
BundlePath = Annotated[Path | None, typer.Option("--bundle", help="Model bundle; default: the demo's.")]
Provider = Annotated[str | None, typer.Option("--provider", help="Where the model runs: auto, cuda or cpu.")]
HttpPort = Annotated[
    int | None, typer.Option("--http-port", help="Port of /livez, /readyz and /metrics; 0 turns them off.")
]


class OutputFormat(StrEnum):
    """How a command prints its result."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="For people (table) or for scripts (json).")]


def settings_from(config: Path | None, **flags: object) -> Settings:
    """The settings, with flags laid over them.

    Args:
        config: A settings file to read instead of driftline.toml.
        flags: Setting by name, with ``__`` for the dot: ``kafka__bootstrap_servers``. None means not given.

    Raises:
        SettingsError: A setting is unknown or bad.
    """
    return load_settings({name.replace("__", "."): value for name, value in flags.items()}, toml=config)


def operator_settings(config: Path | None, level: Literal["warning", "error"] = "error", **flags: object) -> Settings:
    """As `settings_from`, for a command that a person runs: what clients log stays out of the way of its result.

    Args:
        level: The least that is logged. A command that ends by itself says in its error what went wrong.
    """
    configure_logging("console", level)
    return settings_from(config, **flags)
