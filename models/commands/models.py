"""`driftline models`: the families and their settings."""

from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from models.commands.results import Output
from models.errors import MissingExtra


def models(
    output: Annotated[Output, typer.Option(help="How to print the list.")] = Output.table,
) -> None:
    """List the model families that `driftline train` knows, with the settings of each and their defaults."""
    try:
        from models.networks import NAMES, find_family

        families = [find_family(name) for name in NAMES]
    except ModuleNotFoundError as error:
        raise MissingExtra("train", error.name or "torch") from error

    settings = {
        family.name: {
            field.name: field.default for field in msgspec.structs.fields(family.config) if not field.required
        }
        for family in families
    }
    if output is Output.json:
        listed = [
            {"name": family.name, "summary": family.summary, "settings": settings[family.name]} for family in families
        ]
        typer.echo(msgspec.json.encode(listed).decode())
        return
    table = Table("Model", "What it is", "Settings, as --set NAME=VALUE")
    for family in families:
        shown = " ".join(f"{name}={value}" for name, value in settings[family.name].items())
        table.add_row(family.name, family.summary, shown)
    Console().print(table)
