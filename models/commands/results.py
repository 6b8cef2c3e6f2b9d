"""How commands print what they found."""

import json
from enum import StrEnum

import typer
from rich.console import Console
from rich.table import Table


class Output(StrEnum):
    """How a command prints its result."""

    table = "table"
    json = "json"


def print_result(result: dict[str, str | int | float], output: Output) -> None:
    """Print a command's result to standard output, as a small table or as one JSON object."""
    if output is Output.json:
        typer.echo(json.dumps(result))
        return
    table = Table(show_header=False)
    for name, value in result.items():
        # As many digits as tell two models apart; a whole number as one.
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) and value % 1 else f"{value}")
    Console().print(table)
